"""Names between the disk's bytes and Python's strings, the same whatever the locale says (PEP 383)."""

MAX_PATH = 16 << 10
"""Bytes of a member's path; far more than any system call takes, and a bound on what a path can cost."""


def to_text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def to_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def parent_of(path: str) -> str:
    """The folder that holds ``path``; the root folder is ``""``."""
    return path.rpartition("/")[0]


def is_below(path: str, folder: str) -> bool:
    """Whether ``path`` is ``folder`` or lies in it (both relative, the root being ``.``)."""
    return folder == "." or path == folder or path.startswith(folder + "/")
