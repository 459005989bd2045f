"""Names between the disk's bytes and Python's strings, the same whatever the locale says (PEP 383)."""

import re
from base64 import b64encode

from snapstore.errors import InvalidInput

MAX_PATH = 16 << 10
"""Bytes of a member's path; far more than any system call takes, and a bound on what a path can cost."""

TEMPORARY = ".snapstore-"
"""How every name begins that a restore makes for a moment."""
_IS_TEMPORARY = re.compile(r"\.snapstore-(restore-)?[0-9a-f]{16}")


def is_temporary(name: str) -> bool:
    """Whether a restore (one that was killed) has left something of this name."""
    return name.startswith(TEMPORARY) and _IS_TEMPORARY.fullmatch(name) is not None


def to_text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def to_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def parent_of(path: str) -> str:
    """The folder that holds ``path``; the root folder is ``""``."""
    return path.rpartition("/")[0]


def last_of(path: str) -> bytes:
    """The last component of a path, as the disk has it."""
    return to_bytes(path[path.rfind("/") + 1 :])


def depth(path: str) -> int:
    """How many folders below the root; the root itself is above all."""
    return -1 if path == "." else path.count("/")


def is_below(path: str, folder: str) -> bool:
    """Whether ``path`` is ``folder`` or lies in it (both relative, the root being ``.``)."""
    return folder == "." or path == folder or path.startswith(folder + "/")


def clean_path(path: str) -> str:
    """A path as a person writes it (``./a/b/``, ``a//b``) as members are named. InvalidInput for one that leads out."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts:
        raise InvalidInput(f"{path!r} is no path in a snapshot: paths are relative to its root and have no '..'")
    return "/".join(parts) or "."


def as_json(name: str) -> str | dict[str, str]:
    """A name as FORMAT.md writes it in JSON: one that is not UTF-8 as ``{"b64": …}``."""
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            return {"b64": b64encode(to_bytes(name)).decode()}
    return name
