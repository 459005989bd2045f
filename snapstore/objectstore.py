"""The contract between snapstore and the places where objects are kept.

A store maps keys to immutable bodies. The docstrings here are the contract: what each method promises, what may be
retried, which errors it raises. Implementations do not repeat it, and ``tests/storage_contract.py`` holds every store
to it. Behaviour that is not in it (faults, delays, a count for each method) is added by wrapping a store, never by
options inside one.

**Keys** are non-empty strings of `/`-separated segments; a segment is not empty, not ``.`` or ``..``, at most 255 bytes
of UTF-8, and holds no control characters. No key may be a folder of another (``a`` and ``a/b``): some servers keep keys
as paths. A key that breaks a rule raises InvalidInput before anything is sent.

**ETags** are opaque: two bodies under one key never share one, and nothing else may be read from them.

**Atomicity**: a body is there whole or not at all, whatever happens in the middle. When a write has returned, the body
survives a crash of the machine, and every reader sees it.

**Errors**: ObjectNotFound for a key that is not there, PreconditionFailed where a condition did not hold, StorageFull,
and StorageError for all the rest, with the cause chained.

**Cancellation** leaves a store consistent. A write that was cancelled may or may not have been applied.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from datetime import timedelta
from typing import Protocol

import msgspec

from snapstore.errors import InvalidInput

Chunks = Sequence[bytes]
"""A body in pieces, so that nobody has to join them before they are written."""


class ObjectInfo(msgspec.Struct, frozen=True, gc=False):
    key: str
    size: int
    etag: str
    modified: float
    """Seconds since 1970, by the store's clock; 0 where the answer to a write does not tell."""


class Body(msgspec.Struct, frozen=True):
    """Bytes of an object, and the version that they belong to."""

    content: bytes
    etag: str


class UploadInfo(msgspec.Struct, frozen=True):
    """A multipart upload that was begun, and neither completed nor aborted."""

    key: str
    upload_id: str
    started: float
    """Seconds since 1970, by the store's clock."""


class Part(msgspec.Struct, frozen=True):
    """A part that the store has taken; complete_upload wants these back."""

    number: int
    etag: str
    size: int


class ObjectStore(Protocol):
    """A bucket. Every method may be called by many tasks at once."""

    @property
    def url(self) -> str:
        """What names this store, without credentials: the same for every process that opens it."""

    @property
    def part_size(self) -> int:
        """Bytes that the parts of uploads should have here, at least."""

    @property
    def equal_parts(self) -> bool:
        """Whether all parts of an upload but the last have to be of one size; known once connected."""

    @property
    def listings(self) -> int:
        """How many listings at once are faster than one."""

    @property
    def ca_bundle(self) -> str | None:
        """A file with the certificates to trust, once connected; None for the usual ones."""

    async def connect(self) -> None:
        """Make ready for requests; may be called while something else is done first, and need not be."""

    async def put(
        self, key: str, body: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> ObjectInfo:
        """Write a whole object, replacing what was there.

        With ``if_none_match``, PreconditionFailed where the key exists; with ``if_match``, where its ETag is another
        or it does not exist. Over a network an equal body that is there already may count as written: it may be the
        work of an earlier attempt, whose answer was lost.
        """

    async def get(self, key: str, *, start: int = 0, size: int | None = None, if_match: str | None = None) -> Body:
        """Bytes ``start`` to ``start + size`` (or to the end), in memory.

        A range that reaches beyond the end gives what there is, one that begins there or later gives no bytes. With
        ``if_match``, PreconditionFailed where the object is another version.
        """

    def stream(self, key: str, *, if_match: str | None = None) -> AsyncGenerator[bytes, None]:
        """The whole object in pieces of at most 1 MiB, all of one version.

        An object that is deleted or replaced meanwhile is read to its end, or raises StorageError: never a mixture.
        """

    async def head(self, key: str) -> ObjectInfo:
        """Size, ETag and time of an object, without its bytes."""

    def list(self, prefix: str = "", *, start_after: str = "") -> AsyncGenerator[Sequence[ObjectInfo], None]:
        """Pages of the objects whose key begins with ``prefix`` and is greater than ``start_after``.

        In the byte order of the keys; pages are of any size, and may be empty. An object that exists during the whole
        listing is listed once; one that comes or goes meanwhile may be.
        """

    async def delete(self, key: str) -> None:
        """Remove an object. One that is not there is no error."""

    async def delete_many(self, keys: Iterable[str]) -> None:
        """Remove several objects, as `delete` does each; any number of keys.

        Where some could not be removed, StorageError after all the others were tried.
        """

    async def create_upload(self, key: str) -> str:
        """Begin a multipart upload and return its id. Nothing is visible under ``key`` before complete_upload."""

    async def upload_part(self, key: str, upload_id: str, number: int, body: Chunks) -> Part:
        """Store part ``number`` (1 to 10,000), in any order and many at once; the same number again replaces it.

        All parts but the last should have 5 MiB at least, and one uniform size: some servers insist.
        StorageError for an upload that is not (or no longer) there.
        """

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: str, start: int, size: int, *, if_match: str
    ) -> Part:
        """Store a range of another object as a part, without its bytes leaving the store.

        PreconditionFailed where the source is another version than ``if_match``; StorageError where the range does not
        lie within it, or the store cannot copy.
        """

    async def complete_upload(self, key: str, upload_id: str, parts: Sequence[Part]) -> ObjectInfo:
        """Make the object of these parts, in the order of their numbers, replacing what was under ``key``.

        StorageError, and no object, where a part is unknown. Parts that are not named are dropped.
        """

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """Drop an upload and its parts. One that is not there is no error."""

    def list_uploads(self) -> AsyncGenerator[Sequence[UploadInfo], None]:
        """Pages of the uploads that are neither completed nor aborted, in any order."""

    async def download_url(self, key: str, *, expires: timedelta, filename: str) -> str:
        """A link that fetches the object, for as long as ``expires`` where the store can limit that.

        ``filename`` is what a browser should save it as. ObjectNotFound is not promised: the link may be made blindly.
        InvalidInput where the store makes no such links, or none that hold so long.
        """

    async def aclose(self) -> None:
        """Release connections and threads. The store cannot be used afterwards."""


def check_key(key: str) -> str:
    """``key``, or InvalidInput with the rule of the contract that it breaks."""
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{key!r} cannot be a key: it is not valid UTF-8") from None
    for segment in encoded.split(b"/"):
        if segment in (b"", b".", b"..") or len(segment) > 255:
            raise InvalidInput(
                f"{key!r} cannot be a key: each part between slashes has 1 to 255 bytes and is not . or .."
            )
    if any(byte < 32 or byte == 127 for byte in encoded):
        raise InvalidInput(f"{key!r} cannot be a key: it holds control characters")
    return key
