"""Removing folders of ours, however deep and whatever their modes; links in them are removed, not followed."""

import errno
import fcntl
import os
import stat
import time
from contextlib import suppress

from snapstore.archive.folders import FOLDER_FLAGS, Folders
from snapstore.archive.names import TEMPORARY, is_temporary, last_of, parent_of, to_text

STAGING = f"{TEMPORARY}restore-"
"""How the folder that a restore unpacks into is called; 16 hexadecimal digits follow."""
_STALE_SECONDS = 60
_TRIES = 5


def remove_stale(folder: str) -> None:
    """Remove what restores that were killed have left in a folder: nobody holds its lock, and it is not brand-new.

    Looked at again once it is locked: a restore may have exchanged it for something else meanwhile.
    """
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
                    remove_tree(path, descriptor)
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


def remove_tree(path: str, descriptor: int) -> None:
    """Remove the folder that ``descriptor`` holds open, and its name, if it is still called ``path``."""
    if is_at(path, descriptor):
        _empty(descriptor)
        os.rmdir(path)


def is_at(path: str, descriptor: int) -> bool:
    """Whether that is what stands at ``path``."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _empty(root: int) -> None:
    """Remove all that is in a folder, though whoever used it until now may still add and remove something."""
    for left in reversed(range(_TRIES)):
        try:
            _empty_once(root)
            return
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY) or not left:
                raise


def _empty_once(root: int) -> None:
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
