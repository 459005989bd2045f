"""snapstore: snapshots of application folders, as plain ``.tar.zst`` archives in an object store.

async with SnapStore.open("/srv/snapshots") as store:
    snap = await store.create("blog", "/srv/apps/blog", labels=["owner:42"])
    async for snap in store.list(labels=["owner:42"]): ...
    await store.restore(snap.id, "/srv/apps/blog-copy")
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from snapstore.engine.limits import Limits
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

if TYPE_CHECKING:
    from snapstore.engine.doctor import diagnose
    from snapstore.engine.file import SnapshotFile
    from snapstore.engine.store import SnapStore

# A library leaves logging to its service; without this, warnings of an unconfigured one would go to stderr.
logging.getLogger("snapstore").addHandler(logging.NullHandler())
logging.getLogger("snapstore").addFilter(add_fields)

__version__ = "0.1.0"

_LATER = {
    "SnapStore": "snapstore.engine.store",
    "SnapshotFile": "snapstore.engine.file",
    "diagnose": "snapstore.engine.doctor",
}
"""What is imported when it is asked for: a command that lists snapshots needs none of it, and is done sooner."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


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
    "SnapshotFile",
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
