"""What the public calls take and return: frozen structs, no behaviour beyond reading them.

Times are timezone-aware datetimes in UTC or, where a name ends in ``mtime`` or ``ctime``, nanoseconds since 1970.
Sizes are bytes. Paths inside a snapshot are relative to its root, without ``./``; bytes of a name that are not UTF-8
stand in the string as lone surrogates (PEP 383, ``os.fsdecode``).
"""

from collections.abc import Callable
from datetime import datetime
from typing import Literal

import msgspec

FORMAT = 1
"""The newest format of FORMAT.md that this version writes and reads."""

MemberType = Literal["f", "h", "l", "d", "p", "c", "b"]
"""File, hard link, symbolic link, folder (directory), FIFO (pipe), character device, block device."""

OnError = Literal["fail", "skip"]
Existing = Literal["refuse", "merge", "replace"]


class Extent(msgspec.Struct, frozen=True, gc=False):
    """A run of bytes within an archive."""

    offset: int
    size: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One snapshot, as its metadata object describes it."""

    id: str
    app: str
    created_at: datetime
    labels: tuple[str, ...] = ()
    """As given, without the ``size:`` label that is written for the older system."""
    key: str | None = None
    """The archive's key; None where only the older system's four fields are known."""
    size: int | None = None
    """The archive's bytes."""
    content_size: int | None = None
    """The sum of the regular files' bytes."""
    entries: int | None = None
    """How many members it has, folders included."""
    toc: Extent | None = None
    """Where the table of contents is; None for archives that others made."""
    root: str | None = None
    """Hex BLAKE3 of the table of contents, from which every byte is checked."""
    base: str | None = None
    """The id of the snapshot from whose archive some of this one was copied, within the store."""
    reused: int = 0
    """Bytes of the archive that were copied so."""
    warnings: int = 0
    """How many members were changed, or could not be read, while the snapshot was taken."""
    revision: int = 0
    """Grows with every change of the metadata, from 1; 0 where it is not kept."""
    format: int = 0
    """0 for snapshots of the older system."""


class Problem(msgspec.Struct, frozen=True):
    """A member that is not in a snapshot as it was in the folder, and why."""

    path: str
    kind: Literal["changed", "unreadable", "vanished"]
    reason: str


class SnapshotReport(Snapshot, frozen=True, kw_only=True):
    """A snapshot that was just made, and how that went."""

    problems: tuple[Problem, ...] = ()
    sockets: int = 0
    """Sockets are never kept; this many were left out."""
    seconds: float = 0.0
    requests: int = 0
    """Sent over a network, repetitions included, where that was counted."""
    retries: int = 0
    """How many of the requests were repetitions."""


class OperationReport(msgspec.Struct, frozen=True, kw_only=True):
    """What every report but a snapshot's own begins with."""

    seconds: float = 0.0
    """From the call to its end, what it waited for among them."""
    requests: int = 0
    """Sent over a network, repetitions included, where that was counted."""
    retries: int = 0
    """How many of the requests were repetitions."""


class Caps(msgspec.Struct, frozen=True):
    """What one restore may bring onto the disk at most, whatever its archive claims."""

    members: int = 20_000_000
    content_size: int = 1 << 50
    """Bytes of all files together, holes included."""


class RestoreReport(OperationReport, frozen=True, kw_only=True):
    """What a restore wrote."""

    snapshot: Snapshot
    target: str
    members: int
    content_size: int
    skipped: tuple[str, ...] = ()
    """What was not restored as it was, a sentence each: devices, bits and attributes that were not allowed here."""


class Member(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One member of an archive, as its table of contents lists it (FORMAT.md, Table of contents).

    ``mode`` has the permission bits with setuid, setgid and sticky; ``link`` is the target of a hard link (a path like
    ``path``) or of a symbolic one; ``xattrs`` names the extended attributes; ``warning`` is ``changed`` where the file
    changed while it was read. In archives that others made, ``offset``, ``ctime`` and ``ino`` are not known, and 0.
    """

    path: str
    type: MemberType
    offset: int
    """Of the first header block, in its frame's raw bytes."""
    size: int
    mode: int
    uid: int
    gid: int
    mtime: int
    ctime: int
    ino: int
    link: str = ""
    xattrs: tuple[str, ...] = ()
    warning: str = ""


class Progress(msgspec.Struct, frozen=True):
    """How far a long call has come. Totals are 0 where, or as long as, they are not known."""

    phase: Literal["scan", "pack", "restore", "load", "rebuild", "replace", "archives", "checkpoint"]
    """``load`` is the reading of checkpoints, ``rebuild`` of the store's metadata, also by a sync; in ``replace`` the
    new index takes the old one's place; ``archives`` is the listing of archives; ``checkpoint`` the writing of
    checkpoints. ``members`` counts snapshots there, or objects that are listed."""
    members: int
    total_members: int
    bytes: int
    total_bytes: int


ProgressCallback = Callable[[Progress], None]
"""Called on the event loop, so it must be quick. One that raises ends a create or a restore, and may end others."""


class Count(msgspec.Struct, frozen=True):
    """How many snapshots an app has, or a label."""

    name: str
    snapshots: int


class IndexStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an index without asking its store."""

    path: str
    store: str
    """The URL of the store that it belongs to."""
    snapshots: int
    covered: int
    """How many of them stand in checkpoints of the store, as far as this index knows."""
    problems: int
    """How many objects where metadata belongs could not be understood, and are not listed."""
    synced_at: datetime | None
    """When it was last made equal to the store, by a sync or a rebuild; None where that was not yet so."""
    size: int
    """Bytes of its files."""
    schema: int


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was asked of a store, by `diagnose`."""

    name: str
    result: Literal["ok", "missing", "failed", "skipped"]
    """``failed`` where snapstore cannot do without it, ``missing`` where it can, ``skipped`` where nobody can tell."""
    use: str
    """What it is for."""
    detail: str = ""
    seconds: float = 0.0


class Page(msgspec.Struct, frozen=True):
    """One page of a listing; ``cursor`` asks for the next one, and is None on the last."""

    snapshots: tuple[Snapshot, ...]
    cursor: str | None


class CheckpointReport(OperationReport, frozen=True, kw_only=True):
    """What became of a store's checkpoints."""

    snapshots: int
    covered: int
    """How many of them stand in checkpoints now."""
    written: int
    """Checkpoints that were written."""
    read: int
    """Metadata objects that had to be read for that."""
    removed: int
    """Superseded checkpoints that were removed."""


class SalvageReport(OperationReport, frozen=True, kw_only=True):
    """What archives whose metadata is lost say of their snapshots."""

    snapshots: tuple[Snapshot, ...]
    """Those that were brought back; or that can be, where nothing was ``applied``."""
    applied: bool
    problems: tuple[str, ...]
    """Archives of which nothing can be made, a sentence each."""
    recent: int = 0
    """Archives without metadata that were left out since they are younger than an hour."""


class SyncReport(OperationReport, frozen=True, kw_only=True):
    """What a sync or a rebuild of the index found in the bucket."""

    snapshots: int
    read: int
    """Metadata objects that were asked for, as they were new or changed; what checkpoints have is not counted."""
    removed: int
    """Rows that were dropped, as their snapshots are gone; of a rebuild, those of the old index alone."""
    problems: tuple[str, ...]
    """What could not be understood, or does not belong together, a sentence each."""
    checkpoints: int = 0
    """Checkpoints that a rebuild has written, as many snapshots stood in none."""
    from_checkpoints: int = 0
    """Snapshots that a new index has from checkpoints, as these had them as they are now."""
    recent: int = 0
    """Archives without metadata, where archives were listed, that are younger than an hour: of snapshots that are being
    made, or whose making was cut off."""
