"""What an archive says of its snapshot by itself, for where the metadata is lost (FORMAT.md, salvage)."""

from typing import NamedTuple

from blake3 import blake3

from snapstore.archive import frames, toc
from snapstore.archive.toc import TocHeader
from snapstore.errors import ArchiveDamaged
from snapstore.model import FORMAT, Extent


class Recovered(NamedTuple):
    """What the metadata object said, as far as the archive knows it."""

    header: TocHeader
    root: str
    entries: int
    content_size: int
    warnings: int
    """Members that changed while they were read; those that could not be read are in no archive."""
    end: int
    """Where its frames end, by its own account; the table of contents follows."""


def locate(tail: bytes, size: int) -> Extent | int:
    """Where the table of contents is in an archive of ``size`` bytes that ends in ``tail``.

    The number of bytes that the tail must have, where it is too short to tell. ArchiveDamaged for other archives.
    """
    count = frames.seek_table_count(tail)
    table = frames.seek_table_size(count)
    if table > size:
        raise ArchiveDamaged("it ends in no seek table")
    if len(tail) < table:
        return table
    *_, (compressed, raw) = frames.read_seek_table(tail[-table:])
    if raw != 0 or not 0 < compressed <= size - table:
        raise ArchiveDamaged("its last frame is no table of contents")
    return Extent(size - table - compressed, compressed)


def recover(frame: bytes) -> Recovered:
    """What the TOC frame tells; slow. ArchiveDamaged."""
    root = blake3(toc.document(frame)).hexdigest()
    contents = toc.parse(frame, root)
    header = contents.header
    if header.format != FORMAT:
        raise ArchiveDamaged(f"its table of contents is of format {header.format}, not {FORMAT}")
    if header.created_at.tzinfo is None or not 1 < header.created_at.year < 9999:
        raise ArchiveDamaged("its time of creation has no time zone, or is out of range")
    entries = content_size = warnings = 0
    for member in contents.members():
        entries += 1
        content_size += member.size
        warnings += bool(member.warning)
    end = sum(frame.entry.size for frame in contents.frames)
    return Recovered(header, root, entries, content_size, warnings, end)
