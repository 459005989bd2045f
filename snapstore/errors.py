"""Every error that snapstore raises, as one tree.

    SnapstoreError
    ├── InvalidInput            a name, label, path, option or URL that cannot be used
    │   └── AmbiguousId         a prefix that fits several snapshots
    ├── NotFound
    │   ├── SnapshotNotFound
    │   ├── MemberNotFound
    │   ├── SourceNotFound      the folder to pack is not there
    │   └── ObjectNotFound      a key is not in the bucket
    ├── Conflict
    │   ├── TargetNotEmpty      a restore would land on something that is there
    │   ├── TargetConflict      a merge would turn a folder into a file, or a file into a folder
    │   └── PreconditionFailed  an object changed (or was there) meanwhile
    ├── SourceUnreadable        a member vanished or could not be read
    ├── TargetUnwritable        the disk is full, permissions are missing
    ├── ArchiveError
    │   ├── ArchiveDamaged      bytes that do not match their digest, or cannot be parsed
    │   ├── UnsafeMember        a member that would land outside its target, or may not be made
    │   └── UnsupportedFormat   written by a newer snapstore
    ├── StorageError
    │   ├── StorageFull
    │   ├── NotAStore           the folder holds something else
    │   ├── BucketNotFound
    │   ├── AccessDenied        the credentials are right, and do not allow this
    │   ├── BadCredentials      missing, wrong or expired
    │   ├── ClockSkewed         this machine's clock is wrong
    │   └── StorageUnavailable  unreachable, too slow, or failing: later may do
    │       └── Throttled
    ├── MetadataInvalid         an object under _metadata/ that cannot be understood
    ├── CatalogError
    │   ├── CatalogTooNew       the index was written by a newer snapstore
    │   ├── CatalogMismatch     the index belongs to another store, or is no index
    │   └── CatalogBusy         another process held the index for too long
    └── StoreClosed

Each message says what to do; what failed stands in fields as well, and the cause is chained.
"""

from collections.abc import Sequence


def reason_of(error: OSError) -> str:
    """What the system says of a failure, to stand within a sentence."""
    return (error.strerror or str(error)).lower()


class SnapstoreError(Exception):
    """The root of the tree: catch this to catch everything that snapstore raises itself."""


class InvalidInput(SnapstoreError, ValueError):
    """A name, label, path, option or URL that cannot be used."""


class AmbiguousId(InvalidInput):
    """A prefix of an id that fits several snapshots; ``candidates`` holds some of them."""

    def __init__(self, prefix: str, candidates: Sequence[str]) -> None:
        self.prefix = prefix
        self.candidates = tuple(candidates)
        shown = ", ".join(self.candidates[:3]) + (", …" if len(self.candidates) > 3 else "")
        super().__init__(f"{prefix!r} fits more than one snapshot ({shown}): give more of the id")


class NotFound(SnapstoreError):
    """Something that was named is not there."""


class SnapshotNotFound(NotFound):
    """No snapshot has this id (or this app has none)."""

    def __init__(self, snapshot_id: str, message: str | None = None) -> None:
        self.snapshot_id = snapshot_id
        super().__init__(
            message
            or f"no snapshot {snapshot_id!r}: `snapstore list` shows what there is, and"
            " `snapstore index rebuild` reads the list anew from the store"
        )


class MemberNotFound(NotFound):
    """A path is not in the snapshot."""

    def __init__(self, path: str, snapshot_id: str, message: str | None = None) -> None:
        self.path = path
        self.snapshot_id = snapshot_id
        super().__init__(
            message
            or f"{path!r} is not in snapshot {snapshot_id}: `snapstore ls {snapshot_id}` shows what is (paths are"
            " relative to the snapshot's root)"
        )


class SourceNotFound(NotFound):
    """The folder to take a snapshot of is missing, or is no folder."""

    def __init__(self, path: str, message: str | None = None) -> None:
        self.path = path
        super().__init__(message or f"{path!r} is not there: nothing to take a snapshot of; check the path")


class ObjectNotFound(NotFound):
    """A key is not in the bucket."""

    def __init__(self, key: str, store: str) -> None:
        self.key = key
        super().__init__(f"no object {key!r} in {store}")


class Conflict(SnapstoreError):
    """What is there does not allow what was asked for."""


class TargetNotEmpty(Conflict):
    """A restore would land on something that is there, and was not told to merge or replace."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"{path!r} is not empty: choose another target, merge into it (existing='merge', --merge),"
            " or replace it (existing='replace', --replace)"
        )


class TargetConflict(Conflict):
    """A folder stands in the target where the snapshot has none, or the other way round."""

    def __init__(self, path: str, target: str, message: str) -> None:
        self.path = path
        self.target = target
        super().__init__(message)


class PreconditionFailed(Conflict):
    """An object was there already, or is another version than expected."""

    def __init__(self, key: str, message: str | None = None) -> None:
        self.key = key
        super().__init__(message or f"{key!r} was changed by someone else meanwhile: read it again, then try again")


class SourceUnreadable(SnapstoreError):
    """A member vanished or could not be read, and ``on_error`` was ``"fail"``: no snapshot was made."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(
            f"cannot read {path!r}: {reason}; no snapshot was made. Mend it, exclude it, or skip such members"
            " (on_error='skip', --on-error skip)"
        )


class TargetUnwritable(SnapstoreError):
    """A restore could not write to its target; what it had made is removed, but for whole files of a merge."""

    def __init__(self, path: str, reason: str, advice: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"cannot write {path!r}: {reason}; {advice}")


class ArchiveError(SnapstoreError):
    """Something is wrong with an archive; ``key`` is its place in the bucket, where known."""

    key: str | None = None

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} (archive {self.key!r}; other snapshots are not affected)" if self.key else text


class ArchiveDamaged(ArchiveError):
    """Bytes of an archive are missing, do not match their digest, or cannot be parsed."""


class UnsafeMember(ArchiveError):
    """A member that was refused; ``path`` is its name as the archive gives it."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"refused member {path!r}: {reason}")


class UnsupportedFormat(ArchiveError):
    """The snapshot was written in a format that this version does not know."""

    def __init__(self, snapshot_id: str, found: int, known: int) -> None:
        self.snapshot_id = snapshot_id
        super().__init__(
            f"snapshot {snapshot_id} has format {found}, and this snapstore knows up to format {known}:"
            " upgrade snapstore to read it"
        )


class StorageError(SnapstoreError):
    """The object store could not do what was asked; ``key`` where one object is concerned."""

    def __init__(self, message: str, key: str | None = None) -> None:
        self.key = key
        super().__init__(message)


class StorageFull(StorageError):
    """No space is left where the store keeps its objects."""


class NotAStore(StorageError):
    """The place exists and holds something that is not a snapstore."""


class BucketNotFound(StorageError):
    """The bucket does not exist; snapstore makes none."""


class AccessDenied(StorageError):
    """The credentials are known, and do not allow what was asked."""


class BadCredentials(StorageError):
    """Credentials are missing, wrong or expired."""


class ClockSkewed(StorageError):
    """This machine's clock and the store's differ by so much that it refuses our signatures."""


class StorageUnavailable(StorageError):
    """The store cannot be reached, is too slow, or fails: the same call may well succeed later."""


class Throttled(StorageUnavailable):
    """The store asks for fewer requests; ``retry_after`` is after how many seconds, where it says so."""

    def __init__(self, message: str, key: str | None = None, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(message, key)


class MetadataInvalid(SnapstoreError):
    """An object under ``_metadata/`` that cannot be understood; ``key`` names it."""

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        self.reason = reason
        super().__init__(f"{key}: {reason}")


class CatalogError(SnapstoreError):
    """The local label index cannot be used; ``path`` is its file."""

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        super().__init__(message)


class CatalogTooNew(CatalogError):
    """The index was written by a newer snapstore."""


class CatalogMismatch(CatalogError):
    """The index belongs to another store, or the file is no index of snapstore's."""


class CatalogBusy(CatalogError):
    """Another process held the index's write lock for longer than we wait."""


class StoreClosed(SnapstoreError):
    """The store is not open (any more)."""
