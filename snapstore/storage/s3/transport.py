"""How one attempt of a request is sent: aiobotocore's own way, but for where that would wait, follow or repeat wrongly.

Here alone we reach into what aiobotocore and aiohttp do not promise to keep. When one of them is upgraded, look here.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession
from botocore import exceptions as boto

from snapstore.operation import sent
from snapstore.storage.s3 import errors
from snapstore.storage.s3.payload import Payload

_REDIRECTIONS = (301, 302, 303, 307, 308)


class Transport(AIOHTTPSession):  # type: ignore[misc]
    """Sends each single attempt of a request."""

    async def _get_session(self, proxy_url: Any) -> Any:
        return _Direct(await super()._get_session(proxy_url))

    async def send(self, request: Any) -> Any:
        body = request.body
        # Some gateways never answer the question; a part that is refused costs no more than its own bytes.
        request.headers.pop("Expect", None)
        stall = self._timeout.sock_read
        try:
            async with asyncio.timeout(None) as timer:
                if isinstance(body, Payload):
                    request.body = _watched(body, timer, stall)
                sent(again=_repeats(request))
                response = await super().send(request)
        except TimeoutError as error:
            raise boto.ReadTimeoutError(endpoint_url=request.url, error=error) from error
        except boto.SSLError as error:
            # A certificate that is not trusted now is not trusted a second later: botocore would try again.
            raise errors.CertificateRefused(error=error) from error
        finally:
            request.body = body  # for its next attempt
        if response.status_code in _REDIRECTIONS and "x-amz-bucket-region" not in response.headers:
            # botocore would ask for the region, be redirected again, and ask for the region.
            raise errors.Redirected(location=response.headers.get("location", "nowhere"))
        if response.status_code == 429:
            response.status_code = 503  # which the standard mode of retries knows
        return response


class _Direct:
    """An aiohttp session that follows no redirection: what is signed is for one host, and botocore finds the other."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        # aiohttp would repeat a request by itself on a connection that was closed, with a body that is half spent.
        session._retry_connection = False

    def request(self, method: str, **options: Any) -> Any:
        return self._session.request(method, allow_redirects=False, **options)


def _repeats(request: Any) -> bool:
    """Whether this is another attempt of a request, which botocore numbers in a header."""
    attempt = request.headers.get("amz-sdk-request", "")
    text = attempt.decode() if isinstance(attempt, bytes) else attempt
    return "attempt=" in text and "attempt=1" not in text.split("; ")


async def _watched(body: Payload, timer: asyncio.Timeout, stall: float) -> AsyncIterator[memoryview]:
    """The body, while the server takes it: aiohttp watches over what it reads, and not over what it writes."""
    now = asyncio.get_running_loop().time

    def sent() -> None:
        timer.reschedule(now() + stall)

    sent()
    async for piece in body.pieces(sent):
        yield piece
    timer.reschedule(None)  # from here on aiohttp's own timeout watches for the answer
