"""A page of a listing, read in a thread: botocore's own reading of a thousand entries holds the event loop for 50 ms.

The entries are taken out of the answer before botocore sees it, and put beside what it finds in the rest. What is no
listing is refused, as botocore would take it for an empty one; errors, and what is no XML at all, are left to it.
"""

from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from snapstore.objectstore import ObjectInfo
from snapstore.storage.s3.answers import NotS3, bare

ENTRIES = "Entries"
"""Where `EntriesReader` leaves an answer's entries, their keys as the server has them: with the store's prefix."""

_WEB_PAGES = (b"<!doctype html", b"<html")
_Page = tuple[bytes, list[ObjectInfo] | None]


class EntriesReader:
    """Handles botocore's event ``before-parse``, of listings; ``run`` calls a function in a thread."""

    def __init__(self, run: Callable[[Callable[[bytes], _Page], bytes], Awaitable[_Page]]) -> None:
        self._run = run

    async def __call__(
        self,
        operation_model: Any,
        response_dict: dict[str, Any],
        customized_response_dict: dict[str, Any],
        **_: Any,
    ) -> None:
        if response_dict["status_code"] != 200:
            return
        if operation_model.name == "ListObjectsV2":
            page = await self._run(take_entries, response_dict["body"])
            response_dict["body"], customized_response_dict[ENTRIES] = page
        elif operation_model.name == "ListMultipartUploads":
            _listing(response_dict["body"], "ListMultipartUploadsResult")


def take_entries(body: bytes) -> _Page:
    """The answer without its entries, and these; None where it is left to botocore as it is. NotS3."""
    root = _listing(body, "ListBucketResult")
    if root is None:
        return body, None
    encoded = _text(root, "EncodingType") == "url"
    found = []
    for node in list(root):
        if _name(node) == "Contents":
            found.append(_entry(node, encoded))
            root.remove(node)
    return ElementTree.tostring(root), found


def _listing(body: bytes, name: str) -> ElementTree.Element | None:
    """The listing, whose root has this name; None for an error, and for what is no XML. NotS3."""
    if body.lstrip()[:20].lower().startswith(_WEB_PAGES):
        raise NotS3("it answers with a web page")
    if not body.strip():
        raise NotS3("it answers with nothing")
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        return None
    if _name(root) == "Error":
        return None
    if _name(root) != name:
        raise NotS3(f"it answers with <{_name(root)}> in place of <{name}>")
    return root


def _entry(node: ElementTree.Element, encoded: bool) -> ObjectInfo:
    fields = dict(_fields(node))
    try:
        key = fields["Key"]
        return ObjectInfo(
            unquote_plus(key) if encoded else key,
            int(fields["Size"]),
            bare(fields["ETag"]),
            parse_time(fields["LastModified"]).timestamp(),
        )
    except (KeyError, ValueError) as error:
        raise NotS3(f"it lists an entry that cannot be understood: {error}") from error


def _fields(node: ElementTree.Element) -> Iterator[tuple[str, str]]:
    for child in node:
        yield _name(child), child.text or ""


def _text(node: ElementTree.Element, name: str) -> str:
    return next((text for found, text in _fields(node) if found == name), "")


def _name(node: ElementTree.Element) -> str:
    """Without its namespace, which some servers leave out."""
    return node.tag.rpartition("}")[2]


def parse_time(text: str) -> datetime:
    """A time of an answer, in its body (ISO 8601) or its headers (RFC 5322); botocore's own is ten times slower."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(text)
    except ValueError as error:
        raise NotS3(f"it answers with {text!r} in place of a time") from error
