"""Frames of our own archives onto a disk: checked against the table of contents, in any order, by several threads."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from snapstore.archive import frames, tar
from snapstore.archive.extract import Place, TreeWriter
from snapstore.archive.frames import FRAME
from snapstore.archive.names import to_text
from snapstore.archive.select import FramePieces, Piece, Selection
from snapstore.errors import ArchiveDamaged
from snapstore.model import Member

_PIECE = 256 << 10
_SLOW_MEMBER = 0.0005
"""Seconds; a member takes a tenth of that on a disk that need not be waited for."""
_SLOW_BYTE = 5e-9


class _LargeFile:
    """A file that several frames write to; whoever comes first begins it, whoever comes last finishes it."""

    def __init__(self, size: int) -> None:
        self.lock = threading.Lock()
        self.frames_left = -(-size // FRAME)
        self.place: Place | None = None
        self.header: tar.Header | None = None


class _Turns:
    """Who may write to the disk: one thread at a time, or all, where the disk is slow.

    A small file takes six system calls, and two threads that make them hand the interpreter to and fro at each: 30,000
    files took two threads 2.2 s, one thread 1.5 s, and in turns, the other thread decompressing meanwhile, 1.3 s. Over
    a network's file system it is the answers that are waited for, and all may wait at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slow = False

    @contextmanager
    def take(self, members: int, size: int) -> Iterator[None]:
        """A turn for writing so many members with so many bytes."""
        with nullcontext() if self._slow else self._lock:
            started = time.perf_counter()
            yield
        self._slow = time.perf_counter() - started > members * _SLOW_MEMBER + size * _SLOW_BYTE


class Unpacker:
    def __init__(self, writer: TreeWriter, selection: Selection) -> None:
        self._writer = writer
        self._choice = selection.choice
        self._large: dict[str, _LargeFile] = {}
        self._lock = threading.Lock()
        self._turns = _Turns()

    def unpack(self, wanted: FramePieces, compressed: bytes | memoryview) -> tuple[int, int]:
        """Write what is wanted of a frame; returns how many members it began, and how many bytes it wrote."""
        raw = frames.open_frame(compressed, wanted.frame.entry)
        pieces = list(wanted.pieces())
        began = len(pieces) - (wanted.continues is not None)
        written = sum([piece.length for piece in pieces])
        with self._turns.take(began, written):
            for piece in pieces:
                self._write(piece, raw)
        return began, written

    def _write(self, piece: Piece, raw: bytes) -> None:
        member = piece.member
        header, start = checked_header(raw, member) if piece.begins else (tar.header_of(member), 0)
        if start + piece.length > len(raw):
            raise ArchiveDamaged(f"{member.path!r} reaches beyond its frame")
        if self._choice.stand_ins:
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


def content(wanted: FramePieces, compressed: bytes | memoryview, start: int, end: int) -> deque[bytes]:
    """What a frame holds of its one wanted file between ``start`` and ``end`` in its content, checked."""
    raw = frames.open_frame(compressed, wanted.frame.entry)
    (piece,) = wanted.pieces()
    origin = (checked_header(raw, piece.member)[1] if piece.begins else 0) - piece.position
    if origin + piece.position + piece.length > len(raw):
        raise ArchiveDamaged(f"{piece.member.path!r} reaches beyond its frame")
    start, end = origin + max(start, piece.position), origin + min(end, piece.position + piece.length)
    return deque(raw[at : min(end, at + _PIECE)] for at in range(start, end, _PIECE))


def checked_header(raw: bytes, member: Member) -> tuple[tar.Header, int]:
    """A member's header, found to be what the table of contents says, and where its content begins."""
    header = tar.header_of(member)
    if not member.xattrs and member.type not in ("c", "b"):
        blocks = tar.encode(header)
        if raw.startswith(blocks, member.offset):
            return header, member.offset + len(blocks)
    # It holds more than the table of contents does, or is written in another way: then it has to be parsed.
    found, start = tar.decode(raw, member.offset)
    names = tuple(to_text(name) for name, _ in found.xattrs)
    if found._replace(xattrs=(), device=(0, 0)) != header or names != member.xattrs:
        raise ArchiveDamaged(f"the header of {member.path!r} is not what the table of contents says")
    return found, start
