"""Folders below a root, opened one component at a time and never through a link.

Both directions need it: whoever owns the files may swap a folder for a symbolic link while we read it, and an archive
may carry one that points outside. So nothing is ever opened by a path of several components; each is opened from its
parent's descriptor with ``O_NOFOLLOW``. A small cache keeps the descriptors of the folders used last, since a tree can
have more folders than a process may have files open.
"""

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable

from snapstore.archive.names import last_of, parent_of

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_AT_MOST = 32


class Folders:
    """Descriptors of folders below ``root`` (a descriptor that stays the caller's). For one thread at a time."""

    def __init__(self, root: int, *, make: Callable[[int, bytes, str], None] | None = None) -> None:
        """With ``make``, folders that are missing are made by it, given parent descriptor, name and path."""
        self._root = root
        self._make = make
        self._open: OrderedDict[str, int] = OrderedDict()
        self._last = "", root
        """The one that was asked for last, as most are several times in a row."""

    def descriptor(self, path: str) -> int:
        """The folder at ``path`` (``""`` or ``.``: the root), valid until the next call. OSError as from ``open``."""
        if path == self._last[0]:
            return self._last[1]
        if path in ("", "."):
            return self._root
        found = self._open.get(path)
        if found is not None:
            self._open.move_to_end(path)
            self._last = path, found
            return found
        self._last = "", self._root  # whatever is opened next may close it
        # The nearest ancestor that is open, then downwards: a loop, for trees deeper than Python's stack.
        missing = [path]
        parent = parent_of(path)
        while parent and parent not in self._open:
            missing.append(parent)
            parent = parent_of(parent)
        current = self._open[parent] if parent else self._root
        for folder in reversed(missing):
            current = self._open_child(current, folder)
        self._last = path, current
        return current

    def _open_child(self, parent: int, path: str) -> int:
        name = last_of(path)
        try:
            opened = os.open(name, FOLDER_FLAGS, dir_fd=parent)
        except FileNotFoundError:
            if self._make is None:
                raise
            self._make(parent, name, path)
            opened = os.open(name, FOLDER_FLAGS, dir_fd=parent)
        self._open[path] = opened
        if len(self._open) > _OPEN_AT_MOST:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest)
        return opened

    def close(self) -> None:
        self._last = "", self._root
        while self._open:
            _, descriptor = self._open.popitem()
            with contextlib.suppress(OSError):  # nothing was written through a folder's descriptor
                os.close(descriptor)
