"""Owner, mode, extended attributes and times of what a restore makes, and which of them it may set.

The order matters: changing the owner clears setuid bits and file capabilities; a user's attributes need a writable
file; an ACL is part of the mode; and whatever touches a file comes before its times.
"""

import errno
import os
import stat
import threading
from collections import Counter
from contextlib import suppress
from typing import NamedTuple

from snapstore.archive.tar import Header
from snapstore.errors import reason_of

_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")


class Policy(NamedTuple):
    owner: bool
    """Set user and group ids."""
    trusted: bool
    """Make devices, and set setuid and setgid bits and the attributes of ``security.*`` and ``trusted.*``."""


class Notes:
    """What was left out, and how often: a line a reason, not a line a member."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, reason: str, path: str) -> None:
        with self._lock:
            self._counts[reason] += 1
            self._first.setdefault(reason, path)

    def lines(self) -> tuple[str, ...]:
        return tuple(
            f"{reason}: {count} {'member' if count == 1 else 'members'}, the first {self._first[reason]!r}"
            for reason, count in self._counts.items()
        )


def apply(descriptor: int, path: str, header: Header, policy: Policy, notes: Notes) -> None:
    """Set all metadata of a file or a folder through its descriptor."""
    if policy.owner:
        os.chown(descriptor, header.uid, header.gid)
    if header.xattrs:
        early = [(name, value) for name, value in header.xattrs if name.startswith(b"user.")]
        _set_xattrs(descriptor, path, early, policy, notes)
    os.chmod(descriptor, _mode(header, path, policy, notes))
    if header.xattrs:
        late = [(name, value) for name, value in header.xattrs if not name.startswith(b"user.")]
        _set_xattrs(descriptor, path, late, policy, notes)
    os.utime(descriptor, ns=(header.mtime, header.mtime))


def apply_to_link(folder: int, name: bytes, header: Header, policy: Policy) -> None:
    """Owner and time of a symbolic link; it has no mode of its own."""
    if policy.owner:
        os.chown(name, header.uid, header.gid, dir_fd=folder, follow_symlinks=False)
    os.utime(name, ns=(header.mtime, header.mtime), dir_fd=folder, follow_symlinks=False)


def make_special(folder: int, name: bytes, path: str, header: Header, policy: Policy, notes: Notes) -> None:
    """A FIFO or a device, with its metadata."""
    kind = {"p": stat.S_IFIFO, "c": stat.S_IFCHR, "b": stat.S_IFBLK}[header.type]
    os.mknod(name, kind | 0o600, os.makedev(*header.device), dir_fd=folder)
    # Opening one has side effects; a descriptor that only names it has none, and /proc leads from there to the rest.
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        if stat.S_IFMT(status.st_mode) != kind or status.st_nlink != 1:
            raise OSError(errno.ESTALE, "somebody exchanged it while it was made")
        itself = f"/proc/self/fd/{descriptor}"
        if policy.owner:
            os.chown(itself, header.uid, header.gid)
        os.chmod(itself, _mode(header, path, policy, notes))
        _set_xattrs(itself, path, list(header.xattrs), policy, notes)
        os.utime(itself, ns=(header.mtime, header.mtime))
    finally:
        os.close(descriptor)


def drop_default_acl(descriptor: int) -> None:
    """Make what is created in a folder of ours not inherit from the folder around it."""
    with suppress(OSError):  # it has none, or the file system knows none
        os.removexattr(descriptor, "system.posix_acl_default")
    with suppress(OSError):
        os.removexattr(descriptor, "system.posix_acl_access")


def _mode(header: Header, path: str, policy: Policy, notes: Notes) -> int:
    mode = header.mode & 0o7777
    if mode & _SPECIAL_BITS and not policy.trusted:
        notes.add("left out setuid and setgid bits, which only a trusted restore sets", path)
        mode &= ~_SPECIAL_BITS
    return mode


def _set_xattrs(where: int | str, path: str, xattrs: list[tuple[bytes, bytes]], policy: Policy, notes: Notes) -> None:
    for name, value in xattrs:
        if not name.startswith(b"user.") and name not in _ACLS and not policy.trusted:
            notes.add("left out attributes other than user.* and ACLs, which only a trusted restore sets", path)
            continue
        try:
            os.setxattr(where, name, value)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.EINVAL):
                raise
            reason = reason_of(error)
            notes.add(f"could not set attribute {name.decode(errors='replace')} ({reason})", path)
