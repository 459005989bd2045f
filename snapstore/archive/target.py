"""Where a restore goes, and how it appears there: whole or not at all.

- **refuse** (a target that is missing or empty): unpacked into a folder beside the target and renamed to it; into an
  empty folder, which may be a mount point or somebody's working directory, unpacked inside it and moved up.
- **merge**: written in place; each file appears whole, by a rename.
- **replace**: unpacked beside the target, the two exchanged in one step, the old one removed.

Whatever a restore may yet remove, or take back, it holds locked (flock(2)): its new tree from the beginning, the one
that it replaces from before the exchange, a folder that it merges into as one that others may merge into too. So no
other restore takes any of them for something that a killed one left, replaces it, or writes into it. On a file system
without such locks nothing is ever removed as stale.
"""

import ctypes
import errno
import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from snapstore.archive.attributes import drop_default_acl
from snapstore.archive.extract import TreeWriter
from snapstore.archive.folders import FOLDER_FLAGS
from snapstore.archive.removal import STAGING, is_at, remove_stale, remove_tree
from snapstore.errors import InvalidInput, TargetConflict, TargetNotEmpty, TargetUnwritable, reason_of
from snapstore.model import Existing

log = logging.getLogger("snapstore")

_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2


class InUse(Exception):
    """Another restore works with the same target: it is to be tried again in a moment."""


class Target:
    """A place for one restore. `root` is the folder to write into; then `claim` and `publish`; in any case `close`."""

    def __init__(self, path: str, existing: Existing, *, keep: Sequence[str] = ()) -> None:
        """``keep`` are paths that must not be replaced along: those of the store and its index. InUse."""
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
        self.root = -1
        self._replaced = -1
        """The folder that is exchanged for it, where there is one."""
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
            self._hold(self.root, fcntl.LOCK_SH)
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
        _lock(self.root, fcntl.LOCK_EX)
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

    def _hold(self, folder: int, how: int) -> None:
        """Lock what was opened at the target's path. InUse where another restore has it, or has exchanged it since."""
        _lock(folder, how)
        if not is_at(self.path, folder):
            raise InUse

    def claim(self) -> None:
        """Hold what is about to be replaced, if there is something. InUse, and then nothing is held."""
        if self._existing != "replace" or self._replaced >= 0:
            return
        try:
            self._replaced = os.open(self.path, FOLDER_FLAGS)
            self._hold(self._replaced, fcntl.LOCK_EX)
        except FileNotFoundError:
            pass
        except PermissionError as error:
            hint = "give yourself permission to read it, as it has to be looked at before it is replaced"
            raise TargetUnwritable(self.path, reason_of(error), hint) from error
        except OSError as error:
            raise self._unwritable(error) from error
        except InUse:
            self._let_go_of_replaced()
            raise

    def _let_go_of_root(self) -> None:
        if self.root >= 0:
            _close(self.root)
            self.root = -1

    def _let_go_of_replaced(self) -> None:
        if self._replaced >= 0:
            _close(self._replaced)
            self._replaced = -1

    def publish(self, writer: TreeWriter) -> None:
        """Let what was written appear, with the root folder's metadata. InUse, and then nothing has appeared."""
        try:
            if self._staging is None:
                writer.finish_root(self.root)
                if not is_at(self.path, self.root):
                    raise self._exchanged_by_others()
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
        if not is_at(staging, self.root):  # it was removed when it was empty
            os.mkdir(staging, 0o700)
            anew = os.open(staging, FOLDER_FLAGS)
            self._let_go_of_root()
            self.root = anew
            _lock(self.root, fcntl.LOCK_EX)
        while self._moved:
            name = self._moved.pop()
            os.rename(name, os.path.join(staging, name), src_dir_fd=inside)

    def _swap_in(self, staging: str) -> None:
        """The staging folder becomes the target, and takes its name in turn where there is one to replace."""
        with self._around(staging) as (here, new, old):
            if self._replaced < 0:
                try:
                    _rename(here, new, here, old, _RENAME_NOREPLACE)
                except FileExistsError as error:
                    if self._existing == "refuse":
                        raise TargetNotEmpty(self.path) from error
                    if self._existing == "replace":
                        raise InUse from error  # it has appeared since it was claimed
                    raise self._exchanged_by_others() from error
                if not is_at(self.path, self.root):  # the folder around it was exchanged in that instant
                    raise self._exchanged_by_others()
                return
            _sync_file_system(self.root)  # the old tree is removed next: the new one must not be in memory only
            _rename(here, new, here, old, _RENAME_EXCHANGE)
            try:
                if not is_at(staging, self._replaced):
                    raise self._exchanged_by_others()
                os.fsync(here)
            except BaseException:
                self._swap_out(staging)
                raise

    def _swap_out(self, staging: str) -> None:
        """Undo `_swap_in`."""
        with self._around(staging) as (here, new, old):
            if not is_at(self.path, self.root):
                raise self._exchanged_by_others()
            if self._replaced >= 0:
                _rename(here, new, here, old, _RENAME_EXCHANGE)
            else:
                _rename(here, old, here, new, _RENAME_NOREPLACE)

    def _exchanged_by_others(self) -> TargetConflict:
        return TargetConflict(
            ".", self.path, f"{self.path!r} was made or exchanged by somebody else meanwhile: look at it, restore again"
        )

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
        if self._published:
            self._let_go_of_root()  # first, as others may wait for it and the old tree may be large
        left = self._replaced if self._published else self.root
        if self._staging is not None and left >= 0:
            try:
                remove_tree(self._staging, left)
            except OSError as error:
                self.left = f"{self._staging!r} ({reason_of(error)})"
                log.warning("could not remove %s", self.left)
        self._staging = None
        self._let_go_of_replaced()
        self._let_go_of_root()
        if not self._published:
            for path in reversed(self._made_parents):
                with suppress(OSError):  # somebody put something into it
                    os.rmdir(path)

    def _unwritable(self, error: OSError) -> TargetUnwritable:
        reason = reason_of(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return TargetUnwritable(self.path, reason, "free some space, then restore again")
        return TargetUnwritable(self.path, reason, "check that the folder around it is there and can be written to")


def _lock(folder: int, how: int) -> None:
    """InUse where somebody else holds it."""
    try:
        fcntl.flock(folder, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUse from None
    except OSError:
        pass  # a file system without locks


def _close(folder: int) -> None:
    with suppress(OSError):  # a child process may have the descriptor too, and would keep the lock
        fcntl.flock(folder, fcntl.LOCK_UN)
    os.close(folder)


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
