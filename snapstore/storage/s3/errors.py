"""From what S3 servers and botocore answer to snapstore's own errors, each with what to do about it."""

import re
from typing import Any

from botocore import exceptions as boto

from snapstore.errors import (
    AccessDenied,
    BadCredentials,
    BucketNotFound,
    ClockSkewed,
    InvalidInput,
    ObjectNotFound,
    PreconditionFailed,
    SnapstoreError,
    StorageError,
    StorageFull,
    StorageUnavailable,
    Throttled,
)
from snapstore.storage.s3.answers import NotS3, OutOfRange, Unsupported, code_of, status_of

_BAD_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "TokenRefreshRequired",
    "InvalidSecurity",
    "UnrecognizedClientException",
}
_ABSENT = {"NoSuchKey", "NotFound", "404"}
_CONDITIONS = {"PreconditionFailed", "ConditionalRequestConflict", "412"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}
_THROTTLED = {"SlowDown", "SlowDownRead", "SlowDownWrite", "TooManyRequests", "RequestLimitExceeded", "429"}
_UNSUPPORTED = {"NotImplemented", "501"}
_OUT_OF_RANGE = {"InvalidRange", "416"}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301"}
_PERMISSIONS = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CompleteMultipartUpload": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectsV2": "s3:ListBucket",
    "PutObject": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "UploadPartCopy": "s3:GetObject and s3:PutObject",
}
_NAMED_PERMISSION = re.compile(r"not authorized to perform:? ([a-z0-9-]+:\w+)")
"""How AWS itself names it: it may be another service's, such as kms:Decrypt."""
_PLAIN_HTTP = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
"""What OpenSSL says, in its several versions, of an answer that is no TLS."""
_READS = ("GetObject", "HeadObject")


class CertificateRefused(boto.BotoCoreError):  # type: ignore[misc]
    """The server's certificate is not to be trusted."""

    fmt = "{error}"


class Redirected(boto.BotoCoreError):  # type: ignore[misc]
    """To another host, without saying which region that is."""

    fmt = "redirected to {location}"


def translate(error: Exception, operation: str, key: str | None, store: str, read_timeout: float) -> SnapstoreError:
    """The error of our tree for what botocore raised while ``operation`` was done on ``key`` (None: on the bucket)."""
    if isinstance(error, boto.ClientError):
        return _of_answer(error, operation, key, store)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return BadCredentials(
            f"no credentials for {store} ({error}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or"
            " give this machine a role",
            key,
        )
    if isinstance(error, boto.ProfileNotFound):
        return BadCredentials(f"{error}: set AWS_PROFILE to one of those in ~/.aws/config", key)
    if isinstance(error, boto.SSLError | CertificateRefused):
        if any(words in str(error) for words in _PLAIN_HTTP):
            return InvalidInput(f"no secure connection to {store}: the server speaks http: write http://, not https://")
        return StorageUnavailable(
            f"no secure connection to {store}: {error}. If its certificate is signed by an authority of your own, name"
            " that one's certificate in AWS_CA_BUNDLE",
            key,
        )
    if isinstance(error, boto.ConnectTimeoutError | boto.EndpointConnectionError | boto.ProxyConnectionError):
        return StorageUnavailable(
            f"cannot reach {store}: {error}. Check the endpoint (AWS_ENDPOINT_URL), the region and the network", key
        )
    if isinstance(error, boto.ReadTimeoutError):
        return StorageUnavailable(
            f"{store} did not go on with {operation} for {read_timeout:g} s: try again later, or raise read_timeout",
            key,
        )
    if isinstance(error, boto.HTTPClientError):
        return StorageUnavailable(f"lost the connection to {store} during {operation}: {error}. Try again later", key)
    if isinstance(error, NotS3):
        return _no_s3(store, str(error))
    if isinstance(error, Redirected):
        return InvalidInput(f"{store} is elsewhere ({error}): give its own endpoint (AWS_ENDPOINT_URL) or AWS_REGION")
    if isinstance(error, boto.ParamValidationError | boto.InvalidRegionError | boto.UnknownRegionError | ValueError):
        return InvalidInput(f"{store} cannot be used like this: {error}")
    return StorageError(f"{operation} on {store} failed: {error}", key)


def _of_answer(error: boto.ClientError, operation: str, key: str | None, store: str) -> SnapstoreError:
    code, status = code_of(error), status_of(error)
    said = _said(error)
    if operation == "ListObjectsV2" and status in (404, 405) and code in ("", str(status)):
        return _no_s3(store, said)
    if code == "NoSuchBucket":
        return BucketNotFound(f"there is no bucket for {store}: check its name and the endpoint, or make it first", key)
    if key is not None and code in _ABSENT:
        return ObjectNotFound(key, store)
    if key is not None and (code in _CONDITIONS or status == 412):
        return PreconditionFailed(key)
    if key is not None and (code in _OUT_OF_RANGE or status == 416):
        return OutOfRange(f"{key!r} has no such bytes", key)
    if code in _UNSUPPORTED or status == 501:
        return Unsupported(f"{store} cannot do {operation} ({said})", key)
    if code in _BAD_CREDENTIALS:
        return BadCredentials(
            f"{store} does not accept the credentials ({said}): check access key, secret and token", key
        )
    if code == "RequestTimeTooSkewed":
        return ClockSkewed(
            f"{store} refuses our signatures, as the clocks differ: set this machine's clock ({said})", key
        )
    if code == "InvalidObjectState":
        return StorageError(f"{key!r} is in an archive class: have {store} restore it first, then try again", key)
    if code in _FULL or status == 507:
        return StorageFull(f"{store} is full or over its quota ({said}): free some space", key)
    if code == "InvalidStorageClass":
        return InvalidInput(f"{store} does not have this storage class ({said}): give another storage_class, or none")
    if operation in _READS and status == 400 and _needs_a_key(operation, said):
        return StorageError(
            f"{store} refused {operation} ({said}): if {key!r} is encrypted with a key of yours, give"
            " customer_key_file=, the file that holds it",
            key,
        )
    if status == 403:
        return AccessDenied(
            f"{store} does not allow {operation} ({said}): these credentials need {_permission(error, operation)}", key
        )
    if status == 401:
        return BadCredentials(f"{store} does not accept the credentials ({said}): check access key and secret", key)
    if code in _THROTTLED or status in (429, 503):
        return Throttled(
            f"{store} asks for fewer requests ({said}): try again later, or with fewer at once",
            key,
            _retry_after(error),
        )
    if status >= 500:
        return StorageUnavailable(f"{store} failed during {operation} ({said}): try again later", key)
    if code in _ELSEWHERE:
        return InvalidInput(f"{store} is in another region ({said}): set AWS_REGION, or ?region= in the URL")
    return StorageError(f"{store} refused {operation} ({said})", key)


def _no_s3(store: str, said: str) -> SnapstoreError:
    return InvalidInput(f"what answers for {store} does not look like S3 ({said}): check AWS_ENDPOINT_URL")


def _needs_a_key(operation: str, said: str) -> bool:
    """Whether a refused read may want the key of SSE-C; the answer to a HEAD has no words."""
    return "encryption" in said.lower() or operation == "HeadObject"


def _permission(error: boto.ClientError, operation: str) -> str:
    named = _NAMED_PERMISSION.search(_said(error))
    return named[1] if named else _PERMISSIONS.get(error.operation_name, f"the right to do {operation}")


def _said(error: boto.ClientError) -> str:
    """The server's own words."""
    answer: dict[str, Any] = error.response.get("Error", {})
    message = str(answer.get("Message") or "").strip().rstrip(".")
    code = str(answer.get("Code") or status_of(error))
    return f"{code}: {message}" if message and message != code else code


def _retry_after(error: boto.ClientError) -> float | None:
    text = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None
