"""A folder store's multipart uploads: parts laid one after another into a file, which becomes the object.

    <uploads>/<id>/key        what it is an upload of; made with it, so its time is the upload's
    <uploads>/<id>/parts-…    one file for each process that sends parts, in the order in which they arrived

A part's ETag says where it lies, so any process can complete the upload. Where one file holds all parts in order, it is
renamed, and no byte is written twice; otherwise they are copied together first, within the kernel.
"""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator, Sequence

from snapstore.errors import StorageError
from snapstore.objectstore import Chunks, ObjectInfo, Part, UploadInfo
from snapstore.storage import files


class LocalUploads:
    """Runs in threads, but for `reserve`."""

    def __init__(self, folder: str, tmp: str, publish: Callable[[int, str, str], ObjectInfo]) -> None:
        """``publish`` makes an open file, given its path, the object of a key."""
        self._folder = folder
        self._tmp = tmp
        self._publish = publish
        self._log = f"parts-{uuid.uuid4().hex}"
        self._ends: dict[str, int] = {}
        """Per upload: where in our file of parts the next one goes."""

    def create(self, key: str) -> str:
        upload_id = uuid.uuid4().hex
        aside = os.path.join(self._tmp, upload_id)
        try:
            os.mkdir(aside, 0o700)
            with open(os.path.join(aside, "key"), "x", encoding="utf-8", opener=files.private) as file:
                file.write(key)
            os.rename(aside, self._path(key, upload_id))
        except BaseException:
            files.remove(aside)
            raise
        return upload_id

    def reserve(self, upload_id: str, size: int) -> int:
        """Where a part goes; asked in the order in which parts are sent, so that they lie in that order."""
        start = self._ends.get(upload_id, 0)
        self._ends[upload_id] = start + size
        return start

    def write(self, key: str, upload_id: str, number: int, body: Chunks, start: int) -> Part:
        size = 0
        with self._log_of(key, upload_id) as fd:
            for chunk in body:
                files.write_all(fd, chunk, start + size)
                size += len(chunk)
        return self._part(upload_id, number, start, size)

    def copy(self, key: str, upload_id: str, number: int, source: int, start: int, size: int, place: int) -> Part:
        """A range of the file ``source``, which holds it."""
        with self._log_of(key, upload_id) as fd:
            files.copy_range(source, fd, start, place, size)
        return self._part(upload_id, number, place, size)

    def _part(self, upload_id: str, number: int, start: int, size: int) -> Part:
        return Part(number, f"{self._log_name(upload_id)}:{start}", size)

    def _log_name(self, upload_id: str) -> str:
        # With the upload's id, so that a part of one upload is unknown to every other.
        return f"{self._log}-{upload_id}"

    @contextlib.contextmanager
    def _log_of(self, key: str, upload_id: str) -> Iterator[int]:
        path = os.path.join(self._path(key, upload_id), self._log_name(upload_id))
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            self._ends.pop(upload_id, None)
            raise _no_upload(key, upload_id) from None
        try:
            yield fd
        finally:
            os.close(fd)

    def complete(self, key: str, upload_id: str, parts: Sequence[Part]) -> ObjectInfo:
        folder = self._path(key, upload_id)
        with self._claimed(key, upload_id, folder):
            info = self._assemble(key, folder, sorted(parts, key=lambda part: part.number))
            self.forget(key, upload_id)
        return info

    @contextlib.contextmanager
    def _claimed(self, key: str, upload_id: str, folder: str) -> Iterator[None]:
        """Two that complete one upload at once would write to one file: the second finds it ended."""
        try:
            fd = os.open(os.path.join(folder, "key"), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _no_upload(key, upload_id) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not os.path.isdir(folder):
                raise _no_upload(key, upload_id)
            yield
        finally:
            os.close(fd)

    def _assemble(self, key: str, folder: str, parts: Sequence[Part]) -> ObjectInfo:
        places = [_place(folder, key, part) for part in parts]
        path = os.path.join(folder, "content")
        if _in_order(places):
            path = places[0][0]
        else:
            with open(path, "wb", opener=files.private) as assembled:
                end = 0
                for log, start, size in places:
                    with open(log, "rb") as file:
                        files.copy_range(file.fileno(), assembled.fileno(), start, end, size)
                    end += size
        with open(path, "rb+") as file:
            file.truncate(sum(size for _, _, size in places))
            return self._publish(file.fileno(), path, key)

    def forget(self, key: str, upload_id: str) -> None:
        """Drop an upload, if it is (still) there."""
        self._ends.pop(upload_id, None)
        if upload_id.isalnum():  # else it never was one
            files.remove(self._path(key, upload_id))

    def list(self) -> Sequence[UploadInfo]:
        uploads = []
        for upload_id in sorted(os.listdir(self._folder)):
            path = os.path.join(self._folder, upload_id, "key")
            # Completed or aborted since the folder was read.
            with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
                uploads.append(UploadInfo(file.read(), upload_id, os.fstat(file.fileno()).st_mtime))
        return uploads

    def _path(self, key: str, upload_id: str) -> str:
        if not upload_id.isalnum():
            raise _no_upload(key, upload_id)
        return os.path.join(self._folder, upload_id)


def _place(folder: str, key: str, part: Part) -> tuple[str, int, int]:
    """File, offset and size of a part."""
    log, _, start = part.etag.partition(":")
    path = os.path.join(folder, os.path.basename(log))
    try:
        if os.path.getsize(path) >= int(start) + part.size:
            return path, int(start), part.size
    except (OSError, ValueError):
        pass  # falls through to the one message
    raise StorageError(f"part {part.number} of the upload of {key!r} is not there", key)


def _in_order(places: Sequence[tuple[str, int, int]]) -> bool:
    """Whether the parts lie in one file, one after another from its beginning, so that this file is the object."""
    end = 0
    for log, start, size in places:
        if log != places[0][0] or start != end:
            return False
        end += size
    return bool(places)


def _no_upload(key: str, upload_id: str) -> StorageError:
    return StorageError(f"no upload {upload_id!r} of {key!r}: it was completed or aborted", key)
