"""The places that the audit log is exported to: standard output, syslog, a file, a receiver of signed requests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import httpx

from greenroom import clock as clocks
from greenroom import errors
from greenroom.security import audit

TIMEOUT_S = 10.0
SYSLOG = "/dev/log"
_PRIORITY = 13 * 8 + 6  # facility "log audit", severity "informational"


class Place(Protocol):
    name: str

    async def take(self, lines: Sequence[bytes]) -> None:
        """Return when *lines* are there; raises `Undelivered`."""


class Undelivered(Exception):
    """A place has not taken what it was given; it is given again."""


def place_of(where: str, folder: Path, *, signer: audit.Signer, clock: clocks.Clock) -> Place:
    """Return what ``security.audit_export`` names: stdout, syslog, a URL, or a file below *folder*."""
    if where == "stdout":
        return Blocking(where, lambda lines: _write(1, lines))
    if where == "syslog":
        return Blocking(where, _to_syslog)
    if where.startswith("https://"):
        return Receiver(where, signer=signer, clock=clock)
    path = folder / where
    return Blocking(f"file:{path}", lambda lines: _append(path, lines))


class Blocking:
    """A place that is written to by a call that may block: in a thread that the end of the program does not wait for.

    While one call hangs no other is made.
    """

    def __init__(self, name: str, write: Callable[[Sequence[bytes]], None], *, timeout_s: float = TIMEOUT_S) -> None:
        self.name, self._write, self._timeout_s = name, write, timeout_s
        self._hanging: asyncio.Future[None] | None = None

    async def take(self, lines: Sequence[bytes]) -> None:
        if self._hanging is not None:  # with other lines, perhaps: these come behind it
            await self._wait(self._hanging)
        self._hanging = self._begin(lines)
        await self._wait(self._hanging)

    async def _wait(self, hanging: asyncio.Future[None]) -> None:
        done, _ = await asyncio.wait([hanging], timeout=self._timeout_s)
        if not done:
            raise Undelivered(f"cannot export the audit log to {self.name}: it takes nothing")
        self._hanging = None
        try:
            hanging.result()
        except OSError as error:
            raise Undelivered(f"cannot export the audit log to {self.name}: {error.strerror or error}") from None

    def _begin(self, lines: Sequence[bytes]) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def end(error: OSError | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        def run() -> None:
            error: OSError | None = None
            try:
                self._write(lines)
            except OSError as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the node has ended meanwhile
                loop.call_soon_threadsafe(end, error)

        threading.Thread(target=run, name=f"greenroom-{self.name}", daemon=True).start()
        return future


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


def _write(fd: int, lines: Sequence[bytes]) -> None:
    left = memoryview(b"".join(line + b"\n" for line in lines))
    while left:
        left = left[os.write(fd, left) :]


def _append(path: Path, lines: Sequence[bytes]) -> None:
    """Append *lines*, durably; behind what a power cut has torn, a new line begins."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            os.write(fd, b"\n")
        _write(fd, lines)
        os.fsync(fd)
    finally:
        os.close(fd)


def _to_syslog(lines: Sequence[bytes]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as log:
        log.settimeout(TIMEOUT_S)
        log.connect(SYSLOG)
        for line in lines:
            log.send(b"<%d>greenroom-audit: %b" % (_PRIORITY, line))
