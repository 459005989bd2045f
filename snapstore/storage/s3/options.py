"""Where a bucket is and how it is used: from a URL, or from `S3Options` in code.

    s3://bucket/prefix?region=eu-central-1&storage_class=STANDARD_IA

Region, endpoint, addressing style and credentials come from where every AWS tool finds them (environment, profile,
role), unless they are given here. Each field of `S3Options` may stand in the URL, but for the key of SSE-C: a URL is
seen by others (`ps`, logs), so it names the file that holds it.
"""

import base64
import binascii
import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import msgspec

from snapstore.errors import InvalidInput, reason_of
from snapstore.objectstore import check_key

MIN_PART = 5 << 20
MAX_PART = 5 << 30

_COUNT = "a whole number, 1 or more"
_SECONDS = "seconds, more than 0"
_SWITCH = "true or false"
_TAKES = {
    "addressing": "path, virtual or auto",
    "part_size": f"bytes, {MIN_PART} ({MIN_PART >> 20} MiB) or more, and at most {MAX_PART} ({MAX_PART >> 30} GiB)",
    "encryption": "AES256, aws:kms or aws:kms:dsse",
    "customer_key": "32 bytes",
    "tags": "a mapping of strings (in a URL: tags=team%3Dweb%26env%3Dprod)",
    "requester_pays": _SWITCH,
    "sign_payload": _SWITCH,
    "connections": _COUNT,
    "connect_timeout": _SECONDS,
    "read_timeout": _SECONDS,
    "attempts": _COUNT,
    "deadline": _SECONDS,
}
"""What an option takes, as it is told to whoever gave something else; all others take text."""
_UNVERIFIED = (
    *("storage_class", "encryption", "kms_key_id", "customer_key", "customer_key_file"),
    *("tags", "acl", "requester_pays", "bucket_owner"),
)
"""Options that a server may ignore, and work."""

_Seconds = Annotated[float, msgspec.Meta(gt=0)]
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]|arn:[^/?#]+(/[^/?#]+)?")


class S3Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a bucket is reached and used. What is None is left to the AWS configuration, or to the server.

    InvalidInput for options that exclude each other; numbers out of range are found when a store is opened with them.
    """

    region: str | None = None
    """Else ``AWS_REGION``, ``AWS_DEFAULT_REGION``, the profile's, or ``us-east-1``."""
    endpoint: str | None = None
    """Such as ``https://s3.example.com``; else ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``, the profile's, or AWS."""
    profile: str | None = None
    addressing: Literal["path", "virtual", "auto"] | None = None
    """``path`` where there is an endpoint, and AWS's own choice without one, unless the profile says otherwise."""

    part_size: Annotated[int, msgspec.Meta(ge=MIN_PART, le=MAX_PART)] = 8 << 20
    """Bytes of each part of a multipart upload; larger ones are chosen where 10,000 would not suffice."""
    storage_class: str | None = None
    """Of archives; metadata is small and read often, and stays in ``STANDARD``."""
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Server-side, with the server's keys (SSE-S3) or those of KMS."""
    kms_key_id: str | None = None
    customer_key: bytes | None = None
    """32 bytes: server-side encryption with a key of yours (SSE-C), which every request then carries."""
    customer_key_file: str | None = None
    """A file that holds these 32 bytes, as they are or in base64."""
    tags: Mapping[str, str] = {}
    """Of every object that is written. In a URL: ``tags=team%3Dweb%26env%3Dprod``."""
    acl: str | None = None
    """A canned ACL, such as ``bucket-owner-full-control``."""
    requester_pays: bool = False
    bucket_owner: str | None = None
    """The account that the bucket must belong to: requests fail where it is another's."""

    sign_payload: bool = False
    """Sign a digest of each body, for servers that insist; it costs the event loop some 8 ms for each 8 MiB."""
    connections: Annotated[int, msgspec.Meta(ge=1)] = 32
    """At most so many at once."""
    connect_timeout: _Seconds = 10.0
    read_timeout: _Seconds = 60.0
    """Seconds in which the server neither takes nor gives a byte before the request counts as lost."""
    attempts: Annotated[int, msgspec.Meta(ge=1)] = 5
    """How often a request is sent at most, with growing pauses."""
    deadline: _Seconds = 300.0
    """Seconds that a request may take with all its repetitions, and one more for each 128 KiB of its body."""

    def __post_init__(self) -> None:
        if self.customer_key is not None and len(self.customer_key) != 32:
            raise InvalidInput(f"customer_key has 32 bytes, not {len(self.customer_key)}")
        if (self.customer_key or self.customer_key_file) and self.encryption:
            raise InvalidInput("choose encryption with the server's key (encryption) or with yours (customer_key)")
        if self.kms_key_id and not (self.encryption or "").startswith("aws:kms"):
            raise InvalidInput("kms_key_id needs encryption 'aws:kms'")


class Location(NamedTuple):
    """A bucket, and the folder of keys within it that is ours (empty, or ended by a slash)."""

    bucket: str
    prefix: str

    def url(self, endpoint: str | None) -> str:
        """What identifies the store: two servers may have buckets of the same name."""
        place = f"s3://{self.bucket}/{quote(self.prefix.rstrip('/'))}".rstrip("/")
        return f"{place}?endpoint={quote(endpoint, safe=':/')}" if endpoint else place


def parse(url: str, options: S3Options | None) -> tuple[Location, S3Options]:
    """The place that an ``s3://`` URL names and the options in it, over those given beside it. InvalidInput."""
    if options is not None and not isinstance(options, S3Options):
        raise InvalidInput(f"s3= takes S3Options(…), such as S3Options(region=…), not a {type(options).__name__}")
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise InvalidInput("an S3 URL holds no credentials: others can see it; use the environment or a profile")
    bucket, prefix = unquote(parts.netloc), unquote(parts.path).strip("/")
    if not _BUCKET.fullmatch(bucket) or parts.fragment:
        raise InvalidInput(
            f"{url!r} names no bucket (3 characters at least, letters, digits, . and -): write s3://bucket/prefix"
        )
    if prefix:
        check_key(prefix)
    merged = {**(msgspec.structs.asdict(options) if options else {}), **_in_query(parts.query)}
    return Location(bucket, f"{prefix}/" if prefix else ""), _checked(merged)


def _in_query(query: str) -> dict[str, Any]:
    """The options that stand in a URL, as they stand there."""
    if not query:
        return {}
    try:
        given: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True))
    except ValueError as error:
        raise InvalidInput(f"write options as option=value, with & between two of them: {error}") from error
    if "customer_key" in given:
        raise InvalidInput("customer_key does not belong into a URL: give customer_key_file, a file that holds it")
    if "tags" in given:
        try:
            given["tags"] = dict(parse_qsl(given["tags"], strict_parsing=True))
        except ValueError as error:
            raise InvalidInput(_refused("tags", given["tags"])) from error
    return given


def _checked(given: Mapping[str, Any]) -> S3Options:
    if unknown := given.keys() - set(S3Options.__struct_fields__):
        known = ", ".join(field for field in S3Options.__struct_fields__ if field != "customer_key")
        raise InvalidInput(f"there is no option {min(unknown)!r}: options are {known}")
    try:
        return msgspec.convert(given, S3Options, strict=False)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, InvalidInput):
            raise error.__cause__ from None  # options that exclude each other
        found = re.search(r"`\$\.(\w+)", str(error))
        raise InvalidInput(_refused(found[1], given[found[1]]) if found else f"options: {error}") from error


def _refused(option: str, value: Any) -> str:
    shown = "what was given" if option == "customer_key" else repr(value)
    return f"{option} is {_TAKES.get(option, 'text')}, not {shown}"


def unverified(options: S3Options) -> Sequence[str]:
    """The options in use of which nobody can tell, from outside, whether the server does as they say."""
    unused = S3Options()
    return [name for name in _UNVERIFIED if getattr(options, name) != getattr(unused, name)]


def endpoint_of(options: S3Options) -> str | None:
    """The endpoint that the options or the environment name; a profile's is found by the client alone. InvalidInput."""
    endpoint = options.endpoint
    if not endpoint and os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() != "true":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return None
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        parts, usable = urlsplit(""), False
    if parts.username or parts.password:
        raise InvalidInput("an endpoint holds no credentials: others can see it; use the environment or a profile")
    if not usable:
        raise InvalidInput(f"{endpoint!r} is no endpoint: write https://host or http://host:port")
    return endpoint.rstrip("/")


def customer_key(options: S3Options) -> bytes | None:
    """The key of SSE-C, read from its file where need be; blocks. InvalidInput."""
    if options.customer_key or not options.customer_key_file:
        return options.customer_key
    try:
        with open(options.customer_key_file, "rb") as file:
            key = file.read(1000)
    except OSError as error:
        raise InvalidInput(
            f"cannot read customer_key_file {options.customer_key_file!r}: {reason_of(error)}"
        ) from error
    if len(key) != 32:
        try:
            key = base64.b64decode(key.strip(), validate=True)
        except binascii.Error:
            key = b""
    if len(key) != 32:
        raise InvalidInput(f"customer_key_file {options.customer_key_file!r} does not hold 32 bytes, or their base64")
    return key
