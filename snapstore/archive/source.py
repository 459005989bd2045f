"""The folder that is packed: its members opened and read so that nobody can lead us out of it, or hold us up."""

import errno
import os
import stat
from types import TracebackType

from snapstore.archive.exclude import IGNORE_FILE
from snapstore.archive.folders import FOLDER_FLAGS, Folders
from snapstore.archive.names import last_of, parent_of, to_text
from snapstore.errors import InvalidInput, SourceNotFound, SourceUnreadable, reason_of

# A file may have become a FIFO since it was listed: opening one without O_NONBLOCK waits for a writer.
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAX_IGNORE_FILE = 1 << 20
_MAX_XATTRS = 960 << 10
"""Of one member; readers take a pax header of up to 1 MiB."""
_KEPT_XATTRS = ("user.", "trusted.", "security.", "system.posix_acl_")
_NO_XATTRS = (errno.ENOTSUP, errno.ENODATA, errno.ENOSYS)

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

Xattrs = tuple[tuple[bytes, bytes], ...]


class NotRegular(OSError):
    """What was a regular file when it was listed is something else now."""


class Source:
    """A folder, held open by its descriptor."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._root = _open_root(path)
        self._folders = Folders(self._root)

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._folders.close()
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def folder(self, path: str) -> int:
        """Descriptor of a folder in it, valid until the next call."""
        return self._folders.descriptor(path)

    def open_file(self, path: str) -> int:
        """A new descriptor of a regular file, for the caller to close. OSError where it is none, or unreadable."""
        descriptor = os.open(last_of(path), FILE_FLAGS, dir_fd=self.folder(parent_of(path)))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise NotRegular(errno.ESTALE, "it is no regular file any more")
        return descriptor

    def lstat(self, path: str) -> os.stat_result:
        if path == ".":
            return os.fstat(self._root)
        return os.stat(last_of(path), dir_fd=self.folder(parent_of(path)), follow_symlinks=False)

    def folder_xattrs(self, path: str) -> Xattrs:
        return read_xattrs(self.folder(path))

    def special_xattrs(self, path: str) -> Xattrs:
        """Of a FIFO or a device, which cannot be opened without side effects: through /proc, or none without it."""
        return read_xattrs(f"/proc/self/fd/{self.folder(parent_of(path))}/".encode() + last_of(path))

    def ignore_lines(self) -> list[str]:
        """The lines of the folder's own ignore file, if it has one."""
        try:
            descriptor = self.open_file(IGNORE_FILE)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SourceUnreadable(IGNORE_FILE, reason_of(error)) from error
        with open(descriptor, "rb") as file:
            content = file.read(_MAX_IGNORE_FILE + 1)
        if len(content) > _MAX_IGNORE_FILE:
            raise InvalidInput(f"{IGNORE_FILE} is larger than {_MAX_IGNORE_FILE} bytes: is it a list of patterns?")
        return to_text(content).splitlines()


def is_exhausted(error: OSError) -> bool:
    """Whether it is this process that lacks descriptors or memory: no fault of the member that it was met at."""
    return error.errno in _EXHAUSTED


def _open_root(path: str) -> int:
    # The root itself may be named through a link: whoever named it meant where that leads.
    try:
        return os.open(path, FOLDER_FLAGS & ~os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise SourceNotFound(path) from error
    except NotADirectoryError as error:
        raise SourceNotFound(path, f"{path!r} is no folder: a snapshot is taken of a folder") from error
    except OSError as error:
        raise SourceUnreadable(path, reason_of(error)) from error
    except ValueError as error:  # a NUL in the path
        raise InvalidInput(f"{path!r} cannot be a path: {error}") from error


def has_xattrs(descriptor: int) -> bool:
    """Whether there may be any; OSError where they cannot be listed."""
    return bool(os.listxattr(descriptor)) if hasattr(os, "listxattr") else False


def read_xattrs(where: int | bytes) -> Xattrs:
    """The extended attributes (ACLs among them) of a descriptor or of a path's last component, sorted by name."""
    if not hasattr(os, "listxattr"):
        return ()
    follow = isinstance(where, int)
    try:
        names = os.listxattr(where, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (*_NO_XATTRS, errno.ENOENT):
            return ()
        raise
    found = []
    for name in sorted(names):
        if name.startswith(_KEPT_XATTRS):
            try:
                found.append((os.fsencode(name), os.getxattr(where, name, follow_symlinks=follow)))
            except OSError as error:
                if error.errno != errno.ENODATA:  # else removed meanwhile
                    raise
    if sum(len(name) + len(value) for name, value in found) > _MAX_XATTRS:
        raise OSError(errno.E2BIG, f"its extended attributes are larger than {_MAX_XATTRS} bytes")
    return tuple(found)
