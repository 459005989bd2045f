"""From what a user writes (a URL or a folder's path) to an open store."""

import asyncio
import os
import re
from urllib.parse import unquote, urlsplit

from snapstore.errors import InvalidInput
from snapstore.objectstore import ObjectStore
from snapstore.storage.local import LocalStore
from snapstore.storage.s3.options import S3Options


async def open_store(
    url: str,
    *,
    create: bool = True,
    s3: S3Options | None = None,
    requesting: asyncio.Semaphore | None = None,
) -> ObjectStore:
    """``s3://bucket/prefix``; or ``file:///…`` or a path: a folder, made where it is missing if ``create``.

    A bucket is not asked for anything yet, and never made; ``requesting`` bounds the requests to all that are given the
    same. InvalidInput for anything else; NotAStore for a folder of
    somebody else's.
    """
    if is_bucket(url):
        from snapstore.storage.s3.store import S3Store  # here, as whoever has a folder needs nothing of it

        return S3Store(url, s3, requesting)
    store = LocalStore(folder_of(url))
    try:
        await store.open(create=create)
    except BaseException:
        await store.aclose()
        raise
    return store


def is_bucket(url: str) -> bool:
    return url[:5].lower() == "s3://"


def folder_of(url: str) -> str:
    """The folder that a URL or a path names."""
    if not url or "\0" in url:
        raise InvalidInput(f"{url!r} is no store: give a folder, file:///its/path, or s3://bucket/prefix")
    parts = urlsplit(url)
    if re.match(r"[a-z][a-z0-9+.-]*:/(?!/)|(s3|file):(?!/)", url, re.IGNORECASE):
        raise InvalidInput(
            f"{url!r} looks like a URL that lacks slashes: write s3://bucket/prefix, file:///its/path, or a folder"
            " (./ before a name with a colon)"
        )
    if "://" not in url:
        return os.path.abspath(os.path.expanduser(url))
    if parts.scheme != "file":
        raise InvalidInput(
            f"{url!r} is no store that snapstore knows: give a folder, file:///its/path, or s3://bucket/prefix"
        )
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise InvalidInput(f"{url!r} names no folder of this machine: write file:/// and its whole path")
    return unquote(parts.path)


def local_path(url: str) -> str | None:
    """The folder of a store on this machine; None for others."""
    return folder_of(url) if url.startswith("file:") else None
