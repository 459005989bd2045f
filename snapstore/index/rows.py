"""A snapshot as a row: what SQLite looks things up by in columns, the rest packed into a few dozen bytes."""

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from snapstore.errors import InvalidInput
from snapstore.index.damage import Garbled
from snapstore.keys import archive_prefix, id_bytes, id_text, split_label
from snapstore.model import Extent, Snapshot

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Row(NamedTuple):
    """A snapshot as the index keeps it."""

    position: int
    """Where it is wanted: its time of creation, in microseconds since 1970."""
    id: bytes
    app: str
    etag: str
    """Of its metadata object."""
    detail: bytes
    labels: frozenset[str]
    """What it is found by: of each label the key with its value, and the key alone."""


class _Detail(msgspec.Struct, frozen=True, array_like=True):
    created: int
    labels: tuple[str, ...]
    key: str | None
    """Without what app and id already say, where it begins with that."""
    size: int | None
    content_size: int | None
    entries: int | None
    toc_offset: int | None
    toc_size: int | None
    root: bytes | None
    base: bytes | None
    reused: int
    warnings: int
    revision: int
    format: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Detail)


def microseconds(moment: datetime) -> int:
    """Since 1970, exactly. InvalidInput for a time without a time zone."""
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise InvalidInput(f"{moment!r} is no datetime with a time zone: give one, as in datetime.now(timezone.utc)")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def moment(microseconds: int) -> datetime:
    """Of so many since 1970. Garbled."""
    try:
        return _EPOCH + timedelta(microseconds=microseconds)
    except (TypeError, OverflowError) as error:
        raise Garbled(f"a time cannot be understood: {error}") from error


def pack(snapshot: Snapshot, etag: str) -> Row:
    """The row of a snapshot whose metadata has this ETag."""
    created = microseconds(snapshot.created_at)
    prefix = archive_prefix(snapshot.app, snapshot.id)
    key = snapshot.key
    detail = _Detail(
        created=created,
        labels=snapshot.labels,
        key=key.removeprefix(prefix) if key else key,
        size=snapshot.size,
        content_size=snapshot.content_size,
        entries=snapshot.entries,
        toc_offset=snapshot.toc.offset if snapshot.toc else None,
        toc_size=snapshot.toc.size if snapshot.toc else None,
        root=bytes.fromhex(snapshot.root) if snapshot.root else None,
        base=id_bytes(snapshot.base) if snapshot.base else None,
        reused=snapshot.reused,
        warnings=snapshot.warnings,
        revision=snapshot.revision,
        format=snapshot.format,
    )
    labels = frozenset(name for label in snapshot.labels for name in _names(label))
    return Row(created, id_bytes(snapshot.id), snapshot.app, etag, _encoder.encode(detail), labels)


def _names(label: str) -> tuple[str, str]:
    key, value = split_label(label)
    return key, f"{key}:{value}"


def unpack(row: Any) -> Snapshot:
    """The snapshot of a row of id, app and detail. Garbled."""
    try:
        return _unpacked(*row)
    except (msgspec.MsgspecError, ValueError, OverflowError, TypeError, AttributeError) as error:
        raise Garbled(f"a row cannot be understood: {error}") from error


def _unpacked(raw_id: bytes, app: str, packed: bytes) -> Snapshot:
    detail = _decoder.decode(packed)
    snapshot_id = id_text(raw_id)
    toc = None
    if detail.toc_offset is not None and detail.toc_size is not None:
        toc = Extent(detail.toc_offset, detail.toc_size)
    return Snapshot(
        id=snapshot_id,
        app=app,
        created_at=moment(detail.created),
        labels=detail.labels,
        key=_whole_key(detail.key, app, snapshot_id),
        size=detail.size,
        content_size=detail.content_size,
        entries=detail.entries,
        toc=toc,
        root=detail.root.hex() if detail.root else None,
        base=id_text(detail.base) if detail.base else None,
        reused=detail.reused,
        warnings=detail.warnings,
        revision=detail.revision,
        format=detail.format,
    )


def _whole_key(key: str | None, app: str, snapshot_id: str) -> str | None:
    if key is None or snapshot_id in key:
        return key
    return archive_prefix(app, snapshot_id) + key


def make_cursor(position: int, snapshot_id: str) -> str:
    return f"{position}.{snapshot_id}"


def parse_cursor(cursor: str) -> tuple[int, bytes]:
    position, _, snapshot_id = cursor.partition(".")
    try:
        found = int(position), UUID(snapshot_id).bytes
    except ValueError:
        found = None
    if found is None or abs(found[0]) >= 1 << 63:
        raise InvalidInput(f"{cursor!r} is no cursor: give one that a listing returned")
    return found
