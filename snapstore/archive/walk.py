"""Walk a folder for what is to be packed, a step at a time: one `scandir` a folder, one `lstat` a member.

The order is FORMAT.md's: regular files, then hard links, symbolic links, FIFOs and devices, and folders last, deepest
first. Among the files, those that share frames come first, by path: they are known, and can be packed, while the walk
goes on. Those with several names follow, as the first name of each is known only at the end; and then those with frames
of their own, so that no frame is cut short in between.
"""

import errno
import os
import stat
import time
from collections import deque
from collections.abc import Container

import msgspec

from snapstore.archive.exclude import Excludes
from snapstore.archive.frames import FRAME
from snapstore.archive.names import MAX_PATH, depth, is_temporary, to_bytes, to_text
from snapstore.archive.source import Source, is_exhausted
from snapstore.errors import SourceUnreadable, reason_of
from snapstore.model import Member, MemberType, OnError, Problem

_MOMENT = 0.005
"""Seconds, after which it is looked whether there is something else to do."""


class Walk:
    """What is in a folder, as far as it was found; `step` is called until the walk is ``over``."""

    def __init__(
        self,
        source: Source,
        excludes: Excludes,
        *,
        on_error: OnError = "fail",
        leave_out: Container[tuple[int, int]] = (),
    ) -> None:
        """Of all of ``source``, but for what is excluded and files of the devices and inodes to ``leave_out``."""
        self._source = source
        self._excludes = excludes
        self._on_error = on_error
        self._leave_out = leave_out
        self._ahead: list[Member | str] = [""]
        """Files and folders in the order of their paths, the next one last; a folder stands for all that is in it."""
        kinds: tuple[MemberType, ...] = ("l", "p", "c", "b", "d")
        self._members: dict[MemberType, list[Member]] = {kind: [] for kind in kinds}
        self._members["d"].append(member_of(".", "d", source.lstat(".")))
        self._large: list[Member] = []
        self._linked: dict[tuple[int, int], list[Member]] = {}
        self.files: deque[Member] = deque()
        """Those found and not taken yet, in the archive's order."""
        self.links: dict[str, list[Member]] = {}
        """Once the walk is over: hard links by the file that they link to."""
        self.others: list[Member] = []
        """Once the walk is over: symbolic links, FIFOs and devices, then folders, in the archive's order."""
        self.over = False
        self.found = 1
        """Members so far, taken ones included, as is ``content_size``, the bytes of files."""
        self.content_size = 0
        self.sockets = 0
        self.left_out: list[str] = []
        self.problems: list[Problem] = []

    def step(self) -> None:
        """Go on to the next folder and list it, or end the walk where there is none.

        SourceUnreadable for a folder that cannot be listed, unless ``on_error`` is ``"skip"``: then it is among the
        problems.
        """
        ahead = self._ahead
        while ahead:
            following = ahead.pop()
            if isinstance(following, str):
                ahead += self._list(following)
                return
            self.files.append(following)
        if not self.over:
            self._end()

    def go_on(self) -> None:
        """Steps, for a moment; one at least."""
        end = time.monotonic() + _MOMENT
        self.step()
        while not self.over and time.monotonic() < end:
            self.step()

    def _list(self, folder: str) -> list[Member | str]:
        """What is in a folder; returns its files and folders that are to be walked, the last one by path first."""
        try:
            descriptor = self._source.folder(folder)
            with os.scandir(descriptor) as entries:
                listed = list(entries)
        except OSError as error:
            self._report(folder or ".", error)
            return []
        within: list[tuple[str, Member | str]] = []
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
                member = self._member(path, entry.name, descriptor, status)
            except OSError as error:
                self._report(path, error)
                continue
            if member is None:
                continue
            self.found += 1
            if is_folder:
                self._members["d"].append(member)
                within.append((path + "/", path))  # as the paths of what is in it compare with its neighbours'
            elif member.type != "f":
                self._members[member.type].append(member)
            elif status.st_nlink > 1:
                self._link(member, (status.st_dev, status.st_ino))
            else:
                self.content_size += member.size
                if member.size > FRAME:
                    self._large.append(member)
                else:
                    within.append((path, member))
        within.sort(key=_place, reverse=True)
        return [each for _, each in within]

    def _member(self, path: str, name: str, descriptor: int, status: os.stat_result) -> Member | None:
        """None for what is not packed."""
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            self.sockets += 1
            return None
        if self._leave_out and (status.st_dev, status.st_ino) in self._leave_out:
            self.left_out.append(path)
            return None
        link = to_text(os.readlink(os.fsencode(name), dir_fd=descriptor)) if kind == "l" else ""
        return member_of(path, kind, status, link=link)

    def _link(self, member: Member, file: tuple[int, int]) -> None:
        names = self._linked.setdefault(file, [])
        if not names:
            self.content_size += member.size
        names.append(member)

    def _report(self, path: str, error: OSError) -> None:
        reason = reason_of(error)
        if self._on_error == "fail" or is_exhausted(error):
            raise SourceUnreadable(path, reason) from error
        gone = isinstance(error, FileNotFoundError)
        self.problems.append(Problem(path, "vanished" if gone else "unreadable", reason))

    def _end(self) -> None:
        remaining = self._large
        for group in self._linked.values():
            first, *rest = sorted(group, key=_path)
            remaining.append(first)
            if rest:
                self.links[first.path] = [hard_link(member, first.path) for member in rest]
        self.files += sorted(remaining, key=lambda member: (member.size > FRAME, member.path))
        self.links = dict(sorted(self.links.items()))
        special = self._members["p"] + self._members["c"] + self._members["b"]
        folders = sorted(self._members["d"], key=lambda member: (-depth(member.path), member.path))
        self.others = sorted(self._members["l"], key=_path) + sorted(special, key=_path) + folders
        self._large, self._linked, self._members = [], {}, {}
        self.over = True


def hard_link(member: Member, target: str) -> Member:
    return msgspec.structs.replace(member, type="h", link=target, size=0)


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


def _place(listed: tuple[str, Member | str]) -> str:
    return listed[0]


def _path(member: Member) -> str:
    return member.path


_KINDS: dict[int, MemberType] = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
}
"""What is none of these is a socket, or something that a tar cannot hold."""
