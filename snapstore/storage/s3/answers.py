"""Reading what servers answer: ETags in their several spellings, times, and what an error was about."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from snapstore.errors import StorageError


class OutOfRange(StorageError):
    """A range that begins beyond the end of its object."""


class Unsupported(StorageError):
    """The server does not know what was asked, and never will."""


class NotS3(Exception):
    """A success that lacks what S3's have: something else answers there, a web server for instance."""


def bare(etag: str) -> str:
    """What stands between the quotes, whether the server writes them or not."""
    return etag.removeprefix("W/").strip('"')


def quoted(etag: str) -> str:
    return f'"{etag}"'


def etag_of_parts(etags: Sequence[str]) -> str | None:
    """What AWS and most others give an object of these parts; None where the parts' ETags are no MD5 digests."""
    if not all(re.fullmatch("[0-9a-f]{32}", etag) for etag in etags):
        return None
    joined = b"".join(bytes.fromhex(etag) for etag in etags)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(etags)}"


def time_of(answer: Mapping[str, Any]) -> float:
    """When the server answered, by its own clock; 0 where it does not say."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return 0.0


def code_of(failure: BaseException) -> str:
    """The server's error code, of an error of its answer or of ours that was made of one; else empty."""
    return str(_response(failure).get("Error", {}).get("Code", ""))


def status_of(failure: BaseException) -> int:
    """The HTTP status, in the same way; else 0."""
    return int(_response(failure).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _response(failure: BaseException) -> Mapping[str, Any]:
    found = getattr(failure, "response", None) or getattr(failure.__cause__, "response", None)
    return found if isinstance(found, Mapping) else {}
