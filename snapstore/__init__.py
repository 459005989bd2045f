"""snapstore: snapshots of application folders, as plain ``.tar.zst`` archives in an object store.

async with SnapStore.open("/srv/snapshots") as store:
    snap = await store.create("blog", "/srv/apps/blog", labels=["owner:42"])
    async for snap in store.list(labels=["owner:42"]): ...
    await store.restore(snap.id, "/srv/apps/blog-copy")
"""

import logging

from snapstore.engine.doctor import diagnose
from snapstore.engine.limits import Limits
from snapstore.engine.store import SnapStore
from snapstore.errors import (
    AccessDenied,
    AmbiguousId,
    ArchiveDamaged,
    ArchiveError,
    BadCredentials,
    BucketNotFound,
    CatalogBusy,
    CatalogError,
    CatalogMismatch,
    CatalogTooNew,
    ClockSkewed,
    Conflict,
    InvalidInput,
    MemberNotFound,
    MetadataInvalid,
    NotAStore,
    NotFound,
    ObjectNotFound,
    PreconditionFailed,
    SnapshotNotFound,
    SnapstoreError,
    SourceNotFound,
    SourceUnreadable,
    StorageError,
    StorageFull,
    StorageUnavailable,
    StoreClosed,
    TargetConflict,
    TargetNotEmpty,
    TargetUnwritable,
    Throttled,
    UnsafeMember,
    UnsupportedFormat,
)
from snapstore.model import (
    Caps,
    Check,
    CheckpointReport,
    Count,
    Existing,
    Extent,
    IndexStatus,
    Member,
    MemberType,
    OnError,
    Page,
    Problem,
    Progress,
    ProgressCallback,
    RestoreReport,
    SalvageReport,
    Snapshot,
    SnapshotReport,
    SyncReport,
)
from snapstore.operation import add_fields
from snapstore.storage.s3.options import S3Options

# A library leaves logging to its service; without this, warnings of an unconfigured one would go to stderr.
logging.getLogger("snapstore").addHandler(logging.NullHandler())
logging.getLogger("snapstore").addFilter(add_fields)

__version__ = "0.1.0"

__all__ = [
    "AccessDenied",
    "AmbiguousId",
    "ArchiveDamaged",
    "ArchiveError",
    "BadCredentials",
    "BucketNotFound",
    "Caps",
    "CatalogBusy",
    "CatalogError",
    "CatalogMismatch",
    "CatalogTooNew",
    "Check",
    "CheckpointReport",
    "ClockSkewed",
    "Conflict",
    "Count",
    "Existing",
    "Extent",
    "IndexStatus",
    "InvalidInput",
    "Limits",
    "Member",
    "MemberNotFound",
    "MemberType",
    "MetadataInvalid",
    "NotAStore",
    "NotFound",
    "ObjectNotFound",
    "OnError",
    "Page",
    "PreconditionFailed",
    "Problem",
    "Progress",
    "ProgressCallback",
    "RestoreReport",
    "S3Options",
    "SalvageReport",
    "SnapStore",
    "Snapshot",
    "SnapshotNotFound",
    "SnapshotReport",
    "SnapstoreError",
    "SourceNotFound",
    "SourceUnreadable",
    "StorageError",
    "StorageFull",
    "StorageUnavailable",
    "StoreClosed",
    "SyncReport",
    "TargetConflict",
    "TargetNotEmpty",
    "TargetUnwritable",
    "Throttled",
    "UnsafeMember",
    "UnsupportedFormat",
    "__version__",
    "diagnose",
]
