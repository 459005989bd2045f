"""A folder as an object store, with the promises of a bucket: the embedded default.

    <root>/<key>                     an object; slashes in a key are folders
    <root>/.snapstore/lock           held (flock) for the instant in which an object appears, changes or goes
    <root>/.snapstore/tmp/           bodies that are being written
    <root>/.snapstore/uploads/<id>/  multipart uploads that are neither completed nor aborted

The one idea: a body is written aside, synced, and then renamed to its key under the lock. An upload's parts are laid
one after another into a single file in the order in which they arrive, so that completing an upload whose parts came in
order is a rename, and no byte is written twice.

ETags are made of modification time (set by us, in nanoseconds), size and inode: free to read in a listing, and new with
every write, since every write makes a new file.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import ParamSpec, TypeVar

from snapstore.aio import Workers
from snapstore.errors import InvalidInput, NotAStore, ObjectNotFound, PreconditionFailed, StorageError, StorageFull
from snapstore.storage import files
from snapstore.storage.base import Body, Chunks, ObjectInfo, Part, UploadInfo, check_key

P = ParamSpec("P")
T = TypeVar("T")

_OURS = ".snapstore"
_PAGE = 1000
_STREAM = 1 << 20
_STALE_SECONDS = 24 * 3600
_THREADS = 8


class LocalStore:
    """Objects as files below ``root``; keeps `ObjectStore`'s contract for any number of processes at once."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.path.abspath(root)
        self._tmp = os.path.join(self._root, _OURS, "tmp")
        self._uploads = os.path.join(self._root, _OURS, "uploads")
        self._workers = Workers(_THREADS, "folder")
        self._log = f"parts-{uuid.uuid4().hex}"
        self._log_ends: dict[str, int] = {}
        """Per upload: where in our file of parts the next one goes."""

    @property
    def url(self) -> str:
        return Path(self._root).as_uri()

    async def open(self) -> None:
        """Make the folder if it is missing. NotAStore where it holds something else."""
        await self._run(self._open)

    def _open(self) -> None:
        if not os.path.isdir(os.path.join(self._root, _OURS)):
            self._check_adoptable()
        for folder in (self._tmp, self._uploads):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        self._remove_stale()

    def _check_adoptable(self) -> None:
        """An empty folder becomes a store, and so does the copy of a bucket; anything else is somebody's."""
        try:
            names = sorted(os.listdir(self._root))
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise NotAStore(f"{self._root!r} is a file: give a folder to keep snapshots in") from None
        if names and "_metadata" not in names:
            raise NotAStore(
                f"{self._root!r} is not a snapstore: it holds other files ({names[0]!r}, …). Give an empty or a new"
                " folder to keep snapshots in"
            )

    def _remove_stale(self) -> None:
        """Bodies that a crash left half-written; nobody writes one for a day."""
        limit = time.time() - _STALE_SECONDS
        for entry in os.scandir(self._tmp):
            # Another process may be removing the same ones.
            with contextlib.suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < limit:
                    files.remove(entry.path)

    async def aclose(self) -> None:
        self._workers.close()

    async def put(
        self, key: str, body: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> ObjectInfo:
        return await self._run(self._put, key, body, if_none_match, if_match)

    def _put(self, key: str, body: bytes, if_none_match: bool, if_match: str | None) -> ObjectInfo:
        self._path(key)
        aside = os.path.join(self._tmp, uuid.uuid4().hex)
        try:
            with open(aside, "xb", opener=files.private) as file:
                file.write(body)
                file.flush()
                return self._publish(file.fileno(), aside, key, if_none_match, if_match)
        except BaseException:
            files.remove(aside)
            raise

    def _publish(
        self, fd: int, aside: str, key: str, if_none_match: bool = False, if_match: str | None = None
    ) -> ObjectInfo:
        """Sync the file ``aside`` and make it the object ``key``, in one step that others see whole or not at all."""
        now = time.time_ns()
        os.utime(fd, ns=(now, now))
        os.fsync(fd)
        info = _info(key, os.fstat(fd))
        path = self._path(key)
        folder = os.path.dirname(path)
        self._make_folder(folder)
        with self._locked():
            if if_none_match or if_match is not None:
                there = self._etag_or_none(path)
                if if_none_match and there is not None:
                    raise PreconditionFailed(key, f"{key!r} is there already")
                if if_match is not None and there != if_match:
                    raise PreconditionFailed(key)
            os.rename(aside, path)
        files.sync_folder(folder)
        return info

    def _make_folder(self, folder: str) -> None:
        if folder == self._root or os.path.isdir(folder):
            return
        parent = os.path.dirname(folder)
        self._make_folder(parent)
        # Another process may make it at the same time.
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        files.sync_folder(parent)

    @staticmethod
    def _etag_or_none(path: str) -> str | None:
        try:
            return _etag(os.lstat(path))
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(os.path.join(self._root, _OURS, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    async def get(self, key: str, *, start: int = 0, size: int | None = None, if_match: str | None = None) -> Body:
        return await self._run(self._get, key, start, size, if_match)

    def _get(self, key: str, start: int, size: int | None, if_match: str | None) -> Body:
        with self._opened(key, if_match) as (fd, status):
            wanted = max(0, status.st_size - start) if size is None else size
            return Body(files.read_range(fd, start, wanted), _etag(status))

    @contextlib.contextmanager
    def _opened(self, key: str, if_match: str | None = None) -> Iterator[tuple[int, os.stat_result]]:
        fd = os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ObjectNotFound(key, self.url)
            if if_match is not None and _etag(status) != if_match:
                raise PreconditionFailed(key)
            yield fd, status
        finally:
            os.close(fd)

    async def stream(self, key: str, *, if_match: str | None = None) -> AsyncGenerator[bytes, None]:
        # Opened anew by each read, so that a consumer that stops half-way holds nothing; the ETag keeps it one version.
        body = await self.get(key, size=_STREAM, if_match=if_match)
        position = 0
        while body.content:
            yield body.content
            position += len(body.content)
            try:
                body = await self.get(key, start=position, size=_STREAM, if_match=body.etag)
            except (ObjectNotFound, PreconditionFailed) as error:
                raise StorageError(f"{key!r} was deleted or replaced while it was read", key) from error

    async def head(self, key: str) -> ObjectInfo:
        return await self._run(self._head, key)

    def _head(self, key: str) -> ObjectInfo:
        status = os.lstat(self._path(key))
        if not stat.S_ISREG(status.st_mode):
            raise ObjectNotFound(key, self.url)
        return _info(key, status)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncGenerator[Sequence[ObjectInfo], None]:
        pages = self._pages(prefix, start_after)
        while page := await self._run(_next_page, pages):
            yield page

    def _pages(self, prefix: str, start_after: str) -> Iterator[Sequence[ObjectInfo]]:
        page = []
        for key in self._keys(prefix.rpartition("/")[0], prefix.encode(), start_after.encode()):
            # Deleted since its folder was read.
            with contextlib.suppress(FileNotFoundError):
                page.append(_info(key, os.lstat(os.path.join(self._root, key))))
            if len(page) == _PAGE:
                yield page
                page = []
        if page:
            yield page

    def _keys(self, folder: str, prefix: bytes, start_after: bytes) -> Iterator[str]:
        """Keys below ``folder`` in byte order: a folder sorts as its name with a slash, which is how its keys begin."""
        try:
            with os.scandir(self._path_of(folder)) as entries:
                names = [entry.name + "/" if entry.is_dir() else entry.name for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in sorted(names, key=os.fsencode):
            key = f"{folder}/{name}" if folder else name
            encoded = os.fsencode(key)
            if name.endswith("/"):
                reaches = encoded.startswith(prefix) or prefix.startswith(encoded)
                if reaches and (encoded > start_after or start_after.startswith(encoded)) and key != _OURS + "/":
                    yield from self._keys(key[:-1], prefix, start_after)
            elif encoded.startswith(prefix) and encoded > start_after:
                yield key

    async def delete(self, key: str) -> None:
        await self._run(self._delete, key)

    def _delete(self, key: str) -> None:
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # the contract: not there is no error
            with self._locked():
                os.unlink(path)
            files.sync_folder(os.path.dirname(path))

    async def delete_many(self, keys: Iterable[str]) -> None:
        failures: list[StorageError] = []
        for key in keys:
            try:
                await self.delete(key)
            except StorageError as error:
                failures.append(error)
        if failures:
            raise StorageError(f"{len(failures)} objects could not be deleted, the first: {failures[0]}") from failures[
                0
            ]

    async def create_upload(self, key: str) -> str:
        return await self._run(self._create_upload, key)

    def _create_upload(self, key: str) -> str:
        self._path(key)
        upload_id = uuid.uuid4().hex
        aside = os.path.join(self._tmp, upload_id)
        os.mkdir(aside, 0o700)
        with open(os.path.join(aside, "key"), "x", opener=files.private) as file:
            file.write(key)
        os.rename(aside, os.path.join(self._uploads, upload_id))
        return upload_id

    async def upload_part(self, key: str, upload_id: str, number: int, body: Chunks) -> Part:
        size = sum(map(len, body))
        start = self._reserve(upload_id, size)
        return await self._run(self._write_part, key, upload_id, number, body, start, size)

    def _write_part(self, key: str, upload_id: str, number: int, body: Chunks, start: int, size: int) -> Part:
        with self._log_of(key, upload_id) as fd:
            position = start
            for chunk in body:
                files.write_all(fd, chunk, position)
                position += len(chunk)
        return Part(number, f"{self._log}:{start}", size)

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: str, start: int, size: int, *, if_match: str
    ) -> Part:
        place = self._reserve(upload_id, size)
        return await self._run(self._copy_part, key, upload_id, number, source, start, size, if_match, place)

    def _copy_part(
        self, key: str, upload_id: str, number: int, source: str, start: int, size: int, if_match: str, place: int
    ) -> Part:
        with self._opened(source, if_match) as (origin, status), self._log_of(key, upload_id) as fd:
            if start < 0 or start + size > status.st_size:
                raise StorageError(f"{source!r} has {status.st_size} bytes: no range of {size} from {start}", source)
            files.copy_range(origin, fd, start, place, size)
        return Part(number, f"{self._log}:{place}", size)

    def _reserve(self, upload_id: str, size: int) -> int:
        start = self._log_ends.get(upload_id, 0)
        self._log_ends[upload_id] = start + size
        return start

    @contextlib.contextmanager
    def _log_of(self, key: str, upload_id: str) -> Iterator[int]:
        path = os.path.join(self._upload_path(upload_id), self._log)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise _no_upload(key, upload_id) from None
        try:
            yield fd
        finally:
            os.close(fd)

    async def complete_upload(self, key: str, upload_id: str, parts: Sequence[Part]) -> ObjectInfo:
        return await self._run(self._complete_upload, key, upload_id, sorted(parts, key=lambda part: part.number))

    def _complete_upload(self, key: str, upload_id: str, parts: Sequence[Part]) -> ObjectInfo:
        folder = self._upload_path(upload_id)
        if not os.path.isdir(folder):
            raise _no_upload(key, upload_id)
        places = [self._place(folder, key, part) for part in parts]
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
            info = self._publish(file.fileno(), path, key)
        self._forget(upload_id)
        return info

    @staticmethod
    def _place(folder: str, key: str, part: Part) -> tuple[str, int, int]:
        log, _, start = part.etag.partition(":")
        path = os.path.join(folder, os.path.basename(log))
        try:
            if os.path.getsize(path) >= int(start) + part.size:
                return path, int(start), part.size
        except (OSError, ValueError):
            pass  # falls through to the one message
        raise StorageError(f"part {part.number} of the upload of {key!r} is not there", key)

    async def abort_upload(self, key: str, upload_id: str) -> None:
        await self._run(self._forget, upload_id)

    def _forget(self, upload_id: str) -> None:
        self._log_ends.pop(upload_id, None)
        files.remove(self._upload_path(upload_id))

    async def list_uploads(self) -> AsyncGenerator[Sequence[UploadInfo], None]:
        yield await self._run(self._list_uploads)

    def _list_uploads(self) -> Sequence[UploadInfo]:
        uploads = []
        for upload_id in sorted(os.listdir(self._uploads)):
            path = os.path.join(self._uploads, upload_id, "key")
            # Completed or aborted since the folder was read.
            with contextlib.suppress(FileNotFoundError), open(path) as file:
                uploads.append(UploadInfo(file.read(), upload_id, os.fstat(file.fileno()).st_mtime))
        return uploads

    async def download_url(self, key: str, *, expires: timedelta, filename: str) -> str:
        return Path(self._path(key)).as_uri()

    def _path(self, key: str) -> str:
        check_key(key)
        if key.split("/", 1)[0] == _OURS:
            raise InvalidInput(f"{key!r} cannot be a key: {_OURS} is where a folder store keeps what is its own")
        return os.path.join(self._root, key)

    def _path_of(self, folder: str) -> str:
        return os.path.join(self._root, folder) if folder else self._root

    def _upload_path(self, upload_id: str) -> str:
        if not upload_id.isalnum():
            raise StorageError(f"{upload_id!r} is no upload's id")
        return os.path.join(self._uploads, upload_id)

    async def _run(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a job in a thread, with the system's errors told as the contract's."""
        key = next((arg for arg in args if isinstance(arg, str)), None)
        try:
            return await self._workers.run(job, *args, **kwargs)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if not await self._workers.run(os.path.isdir, self._tmp):
                raise StorageError(f"the store's folder {self._root!r} is gone (unmounted?)", key) from error
            if key is not None and isinstance(error, FileNotFoundError | NotADirectoryError):
                raise ObjectNotFound(key, self.url) from error
            raise StorageError(f"{key!r} and a key below it cannot both exist", key) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(f"no space left for {self._root!r}: free some, then try again", key) from error
            raise StorageError(f"{self._root!r}: {error.strerror or error}", key) from error


def _next_page(pages: Iterator[Sequence[ObjectInfo]]) -> Sequence[ObjectInfo]:
    return next(pages, ())


def _etag(status: os.stat_result) -> str:
    return f'"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"'


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, _etag(status), status.st_mtime)


def _no_upload(key: str, upload_id: str) -> StorageError:
    return StorageError(f"no upload {upload_id!r} of {key!r}: it was completed or aborted", key)


def _in_order(places: Sequence[tuple[str, int, int]]) -> bool:
    """Whether the parts lie in one file, one after another from its beginning, so that this file is the object."""
    end = 0
    for log, start, size in places:
        if log != places[0][0] or start != end:
            return False
        end += size
    return bool(places)
