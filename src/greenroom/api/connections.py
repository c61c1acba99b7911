"""Connections whose requests are bounded: the head in bytes, head and body in the time that they may take to arrive.

uvicorn with httptools bounds neither, so a stranger could fill the memory before there is anything to authenticate, or
hold connections for ever. `node` gives this protocol to its server.

So is their number (`limited_to`). Those that are there go on, whoever comes beside. A few beyond it are *surplus*: they
are read, so that probes are answered and others are told why not, and closed after their request, or soon if they send
none. Any more are turned away unread.
"""

from __future__ import annotations

import asyncio
import enum
import sys
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from greenroom import errors, random_bits
from greenroom.api import problems
from greenroom.api.routes import PROBES

WHOLE = "greenroom.whole"  # the extension of ASGI that is a `Whole`
MAX_HEAD_BYTES = 64 * 1024  # and of what stands around the chunks of a body
HEAD_TIMEOUT_S = 10.0
MAX_UNSENT_BYTES = 64 * 1024  # more is the transport's: it knows how much its reader has left unread
BODY_TIMEOUT_S = 30.0  # from the end of the head, however it trickles
SURPLUS = 32  # connections beyond the bound that are read all the same
SURPLUS_TIMEOUT_S = 1.0  # for the head of one of those
RETRY_AFTER_S = 5.0  # idle ones are closed after 75 s, those that never send a request after 10


class Gathering:
    """A transport on which what is written within one turn of the loop leaves in one system call.

    uvicorn writes the head of an answer and its body apart, and each costs a packet.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def write(self, data: bytes) -> None:
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes >= MAX_UNSENT_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        unsent, self._unsent, self._unsent_bytes = self._unsent, [], 0
        if unsent and not self._transport.is_closing():
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))


class Whole:
    """A request that is here as a whole, and an answer that goes as one, without ASGI's messages for their parts.

    Each of those is looked at header by header: together they are a tenth of the Python that a task costs.
    """

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def take_body(self) -> bytes | None:
        """Return the body; None where it has to be waited for, by ASGI's messages."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected or cycle.response_complete:
            return None
        cycle.flow.resume_reading()
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def answer(self, status: int, headers: bytes, body: bytes) -> bool:
        """Send an answer, whose *headers* are lines; False where it has to go by ASGI's messages."""
        cycle = self._cycle
        if cycle.disconnected or cycle.response_started or cycle.flow.write_paused:
            return False
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        head = [b"%b: %b\r\n" % header for header in cycle.default_headers]
        if not cycle.keep_alive:
            head.append(b"connection: close\r\n")
        length = b"content-length: %d\r\n\r\n" % len(body)
        cycle.transport.write(b"".join((STATUS_LINE[status], *head, headers, length, body)))
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
        return True


class Part(enum.Enum):
    """What the next bytes belong to."""

    HEAD = enum.auto()  # a new connection's, too: it has to send one
    BODY = enum.auto()
    NOTHING = enum.auto()  # the request is here, and another one has not begun


class TooManyConnections(errors.Overloaded):
    """What `errors.Overloaded` is for one node: another one may take it, and so may this one in a moment."""

    status = 503

    def __init__(self, most: int) -> None:
        super().__init__(
            f"cannot take another connection: {most} are open (cluster.max_connections); use those that you have, "
            "or try again later",
            retry_after_s=RETRY_AFTER_S,
        )


class Connection(HttpToolsProtocol):
    most = sys.maxsize

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._part = Part.HEAD
        self._dry_bytes = 0  # of the part, or since the last of the body itself
        self._timer: asyncio.TimerHandle | None = None  # of the part, where it did not come in one piece
        self._is_surplus = self._is_turned_away = False
        self._running: RequestResponseCycle | None = None  # others may wait in line behind it

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Gathering(transport, self.loop))  # type: ignore[arg-type] # one, but for its class
        self._is_surplus = len(self.connections) > self.most
        if len(self.connections) > self.most + SURPLUS:
            self._turn_away()
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._begin(Part.NOTHING)
        super().connection_lost(exc)
        # uvicorn tells the last request only, and one before it would wait, or stream, for nobody.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        # In pieces, so that a head and the body behind it can be told apart.
        for start in range(0, len(data), MAX_HEAD_BYTES):
            piece = data[start : start + MAX_HEAD_BYTES] if len(data) > MAX_HEAD_BYTES else data
            if self._part is not Part.NOTHING:
                self._dry_bytes += len(piece)
            super().data_received(piece)
            if self.transport.is_closing():
                return
            if self._part is not Part.NOTHING and self._dry_bytes > MAX_HEAD_BYTES:
                self._refuse()
                return
        if self._part is Part.NOTHING and self.timeout_keep_alive_task is None and self.cycle.response_complete:
            self._begin(Part.HEAD)  # line ends before it, which have stopped the timer of idle connections
        if self._part is not Part.NOTHING and self._timer is None:  # most requests come in one piece, and need no timer
            self._start_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin(Part.HEAD)

    def on_headers_complete(self) -> None:
        self._begin(Part.BODY)
        self._is_surplus = self._is_surplus and len(self.connections) > self.most  # others may have left
        if self._is_surplus and httptools.parse_url(self.url).path.decode("ascii", "replace") not in PROBES:
            self._turn_away()
            return
        super().on_headers_complete()
        if self._is_surplus:
            self.cycle.keep_alive = False
        self.scope["extensions"] = {WHOLE: Whole(self.cycle)}  # type: ignore[dict-item]

    def on_body(self, body: bytes) -> None:
        self._dry_bytes = 0
        if not self._is_turned_away:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._begin(Part.NOTHING)
        if not self._is_turned_away:
            super().on_message_complete()

    def _turn_away(self) -> None:
        self._is_turned_away = True
        error = TooManyConnections(self.most)
        body = msgspec.json.encode(problems.problem(error, random_bits.token_hex(8)))
        self.transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: %b\r\ncontent-length: %d\r\nretry-after: %d\r\n"
            b"connection: close\r\n\r\n%b" % (problems.MEDIA_TYPE.encode(), len(body), error.retry_after_s, body)
        )
        self.transport.close()

    def on_response_complete(self) -> None:
        was_queued = bool(self.pipeline)
        super().on_response_complete()
        if was_queued and self._part is not Part.NOTHING:  # nothing of it was read while it had to wait for its turn
            self._start_timer()

    def _refuse(self) -> None:
        if self._part is Part.HEAD:
            self.send_400_response("The request's head is too large.")
        else:  # a trailer, which is kept with the head; the answer may be out already
            self.transport.close()

    def _begin(self, part: Part) -> None:
        if part is not self._part:
            self._part, self._dry_bytes = part, 0
            if self._timer is not None:
                self._stop_timer()

    def _start_timer(self) -> None:
        self._stop_timer()
        timeout_s = HEAD_TIMEOUT_S if self._part is Part.HEAD else BODY_TIMEOUT_S
        if self._is_surplus and self._part is Part.HEAD:
            timeout_s = min(timeout_s, SURPLUS_TIMEOUT_S)
        self._timer = self.loop.call_later(timeout_s, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self.pipeline and not self.transport.is_closing():
            self.transport.close()


def limited_to(most: int) -> type[Connection]:
    """Return the protocol of a server that has at most so many connections."""
    return type("LimitedConnection", (Connection,), {"most": most})
