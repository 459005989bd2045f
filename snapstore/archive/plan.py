"""Walk a folder into an ordered list of members: one `scandir` a folder, one `lstat` a member.

The order is FORMAT.md's: regular files, then hard links, symbolic links, FIFOs and devices, and folders last, deepest
first. Among the files, those that share frames come first, by path, and those with frames of their own after them, so
that no frame is cut short in between.
"""

import errno
import os
import stat
from collections.abc import Callable, Container
from typing import NamedTuple

import msgspec

from snapstore.archive.exclude import Excludes
from snapstore.archive.frames import FRAME
from snapstore.archive.names import MAX_PATH, depth, is_temporary, to_bytes, to_text
from snapstore.archive.source import Source, is_exhausted
from snapstore.errors import SourceUnreadable, reason_of
from snapstore.model import Member, MemberType, OnError, Problem


class Plan(NamedTuple):
    """What will be packed, as the walk found it."""

    files: list[Member]
    links: dict[str, list[Member]]
    """Hard links by the file that they link to."""
    others: list[Member]
    """Symbolic links, FIFOs and devices, then folders, in the archive's order."""
    content_size: int
    sockets: int
    left_out: list[str]
    """Paths of what was not to be opened."""
    problems: list[Problem]

    @property
    def entries(self) -> int:
        return len(self.files) + len(self.others) + sum(map(len, self.links.values()))


def make_plan(
    source: Source,
    excludes: Excludes,
    *,
    on_error: OnError = "fail",
    leave_out: Container[tuple[int, int]] = (),
    step: Callable[[int], None] = lambda found: None,
) -> Plan:
    """Walk ``source``, but for files of these devices and inodes. ``step`` is told once a folder how many members were
    found; it may raise to end the walk.

    SourceUnreadable for a folder that cannot be listed, unless ``on_error`` is ``"skip"``: then it is among the
    problems.
    """
    walk = _Walk(source, excludes, on_error, leave_out)
    pending = [""]
    while pending:
        step(walk.found)
        pending += walk.list_folder(pending.pop())
    return walk.plan()


class _Walk:
    def __init__(
        self, source: Source, excludes: Excludes, on_error: OnError, leave_out: Container[tuple[int, int]]
    ) -> None:
        self._source = source
        self._excludes = excludes
        self._on_error = on_error
        self._leave_out = leave_out
        self._left_out: list[str] = []
        kinds: tuple[MemberType, ...] = ("f", "l", "p", "c", "b", "d")
        self._members: dict[MemberType, list[Member]] = {kind: [] for kind in kinds}
        self._linked: dict[tuple[int, int], list[Member]] = {}
        self._sockets = 0
        self._problems: list[Problem] = []
        self._members["d"].append(member_of(".", "d", source.lstat(".")))
        self.found = 1

    def list_folder(self, folder: str) -> list[str]:
        """Add what is in a folder; returns the folders to go on with."""
        try:
            descriptor = self._source.folder(folder)
            with os.scandir(descriptor) as entries:
                listed = list(entries)
        except OSError as error:
            self._report(folder or ".", error)
            return []
        folders = []
        for entry in listed:
            if is_temporary(entry.name):
                continue  # the remains of a restore that was killed, and nothing of the application's
            path = f"{folder}/{entry.name}" if folder else entry.name
            if not path.isascii():
                path = to_text(os.fsencode(path))
            try:
                if len(path) > MAX_PATH // 4 and len(to_bytes(path)) > MAX_PATH:
                    raise OSError(errno.ENAMETOOLONG, f"its path is longer than {MAX_PATH} bytes")
                status = entry.stat(follow_symlinks=False)
                is_folder = stat.S_ISDIR(status.st_mode)
                if self._excludes and (path + "/" if is_folder else path) in self._excludes:
                    continue
                self._add(path, entry.name, descriptor, status)
            except OSError as error:
                self._report(path, error)
                continue
            if is_folder:
                folders.append(path)
        return folders

    def _add(self, path: str, name: str, descriptor: int, status: os.stat_result) -> None:
        kind = _kind(status.st_mode)
        if kind is None:
            self._sockets += 1
            return
        if self._leave_out and (status.st_dev, status.st_ino) in self._leave_out:
            self._left_out.append(path)
            return
        link = to_text(os.readlink(os.fsencode(name), dir_fd=descriptor)) if kind == "l" else ""
        member = member_of(path, kind, status, link=link)
        self.found += 1
        if kind == "f" and status.st_nlink > 1:
            self._linked.setdefault((status.st_dev, status.st_ino), []).append(member)
        else:
            self._members[kind].append(member)

    def _report(self, path: str, error: OSError) -> None:
        reason = reason_of(error)
        if self._on_error == "fail" or is_exhausted(error):
            raise SourceUnreadable(path, reason) from error
        gone = isinstance(error, FileNotFoundError)
        self._problems.append(Problem(path, "vanished" if gone else "unreadable", reason))

    def plan(self) -> Plan:
        links: dict[str, list[Member]] = {}
        for group in self._linked.values():
            first, *rest = sorted(group, key=lambda member: member.path)
            self._members["f"].append(first)
            if rest:
                links[first.path] = [hard_link(member, first.path) for member in rest]
        files = self._members["f"]
        files.sort(key=lambda member: (member.size > FRAME, member.path))
        others = sorted(self._members["l"], key=lambda member: member.path)
        special = self._members["p"] + self._members["c"] + self._members["b"]
        others += sorted(special, key=lambda member: member.path)
        folders = self._members["d"]
        folders.sort(key=lambda member: (-depth(member.path), member.path))
        return Plan(
            files=files,
            links=dict(sorted(links.items())),
            others=others + folders,
            content_size=sum(member.size for member in files),
            sockets=self._sockets,
            left_out=self._left_out,
            problems=self._problems,
        )


def hard_link(member: Member, target: str) -> Member:
    return msgspec.structs.replace(member, type="h", link=target, size=0)


def _kind(mode: int) -> MemberType | None:
    """None for sockets (and for whatever a tar cannot hold)."""
    return _KINDS.get(stat.S_IFMT(mode))


_KINDS: dict[int, MemberType] = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
}


def member_of(
    path: str, kind: MemberType, status: os.stat_result, *, link: str = "", xattrs: tuple[str, ...] = ()
) -> Member:
    return Member(
        path,
        kind,
        0,
        status.st_size if kind == "f" else 0,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        link,
        xattrs,
    )
