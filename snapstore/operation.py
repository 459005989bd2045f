"""What is known of an operation while it runs: which snapshot of which app it is about, and what it sent to the store.

It stands in a context variable, which the tasks that an operation begins inherit. A filter on our logger writes it into
every record that is logged meanwhile, for formatters and structured loggers: ``snapshot_id``, ``app`` and
``operation``, None outside of operations. The line at an operation's end has ``outcome``, ``seconds``, ``bytes``,
``requests`` and ``retries`` besides. What is done to an index is an operation too, of no app and no snapshot.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import msgspec

from snapstore.model import OperationReport, SnapshotReport

R = TypeVar("R", bound=SnapshotReport | OperationReport)
T = TypeVar("T")

log = logging.getLogger("snapstore")


class Operation:
    """One call that does something with a snapshot, or with the index."""

    def __init__(self, name: str, app: str | None, snapshot_id: str | None) -> None:
        self.name = name
        self.app = app
        self.snapshot_id = snapshot_id
        self.bytes = 0
        """Of files, read or written."""
        self.requests = 0
        """Sent over a network, repetitions included."""
        self.retries = 0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def fields(self) -> dict[str, Any]:
        return {"operation": self.name, "app": self.app, "snapshot_id": self.snapshot_id}

    def ended(self, outcome: str) -> None:
        """The line at its end. A caller gets the error itself, so it is no warning."""
        counted = {"bytes": self.bytes, "requests": self.requests, "retries": self.retries}
        about = f" of {self.app}, snapshot {self.snapshot_id}" if self.snapshot_id else ""
        log.info(
            "%s%s: %s in %.3f s, %d bytes, %d requests, %d retries",
            *(self.name, about, outcome, self.seconds, *counted.values()),
            extra={"outcome": outcome, "seconds": self.seconds, **counted},
        )


_current: ContextVar[Operation | None] = ContextVar("snapstore_operation", default=None)


@contextmanager
def operation(name: str, app: str | None = None, snapshot_id: str | None = None) -> Iterator[Operation]:
    """What is done within is this operation's, in this task and in those that it begins."""
    before = _current.get()
    running = Operation(name, app, snapshot_id)
    _current.set(running)
    outcome = "done"
    try:
        yield running
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    except GeneratorExit:
        outcome = "closed"  # by a reader who has enough
        raise
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        _current.set(running)  # a generator may be closed in another context than the one that it ran in
        running.ended(outcome)
        _current.set(before)


async def reported(
    name: str,
    work: Callable[[], Coroutine[Any, Any, R]],
    *,
    app: str | None = None,
    snapshot_id: str | None = None,
) -> R:
    """``work`` as an operation; its report says what was counted."""
    with operation(name, app, snapshot_id) as running:
        report = await work()
        running.bytes = getattr(report, "content_size", None) or 0
        return msgspec.structs.replace(report, requests=running.requests, retries=running.retries)


async def counted(name: str, app: str, snapshot_id: str, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """``items`` as an operation, whose bytes are theirs if they are bytes."""
    with operation(name, app, snapshot_id) as running:
        async with aclosing(items):
            async for item in items:
                if isinstance(item, bytes):
                    running.bytes += len(item)
                yield item


def sent(*, again: bool) -> None:
    """A request was sent, for whatever runs here; ``again`` for one that repeats another."""
    running = _current.get()
    if running is not None:
        running.requests += 1
        running.retries += again


def requests() -> int:
    """How many were sent so far, by what runs here."""
    running = _current.get()
    return running.requests if running is not None else 0


def add_fields(record: logging.LogRecord) -> bool:
    """The filter of our logger: lets all pass."""
    running = _current.get()
    fields = running.fields() if running else dict.fromkeys(("operation", "app", "snapshot_id"))
    for name, value in fields.items():
        setattr(record, name, value)
    return True
