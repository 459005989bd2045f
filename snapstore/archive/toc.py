"""The table of contents: JSON lines of frames and their members, written at the archive's end (FORMAT.md).

Encoded line by line as frames are sealed, so that it is the only thing about them that is kept, and decoded a frame's
line at a time, whenever that is asked for.
"""

from base64 import b64decode
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import zstandard
from blake3 import blake3

from snapstore.archive import frames
from snapstore.archive.frames import FrameEntry, SealedFrame
from snapstore.archive.names import as_json, to_text
from snapstore.errors import ArchiveDamaged, InvalidInput
from snapstore.model import FORMAT, Extent, Member

TOC_MAGIC = 0x184D2A55
_TAG = b"SNAPTOC1"
MAX_TOC = 1 << 30
"""Bytes of a table of contents, uncompressed, that are written and read at most: some 7 million members."""

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for JSON that it cannot read."""

_encoder = msgspec.json.Encoder()


class TocHeader(msgspec.Struct, frozen=True):
    """The first line: enough to make a lost metadata object again."""

    format: int
    id: str
    app: str
    labels: tuple[str, ...]
    created_at: datetime


class Trailer(NamedTuple):
    """What follows the end frame, and what the metadata says of it."""

    content: bytes
    toc: Extent
    root: str


class TocBuilder:
    """Collects frames in their order in the archive; `finish` gives what follows them."""

    def __init__(self, snapshot_id: str, app: str, labels: Sequence[str], created_at: datetime) -> None:
        self._lines: list[bytes | tuple[FrameEntry, Sequence[Member]]] = [
            _encoder.encode(TocHeader(FORMAT, snapshot_id, app, tuple(labels), created_at)) + b"\n"
        ]
        self._sizes: list[tuple[int, int]] = []
        self.offset = 0
        """Where the next frame begins."""

    def add(self, frame: SealedFrame, encoded_members: bytes) -> None:
        """A frame, and what `encode_members` made of its members in a thread."""
        size = len(frame.compressed)
        entry = FrameEntry(self.offset, size, frame.raw, frame.digest)
        # A large file may turn out to have changed when its last frame is read: its line is written at the end.
        may_change = len(frame.members) == 1 and frame.members[0].type == "f"
        self._lines.append((entry, frame.members) if may_change else _line(entry, encoded_members))
        self._sizes.append((size, frame.raw))
        self.offset += size

    def finish(self) -> Trailer:
        """The TOC frame and the seek-table frame."""
        lines = [line if isinstance(line, bytes) else _line(line[0], encode_members(line[1])) for line in self._lines]
        self._lines.clear()
        if sum(map(len, lines)) > MAX_TOC:
            raise InvalidInput(
                f"the folder has too many members for one archive: their list is over {MAX_TOC} bytes. Exclude some, or"
                " take several snapshots of its folders"
            )
        digest = blake3()
        for line in lines:
            digest.update(line)
        root = digest.hexdigest()
        toc = frames.skippable(TOC_MAGIC, _TAG + frames.compress_pieces(lines))
        seek_table = frames.seek_table([*self._sizes, (len(toc), 0)])
        return Trailer(toc + seek_table, Extent(self.offset, len(toc)), root)


def _line(entry: FrameEntry, encoded_members: bytes) -> bytes:
    return b'%b,"members":%b}\n' % (_encoder.encode(entry)[:-1], encoded_members)


def encode_members(members: Sequence[Member]) -> bytes:
    """The ``members`` array of a frame's line."""
    return _encoder.encode([_encode_member(member) for member in members])


def _encode_member(member: Member) -> list[Any]:
    elements: list[Any] = [
        as_json(member.path),
        member.type,
        member.offset,
        member.size,
        member.mode,
        member.uid,
        member.gid,
        member.mtime,
        member.ctime,
        member.ino,
    ]
    if member.link or member.xattrs or member.warning:
        elements += [as_json(member.link), [as_json(name) for name in member.xattrs], member.warning]
        while elements[-1] in ("", []):
            elements.pop()
    return elements


class _Members(msgspec.Struct, frozen=True):
    members: tuple[Member, ...] = ()


class _B64(msgspec.Struct, frozen=True):
    b64: str


class _EncodedMember(msgspec.Struct, frozen=True, array_like=True):
    """A member some of whose names may not be UTF-8."""

    path: str | _B64
    type: str
    offset: int
    size: int
    mode: int
    uid: int
    gid: int
    mtime: int
    ctime: int
    ino: int
    link: str | _B64 = ""
    xattrs: tuple[str | _B64, ...] = ()
    warning: str = ""


class _EncodedMembers(msgspec.Struct, frozen=True):
    members: tuple[_EncodedMember, ...] = ()


_header_decoder = msgspec.json.Decoder(TocHeader)
_entry_decoder = msgspec.json.Decoder(FrameEntry)
_members_decoder = msgspec.json.Decoder(_Members)
_encoded_members_decoder = msgspec.json.Decoder(_EncodedMembers)


class Frame(NamedTuple):
    """A frame of an archive. Its members are decoded each time they are asked for: all of a large archive's, kept,
    would take more memory than everything else."""

    entry: FrameEntry
    line: memoryview

    @property
    def members(self) -> Sequence[Member]:
        """Those that begin in it. ArchiveDamaged where they cannot be parsed."""
        try:
            return self._decode()
        except _UNREADABLE as error:
            raise ArchiveDamaged(f"the table of contents cannot be parsed: {error}") from error

    def alone(self) -> "Frame":
        """The same, without the rest of the table of contents, which a line is a part of."""
        return Frame(self.entry, memoryview(bytes(self.line)))

    def _decode(self) -> Sequence[Member]:
        try:
            members = _members_decoder.decode(self.line).members
        except msgspec.ValidationError:
            members = tuple(map(_decode_member, _encoded_members_decoder.decode(self.line).members))
        for member in members:
            if member.size < 0 or member.offset < 0 or (member.size and member.type != "f"):
                raise ArchiveDamaged(f"the table of contents gives {member.path!r} an impossible size or place")
        return members


class Toc(NamedTuple):
    header: TocHeader
    frames: Sequence[Frame]

    def members(self) -> Iterator[Member]:
        for frame in self.frames:
            yield from frame.members


def parse(frame: bytes, root: str) -> Toc:
    """The table of contents in a TOC frame, once its digest was found to be ``root``. ArchiveDamaged otherwise."""
    content = document(frame)
    if blake3(content).hexdigest() != root:
        raise ArchiveDamaged("the table of contents does not match its digest")
    if not content.endswith(b"\n"):
        raise ArchiveDamaged("the table of contents is cut short")
    lines = _lines(content)
    try:
        header = _header_decoder.decode(next(lines))
        parsed = [Frame(_entry_decoder.decode(line), line) for line in lines]
    except _UNREADABLE as error:
        raise ArchiveDamaged(f"the table of contents cannot be parsed: {error}") from error
    _check_frames(parsed)
    return Toc(header, parsed)


def document(frame: bytes) -> bytes:
    """The JSON lines in a TOC frame, not checked yet. ArchiveDamaged."""
    content = frames.unwrap_skippable(TOC_MAGIC, frame)
    if content[: len(_TAG)] != _TAG:
        raise ArchiveDamaged("no table of contents where the metadata says that it is")
    compressed = content[len(_TAG) :]
    try:
        size = zstandard.frame_content_size(compressed)
    except zstandard.ZstdError as error:
        raise ArchiveDamaged(f"the table of contents cannot be decompressed: {error}") from error
    if not 0 <= size <= MAX_TOC:
        raise ArchiveDamaged(f"the table of contents claims {size} bytes, more than {MAX_TOC}")
    return frames.decompress(compressed, size)


def _lines(document: bytes) -> Iterator[memoryview]:
    view = memoryview(document)
    start = 0
    while start < len(document):
        end = document.index(b"\n", start)
        yield view[start:end]
        start = end + 1


def _decode_member(member: _EncodedMember) -> Member:
    elements = msgspec.structs.astuple(member)
    path, link = _decode_name(member.path), _decode_name(member.link)
    xattrs = tuple(_decode_name(name) for name in member.xattrs)
    return msgspec.convert([path, *elements[1:10], link, xattrs, member.warning], Member)


def _decode_name(name: str | _B64) -> str:
    if isinstance(name, str):
        return name
    try:
        return to_text(b64decode(name.b64, validate=True))
    except ValueError as error:
        raise ArchiveDamaged(f"a name in the table of contents cannot be decoded: {error}") from error


def _check_frames(parsed: Sequence[Frame]) -> None:
    """Frames follow one another from the archive's beginning, as they were written."""
    end = 0
    for entry, _ in parsed:
        if entry.offset != end or entry.size <= 0 or entry.raw <= 0:
            raise ArchiveDamaged("the table of contents lists frames that overlap or leave gaps")
        if entry.raw > frames.MAX_RAW or entry.size > frames.compressed_bound(frames.MAX_RAW):
            raise ArchiveDamaged(
                f"the table of contents lists a frame of {entry.raw} bytes, more than {frames.MAX_RAW}"
            )
        end += entry.size
