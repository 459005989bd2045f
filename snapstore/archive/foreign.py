"""Archives that others made, by streaming: `tarfile` as the parser, our own writer behind it.

Made by ``tar --zstd``, by bsdtar, by the older system: no table of contents, any order, any dialect that Python's
`tarfile` reads. Nothing is known of them beforehand, and only zstd's own checksums (if any) guard them.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, NamedTuple, Self, cast

import zstandard

from snapstore.archive import tar
from snapstore.archive.extract import TreeWriter
from snapstore.archive.names import to_bytes, to_text
from snapstore.errors import ArchiveDamaged, UnsafeMember
from snapstore.model import Member, MemberType

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CHUNK = 1 << 20
_XATTR = tar.XATTR.decode()
_END = b"snapstore: ended"
_END_FRAME = zstandard.ZstdCompressor().compress(_END)
_MAX_GLOBAL = 1000
"""Global pax records of one archive; git writes one."""
_MAX_HEADERS = 8 << 20
"""Bytes of one member's headers: names and attributes are far smaller, and a sparse file's map has 170,000 extents."""
_TEXT_ACL = "SCHILY.acl."


class ForeignMember(NamedTuple):
    header: tar.Header
    content: IO[bytes] | None
    """A regular file's, to be read before the next member is asked for."""
    has_text_acl: bool


class Decompressed(io.RawIOBase):
    """The raw bytes of zstd frames, which ``read`` gives in pieces. ArchiveDamaged where one is cut short.

    However much a few bytes decompress to, no more is made of them than is asked for. Windows of over 128 MiB are
    refused, as zstd itself does unless told otherwise.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._source = _Ended(read)
        self._reader = zstandard.ZstdDecompressor().stream_reader(
            cast(IO[bytes], self._source), read_size=_CHUNK, read_across_frames=True, closefd=False
        )
        self._tail = b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: "WriteableBuffer", /) -> int:
        view = memoryview(target).cast("B")
        try:
            size = self._reader.readinto(view)
        except zstandard.ZstdError as error:
            raise ArchiveDamaged(f"the archive cannot be decompressed: {error}") from error
        if size:
            self._tail = (self._tail + bytes(view[max(0, size - len(_END)) : size]))[-len(_END) :]
        elif self._source.is_empty:
            raise ArchiveDamaged("the archive is empty")
        elif self._tail != _END:
            raise ArchiveDamaged("the archive is cut short")
        return size


class _Ended:
    """What ``read`` gives, and then a frame of our own: it is found again at the end, unless a frame before is cut."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._ended = False
        self.is_empty = True

    def read(self, _size: int) -> bytes:
        if self._ended:
            return b""
        piece = self._read()
        if piece:
            self.is_empty = False
            return piece
        self._ended = True
        return _END_FRAME


class _Forward:
    """The stream as `tarfile` wants it: read on, and with a bound on what the headers of one member may take.

    `tarfile` reads names, attributes and the maps of sparse files into memory, however much of them there is.
    """

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._position = 0
        self._headers_left: int | None = None

    @contextmanager
    def headers(self) -> Iterator[None]:
        """What is read within are the headers of one member; those that belong to another are part of them."""
        if self._headers_left is not None:
            yield
            return
        self._headers_left = _MAX_HEADERS
        try:
            yield
        finally:
            self._headers_left = None

    def read(self, size: int) -> bytes:
        if self._headers_left is not None:
            self._headers_left -= size
            if self._headers_left < 0:
                raise tarfile.ReadError(f"a member with headers of more than {_MAX_HEADERS} bytes")
        found = self._stream.read(size)
        self._position += len(found)
        return found

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.ReadError("a member that lies before the one before it")
        while self._position < position and (skipped := self._stream.read(min(_CHUNK, position - self._position))):
            self._position += len(skipped)


class _StrictInfo(tarfile.TarInfo):
    """`tarfile` takes a header that it cannot read, or a missing one, for the archive's end unless it is the first.

    Only a block of zeros is that: anything else means that the rest is lost.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            with cast(_Forward, archive.fileobj).headers():
                return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def read_members(stream: Decompressed) -> Iterator[ForeignMember]:
    """All members in order; the stream is read to its end. ArchiveDamaged for what cannot be parsed."""
    try:
        forward = cast(IO[bytes], _Forward(io.BufferedReader(stream, _CHUNK)))
        with tarfile.TarFile(
            fileobj=forward, tarinfo=_StrictInfo, encoding="utf-8", errors="surrogateescape"
        ) as archive:
            for info in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every member that it has seen
                if len(archive.pax_headers) > _MAX_GLOBAL:
                    raise ArchiveDamaged(f"the archive has more than {_MAX_GLOBAL} global pax records")
                yield _member(archive, info)
    except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
        raise ArchiveDamaged(f"the archive is no tar that can be read: {error}") from error
    while stream.read(_CHUNK):
        pass  # behind the tar's end: read all the same, so that a damaged end is noticed


def _member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> ForeignMember:
    kind = _kind(info)
    header = tar.Header(
        path=clean_name(info.name) if kind == "d" else clean_name(info.name, root=False),
        type=kind,
        size=info.size if kind == "f" else 0,
        mode=info.mode & 0o7777,
        uid=info.uid,
        gid=info.gid,
        mtime=_mtime(info),
        link=_link(info, kind),
        device=(info.devmajor, info.devminor),
        xattrs=tuple(
            (tar.decode_xattr_name(to_bytes(keyword[len(_XATTR) :])), to_bytes(value))
            for keyword, value in info.pax_headers.items()
            if keyword.startswith(_XATTR)
        ),
    )
    if min(header.size, header.uid, header.gid, *header.device) < 0:
        raise UnsafeMember(info.name, "it has a negative size, owner or device number")
    has_text_acl = any(keyword.startswith(_TEXT_ACL) for keyword in info.pax_headers)
    return ForeignMember(header, archive.extractfile(info) if kind == "f" else None, has_text_acl)


def _kind(info: tarfile.TarInfo) -> MemberType:
    if info.isreg():
        return "f"
    kinds: dict[bytes, MemberType] = {
        tarfile.LNKTYPE: "h",
        tarfile.SYMTYPE: "l",
        tarfile.DIRTYPE: "d",
        tarfile.FIFOTYPE: "p",
        tarfile.CHRTYPE: "c",
        tarfile.BLKTYPE: "b",
    }
    if info.type not in kinds:
        raise UnsafeMember(info.name, f"it is of type {info.type!r}, which snapstore does not know")
    return kinds[info.type]


def clean_name(name: str, *, root: bool = True) -> bytes:
    """``./a/b/`` as ``a/b``: tar programs name members in both ways. The writer checks the rest."""
    if name.startswith("/"):
        return to_bytes(name)
    cleaned = "/".join(part for part in name.split("/") if part not in ("", "."))
    return to_bytes(cleaned or ("." if root else ""))


def _link(info: tarfile.TarInfo, kind: MemberType) -> bytes:
    if kind == "h":
        return clean_name(info.linkname, root=False)
    return to_bytes(info.linkname) if kind == "l" else b""


def _mtime(info: tarfile.TarInfo) -> int:
    exact = info.pax_headers.get("mtime")
    return tar.parse_time(exact.encode()) if exact else int(info.mtime) * 1_000_000_000


def read_piece(content: IO[bytes], size: int) -> bytes:
    """The next bytes of a member's content. ArchiveDamaged where the archive ends in it."""
    try:
        return content.read(size)
    except tarfile.TarError as error:
        raise ArchiveDamaged(f"the archive ends within a file: {error}") from error


def write(member: ForeignMember, writer: TreeWriter) -> None:
    """One member onto the disk."""
    header, content, has_text_acl = member
    if has_text_acl:
        writer.notes.add("left out ACLs in text form, which name users instead of numbering them", to_text(header.path))
    if content is None:
        writer.add(header)
        return
    place = writer.begin_file(header)
    position = 0
    while chunk := read_piece(content, _CHUNK):
        writer.write_content(place, chunk, 0, len(chunk), position)
        position += len(chunk)
    if position != header.size:
        raise ArchiveDamaged(f"{place.path!r} is cut short")
    writer.finish_file(place, header)


def as_listed(header: tar.Header) -> Member:
    """A member as listings show it."""
    return Member(
        to_text(header.path),
        header.type,
        0,
        header.size,
        header.mode,
        header.uid,
        header.gid,
        header.mtime,
        0,
        0,
        to_text(header.link),
        tuple(to_text(name) for name, _ in header.xattrs),
    )
