"""A place that the audit log is exported to: a receiver of signed requests."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Sequence

import httpx

from greenroom import clock as clocks
from greenroom import errors
from greenroom.control.audit_places import TIMEOUT_S, Last, Undelivered
from greenroom.security import audit


class Receiver:
    """A receiver of POST requests with JSON lines, signed as Standard Webhooks has it (``v1a``: Ed25519, the key of the
    checkpoints). Any answer but 2xx is none; redirects are not followed.
    """

    def __init__(
        self,
        url: str,
        *,
        signer: audit.Signer,
        clock: clocks.Clock,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        try:
            parts = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise errors.StartRefused(
                f"cannot export the audit log to a URL of security.audit_export: {error}"
            ) from None
        # Whatever else the URL has may be a secret.
        self.name = f"https://{parts.host}{'' if parts.port is None else f':{parts.port}'}{parts.path}"
        self._url, self._signer, self._clock, self._transport = url, signer, clock, transport

    async def last(self) -> Last | None:
        return None  # what it has done with them nobody can ask

    async def take(self, lines: Sequence[bytes]) -> None:
        body = b"".join(line + b"\n" for line in lines)
        id = f"audit_{hashlib.sha256(body).hexdigest()[:32]}"  # the same for what is sent again
        at = str(int(self._clock.now().timestamp()))
        signature = base64.b64encode(self._signer.sign(f"{id}.{at}.".encode() + body)).decode()
        headers = {
            "content-type": "application/jsonl",
            "webhook-id": id,
            "webhook-timestamp": at,
            "webhook-signature": f"v1a,{signature}",
        }
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                httpx.AsyncClient(timeout=TIMEOUT_S, transport=self._transport) as http,
                http.stream("POST", self._url, content=body, headers=headers) as response,
            ):
                status = response.status_code  # its body is of no interest
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            raise Undelivered(f"cannot export the audit log to {self.name}: {type(error).__name__}") from None
        if not 200 <= status < 300:
            raise Undelivered(f"cannot export the audit log to {self.name}: it answers {status}")
