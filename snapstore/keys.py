"""Names in the bucket: how an app, an id and a label become keys, and which names are allowed.

The layout is FORMAT.md's (format 1), shared with the older system:

    <app>:<id>:<label value or ->:<unix seconds>     the archive
    _metadata/<id>                                   the metadata object
    _checkpoints/<digest>                            copies of metadata, a cache
"""

import os
import re
import uuid
from datetime import datetime
from functools import lru_cache
from urllib.parse import quote

from snapstore.errors import InvalidInput

METADATA_PREFIX = "_metadata/"
CHECKPOINT_PREFIX = "_checkpoints/"
SIZE_LABEL = "size:"
"""The label that the older system appends to every snapshot, and its callers read."""

_APP_BYTES = 128
_KEY_BYTES = 255
_KEY_LABEL_BYTES = 64
_LABEL_BYTES = 1024
_CANONICAL = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_CONTROL = re.compile("[\x00-\x1f\x7f]")


def new_id(unix_ms: int) -> str:
    """A UUIDv7 (RFC 9562, 5.7): 48 bits of milliseconds since 1970, then 74 random bits."""
    bits = (unix_ms & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    bits = bits & ~(0xF << 76) | 0x7 << 76
    bits = bits & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=bits))


def first_id(moment: datetime) -> bytes:
    """The 16 bytes before those of every UUIDv7 that is made at ``moment`` or later."""
    unix_ms = max(0, int(moment.timestamp() * 1000))
    return (unix_ms << 80).to_bytes(16, "big")


def canonical_id(text: str) -> str | None:
    """``text`` as a lower-case UUID with hyphens, or None where it is not a whole UUID in that form."""
    lower = text.lower()
    return lower if _CANONICAL.fullmatch(lower) else None


def id_bytes(snapshot_id: str) -> bytes:
    """The 16 bytes of a canonical id; a tenth of the time that UUID's own take, and a sync asks for all of them."""
    return bytes.fromhex(snapshot_id.replace("-", ""))


def id_text(raw: bytes) -> str:
    """`id_bytes` the other way, in a third of the time of UUID's own: a page makes each of its ids so."""
    digits = raw.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def metadata_key(snapshot_id: str) -> str:
    return METADATA_PREFIX + snapshot_id


def archive_key(app: str, snapshot_id: str, label_value: str | None, unix_seconds: int) -> str:
    """The archive's key; a label value that is missing or over 64 encoded bytes is written as ``-``."""
    value = encode(label_value) if label_value else "-"
    if len(value) > _KEY_LABEL_BYTES:
        value = "-"
    return f"{encode(app)}:{snapshot_id}:{value}:{unix_seconds}"


def archive_prefix(app: str, snapshot_id: str) -> str:
    """What every key of our own for this snapshot's archive begins with."""
    return f"{encode(app)}:{snapshot_id}:"


def older_archive_prefix(app: str, snapshot_id: str) -> str:
    """What the older system's key for this snapshot's archive begins with: it encodes nothing."""
    return f"{app}:{snapshot_id}:"


def is_archive_key(key: str, snapshot_id: str) -> bool:
    """Whether a key is one that an archive of this snapshot may have: four parts, of which the second is its id."""
    parts = key.split(":")
    return len(parts) == 4 and parts[1] == snapshot_id and "/" not in key and len(key) <= _KEY_BYTES


def check_app(app: str) -> str:
    """``app``, or InvalidInput with the rule that it breaks."""
    if not app:
        raise InvalidInput("an app needs a name: it is empty")
    if app in (".", "..") or app.startswith("_"):
        raise InvalidInput(
            f"{app!r} cannot be an app's name: choose one that is not '.' or '..' and does not begin with '_'"
        )
    if _CONTROL.search(app) or not _is_text(app):
        raise InvalidInput(f"{app!r} cannot be an app's name: it holds control characters or bytes that are not UTF-8")
    if len(encode(app)) > _APP_BYTES:
        raise InvalidInput(
            f"{app!r} is too long for an app's name: {len(encode(app))} bytes percent-encoded, at most {_APP_BYTES}"
        )
    return app


def check_label(label: str) -> str:
    """``label``, or InvalidInput with the rule that it breaks."""
    if not label or label.startswith(":"):
        raise InvalidInput(f"{label!r} cannot be a label: write it as key:value, as in owner:42")
    if _CONTROL.search(label) or not _is_text(label):
        raise InvalidInput(f"{label!r} cannot be a label: it holds control characters or bytes that are not UTF-8")
    if len(label.encode()) > _LABEL_BYTES:
        raise InvalidInput(
            f"a label of {len(label.encode())} bytes is too long, at most {_LABEL_BYTES}: {label[:40]!r}…"
        )
    if split_label(label)[0] == "size":
        raise InvalidInput(f"{label!r} cannot be a label: `size` is written by snapstore itself (the archive's bytes)")
    return label


def split_label(label: str) -> tuple[str, str]:
    """Key and value of a label, split at the first ``:``; without one the value is empty."""
    key, _, value = label.partition(":")
    return key, value


@lru_cache(maxsize=1024)
def encode(name: str) -> str:
    """A name as it stands in keys: percent-encoded, every byte but letters, digits and ``-_.~``."""
    return quote(name, safe="")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
