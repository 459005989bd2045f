"""Times and durations as people write them."""

import re
from datetime import UTC, datetime, timedelta

from snapstore.errors import InvalidInput

_DURATION = re.compile(r"(\d+)\s*(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def moment(text: str) -> datetime:
    """A date, a time, or a duration before now; without a zone, local. InvalidInput."""
    ago = _parsed(text)
    try:
        if ago is not None:
            return datetime.now(UTC) - ago
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise InvalidInput(f"{text!r} is no time: write 2026-01-31, 2026-01-31T12:00, or 7d for a week ago") from None


def duration(text: str) -> timedelta:
    """InvalidInput."""
    found = _parsed(text)
    if found is None:
        raise InvalidInput(f"{text!r} is no duration: write 30m, 12h or 7d")
    return found


def _parsed(text: str) -> timedelta | None:
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        return None
    try:
        return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])
    except (ValueError, OverflowError):  # of more digits than Python reads, or longer than all time
        raise InvalidInput(f"{text[:40]!r} is too long a time") from None
