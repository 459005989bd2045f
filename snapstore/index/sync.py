"""Make the catalog equal to the bucket: list ``_metadata/``, compare ETags, read what is new or changed.

Listings come in the order of ids, and so do the catalog's rows: piece by piece both are laid side by side, and nothing
is kept of either.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from snapstore.index.catalog import Catalog
from snapstore.index.comparison import TOLD, Comparison
from snapstore.index.mirror import Mirror
from snapstore.index.walk import PAGE, Span, spans, walk
from snapstore.keys import first_id
from snapstore.model import ProgressCallback, SyncReport
from snapstore.objectstore import ObjectStore

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CLOCKS = timedelta(days=1)
"""By how much the clock of another node, whose ids these are, may be ahead of ours."""


async def sync(
    store: ObjectStore,
    catalog: Catalog,
    progress: ProgressCallback | None = None,
    *,
    recent: timedelta | None = None,
) -> SyncReport:
    """Bring the catalog up to date with the bucket. Readers see each piece when it is done.

    With ``recent``, only snapshots are looked at that were begun later than that before the last sync of either kind.
    The caller holds the index's lock.
    """
    began = datetime.now(UTC)
    mirror = catalog.mirror
    recent_spans = None if recent is None else await _recent_spans(mirror, began, recent)
    over = await all_spans(store, mirror) if recent_spans is None else recent_spans
    async with mirror.noting():
        compared = Comparison(store, mirror, progress)
        await walk(store, over, compared.compare)
        await compared.look_again()
        # A call's row may come long after the call changed the bucket: when we and others had been there since. What
        # is read for that counts as nothing new.
        late = Comparison(store, mirror)
        await late.read_again(await mirror.noted())
        await late.look_again()
        if recent_spans is None:
            await mirror.finish(began, compared.misnamed)
        else:
            assert recent is not None
            await mirror.finish_recent(began, recent)
    report = await compared.report()
    return report if recent_spans is None else msgspec.structs.replace(report, snapshots=await mirror.count())


async def nothing_done(catalog: Catalog) -> SyncReport:
    """The report of a sync that another has made needless."""
    mirror = catalog.mirror
    return SyncReport(snapshots=await mirror.count(), read=0, removed=0, problems=tuple(await mirror.problems(TOLD)))


async def _recent_spans(mirror: Mirror, now: datetime, window: timedelta) -> Sequence[Span] | None:
    """The ids of what was begun within so long before the last sync, or since; None where there was none."""
    last = (await mirror.synced()).latest
    if last is None:
        return None
    last = min(last, now)
    since = last - min(window, last - _EPOCH)
    return [Span(first_id(since), first_id(now + _CLOCKS))]


async def all_spans(store: ObjectStore, mirror: Mirror) -> Sequence[Span]:
    """All ids, cut at those that the catalog knows into as many spans as the store lists at once."""
    if store.listings == 1:
        return spans(())
    pages = -(-(await mirror.count()) // PAGE)
    each = max(2, -(-pages // store.listings))  # whole pages, so that no listing has to be asked for more than it needs
    return spans(await mirror.cuts(each * PAGE))
