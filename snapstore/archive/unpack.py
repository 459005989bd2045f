"""Frames of our own archives onto a disk: checked against the table of contents, in any order, by several threads."""

import threading

from snapstore.archive import frames, tar
from snapstore.archive.extract import Place, TreeWriter
from snapstore.archive.frames import FRAME
from snapstore.archive.names import to_text
from snapstore.archive.select import FramePieces, Piece, Selection
from snapstore.errors import ArchiveDamaged
from snapstore.model import Member


class _LargeFile:
    """A file that several frames write to; whoever comes first begins it, whoever comes last finishes it."""

    def __init__(self, size: int) -> None:
        self.lock = threading.Lock()
        self.frames_left = -(-size // FRAME)
        self.place: Place | None = None
        self.header: tar.Header | None = None


class Unpacker:
    def __init__(self, writer: TreeWriter, selection: Selection) -> None:
        self._writer = writer
        self._choice = selection.choice
        self._large: dict[str, _LargeFile] = {}
        self._lock = threading.Lock()

    def unpack(self, wanted: FramePieces, compressed: bytes | memoryview) -> tuple[int, int]:
        """Write what is wanted of a frame; returns how many members it began, and how many bytes it wrote."""
        raw = frames.open_frame(compressed, wanted.frame.entry)
        began = written = 0
        for piece in wanted.pieces():
            self._write(piece, raw)
            began += piece.begins
            written += piece.length
        return began, written

    def _write(self, piece: Piece, raw: bytes) -> None:
        member = piece.member
        header, start = checked_header(raw, member) if piece.begins else (tar.header_of(member), 0)
        if start + piece.length > len(raw):
            raise ArchiveDamaged(f"{member.path!r} reaches beyond its frame")
        header = self._choice.renamed(header)
        if member.type != "f":
            self._writer.add(header)
        elif member.size > FRAME:
            with self._lock:
                file = self._large.setdefault(member.path, _LargeFile(member.size))
            self._write_large(file, piece, header, raw, start)
        else:
            self._writer.write_file(header, raw, start)

    def _write_large(self, file: _LargeFile, piece: Piece, header: tar.Header, raw: bytes, start: int) -> None:
        with file.lock:
            if piece.begins:
                file.header = header
            if file.place is None:
                file.place = self._writer.begin_file(header)
        self._writer.write_content(file.place, raw, start, piece.length, piece.position)
        with file.lock:
            file.frames_left -= 1
            if file.frames_left == 0 and file.header is not None:
                self._writer.finish_file(file.place, file.header)
                del self._large[piece.member.path]


def content(wanted: FramePieces, compressed: bytes | memoryview, start: int, end: int) -> bytes:
    """What a frame holds of its one wanted file between ``start`` and ``end`` in its content, checked."""
    raw = frames.open_frame(compressed, wanted.frame.entry)
    (piece,) = wanted.pieces()
    origin = (checked_header(raw, piece.member)[1] if piece.begins else 0) - piece.position
    if origin + piece.position + piece.length > len(raw):
        raise ArchiveDamaged(f"{piece.member.path!r} reaches beyond its frame")
    return raw[origin + max(start, piece.position) : origin + min(end, piece.position + piece.length)]


def checked_header(raw: bytes, member: Member) -> tuple[tar.Header, int]:
    """A member's header, found to be what the table of contents says, and where its content begins."""
    header = tar.header_of(member)
    if not member.xattrs and member.type not in ("c", "b"):
        usual = member.type == "f" and member.path.isascii()
        blocks = tar.encode_usual(header.path, *header[2:7]) if usual else b""
        blocks = blocks or tar.encode(header)
        if raw.startswith(blocks, member.offset):
            return header, member.offset + len(blocks)
    # It holds more than the table of contents does, or is written in another way: then it has to be parsed.
    found, start = tar.decode(raw, member.offset)
    names = tuple(to_text(name) for name, _ in found.xattrs)
    if found._replace(xattrs=(), device=(0, 0)) != header or names != member.xattrs:
        raise ArchiveDamaged(f"the header of {member.path!r} is not what the table of contents says")
    return found, start
