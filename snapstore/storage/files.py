"""What a folder store does to files: read and write ranges whole, copy in the kernel, make sure that it is on disk."""

import contextlib
import errno
import os
import shutil

from snapstore.errors import StorageError

_PIECE = 1 << 20


def private(path: str, flags: int) -> int:
    """An ``opener`` for files that only their owner may read."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def read_range(fd: int, start: int, size: int) -> bytes:
    """Bytes from ``start``, fewer only at the file's end."""
    chunks = []
    while size > 0 and (chunk := os.pread(fd, size, start)):
        chunks.append(chunk)
        start += len(chunk)
        size -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def write_all(fd: int, body: bytes, position: int) -> None:
    rest = memoryview(body)
    while rest:
        written = os.pwrite(fd, rest, position)
        position += written
        rest = rest[written:]


def copy_range(source: int, target: int, start: int, place: int, size: int) -> None:
    """Copy within the kernel (sharing the blocks where the file system can), or by hand where it cannot."""
    end = start + size
    try:
        while start < end:
            copied = os.copy_file_range(source, target, end - start, start, place)
            if copied == 0:
                raise StorageError("a file became shorter while it was copied")
            start += copied
            place += copied
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM):
            raise
        while start < end and (chunk := read_range(source, start, min(_PIECE, end - start))):
            write_all(target, chunk, place)
            start += len(chunk)
            place += len(chunk)
        if start < end:
            raise StorageError("a file became shorter while it was copied") from None


def make_folder(folder: str, *, top: str = "/") -> None:
    """Make a folder and those between it and ``top``, which is never made, and sync each into its parent."""
    if folder == top or os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    make_folder(parent, top=top)
    # Another process may make it at the same time.
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    sync_folder(parent)


def sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: str) -> None:
    """Remove a file or a folder of ours, if it is (still) there."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
