"""List the metadata objects of a bucket in several listings at once.

S3 gives a listing page by page, each after the one before it; what can be done at the same time is other ranges of
keys. They are cut at ids that the index knows; where it knows none, whoever has nothing to do takes half of what
another has still before it. Bisecting ids suits both kinds: those of UUIDv7 lie close together, and an empty half costs
one request.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import NamedTuple

from snapstore.aio import run_all
from snapstore.keys import METADATA_PREFIX, canonical_id, id_bytes, id_text, metadata_key
from snapstore.objectstore import ObjectInfo, ObjectStore

PAGE = 1000
"""Objects on one page of a listing (S3 gives no more), and so what one request costs."""
_WORTH_DIVIDING = 4 * PAGE
_IDS = 1 << 128


class Span(NamedTuple):
    """The ids greater than ``after`` (empty: from the first), up to ``upto`` (None: to the last)."""

    after: bytes = b""
    upto: bytes | None = None


Handler = Callable[[Span, Sequence[ObjectInfo]], Awaitable[None]]
"""Called with all objects that a span has, several spans at once."""


def spans(cuts: Iterable[bytes]) -> Sequence[Span]:
    """All ids, cut after each of these."""
    edges = [b"", *cuts]
    return [Span(after, upto) for after, upto in zip(edges, [*edges[1:], None], strict=True)]


async def walk(store: ObjectStore, over: Sequence[Span], handle: Handler) -> None:
    """Call ``handle`` for pieces of these spans that make up the whole of them, as their listings come.

    Spans are as good as known ids could cut them, so each is listed from end to end; a single one is bisected.
    """
    walker = _Walker(store, over, handle)
    await run_all((walker.work() for _ in range(store.listings)), at_once=store.listings)


class _Walker:
    def __init__(self, store: ObjectStore, over: Sequence[Span], handle: Handler) -> None:
        self._store = store
        self._handle = handle
        self._waiting = deque(over)
        self._divides = len(over) == 1
        self._workers = 0
        self._idle = 0
        self._changed = asyncio.Condition()

    async def work(self) -> None:
        """Take span after span, until there are none and nobody is left who could divide one."""
        self._workers += 1
        while True:
            async with self._changed:
                self._idle += 1
                self._changed.notify_all()
                await self._changed.wait_for(lambda: self._waiting or self._idle == self._workers)
                if not self._waiting:
                    return
                self._idle -= 1
                span = self._waiting.popleft()
            await self._list(span)

    async def _list(self, span: Span) -> None:
        start = metadata_key(id_text(span.after)) if span.after else ""
        async with aclosing(self._store.list(METADATA_PREFIX, start_after=start)) as pages:
            async for page in pages:
                end = None if span.upto is None else metadata_key(id_text(span.upto))
                inside = [info for info in page if end is None or info.key <= end]
                if page and end is not None and page[-1].key >= end:
                    await self._handle(span, inside)
                    return
                last = next((found for info in reversed(inside) if (found := id_of(info))), span.after)
                await self._handle(Span(span.after, last), inside)
                listed = _distance(span.after, last)
                span = Span(last, span.upto)
                if self._divides and len(page) >= PAGE:  # a shorter one is the last
                    span = await self._divided(span, listed)
        await self._handle(span, ())

    async def _divided(self, rest: Span, listed: int) -> Span:
        """What is left of a span, of which one page was a piece so long; half of it, where somebody else is idle."""
        last = _IDS - 1 if rest.upto is None else int.from_bytes(rest.upto, "big")
        first = int.from_bytes(rest.after, "big")
        if self._idle <= len(self._waiting) or (last - first) * PAGE < listed * _WORTH_DIVIDING:
            return rest
        middle = ((first + last) // 2).to_bytes(16, "big")
        self._waiting.append(Span(middle, rest.upto))
        async with self._changed:
            self._changed.notify_all()
        return Span(rest.after, middle)


def id_of(info: ObjectInfo) -> bytes | None:
    """The id in the name of a metadata object, where it is one."""
    name = info.key.removeprefix(METADATA_PREFIX)
    return id_bytes(name) if canonical_id(name) == name else None


def _distance(after: bytes, upto: bytes) -> int:
    return int.from_bytes(upto, "big") - int.from_bytes(after, "big")
