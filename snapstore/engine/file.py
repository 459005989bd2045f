"""One file of a snapshot, found once and read as often as is liked."""

from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple

from snapstore.engine.arguments import check_count
from snapstore.model import Member

Content = Callable[[int, int | None], AsyncGenerator[bytes, None]]
"""A file's bytes from a position on, at most so many; None for all."""


class Found(NamedTuple):
    """A file as a reader has found it: for a hard link, the file that it links to."""

    member: Member
    content: Content


class SnapshotFile:
    """A file of a snapshot, which `SnapStore.file` has found. It holds no connection, and need not be closed."""

    def __init__(self, member: Member, content: Content) -> None:
        self._member = member
        self._content = content

    @property
    def member(self) -> Member:
        """What the snapshot says of it; of a hard link, of the file that it links to. Its ``size`` is in bytes."""
        return self._member

    def read(self, *, start: int = 0, size: int | None = None) -> AsyncGenerator[bytes, None]:
        """Its content in pieces, or ``size`` bytes of it from ``start``. InvalidInput, ArchiveError."""
        check_part(start, size)
        return self._content(start, size)


def check_part(start: int, size: int | None) -> None:
    """InvalidInput where these are no first byte and no number of bytes."""
    check_count(start, "start", 0)
    if size is not None:
        check_count(size, "size", 0)
