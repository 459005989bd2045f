"""A store that is opened and closed: what it holds between the two."""

import asyncio
import os
from collections.abc import Generator
from datetime import timedelta
from types import TracebackType
from typing import Any, NamedTuple, Self
from weakref import WeakValueDictionary

from snapstore.aio import cancellations, drop, uninterrupted
from snapstore.engine.arguments import check_apps, check_duration, check_seconds
from snapstore.engine.calls import Calls
from snapstore.engine.limits import Limits
from snapstore.engine.syncing import Syncing
from snapstore.errors import InvalidInput, StoreClosed
from snapstore.index.catalog import Catalog
from snapstore.model import ProgressCallback
from snapstore.objectstore import ObjectStore
from snapstore.places import default_index
from snapstore.storage.s3.options import S3Options
from snapstore.storage.urls import open_store

_FASTEST = timedelta(seconds=1)
_READS = 8


class _Held(NamedTuple):
    store: ObjectStore
    catalog: Catalog
    syncing: Syncing
    calls: Calls


class OpenedStore:
    """An object store, its index, and the calls that are under way on them."""

    def __init__(
        self,
        place: str | ObjectStore,
        *,
        index: str | None,
        limits: Limits | None,
        apps: str | None,
        index_label: str | None,
        create: bool,
        s3: S3Options | None,
        sync_every: timedelta | None,
        progress: ProgressCallback | None,
    ) -> None:
        self._place = place
        self._index = index
        self._limits = limits or Limits()
        self._apps = os.path.abspath(apps) if apps else None
        self._index_label = index_label
        self._create = create
        self._s3 = s3
        self._sync_every = sync_every
        self._progress = progress
        self._opened: _Held | None = None
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By id, the snapshots that are being changed."""
        self._reading = asyncio.Semaphore(_READS)
        """Held for each piece of a single file: these need not wait for whole snapshots, nor for another store."""
        self._opening: asyncio.Task[None] | None = None
        self._turning = asyncio.Lock()
        self._turning_on: asyncio.AbstractEventLoop | None = None

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str] | ObjectStore,
        *,
        index: str | os.PathLike[str] | None = None,
        limits: Limits | None = None,
        apps: str | os.PathLike[str] | None = None,
        index_label: str | None = None,
        create: bool = True,
        s3: S3Options | None = None,
        sync_every: timedelta | None = None,
        progress: ProgressCallback | None = None,
    ) -> Self:
        """The store at ``url``: ``s3://bucket/prefix`` (see `S3Options`), a folder, or ``file:///…``.

        Or an object store of your own, which keeps the contract of `snapstore.objectstore`, in place of a URL. It is
        open already, and closed along with this one; neither ``create``, ``s3`` nor `Limits.connections` matter to it.

        ``index`` is the file of the local label index (default: one a store, below the user's data home). A new one is
        filled from the store when it is opened. ``limits`` may be shared with other stores. ``apps`` is the folder in
        which the applications live, for calls that name no folder. ``index_label`` is the key of the label whose value
        stands in the archives' keys. With ``create=False``, NotAStore where there is no folder store yet. ``s3`` says
        how a bucket is used; what the URL says comes first. With ``sync_every``, the index follows what other nodes do
        to the store: at that pace (of 1 s or more) for new snapshots, and once an hour (or at that pace, if slower) for
        all others. ``progress`` is told how far the filling of a new index has come.

        Entering (or awaiting) it raises InvalidInput, NotAStore, and CatalogError and its kinds.
        """
        if not isinstance(url, str | os.PathLike) and not hasattr(url, "put"):
            raise InvalidInput(f"{url!r} is no store: give its URL, a folder, or an object store")
        return cls(
            os.fspath(url) if isinstance(url, str | os.PathLike) else url,
            index=os.fspath(index) if index is not None else None,
            limits=limits,
            apps=os.fspath(apps) if apps is not None else None,
            index_label=index_label,
            create=create,
            s3=s3,
            sync_every=sync_every,
            progress=progress,
        )

    def _turn(self) -> asyncio.Lock:
        """Held while it is opened or closed: one after the other. A lock belongs to the loop that it was waited on."""
        loop = asyncio.get_running_loop()
        if loop is not self._turning_on:
            self._turning, self._turning_on = asyncio.Lock(), loop
        return self._turning

    async def __aenter__(self) -> Self:
        async with self._turn():
            if self._opened is not None:
                raise InvalidInput("the store is open already")
            # In a task of its own, so that closing can end it; and it has tidied up before its caller is cancelled.
            self._opening = asyncio.create_task(self._enter())
            cancelled_before = cancellations()
            try:
                await asyncio.shield(self._opening)
            except asyncio.CancelledError:
                if self._opening.cancelled() and cancellations() == cancelled_before:
                    raise StoreClosed("the store was closed while it was being opened") from None
                await self._take_back_opening(self._opening)
                raise
            finally:
                self._opening = None
        return self

    async def _take_back_opening(self, opening: "asyncio.Task[None]") -> None:
        await drop([opening])
        if self._opened is not None:  # it was open in that very instant
            await uninterrupted(self._close_opened(self._opened, 0.0))

    async def _enter(self) -> None:
        if self._sync_every is not None:
            check_duration(self._sync_every, "sync_every")
            if self._sync_every < _FASTEST:
                raise InvalidInput(f"sync_every is {_FASTEST.total_seconds():g} s or more, not {self._sync_every}")
        self._limits.attach()
        self._reading = asyncio.Semaphore(_READS)  # of this loop
        try:
            await self._limits.files.run(check_apps, self._apps)
            store = await self._open_store()
            try:
                catalog, syncing = await self._open_catalog(store)
            except BaseException:
                await uninterrupted(store.aclose())
                raise
        except BaseException:
            self._limits.detach()
            raise
        self._opened = _Held(store, catalog, syncing, Calls())
        if self._sync_every is not None:
            syncing.start(self._sync_every)

    async def _open_store(self) -> ObjectStore:
        if not isinstance(self._place, str):
            return self._place
        return await open_store(self._place, create=self._create, s3=self._s3, requesting=self._limits.requesting)

    async def _open_catalog(self, store: ObjectStore) -> tuple[Catalog, Syncing]:
        catalog = await Catalog.open(self._index or default_index(store.url), store.url, self._limits.files)
        try:
            syncing = Syncing(store, catalog)
            await syncing.fill(self._progress)
        except BaseException:
            await uninterrupted(catalog.aclose())
            raise
        return catalog, syncing

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self, *, grace: float = 0.0) -> None:
        """Close index and store, and end the threads that no other store uses.

        Calls that are under way may end within ``grace`` seconds, and are cancelled then: they leave nothing behind,
        and raise StoreClosed. Nothing of ours runs any more when this returns. Where it is called twice, the shorter
        time holds; cancelling it makes that none. An opening is ended at once.
        """
        check_seconds(grace, "grace")
        if self._opening is not None:
            if self._opening.get_loop() is not asyncio.get_running_loop():
                raise InvalidInput("the store is being opened on another event loop: close it there")
            self._opening.cancel()
        if self._opened is not None:
            self._opened.calls.check_loop()
            self._opened.calls.hasten(grace)
        closing = asyncio.create_task(self._close(grace))
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            if self._opened is not None:
                self._opened.calls.hasten(0.0)
            await uninterrupted(closing)
            raise

    async def _close(self, grace: float) -> None:
        async with self._turn():  # a second one waits for the first, and both for an opening
            if self._opened is not None:
                await self._close_opened(self._opened, grace)

    async def _close_opened(self, held: _Held, grace: float) -> None:
        await held.calls.close(grace)
        self._opened = None
        try:
            await held.syncing.aclose()
            await held.catalog.aclose()
        finally:
            try:
                await held.store.aclose()
            finally:
                self._limits.detach()

    @property
    def url(self) -> str:
        """The store's URL, in the form that identifies it."""
        return self._store.url

    @property
    def index(self) -> str:
        """The path of the index file."""
        return self._catalog.path

    @property
    def limits(self) -> Limits:
        """What bounds the store: what runs and what waits can be asked of it."""
        return self._limits

    @property
    def _store(self) -> ObjectStore:
        return self._held().store

    @property
    def _catalog(self) -> Catalog:
        return self._held().catalog

    @property
    def _syncing(self) -> Syncing:
        return self._held().syncing

    @property
    def _calls(self) -> Calls:
        return self._held().calls

    def _held(self) -> _Held:
        if self._opened is None:
            raise StoreClosed("the store is not open: use `async with SnapStore.open(…) as store`")
        return self._opened
