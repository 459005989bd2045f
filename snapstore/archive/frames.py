"""Frames: raw tar bytes to independent zstd frames with a digest, and back, checked.

Both directions run in any thread; zstandard and BLAKE3 release the GIL, so frames are sealed and opened in parallel.
"""

import struct
import threading
from collections.abc import Sequence
from mmap import mmap
from typing import NamedTuple

import msgspec
import zstandard
from blake3 import blake3

from snapstore.archive import tar
from snapstore.errors import ArchiveDamaged
from snapstore.model import Member

FRAME = 4 << 20
"""What a data frame holds at most, and the unit in which a large file is cut (FORMAT.md, Archive)."""
LEVEL = 3
MAX_RAW = FRAME + (1 << 20) + 4096
"""A frame with more raw bytes was not made by us: 4 MiB of content, a pax header of 1 MiB at most, header blocks."""

_SKIPPABLE = struct.Struct("<II")
_SEEK_MAGIC = 0x184D2A5E
_SEEK_FOOTER = struct.Struct("<IBI")
_SEEK_FOOTER_MAGIC = 0x8F92EAB1

_local = threading.local()


Buffer = bytearray | mmap


class RawFrame:
    """Tar bytes of one frame: the first ``length`` of ``buffer``."""

    __slots__ = ("buffer", "content", "length", "members")

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.length = 0
        self.members: list[Member] = []
        """Those whose headers begin here. A large file's changes once more when its last frame has been read."""
        self.content = 0
        """Bytes of file content in it, for progress."""

    def append(self, block: bytes) -> None:
        end = self.length + len(block)
        self.buffer[self.length : end] = block
        self.length = end

    def skip(self, size: int) -> None:
        """Content of ``size`` bytes, which stands there already."""
        self.length += size
        self.content += size

    def pad(self, size: int) -> None:
        """The zeros behind content of ``size`` bytes; buffers are used again, so they are written."""
        self.append(bytes(tar.padding(size)))


class SealedFrame(NamedTuple):
    """A compressed frame, and what the table of contents says of it."""

    compressed: bytes
    raw: int
    digest: str
    members: list[Member]
    content: int


class FrameEntry(msgspec.Struct, frozen=True, gc=False):
    """A frame's line in the table of contents, without its members."""

    offset: int
    size: int
    raw: int
    digest: str


def seal(frame: RawFrame, level: int = LEVEL) -> SealedFrame:
    """Compress and digest a frame; its buffer is free afterwards."""
    with memoryview(frame.buffer) as whole, whole[: frame.length] as raw:
        return SealedFrame(compress(raw, level), frame.length, blake3(raw).hexdigest(), frame.members, frame.content)


def compress(raw: bytes | memoryview, level: int = LEVEL) -> bytes:
    """One zstd frame with content size and checksum (RFC 8878)."""
    cached: tuple[int, zstandard.ZstdCompressor] | None = getattr(_local, "compressor", None)
    if cached is None or cached[0] != level:
        compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        cached = _local.compressor = (level, compressor)
    return cached[1].compress(raw)


def compress_pieces(pieces: Sequence[bytes], level: int = LEVEL) -> bytes:
    """The same for what is at hand in pieces, without joining them."""
    settings = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
    compressor = settings.compressobj(size=sum(map(len, pieces)))
    compressed = [compressor.compress(piece) for piece in pieces]
    return b"".join([*compressed, compressor.flush()])


def open_frame(compressed: bytes | memoryview, entry: FrameEntry) -> bytes:
    """The raw bytes of a frame, decompressed and checked. ArchiveDamaged where they are not what ``entry`` says."""
    if entry.raw > MAX_RAW:
        raise ArchiveDamaged(f"a frame claims {entry.raw} bytes, more than {MAX_RAW}")
    raw = decompress(compressed, entry.raw)
    if blake3(raw).hexdigest() != entry.digest:
        raise ArchiveDamaged(f"the frame at {entry.offset} does not match its digest")
    return raw


def decompress(compressed: bytes | memoryview, size: int) -> bytes:
    """One zstd frame of exactly ``size`` raw bytes; the caller has bounded that. ArchiveDamaged for anything else."""
    decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        # Asked before anything is allocated: the claim is part of what may be hostile.
        if zstandard.frame_content_size(compressed) != size:
            raise ArchiveDamaged("a frame's size is not what the table of contents says")
        raw = decompressor.decompress(compressed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ArchiveDamaged(f"a frame cannot be decompressed: {error}") from error
    if len(raw) != size:
        raise ArchiveDamaged("a frame ends early")
    return raw


def compressed_bound(size: int) -> int:
    """The most bytes that zstd makes of ``size`` ones, generously (ZSTD_compressBound)."""
    return size + (size >> 7) + 512


def seek_table(frames: Sequence[tuple[int, int]]) -> bytes:
    """The seek table for frames of these (compressed, raw) sizes.

    zstd's seekable format (contrib/seekable_format in zstd's repository), without checksums, for which we have better.
    """
    rows = b"".join(_SKIPPABLE.pack(*sizes) for sizes in frames)
    footer = _SEEK_FOOTER.pack(len(frames), 0, _SEEK_FOOTER_MAGIC)
    return _SKIPPABLE.pack(_SEEK_MAGIC, len(rows) + len(footer)) + rows + footer


def seek_table_count(tail: bytes) -> int:
    """How many frames the seek table lists that ``tail`` ends in. ArchiveDamaged where there is none of ours."""
    if len(tail) < _SEEK_FOOTER.size:
        raise ArchiveDamaged("it ends in no seek table")
    count, descriptor, magic = _SEEK_FOOTER.unpack(tail[-_SEEK_FOOTER.size :])
    if magic != _SEEK_FOOTER_MAGIC or descriptor != 0 or count == 0:
        raise ArchiveDamaged("it ends in no seek table")
    return int(count)


def seek_table_size(count: int) -> int:
    """Bytes of the frame in which a seek table of so many frames is."""
    return (count + 1) * _SKIPPABLE.size + _SEEK_FOOTER.size


def read_seek_table(frame: bytes) -> Sequence[tuple[int, int]]:
    """The frames' (compressed, raw) sizes. ArchiveDamaged."""
    rows = unwrap_skippable(_SEEK_MAGIC, frame)[: -_SEEK_FOOTER.size]
    return [(compressed, raw) for compressed, raw in _SKIPPABLE.iter_unpack(rows)]


def skippable(magic: int, content: bytes) -> bytes:
    """A skippable frame (RFC 8878, 3.1.2), which every zstd reader passes over."""
    return _SKIPPABLE.pack(magic, len(content)) + content


def unwrap_skippable(magic: int, frame: bytes) -> bytes:
    """The content of a skippable frame of this kind. ArchiveDamaged for anything else."""
    if len(frame) < _SKIPPABLE.size or _SKIPPABLE.unpack_from(frame) != (magic, len(frame) - _SKIPPABLE.size):
        raise ArchiveDamaged("no skippable frame where the metadata says that there is one")
    return frame[_SKIPPABLE.size :]
