"""Member headers of a tar, encoded and decoded: bytes in, bytes out.

The dialect is FORMAT.md's: POSIX ustar (IEEE Std 1003.1, pax, "ustar Interchange Format"), with a pax extended header
before it only where ustar cannot say something. Extended attributes stand in ``SCHILY.xattr.<name>`` records, with the
escapes that GNU tar uses for ``%`` and ``=`` in their names.
"""

from functools import lru_cache
from typing import NamedTuple
from zlib import adler32

from snapstore.archive.names import to_bytes
from snapstore.errors import ArchiveDamaged
from snapstore.model import Member, MemberType

BLOCK = 512
END = bytes(2 * BLOCK)
"""The two zero blocks that end a tar."""

_MAX_SIZE = 8**11
_MAX_ID = 8**7
_MAX_TIME = 8**11
_TYPE_FLAGS: dict[MemberType, bytes] = {"f": b"0", "h": b"1", "l": b"2", "c": b"3", "b": b"4", "d": b"5", "p": b"6"}
_TYPES: dict[bytes, MemberType] = {flag: kind for kind, flag in _TYPE_FLAGS.items()} | {b"\0": "f", b"7": "f"}
XATTR = b"SCHILY.xattr."
_MAGIC = b"ustar\x0000"
_BLANK_CHECKSUM = 8 * 32
MAX_PAX = 1 << 20


class Header(NamedTuple):
    """What a tar says of a member; names as bytes, as they stand on the disk."""

    path: bytes
    type: MemberType
    size: int
    """Of the content that follows; 0 for all but ``f``."""
    mode: int
    uid: int
    gid: int
    mtime: int
    """Nanoseconds since 1970."""
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


def header_of(
    member: Member, *, device: tuple[int, int] = (0, 0), xattrs: tuple[tuple[bytes, bytes], ...] = ()
) -> Header:
    """A member's header; what the table of contents does not hold of it is given beside."""
    return Header(
        to_bytes(member.path),
        member.type,
        member.size,
        member.mode,
        member.uid,
        member.gid,
        member.mtime,
        to_bytes(member.link),
        device,
        xattrs,
    )


def padding(size: int) -> int:
    """How many zero bytes follow content of this size."""
    return -size % BLOCK


def encode(header: Header) -> bytes:
    """The header's blocks: a ustar header, behind a pax header where one is needed."""
    plain = header.type == "f" and not (header.xattrs or header.link) and header.device == (0, 0)
    if plain and header.size < _MAX_SIZE and header.path.isascii():
        usual = encode_usual(header.path, header.size, header.mode, header.uid, header.gid, header.mtime)
        if usual:
            return usual
    return encode_any(header)


def encode_any(header: Header) -> bytes:
    """`encode` for whatever there is."""
    path = header.path + b"/" if header.type == "d" else header.path
    records = _pax_records(header, path)
    prefix, name = _split(path)
    seconds = header.mtime // 1_000_000_000
    ustar = _ustar(
        name,
        header.mode,
        header.uid if header.uid < _MAX_ID else 0,
        header.gid if header.gid < _MAX_ID else 0,
        header.size if header.size < _MAX_SIZE else 0,
        seconds if 0 <= seconds < _MAX_TIME else 0,
        _TYPE_FLAGS[header.type],
        header.link[:100],
        header.device,
        prefix,
    )
    if not records:
        return ustar
    return _pax_header(len(records)) + records + bytes(padding(len(records))) + ustar


@lru_cache(maxsize=1024)
def _pax_header(size: int) -> bytes:
    return _ustar(b"PaxHeaders/snapstore", 0o644, 0, 0, size, 0, b"x", b"", (0, 0), b"")


def encode_usual(path: bytes, size: int, mode: int, uid: int, gid: int, mtime: int) -> bytes:
    """`encode_any` for a regular file of the usual kind, in a third of the time; empty for one of another kind.

    The caller has seen that its path is ASCII and its size fits, and that there is nothing else to say of it.
    """
    seconds, nanoseconds = divmod(mtime, 1_000_000_000)
    if len(path) > 100 or uid >= _MAX_ID or gid >= _MAX_ID or not _USUAL_TIMES[0] <= seconds < _USUAL_TIMES[1]:
        return b""
    fields = b"%b%011o\0%011o\0" % (_owned(mode, uid, gid), size, seconds)
    # The sum of so few bytes is less than Adler's modulus: it is that checksum's low half, less its initial 1.
    checksum = _USUAL_CHECKSUM + (adler32(path + fields) & 0xFFFF)
    ustar = b"%b%b%06o\0 %b" % (path.ljust(100, b"\0"), fields, checksum, _USUAL_TAIL)
    if not nanoseconds:
        return ustar
    return b"%b30 mtime=%d.%09d\n%b%b" % (_pax_header(30), seconds, nanoseconds, _USUAL_PADDING, ustar)


@lru_cache(maxsize=256)
def _owned(mode: int, uid: int, gid: int) -> bytes:
    return b"%07o\0%07o\0%07o\0" % (mode, uid, gid)


def _ustar(
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    seconds: int,
    flag: bytes,
    link: bytes,
    device: tuple[int, int],
    prefix: bytes,
) -> bytes:
    fields = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, seconds)
    tail = _tail(flag, device) if not link else _TAIL_WITH_LINK % (flag, link.ljust(100, b"\0"), *device)
    checksum = _BLANK_CHECKSUM + sum(name) + sum(fields) + sum(tail) + sum(prefix)
    return b"%b%b%06o\0 %b%b" % (name.ljust(100, b"\0"), fields, checksum, tail, prefix.ljust(167, b"\0"))


_TAIL_WITH_LINK = b"%b%b" + _MAGIC + bytes(64) + b"%07o\0%07o\0"


@lru_cache(maxsize=64)
def _tail(flag: bytes, device: tuple[int, int]) -> bytes:
    return _TAIL_WITH_LINK % (flag, bytes(100), *device)


_USUAL_TIMES = (10**9, 2**33)
"""Seconds of ten digits that a ustar header can hold: 2001 to 2242."""
_USUAL_TAIL = _tail(b"0", (0, 0)) + bytes(167)
_USUAL_CHECKSUM = _BLANK_CHECKSUM + sum(_USUAL_TAIL) - 1
_USUAL_PADDING = bytes(padding(30))


def _split(path: bytes) -> tuple[bytes, bytes]:
    """Prefix and name fields for a path; cut short where only a pax record can hold it."""
    if len(path) <= 100:
        return b"", path
    cut = path.find(b"/", max(0, len(path) - 101), -1)
    if 0 < cut <= 155:
        return path[:cut], path[cut + 1 :]
    return b"", path[:100]


def _fits(path: bytes) -> bool:
    return path.isascii() and (len(path) <= 100 or bool(_split(path)[0]))


def _pax_records(header: Header, path: bytes) -> bytes:
    mtime = header.mtime
    if mtime % 1_000_000_000 == 0 and 0 <= mtime < _MAX_TIME * 1_000_000_000:
        records = b""
    elif 10**18 <= mtime < 10**19:
        records = b"30 mtime=%d.%09d\n" % divmod(mtime, 1_000_000_000)  # the usual case, its length known
    else:
        records = _record(b"mtime", b"%s%d.%09d" % (b"-" if mtime < 0 else b"", *divmod(abs(mtime), 1_000_000_000)))
    link_fits = header.link.isascii() and len(header.link) <= 100
    if not _fits(path) or not link_fits:
        if not (_is_utf8(path) and _is_utf8(header.link)):
            records += _record(b"hdrcharset", b"BINARY")
        if not _fits(path):
            records += _record(b"path", path)
        if not link_fits:
            records += _record(b"linkpath", header.link)
    if header.size >= _MAX_SIZE:
        records += _record(b"size", b"%d" % header.size)
    if header.uid >= _MAX_ID:
        records += _record(b"uid", b"%d" % header.uid)
    if header.gid >= _MAX_ID:
        records += _record(b"gid", b"%d" % header.gid)
    for name, value in header.xattrs:
        records += _record(XATTR + name.replace(b"%", b"%25").replace(b"=", b"%3D"), value)
    return records


def _record(keyword: bytes, value: bytes) -> bytes:
    """``<length> <keyword>=<value>\\n``, where the length counts its own digits."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %b=%b\n" % (length, keyword, value)


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def decode(raw: bytes, offset: int) -> tuple[Header, int]:
    """The member whose header begins at ``offset``, and where its content begins. ArchiveDamaged for anything else.

    Reads what `encode` writes, whatever wrote it: one optional pax header, then a ustar header.
    """
    records: dict[bytes, bytes] = {}
    block = _checked(raw, offset)
    if block[156:157] == b"x":
        size = _number(block[124:136])
        if size > MAX_PAX:
            raise ArchiveDamaged(f"a pax header of {size} bytes, more than {MAX_PAX}")
        records = _parse_records(raw[offset + BLOCK : offset + BLOCK + size], size)
        offset += BLOCK + size + padding(size)
        block = _checked(raw, offset)
    flag = block[156:157]
    if flag not in _TYPES or block[257:263] != _MAGIC[:6]:
        raise ArchiveDamaged(f"a member of type {flag!r}, which snapstore does not write")
    kind = _TYPES[flag]
    path = records.get(b"path") or b"/".join(part for part in (_text(block[345:500]), _text(block[:100])) if part)
    header = Header(
        path=path[:-1] if kind == "d" and path.endswith(b"/") else path,
        type=kind,
        size=_decimal(records[b"size"]) if b"size" in records else _number(block[124:136]),
        mode=_number(block[100:108]),
        uid=_decimal(records[b"uid"]) if b"uid" in records else _number(block[108:116]),
        gid=_decimal(records[b"gid"]) if b"gid" in records else _number(block[116:124]),
        mtime=parse_time(records[b"mtime"]) if b"mtime" in records else _number(block[136:148]) * 1_000_000_000,
        link=records.get(b"linkpath") or _text(block[157:257]),
        device=(_number(block[329:337]), _number(block[337:345])),
        xattrs=tuple(
            (decode_xattr_name(keyword[len(XATTR) :]), value)
            for keyword, value in records.items()
            if keyword.startswith(XATTR)
        ),
    )
    return header, offset + BLOCK


def decode_xattr_name(name: bytes) -> bytes:
    return name.replace(b"%3D", b"=").replace(b"%25", b"%")


def parse_time(text: bytes) -> int:
    """Nanoseconds of a pax time: a decimal number of seconds with any number of digits, maybe negative."""
    whole, _, fraction = text.strip().partition(b".")
    digits = whole.lstrip(b"-")
    if not (digits + fraction).isdigit() or len(digits) > 20:
        raise ArchiveDamaged(f"a pax time of {text[:40]!r}")
    nanoseconds = int(digits or b"0") * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
    return -nanoseconds if whole.startswith(b"-") else nanoseconds


def _checked(raw: bytes, offset: int) -> bytes:
    block = raw[offset : offset + BLOCK]
    if len(block) < BLOCK:
        raise ArchiveDamaged("a header is cut short")
    if _number(block[148:156]) != sum(block) - sum(block[148:156]) + _BLANK_CHECKSUM:
        raise ArchiveDamaged("a header's checksum does not match")
    return block


def _parse_records(body: bytes, size: int) -> dict[bytes, bytes]:
    records = {}
    position = 0
    while position < size:
        space = body.find(b" ", position, position + 20)
        length = _decimal(body[position:space]) if space > 0 else 0
        record = body[space + 1 : position + length]
        keyword, equals, value = record.partition(b"=")
        if position + length > len(body) or not equals or not value.endswith(b"\n"):
            raise ArchiveDamaged("a pax header cannot be parsed")
        records[keyword] = value[:-1]
        position += length
    return records


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise ArchiveDamaged(f"not a number: {text[:40]!r}")
    return int(text)


def _number(field: bytes) -> int:
    digits = _text(field).strip(b" ")
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        raise ArchiveDamaged(f"not an octal number: {field!r}") from None
