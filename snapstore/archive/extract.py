"""Members onto a disk, safely: the one writer behind every reader of archives.

An archive may come from anyone, and whoever owns the target may move things about in it while we write. So nothing is
written by path: folders are opened component by component without following links (`folders`), files are created with
``O_EXCL | O_NOFOLLOW``, and metadata is set through descriptors. Links come when all files are there, and folders get
their modes and times last. In a merge a file is written under a temporary name beside its place and renamed over it.

`TreeWriter` may be used by several threads at once; `finish` is for one, when the others are done.
"""

import errno
import os
import secrets
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from snapstore.archive import attributes
from snapstore.archive.attributes import Notes, Policy
from snapstore.archive.folders import Folders
from snapstore.archive.names import MAX_PATH, TEMPORARY, depth, last_of, parent_of, to_bytes, to_text
from snapstore.archive.tar import Header
from snapstore.errors import SnapstoreError, TargetConflict, TargetUnwritable, UnsafeMember, reason_of
from snapstore.model import Caps, MemberType

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_ID = 2**32 - 2  # the next one means "leave it as it is" to chown(2)
_NO_NAMES = frozenset(["", ".", ".."])
_BLOCK = 4096
_ZEROS = bytes(_BLOCK)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_THE_WAY = (errno.ENOTDIR, errno.ELOOP, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY)


class Place(NamedTuple):
    """Where a file is being written."""

    path: str
    descriptor: int
    temporary: bytes | None
    """Its name until it is whole, where something else may stand in its place."""


class TreeWriter:
    """Writes members below the folder ``root`` (a descriptor that stays the caller's)."""

    def __init__(
        self, root: int, policy: Policy, *, merge: bool = False, caps: Caps | None = None, target: str = "the target"
    ) -> None:
        """``target`` is what errors call it."""
        self._root = root
        self._policy = policy
        self._born = None if merge else _owner_of_what_is_made_in(root)
        self._policy_of_born = policy._replace(owner=False)
        self._merge = merge
        self._target = target
        self._caps = caps or Caps()
        self._types: dict[str, MemberType] = {}
        self._made: set[str] = set()
        self._hard_links: dict[str, Header] = {}
        self._others: dict[str, Header] = {}
        self._folder_headers: dict[str, Header] = {}
        self._places: set[Place] = set()
        self._caches: list[Folders] = []
        self._local = threading.local()
        self._counting = threading.Lock()
        self.notes = Notes()
        self.members = 0
        self.content_size = 0

    def write_file(self, header: Header, raw: bytes, start: int) -> None:
        """A regular file whose whole content is ``raw[start:start + header.size]``."""
        path = self._admit(header)
        try:  # a context manager for each of these steps would take a tenth of the time of a small file
            descriptor, temporary = self._create(path)
            try:
                if _write(descriptor, raw, start, header.size, 0) != header.size:
                    os.truncate(descriptor, header.size)
                belongs = (header.uid, header.gid) == self._born
                policy = self._policy_of_born if belongs else self._policy
                attributes.apply(descriptor, path, header, policy, self.notes)
                if temporary:
                    self._name(path, temporary)
            except BaseException:
                if temporary:
                    self._remove(path, temporary)
                raise
            finally:
                os.close(descriptor)
        except (OSError, OverflowError, ValueError) as error:
            raise self._failure(path, error) from error

    def begin_file(self, header: Header) -> Place:
        """Make room for a regular file. UnsafeMember where its name is refused."""
        path = self._admit(header)
        with self._failures(path):
            place = Place(path, *self._create(path))
            self._places.add(place)
            return place

    def write_content(self, place: Place, raw: bytes, start: int, length: int, position: int) -> None:
        """Bytes of a file, in any order; blocks of zeros are left out, and become holes."""
        with self._failures(place.path):
            _write(place.descriptor, raw, start, length, position)

    def finish_file(self, place: Place, header: Header) -> None:
        """Give a file its size and metadata, and its name where it has another one so far."""
        with self._failures(place.path):
            os.truncate(place.descriptor, header.size)
            attributes.apply(place.descriptor, place.path, header, self._policy, self.notes)
            if place.temporary:
                self._name(place.path, place.temporary)
            self._places.discard(place)
            os.close(place.descriptor)

    def _create(self, path: str) -> tuple[int, bytes | None]:
        """An empty file, and its name until it is whole, where something else may stand in its place."""
        folder = self._folders().descriptor(parent_of(path))
        if not self._merge:
            # An archive that lists a file twice means the later one, as in `tar --append`.
            try:
                return os.open(last_of(path), _CREATE, 0o600, dir_fd=folder), None
            except FileExistsError:
                pass
        temporary = _temporary_name()
        return os.open(temporary, _CREATE, 0o600, dir_fd=folder), temporary

    def _name(self, path: str, temporary: bytes) -> None:
        folder = self._folders().descriptor(parent_of(path))
        os.rename(temporary, last_of(path), src_dir_fd=folder, dst_dir_fd=folder)

    def _remove(self, path: str, temporary: bytes) -> None:
        with suppress(OSError):  # gone with its folder: there is nothing left to remove
            os.unlink(temporary, dir_fd=self._folders().descriptor(parent_of(path)))

    def add(self, header: Header) -> None:
        """A folder, a link, a FIFO or a device: made by `finish`."""
        path = self._admit(header)
        if header.type == "d":
            self._folder_headers[path] = header
        elif header.type == "h":
            check_path(header.link, what="links to")
            self._hard_links[path] = header
        elif header.type in ("c", "b") and not self._policy.trusted:
            self.notes.add("left out devices, which only a trusted restore makes", path)
        else:
            self._others[path] = header

    def _admit(self, header: Header) -> str:
        """The member's path, once it and its kind and the caps allow it."""
        path = check_path(header.path, root=header.type == "d")
        if not (0 <= header.uid <= _MAX_ID and 0 <= header.gid <= _MAX_ID):
            raise UnsafeMember(path, f"its owner {header.uid}/{header.gid} cannot be one")
        if self._types.setdefault(path, header.type) != header.type:
            raise UnsafeMember(path, "the archive has it twice, as different kinds")
        with self._counting:
            self.members += 1
            self.content_size += header.size
            if self.members > self._caps.members or self.content_size > self._caps.content_size:
                raise UnsafeMember(
                    path, f"the archive holds more than {self._caps.members} members or {self._caps.content_size} bytes"
                )
        return path

    def finish(self) -> None:
        """Make the links, the FIFOs and devices, and then the folders' metadata, the root's excepted."""
        folders, sources = self._folders(), self._new_folders()
        for path, header in self._hard_links.items():
            twin = self._others.get(to_text(header.link))
            if twin is not None:
                # Others link symbolic links and FIFOs too. A second one is the same to all but the inode's number.
                self._others[path] = twin._replace(path=header.path)
            elif self._types.get(to_text(header.link)) in ("c", "b"):
                self.notes.add("left out devices, which only a trusted restore makes", path)
            else:
                self._make_link(path, to_text(header.link), folders, sources)
        for path, header in self._others.items():
            self._make_other(path, header, folders)
        for path in sorted(self._made | self._folder_headers.keys(), key=depth, reverse=True):
            if path != ".":
                with self._failures(path):
                    descriptor = folders.descriptor(path)
                    if path in self._folder_headers:
                        attributes.apply(descriptor, path, self._folder_headers[path], self._policy, self.notes)
                    else:
                        os.chmod(descriptor, 0o755)  # not a member of the archive, only on the way to one

    def finish_root(self, root: int) -> None:
        """The root folder's own metadata, onto ``root``; after everything in it is in its place."""
        header = self._folder_headers.get(".")
        if header is not None:
            with self._failures("."):
                attributes.apply(root, ".", header, self._policy, self.notes)

    def close(self) -> None:
        """Let go of all descriptors, and remove files that were not finished."""
        for place in list(self._places):
            if place.temporary:
                self._remove(place.path, place.temporary)
            os.close(place.descriptor)
        self._places.clear()
        for cache in self._caches:
            cache.close()

    def _make_link(self, path: str, target: str, folders: Folders, sources: Folders) -> None:
        if self._types.get(target) != "f":
            raise UnsafeMember(path, f"it links to {target!r}, which is no regular file of this restore")
        with self._failures(path):
            source = sources.descriptor(parent_of(target))
            folder = folders.descriptor(parent_of(path))
            with self._placed(path, folder) as name:
                os.link(last_of(target), name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)

    def _make_other(self, path: str, header: Header, folders: Folders) -> None:
        with self._failures(path):
            folder = folders.descriptor(parent_of(path))
            with self._placed(path, folder) as name:
                if header.type == "l":
                    if not header.link or b"\0" in header.link:
                        raise UnsafeMember(path, "it is a symbolic link without a target")
                    os.symlink(header.link, name, dir_fd=folder)
                    attributes.apply_to_link(folder, name, header, self._policy)
                else:
                    attributes.make_special(folder, name, path, header, self._policy, self.notes)

    @contextmanager
    def _placed(self, path: str, folder: int) -> Iterator[bytes]:
        """The name to make something under: its own, or in a merge one that is then renamed over what is there."""
        name = last_of(path)
        if not self._merge:
            yield name
            return
        temporary = _temporary_name()
        try:
            yield temporary
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            # Still there after a failure, and after renaming a link over another of the same file, which does nothing.
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)

    def _folders(self) -> Folders:
        cache: Folders | None = getattr(self._local, "folders", None)
        if cache is None:
            cache = self._local.folders = self._new_folders()
        return cache

    def _new_folders(self) -> Folders:
        cache = Folders(self._root, make=self._make_folder)
        self._caches.append(cache)
        return cache

    def _make_folder(self, parent: int, name: bytes, path: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            return  # another thread was faster
        self._made.add(path)

    @contextmanager
    def _failures(self, path: str) -> Iterator[None]:
        try:
            yield
        except (OSError, OverflowError, ValueError) as error:
            raise self._failure(path, error) from error

    def _failure(self, path: str, error: OSError | OverflowError | ValueError) -> SnapstoreError:
        if not isinstance(error, OSError):
            return UnsafeMember(path, f"the system cannot hold what it says of itself ({error})")
        reason = reason_of(error)
        if error.errno in _IN_THE_WAY:
            if self._merge:
                return TargetConflict(
                    path, self._target, f"{path!r} cannot be merged: {reason} in the target; move that away"
                )
            return UnsafeMember(path, f"another member of the archive is in its way ({reason})")
        if error.errno in _NO_SPACE:
            return TargetUnwritable(path, reason, "free some space, then restore again")
        if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
            return TargetUnwritable(path, reason, "the target's file system cannot hold that name")
        return TargetUnwritable(path, reason, "check the target's permissions and its disk")


def _owner_of_what_is_made_in(root: int) -> tuple[int, int] | None:
    """User and group that files have which are made below ``root``, a new folder of ours that nobody else gets into.

    They need not be set where they are right already, as each call costs. None where what is made in a folder has its
    group (setgid), or where the file system gives another owner than ours, as NFS does to root.
    """
    status = os.fstat(root)
    ours = os.geteuid(), os.getegid()
    as_ours = (status.st_uid, status.st_gid) == ours and not status.st_mode & stat.S_ISGID
    return ours if as_ours else None


def check_path(raw: bytes, *, root: bool = False, what: str = "is called") -> str:
    """A member's path as text. UnsafeMember for one that is not plain and relative."""
    path = to_text(raw)
    if root and path == ".":
        return path
    if len(raw) > MAX_PATH:
        raise UnsafeMember(path[:80] + "…", f"its path is longer than {MAX_PATH} bytes")
    if path.startswith("/"):
        raise UnsafeMember(path, f"it {what} an absolute path")
    if "\0" in path or not _NO_NAMES.isdisjoint(path.split("/")):
        raise UnsafeMember(path, f"it {what} a path that is empty, holds NUL, or has '.', '..' or '//' in it")
    return path


def find_conflict(root: int, members: Iterable[tuple[str, MemberType]], target: str) -> None:
    """TargetConflict where a merge would turn a folder of the target into something else, or the other way round."""
    folders = Folders(root)
    try:
        for path, kind in members:
            if path == ".":
                continue
            check_path(to_bytes(path))
            try:
                folder = folders.descriptor(parent_of(path))
                status = os.stat(last_of(path), dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError:
                status = None  # something on the way is no folder: that one is listed as a member itself, or named here
            is_folder = status is not None and (status.st_mode & 0o170000) == 0o040000
            if is_folder != (kind == "d"):
                there, here = ("a folder", "none") if is_folder else ("no folder", "one")
                raise TargetConflict(
                    path,
                    target,
                    f"{path!r} is {there} in {target!r} and {here} in the snapshot: move it away, or replace all",
                )
    finally:
        folders.close()


def _data(raw: bytes, start: int, length: int) -> Iterable[tuple[int, int]]:
    """Runs (offset, size) of ``raw[start:start + length]`` that are not blocks of zeros."""
    # Where each block ends, nearly every file has something: that is asked first, as it takes no time.
    if 0 not in raw[start + _BLOCK - 1 : start + length : _BLOCK] or raw.find(_ZEROS, start, start + length) < 0:
        return ((0, length),) if length else ()
    return _runs(raw, start, length)


def _runs(raw: bytes, start: int, length: int) -> Iterator[tuple[int, int]]:
    begun = -1
    for offset in range(0, length, _BLOCK):
        size = min(_BLOCK, length - offset)
        if raw.startswith(_ZEROS if size == _BLOCK else _ZEROS[:size], start + offset):
            if begun >= 0:
                yield begun, offset - begun
                begun = -1
        elif begun < 0:
            begun = offset
    if begun >= 0:
        yield begun, length - begun


def _write(descriptor: int, raw: bytes, start: int, length: int, position: int) -> int:
    """Write ``raw[start:start + length]`` at ``position``, its blocks of zeros excepted; returns where that ended."""
    end = position
    whole = memoryview(raw)
    for offset, size in _data(raw, start, length):
        begin = position + offset
        end = begin + size
        done = 0
        while done < size:
            done += os.pwrite(descriptor, whole[start + offset + done : start + offset + size], begin + done)
    return end


def _temporary_name() -> bytes:
    return f"{TEMPORARY}{secrets.token_hex(8)}".encode()
