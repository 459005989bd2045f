"""Where a restore goes, and how it appears there: whole or not at all.

- **refuse** (a target that is missing or empty): unpacked into a folder beside the target and renamed to it; into an
  empty folder, which may be a mount point or somebody's working directory, unpacked inside it and moved up.
- **merge**: written in place; each file appears whole, by a rename.
- **replace**: unpacked beside the target, the two exchanged in one step, the old one removed.
"""

import ctypes
import errno
import fcntl
import logging
import os
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from snapstore.archive.attributes import drop_default_acl
from snapstore.archive.extract import TreeWriter
from snapstore.archive.folders import FOLDER_FLAGS, Folders
from snapstore.archive.names import TEMPORARY, is_temporary, last_of, parent_of, to_text
from snapstore.errors import InvalidInput, TargetConflict, TargetNotEmpty, TargetUnwritable, reason_of
from snapstore.model import Existing

log = logging.getLogger("snapstore")

STAGING = f"{TEMPORARY}restore-"
"""How the folder that a restore unpacks into is called; 16 hexadecimal digits follow."""
_STALE_SECONDS = 60

_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2


class Target:
    """A place for one restore. `root` is the folder to write into; then `publish`; in any case `close`."""

    def __init__(self, path: str, existing: Existing, *, keep: Sequence[str] = ()) -> None:
        """``keep`` are paths that must not be replaced along: those of the store and its index."""
        if not path or "\0" in path:
            raise InvalidInput(f"{path!r} cannot be a target: give the path of a folder")
        # Whoever names a link means the folder that it leads to: that one is exchanged, not the link.
        self.path = os.path.realpath(path)
        self._existing = existing
        self._keep = keep
        self._made_parents: list[str] = []
        self._staging: str | None = None
        self._moved: list[str] = []
        self._published = False
        self._exchanged = False
        self.root = -1
        self.left: str | None = None
        """What `close` could not remove, and why."""
        try:
            self._prepare()
        except OSError as error:
            self.close()
            raise self._unwritable(error) from error
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        remove_stale(self.path)
        is_there = self._look()
        if self._existing == "merge" and is_there:
            self.root = os.open(self.path, FOLDER_FLAGS)
            return
        if is_there and self._existing == "refuse":
            beside = self.path
        else:
            beside = os.path.dirname(self.path)
            self._make_parents(beside)
            remove_stale(beside)
        staging = os.path.join(beside, f"{STAGING}{secrets.token_hex(8)}")
        os.mkdir(staging, 0o700)
        self._staging = staging
        self.root = os.open(staging, FOLDER_FLAGS)
        with suppress(OSError):  # a file system without locks: then nothing is ever removed as stale there
            fcntl.flock(self.root, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held, nobody takes it for what a dead one left
        drop_default_acl(self.root)

    def _look(self) -> bool:
        """Whether a folder is there already. TargetConflict for a file, TargetNotEmpty where that matters."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(status.st_mode):
            raise TargetConflict(".", self.path, f"{self.path!r} is a file: give a folder to restore into")
        if self._existing == "refuse":
            with os.scandir(self.path) as entries:
                if next(entries, None) is not None:
                    raise TargetNotEmpty(self.path)
        if self._existing == "replace":
            self._check_replaceable()
        return True

    def _check_replaceable(self) -> None:
        kept = [("snapshots or their index", path) for path in self._keep]
        with suppress(FileNotFoundError):  # the working directory was removed
            kept.append(("the working directory", os.getcwd()))
        for what, path in kept:
            if os.path.commonpath([self.path, os.path.realpath(path)]) == self.path:
                raise TargetConflict(
                    ".",
                    self.path,
                    f"{self.path!r} holds {what} and is not replaced: choose another target, or merge into it",
                )
        if os.path.ismount(self.path):
            raise TargetConflict(
                ".", self.path, f"{self.path!r} is a mount point and cannot be replaced as a whole: merge into it"
            )

    def _make_parents(self, folder: str) -> None:
        missing = []
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for path in reversed(missing):
            with suppress(FileExistsError):  # somebody else made it meanwhile: then it is theirs
                os.mkdir(path)
                self._made_parents.append(path)

    @property
    def merges(self) -> bool:
        """Whether what is written stands among what is there."""
        return self._staging is None

    def publish(self, writer: TreeWriter) -> None:
        """Let what was written appear, with the root folder's metadata."""
        try:
            if self._staging is None:
                writer.finish_root(self.root)
            elif os.path.dirname(self._staging) == self.path:
                self._move_up(self._staging, writer)
            else:
                writer.finish_root(self.root)
                self._swap_in(self._staging)
        except OSError as error:
            raise self._unwritable(error) from error
        self._published = True

    def revert(self) -> None:
        """Take back what `publish` did, so that `close` removes it; in a merge it stays."""
        if not self._published or self._staging is None:
            return
        if os.path.dirname(self._staging) == self.path:
            inside = os.open(self.path, FOLDER_FLAGS)
            try:
                self._move_down(self._staging, inside)
            finally:
                os.close(inside)
        else:
            self._swap_out(self._staging)
        self._published = False  # and so the staging folder, which holds the new tree again, is what `close` removes

    def _move_up(self, staging: str, writer: TreeWriter) -> None:
        inside = os.open(self.path, FOLDER_FLAGS)
        try:
            for name in os.listdir(self.root):
                _rename(self.root, os.fsencode(name), inside, os.fsencode(name), _RENAME_NOREPLACE)
                self._moved.append(name)
            os.rmdir(staging)  # before the folder's times are set, which it changes
            writer.finish_root(inside)
        except BaseException:
            self._move_down(staging, inside)
            raise
        finally:
            os.close(inside)

    def _move_down(self, staging: str, inside: int) -> None:
        os.makedirs(staging, 0o700, exist_ok=True)
        while self._moved:
            name = self._moved.pop()
            os.rename(name, os.path.join(staging, name), src_dir_fd=inside)

    def _swap_in(self, staging: str) -> None:
        """The staging folder becomes the target, and takes its name in turn where there is one to replace."""
        with self._around(staging) as (here, new, old):
            if self._existing != "replace" or not os.path.lexists(self.path):
                try:
                    _rename(here, new, here, old, _RENAME_NOREPLACE)
                except FileExistsError as error:
                    raise TargetNotEmpty(self.path) from error
                return
            _sync_file_system(self.root)  # the old tree is removed next: the new one must not be in memory only
            _rename(here, new, here, old, _RENAME_EXCHANGE)
            self._exchanged = True
            try:
                os.fsync(here)
            except BaseException:
                self._swap_out(staging)
                raise

    def _swap_out(self, staging: str) -> None:
        """Undo `_swap_in`."""
        with self._around(staging) as (here, new, old):
            if self._exchanged:
                _rename(here, new, here, old, _RENAME_EXCHANGE)
                self._exchanged = False
            else:
                _rename(here, old, here, new, _RENAME_NOREPLACE)

    @contextmanager
    def _around(self, staging: str) -> Iterator[tuple[int, bytes, bytes]]:
        """The folder around staging folder and target, and their names in it."""
        here = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield here, os.fsencode(os.path.basename(staging)), os.fsencode(os.path.basename(self.path))
        finally:
            os.close(here)

    def close(self) -> None:
        """Remove what was not published (or what was replaced), and let go."""
        # It holds the new tree where that was not published, and the old one where it was exchanged for that.
        if self._staging is not None and self._published == self._exchanged:
            try:
                remove_tree(self._staging)
            except OSError as error:
                self.left = f"{self._staging!r} ({reason_of(error)})"
                log.warning("could not remove %s", self.left)
        self._staging = None
        if self.root >= 0:
            os.close(self.root)
            self.root = -1
        if not self._published:
            for path in reversed(self._made_parents):
                with suppress(OSError):  # somebody put something into it
                    os.rmdir(path)

    def _unwritable(self, error: OSError) -> TargetUnwritable:
        reason = reason_of(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return TargetUnwritable(self.path, reason, "free some space, then restore again")
        return TargetUnwritable(self.path, reason, "check that the folder around it is there and can be written to")


def remove_stale(folder: str) -> None:
    """Remove what restores that were killed have left in a folder: nobody holds its lock, and it is not brand-new."""
    try:
        names = [name for name in os.listdir(folder) if name.startswith(STAGING) and is_temporary(name)]
    except OSError:
        return  # it is missing, or not ours to look into: whoever wants to use it is told so then
    for name in names:
        path = os.path.join(folder, name)
        # Somebody else's, in use, or gone meanwhile: then it stays, or is gone.
        with suppress(OSError):
            descriptor = os.open(path, FOLDER_FLAGS)
            try:
                status = os.fstat(descriptor)
                if status.st_uid == os.geteuid() and time.time() - status.st_mtime > _STALE_SECONDS:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(path)
            finally:
                os.close(descriptor)


def remove(root: int, path: str) -> None:
    """Remove what is at a path below ``root``, if it is there; never through a link."""
    folders = Folders(root)
    try:
        parent = folders.descriptor(parent_of(path))
        status = os.stat(last_of(path), dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            _empty(folders.descriptor(path))
            os.rmdir(last_of(path), dir_fd=folders.descriptor(parent_of(path)))
        else:
            os.unlink(last_of(path), dir_fd=parent)
    except (FileNotFoundError, NotADirectoryError):
        pass  # it is not there, which is what was asked for
    finally:
        folders.close()


def remove_tree(path: str) -> None:
    """Remove a folder of ours, however deep and whatever its modes; links in it are removed, not followed."""
    try:
        root = os.open(path, FOLDER_FLAGS)
    except FileNotFoundError:
        return
    try:
        _empty(root)
    finally:
        os.close(root)
    os.rmdir(path)


def _empty(root: int) -> None:
    """Remove all that is in a folder."""
    folders = Folders(root)
    found = [""]
    try:
        for folder in found:
            found += _empty_but_folders(folders, folder)
        for folder in reversed(found[1:]):
            os.rmdir(last_of(folder), dir_fd=folders.descriptor(parent_of(folder)))
    finally:
        folders.close()


def _empty_but_folders(folders: Folders, folder: str) -> list[str]:
    """Remove what is in a folder but its folders, whose paths are returned."""
    descriptor = folders.descriptor(folder)
    os.chmod(descriptor, 0o700)
    inner = []
    for name in os.listdir(descriptor):
        if stat.S_ISDIR(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
            if os.geteuid() != 0:
                # Only to get into folders of our own: as root it is not needed, and the name may be a link by now.
                with suppress(PermissionError):
                    os.chmod(name, 0o700, dir_fd=descriptor)
            child = to_text(os.fsencode(name))
            inner.append(f"{folder}/{child}" if folder else child)
        else:
            os.unlink(name, dir_fd=descriptor)
    return inner


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _rename(old_folder: int, old: bytes, new_folder: int, new: bytes, flag: int) -> None:
    """renameat2(2), which Python's os does not offer; by hand where the file system (or the libc) has none."""
    try:
        done = _libc().renameat2(old_folder, old, new_folder, new, flag)
        failure = ctypes.get_errno() if done != 0 else 0
    except AttributeError:
        failure = errno.ENOSYS
    if failure in (errno.ENOSYS, errno.EINVAL):
        _rename_in_steps(old_folder, old, new_folder, new, flag)
    elif failure:
        raise OSError(failure, os.strerror(failure), os.fsdecode(new))


def _rename_in_steps(old_folder: int, old: bytes, new_folder: int, new: bytes, flag: int) -> None:
    """The same, but for the instant in which neither stands at the new place."""
    if flag == _RENAME_NOREPLACE:
        with suppress(FileNotFoundError):
            os.stat(new, dir_fd=new_folder, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(new))
        os.rename(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder)
        return
    aside = old + b"-old"
    os.rename(new, aside, src_dir_fd=new_folder, dst_dir_fd=new_folder)
    try:
        os.rename(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder)
    except BaseException:
        os.rename(aside, new, src_dir_fd=new_folder, dst_dir_fd=new_folder)
        raise
    os.rename(aside, old, src_dir_fd=new_folder, dst_dir_fd=old_folder)


def _sync_file_system(descriptor: int) -> None:
    """syncfs(2): all that was written to this file system is on its disk."""
    try:
        failed = _libc().syncfs(descriptor) != 0
    except AttributeError:
        os.sync()
        return
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
