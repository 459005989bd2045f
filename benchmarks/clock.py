"""Measures one call inside a process: its time, its requests, and the memory that it needs on top.

Requests and their bytes are counted by botocore's own events, which every session is given when it is made; attempts
that were repeated count, as they cost.
"""

import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import botocore
import msgspec


class Inside(msgspec.Struct, omit_defaults=True):
    """What a process tells of one call, as a JSON line on stdout."""

    name: str = ""
    """Where one process measures several things."""
    wall: float = 0.0
    user: float = 0.0
    system: float = 0.0
    peak: int | None = None
    """Bytes of the process at most during the call, where it was asked for."""
    requests: dict[str, int] | None = None
    sent: int | None = None
    received: int | None = None
    values: dict[str, float] = {}

    def tell(self) -> None:
        print(msgspec.json.encode(self).decode(), flush=True)


class Traffic:
    """Requests of every botocore session that is made from now on."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.sent = self.received = 0
        botocore.register_initializer(self._watch)

    def _watch(self, session: Any) -> None:
        session.register("before-send.s3", self._sent)
        session.register("response-received.s3", self._answered)

    def _sent(self, request: Any, event_name: str, **_: Any) -> None:
        self.requests[event_name.rpartition(".")[2]] += 1
        self.sent += int(request.headers.get("Content-Length") or 0)

    def _answered(self, response_dict: dict[str, Any] | None, **_: Any) -> None:
        headers = (response_dict or {}).get("headers", {})
        self.received += int(headers.get("content-length") or 0)


@contextmanager
def clock(traffic: Traffic | None = None, *, name: str = "", memory: bool = False) -> Iterator[Inside]:
    """Measure what is within. ``memory`` forgets the process's peak so far, so that it is this call's own."""
    inside = Inside(name)
    if memory:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is what it holds now
        inside.values["mib_before"] = peak() / 2**20
    before = (Counter(traffic.requests), traffic.sent, traffic.received) if traffic else None
    used = _used()
    started = time.perf_counter()
    yield inside
    inside.wall = time.perf_counter() - started
    inside.user, inside.system = (after - earlier for after, earlier in zip(_used(), used, strict=True))
    if traffic and before:
        inside.requests = dict(traffic.requests - before[0])
        inside.sent, inside.received = traffic.sent - before[1], traffic.received - before[2]
    if memory:
        inside.peak = peak()


def peak() -> int:
    """The process's highest resident memory since the last reset, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _used() -> tuple[float, float]:
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + others.ru_utime, own.ru_stime + others.ru_stime
