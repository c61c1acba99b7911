"""Requests of the node's own to addresses that others name: only to public addresses, and to those that were judged.

The name is resolved once, all its addresses are judged (`core.addresses`), and the connection goes to one of these, so
that a name server that answers differently the next time changes nothing; the certificate is verified for the name. No
redirects, no proxies from the environment, HTTP/1.1, a connection for each request (one that is kept would be shared by
all names of its address). Of the answer only the status and ``Retry-After`` are told.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from greenroom.core import addresses
from greenroom.core.addresses import Policy, Target

if TYPE_CHECKING:  # it takes long to import, and most nodes send nothing
    import httpx

CONNECT_TIMEOUT_S = 5.0  # also of resolving the name
TOTAL_TIMEOUT_S = 15.0
MAX_ANSWER_BYTES = 64 * 1024  # that are read, to let the other side finish; none is kept
MAX_ADDRESSES = 3  # of one name that are tried
# Of their own: a name server that keeps the others waiting must not hold the threads that the node works with.
RESOLVERS = 64

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Answer(msgspec.Struct, frozen=True):
    """What came of a request: a *status*, or an *error*, a few words that tell nothing of the inner network.

    *is_refused*: nothing was sent, because of where it would have gone.
    """

    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None
    is_refused: bool = False


class Outgoing:
    """Sends requests to URLs that *policy* allows. *trust* verifies certificates; None: the usual authorities."""

    def __init__(
        self, policy: Policy, *, user_agent: str, resolve: Resolve | None = None, trust: ssl.SSLContext | None = None
    ) -> None:
        self._policy, self._user_agent = policy, user_agent
        self._pool: ThreadPoolExecutor | None = None
        self._resolve = resolve or self._look_up
        self._trust = trust

    def judge(self, url: str) -> Target | str:
        """Return where *url* leads, or why nothing is sent there."""
        return addresses.judge(url, self._policy)

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send *body*; never raises for what the other side does."""
        target = self.judge(url)
        if isinstance(target, str):
            return Answer(error=f"refused: {target}", is_refused=True)
        try:
            async with asyncio.timeout(TOTAL_TIMEOUT_S):
                return await self._post(target, {**headers, "User-Agent": self._user_agent}, body)
        except TimeoutError:
            return Answer(error=f"no answer within {TOTAL_TIMEOUT_S:g} s")

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def _post(self, target: Target, headers: Mapping[str, str], body: bytes) -> Answer:
        found = [target.host] if target.is_address else await self._addresses(target)
        if isinstance(found, Answer):
            return found
        if not target.is_inner and any(addresses.not_public(address) is not None for address in found):
            # All are judged, not the one that would be used: a name that is half inner is not to be trusted.
            return Answer(error="refused: the host has an address that is not public", is_refused=True)
        answer = Answer(error="the host has no address")
        for address in found[:MAX_ADDRESSES]:
            answer = await self._send(target, address, headers, body)
            if answer.error != _NO_CONNECTION:
                break
        return answer

    async def _addresses(self, target: Target) -> Sequence[str] | Answer:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await self._resolve(target.host, target.port)
        except (TimeoutError, OSError, UnicodeError):
            return Answer(error="the host's name cannot be resolved")

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="greenroom-resolver")
        found = await asyncio.get_running_loop().run_in_executor(
            self._pool, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    async def _send(self, target: Target, address: str, headers: Mapping[str, str], body: bytes) -> Answer:
        import httpx

        host = f"[{address}]" if ":" in address else address
        if self._trust is None:
            self._trust = httpx.create_ssl_context()  # once: reading the authorities takes a while
        request = httpx.Request(
            "POST",
            f"{target.scheme}://{host}:{target.port}{target.path}",
            headers={**headers, "Host": target.authority, "Connection": "close"},
            content=body,
            extensions={
                "sni_hostname": target.host,
                "timeout": httpx.Timeout(TOTAL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S).as_dict(),
            },
        )
        try:
            # The transport, not a client: it knows no redirects, cookies or proxies.
            async with httpx.AsyncHTTPTransport(verify=self._trust, http2=False, trust_env=False) as transport:
                response = await transport.handle_async_request(request)
                await _drain(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return Answer(error=_NO_TRUST if _is_mistrusted(error) else _NO_CONNECTION)
        except (httpx.TransportError, ssl.SSLError, OSError):
            return Answer(error="the connection broke before there was an answer")
        return Answer(response.status_code, retry_after_s=_seconds(response.headers.get("Retry-After", "")))


_NO_CONNECTION, _NO_TRUST = "no connection", "the host's certificate cannot be trusted"


def _is_mistrusted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


async def _drain(response: httpx.Response) -> None:
    """Read a little of what comes, as it comes: nothing is decompressed, and nothing kept."""
    import httpx

    size = 0
    try:
        async for piece in response.aiter_raw(4096):
            size += len(piece)
            if size >= MAX_ANSWER_BYTES:
                break
    except httpx.TransportError:
        pass  # the status has come, and that is the answer
    finally:
        await response.aclose()


def _seconds(text: str) -> float | None:
    """Return what ``Retry-After`` says in seconds; None for a date, or nonsense."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 8 else None
