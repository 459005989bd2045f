"""The metadata object: JSON in the bucket, `Snapshot` everywhere else (FORMAT.md, Metadata object).

Four fields are the older system's, and enough: ``uuid``, ``app_name``, ``ts``, ``labels``. All others are ours.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from snapstore.errors import InvalidInput, MetadataInvalid
from snapstore.keys import SIZE_LABEL, canonical_id, check_app, is_archive_key, metadata_key
from snapstore.model import Extent, Snapshot

_MAX_COUNT = 1 << 60
_MAX_SECONDS = 253402300799
"""The last second of the year 9999, the last that a datetime can hold."""


class _Metadata(msgspec.Struct, frozen=True):
    uuid: str
    app_name: str
    ts: int
    labels: list[str]
    format: int = 0
    created_at: datetime | None = None
    key: str | None = None
    size: int | None = None
    content_size: int | None = None
    entries: int | None = None
    toc: Extent | None = None
    root: str | None = None
    base: str | None = None
    reused: int = 0
    warnings: int = 0
    revision: int = 0


_decoder = msgspec.json.Decoder(_Metadata)


def encode(snapshot: Snapshot) -> bytes:
    """The metadata object of a new snapshot."""
    fields: dict[str, Any] = {
        "uuid": snapshot.id,
        "app_name": snapshot.app,
        "ts": int(snapshot.created_at.timestamp()),
        "labels": [*snapshot.labels, f"{SIZE_LABEL}{snapshot.size}"],
        "format": snapshot.format,
        "created_at": timestamp(snapshot.created_at),
        "key": snapshot.key,
        "size": snapshot.size,
        "content_size": snapshot.content_size,
        "entries": snapshot.entries,
        "toc": snapshot.toc,
        "root": snapshot.root,
        "base": snapshot.base,
        "reused": snapshot.reused,
        "warnings": snapshot.warnings,
        "revision": snapshot.revision,
    }
    return msgspec.json.encode(fields)


def relabelled(body: bytes, labels: Sequence[str]) -> bytes:
    """The metadata object ``body`` with other labels and the next revision; fields that we do not know stay in it."""
    known = _decoder.decode(body)
    _, size = _split_size(known.labels)
    kept = [] if size is None else [f"{SIZE_LABEL}{size}"]
    fields: dict[str, Any] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return msgspec.json.encode(fields | {"labels": [*labels, *kept], "revision": known.revision + 1})


def decode(key: str, body: bytes) -> Snapshot:
    """What the object at ``key`` describes. MetadataInvalid, with what is wrong, for anything else."""
    try:
        body.decode()  # msgspec does not look into fields that we do not know
        found = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MetadataInvalid(key, f"cannot be understood: {error}") from error
    snapshot_id = canonical_id(found.uuid)
    if snapshot_id is None:
        raise MetadataInvalid(key, f"its uuid is no UUID: {found.uuid!r}")
    if key != metadata_key(snapshot_id):
        raise MetadataInvalid(key, f"it describes another snapshot, {snapshot_id}")
    if not 0 <= found.ts <= _MAX_SECONDS:
        raise MetadataInvalid(key, f"its ts is no time: {found.ts}")
    if found.format == 0 and not found.app_name:
        raise MetadataInvalid(key, "its app_name is empty")
    if found.format > 0:
        try:
            check_app(found.app_name)
        except InvalidInput as error:
            raise MetadataInvalid(key, str(error)) from error
        if found.key is None or not is_archive_key(found.key, snapshot_id):
            # Else whoever writes metadata could have other objects read, or deleted with it.
            raise MetadataInvalid(key, f"its key is not that of an archive of its own: {found.key!r}")
    _check_numbers(key, found)
    created_at = found.created_at or datetime.fromtimestamp(found.ts, UTC)
    if created_at.tzinfo is None or not 1 < created_at.year < 9999:
        raise MetadataInvalid(key, "its created_at has no time zone, or is out of range")
    labels, size = _split_size(found.labels)
    return Snapshot(
        id=snapshot_id,
        app=found.app_name,
        created_at=created_at.astimezone(UTC),
        labels=tuple(labels),
        key=found.key if found.format > 0 else None,
        size=found.size if found.size is not None else size,
        content_size=found.content_size,
        entries=found.entries,
        toc=found.toc,
        root=found.root,
        base=found.base,
        reused=found.reused,
        warnings=found.warnings,
        revision=found.revision,
        format=found.format,
    )


def _check_numbers(key: str, found: _Metadata) -> None:
    """What the other layers rely on; all of it may have been written by anyone."""
    counts = (found.size, found.content_size, found.entries, found.reused, found.warnings, found.revision, found.format)
    if any(count is not None and not 0 <= count < _MAX_COUNT for count in counts):
        raise MetadataInvalid(key, "one of its numbers is negative or too large")
    if found.toc is not None and not (0 <= found.toc.offset < _MAX_COUNT and 0 < found.toc.size < _MAX_COUNT):
        raise MetadataInvalid(key, "its toc is no place in an archive")
    if found.root is not None and not re.fullmatch("[0-9a-f]{64}", found.root):
        raise MetadataInvalid(key, "its root is no BLAKE3 digest")
    if found.base is not None and canonical_id(found.base) is None:
        raise MetadataInvalid(key, f"its base is no UUID: {found.base!r}")


def timestamp(moment: datetime) -> str:
    """RFC 3339, in UTC, with microseconds."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _split_size(labels: list[str]) -> tuple[list[str], int | None]:
    """The labels that were given, and the size that the last one tells of."""
    if labels and labels[-1].startswith(SIZE_LABEL):
        text = labels[-1].removeprefix(SIZE_LABEL)
        if text.isascii() and text.isdigit() and len(text) < 20:
            return labels[:-1], int(text)
    return labels, None
