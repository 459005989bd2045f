"""snapstore: snapshots of application folders, as plain ``.tar.zst`` archives in an object store.

async with SnapStore.open("/srv/snapshots") as store:
    snap = await store.create("blog", "/srv/apps/blog", labels=["owner:42"])
    async for snap in store.list(labels=["owner:42"]): ...
    await store.restore(snap.id, "/srv/apps/blog-copy")
"""

import logging

from snapstore.engine.limits import Limits
from snapstore.engine.store import SnapStore
from snapstore.errors import (
    AmbiguousId,
    ArchiveDamaged,
    ArchiveError,
    CatalogBusy,
    CatalogError,
    CatalogMismatch,
    CatalogTooNew,
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
    StoreClosed,
    TargetConflict,
    TargetNotEmpty,
    TargetUnwritable,
    UnsafeMember,
    UnsupportedFormat,
)
from snapstore.model import (
    Caps,
    Existing,
    Extent,
    Member,
    MemberType,
    OnError,
    Page,
    Problem,
    Progress,
    ProgressCallback,
    RebuildReport,
    RestoreReport,
    Snapshot,
    SnapshotReport,
)

# A library leaves logging to its service; without this, warnings of an unconfigured one would go to stderr.
logging.getLogger("snapstore").addHandler(logging.NullHandler())

__version__ = "0.1.0"

__all__ = [
    "AmbiguousId",
    "ArchiveDamaged",
    "ArchiveError",
    "Caps",
    "CatalogBusy",
    "CatalogError",
    "CatalogMismatch",
    "CatalogTooNew",
    "Conflict",
    "Existing",
    "Extent",
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
    "RebuildReport",
    "RestoreReport",
    "SnapStore",
    "Snapshot",
    "SnapshotNotFound",
    "SnapshotReport",
    "SnapstoreError",
    "SourceNotFound",
    "SourceUnreadable",
    "StorageError",
    "StorageFull",
    "StoreClosed",
    "TargetConflict",
    "TargetNotEmpty",
    "TargetUnwritable",
    "UnsafeMember",
    "UnsupportedFormat",
    "__version__",
]
