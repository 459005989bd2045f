"""How a sync goes on beside those who read the index: with pauses, as long as there are any.

What it reads is decoded in the event loop, and its rows are written by a thread that wants the interpreter as much as
the readers' threads do: at full speed, a page takes a hundred times as long as it does otherwise.
"""

import asyncio
import time
from collections.abc import Callable

_WORK_SECONDS = 0.002
_PAUSE_SECONDS = 0.004
_READ_SECONDS = 0.25
"""Whoever has read an index so lately may soon do so again."""


class Pauses:
    """Those of one job, of however many tasks; each awaits `take` before its next few hundred microseconds' work."""

    def __init__(self, read_at: Callable[[], float]) -> None:
        """``read_at`` tells when the index was last read, in the seconds of time.monotonic."""
        self._read_at = read_at
        self._since = time.monotonic()
        self._turn = asyncio.Lock()

    async def take(self) -> None:
        async with self._turn:
            now = time.monotonic()
            if now - self._since < _WORK_SECONDS:
                return
            if now - self._read_at() < _READ_SECONDS:
                await asyncio.sleep(_PAUSE_SECONDS)
            self._since = time.monotonic()
