"""The places that the audit log is exported to: standard output, syslog, a file; and `audit_receiver`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from greenroom import clock as clocks
from greenroom.security import audit

TIMEOUT_S = 10.0
SYSLOG = "/dev/log"
_PRIORITY = 13 * 8 + 6  # facility "log audit", severity "informational"


TAIL_BYTES = 1 << 20  # of a file's end: more than one entry takes


class Last(NamedTuple):
    """The last entry that a place has."""

    seq: int
    hash: str


class Place(Protocol):
    name: str

    async def last(self) -> Last | None:
        """Return the last entry that is there; None where there is none, or the place cannot tell.

        Raises `Undelivered`.
        """

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
        from greenroom.control.audit_receiver import Receiver  # late: HTTP takes long to import

        return Receiver(where, signer=signer, clock=clock)
    path = folder / where
    return Blocking(f"file:{path}", lambda lines: _append(path, lines), last=lambda: _last_of(path))


class Blocking:
    """A place that is written to by a call that may block: in a thread that the end of the program does not wait for.

    While one call hangs no other is made.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[bytes]], None],
        *,
        last: Callable[[], Last | None] = lambda: None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.name, self._write, self._last, self._timeout_s = name, write, last, timeout_s
        self._hanging: asyncio.Future[Last | None] | None = None

    async def last(self) -> Last | None:
        return await self._call(self._last)

    async def take(self, lines: Sequence[bytes]) -> None:
        def write() -> None:
            self._write(lines)

        await self._call(write)

    async def _call(self, call: Callable[[], Last | None]) -> Last | None:
        if self._hanging is not None:  # with other lines, perhaps: these come behind it
            await self._wait(self._hanging)
        self._hanging = self._begin(call)
        return await self._wait(self._hanging)

    async def _wait(self, hanging: asyncio.Future[Last | None]) -> Last | None:
        done, _ = await asyncio.wait([hanging], timeout=self._timeout_s)
        if not done:
            raise Undelivered(f"cannot export the audit log to {self.name}: it takes nothing")
        self._hanging = None
        try:
            return hanging.result()
        except OSError as error:
            raise Undelivered(f"cannot export the audit log to {self.name}: {error.strerror or error}") from None

    def _begin(self, call: Callable[[], Last | None]) -> asyncio.Future[Last | None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Last | None] = loop.create_future()

        def end(answer: Last | None, error: OSError | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(answer)
            else:
                future.set_exception(error)

        def run() -> None:
            answer, error = None, None
            try:
                answer = call()
            except OSError as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the node has ended meanwhile
                loop.call_soon_threadsafe(end, answer, error)

        threading.Thread(target=run, name=f"greenroom-{self.name}", daemon=True).start()
        return future


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


def _last_of(path: Path) -> Last | None:
    """Return the last entry of the file *path*, by its end."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # a pipe has no end
            return None
        file.seek(max(0, os.fstat(fd).st_size - TAIL_BYTES))
        lines = file.read(TAIL_BYTES).splitlines()
    found = (audit.parse(line) for line in reversed(lines))
    return next((Last(each.seq, each.hash) for each in found if isinstance(each, audit.Entry)), None)


def _to_syslog(lines: Sequence[bytes]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as log:
        log.settimeout(TIMEOUT_S)
        log.connect(SYSLOG)
        for line in lines:
            log.send(b"<%d>greenroom-audit: %b" % (_PRIORITY, line))
