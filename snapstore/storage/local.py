"""A folder as an object store, with the promises of a bucket: the embedded default.

    <root>/<key>                     an object; slashes in a key are folders
    <root>/.snapstore/lock           held (flock) for the instant in which an object appears, changes or goes
    <root>/.snapstore/tmp/           bodies that are being written
    <root>/.snapstore/uploads/<id>/  multipart uploads that are neither completed nor aborted

The one idea: a body is written aside, synced, and then renamed to its key under the lock.

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
from snapstore.errors import (
    InvalidInput,
    NotAStore,
    ObjectNotFound,
    PreconditionFailed,
    StorageError,
    StorageFull,
    reason_of,
)
from snapstore.objectstore import Body, Chunks, ObjectInfo, Part, UploadInfo, check_key
from snapstore.storage import files
from snapstore.storage.local_uploads import LocalUploads

P = ParamSpec("P")
T = TypeVar("T")

_OURS = ".snapstore"
_PAGE = 1000
_PART = 8 << 20
_STREAM = 1 << 20
_STALE_SECONDS = 24 * 3600
_THREADS = 8


class LocalStore:
    """Objects as files below ``root``; keeps `ObjectStore`'s contract for any number of processes at once."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.path.abspath(root)
        self._tmp = os.path.join(self._root, _OURS, "tmp")
        self._uploads_folder = os.path.join(self._root, _OURS, "uploads")
        self._uploads = LocalUploads(self._uploads_folder, self._tmp, self._publish)
        self._workers = Workers(_THREADS, "folder")

    @property
    def url(self) -> str:
        return Path(self._root).as_uri()

    @property
    def part_size(self) -> int:
        return _PART

    @property
    def equal_parts(self) -> bool:
        return False

    @property
    def listings(self) -> int:
        return 1  # each would read the whole folder

    @property
    def ca_bundle(self) -> str | None:
        return None

    async def connect(self) -> None:
        pass  # nothing to wait for

    async def open(self, *, create: bool = True) -> None:
        """Make the folder if it is missing and ``create``. NotAStore where it is, or holds something else."""
        await self._run(self._open, create)

    def _open(self, create: bool) -> None:
        if not os.path.isdir(os.path.join(self._root, _OURS)):
            self._check_adoptable()
            if not create and not os.path.isdir(os.path.join(self._root, "_metadata")):
                raise NotAStore(self._how_it_becomes_a_store())
        for folder in (self._tmp, self._uploads_folder):
            files.make_folder(folder)
        self._remove_stale()

    def _how_it_becomes_a_store(self) -> str:
        if os.path.isdir(self._root):
            return f"{self._root!r} is an empty folder, and no store yet: the first `snapstore create` makes it one"
        return f"there is no store at {self._root!r} yet: check its name; the first `snapstore create` makes it"

    def _check_adoptable(self) -> None:
        """An empty folder becomes a store, and so does the copy of a bucket; anything else is somebody's."""
        try:
            names = sorted(os.listdir(self._root))
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise NotAStore(f"{self._root!r} is a file: give a folder to keep snapshots in") from None
        # Our own folder among them: another process has just made this a store.
        if set(names) - {"lost+found"} and not {"_metadata", _OURS}.intersection(names):
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
        files.make_folder(folder, top=self._root)
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
            rest = max(0, status.st_size - start)
            wanted = rest if size is None else min(size, rest)
            return Body(files.read_range(fd, start, wanted), _etag(status))

    @contextlib.contextmanager
    def _opened(self, key: str, if_match: str | None = None) -> Iterator[tuple[int, os.stat_result]]:
        try:
            # Nothing is waited for: a pipe that someone put here is no object.
            fd = os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            self._check_there(key)
            raise ObjectNotFound(key, self.url) from error
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
        try:
            status = os.lstat(self._path(key))
        except (FileNotFoundError, NotADirectoryError) as error:
            self._check_there(key)
            raise ObjectNotFound(key, self.url) from error
        if not stat.S_ISREG(status.st_mode):
            raise ObjectNotFound(key, self.url)
        return _info(key, status)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncGenerator[Sequence[ObjectInfo], None]:
        pages = self._pages(prefix, start_after)
        while page := await self._run(_next_page, pages):
            yield page

    def _pages(self, prefix: str, start_after: str) -> Iterator[Sequence[ObjectInfo]]:
        page = []
        folder = prefix.rpartition("/")[0]
        if folder and not self._may_hold_keys(folder):
            return
        for key in self._keys(folder, os.fsencode(prefix), os.fsencode(start_after)):
            # Deleted since its folder was read.
            with contextlib.suppress(FileNotFoundError):
                page.append(_info(key, os.lstat(os.path.join(self._root, key))))
            if len(page) == _PAGE:
                yield page
                page = []
        self._check_there()  # else the keys of an unmounted store would seem to be deleted
        if page:
            yield page

    def _keys(self, folder: str, prefix: bytes, start_after: bytes) -> Iterator[str]:
        """Keys below ``folder`` in byte order: a folder sorts as its name with a slash, which is how its keys begin."""
        try:
            with os.scandir(self._path_of(folder)) as entries:
                names = [
                    entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name
                    for entry in entries
                    if _can_be_key(entry.name)
                    and (entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False))
                ]
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
        try:
            with self._locked():
                os.unlink(path)
            files.sync_folder(os.path.dirname(path))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            self._check_there(key)  # the contract: an object that is not there is no error

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
        return self._uploads.create(key)

    async def upload_part(self, key: str, upload_id: str, number: int, body: Chunks) -> Part:
        start = self._uploads.reserve(upload_id, sum(map(len, body)))
        return await self._run(self._write_part, key, upload_id, number, body, start)

    def _write_part(self, key: str, upload_id: str, number: int, body: Chunks, start: int) -> Part:
        self._path(key)
        return self._uploads.write(key, upload_id, number, body, start)

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: str, start: int, size: int, *, if_match: str
    ) -> Part:
        place = self._uploads.reserve(upload_id, size)
        return await self._run(self._copy_part, key, upload_id, number, source, start, size, if_match, place)

    def _copy_part(
        self, key: str, upload_id: str, number: int, source: str, start: int, size: int, if_match: str, place: int
    ) -> Part:
        self._path(key)
        with self._opened(source, if_match) as (origin, status):
            if start < 0 or start + size > status.st_size:
                raise StorageError(f"{source!r} has {status.st_size} bytes: no range of {size} from {start}", source)
            return self._uploads.copy(key, upload_id, number, origin, start, size, place)

    async def complete_upload(self, key: str, upload_id: str, parts: Sequence[Part]) -> ObjectInfo:
        return await self._run(self._complete_upload, key, upload_id, parts)

    def _complete_upload(self, key: str, upload_id: str, parts: Sequence[Part]) -> ObjectInfo:
        self._path(key)
        return self._uploads.complete(key, upload_id, parts)

    async def abort_upload(self, key: str, upload_id: str) -> None:
        await self._run(self._abort_upload, key, upload_id)

    def _abort_upload(self, key: str, upload_id: str) -> None:
        self._path(key)
        self._uploads.forget(key, upload_id)

    async def list_uploads(self) -> AsyncGenerator[Sequence[UploadInfo], None]:
        yield await self._run(self._uploads.list)

    async def download_url(self, key: str, *, expires: timedelta, filename: str) -> str:
        return Path(self._path(key)).as_uri()

    def _path(self, key: str) -> str:
        check_key(key)
        if key.split("/", 1)[0] == _OURS:
            raise InvalidInput(f"{key!r} cannot be a key: {_OURS} is where a folder store keeps what is its own")
        return os.path.join(self._root, key)

    def _path_of(self, folder: str) -> str:
        return os.path.join(self._root, folder) if folder else self._root

    def _check_there(self, key: str | None = None) -> None:
        if not os.path.isdir(self._tmp):
            raise StorageError(f"the store's folder {self._root!r} is gone (unmounted?)", key)

    def _may_hold_keys(self, folder: str) -> bool:
        return _can_be_key(folder) and folder.split("/", 1)[0] != _OURS

    async def _run(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a job in a thread, with the system's errors told as the contract's."""
        key = next((arg for arg in args if isinstance(arg, str)), None)
        try:
            return await self._workers.run(job, *args, **kwargs)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            await self._workers.run(self._check_there, key)
            if isinstance(error, FileNotFoundError):
                raise StorageError(f"{error.filename!r} was removed meanwhile", key) from error
            raise StorageError(f"{key!r} and a key below it cannot both exist", key) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(f"no space left for {self._root!r}: free some, then try again", key) from error
            what = f"{key!r} in the store {self._root!r}" if key else f"the store {self._root!r}"
            raise StorageError(
                f"{what} cannot be used ({reason_of(error)}): check its permissions, or give another one (--url,"
                " SNAPSTORE_URL)",
                key,
            ) from error


def _can_be_key(name: str) -> bool:
    try:
        check_key(name)
    except InvalidInput:
        return False
    return True


def _next_page(pages: Iterator[Sequence[ObjectInfo]]) -> Sequence[ObjectInfo]:
    return next(pages, ())


def _etag(status: os.stat_result) -> str:
    return f'"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"'


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, _etag(status), status.st_mtime)
