"""Connections whose requests are bounded: the head in bytes, head and body in the time that they may take to arrive.

uvicorn with httptools bounds neither, so a stranger could fill the memory before there is anything to authenticate, or
hold connections for ever. `node` gives this protocol to its server. Requests that could be read in two ways are refused
(`heads`), and what comes behind one of those is not read.

So is their number (`limited_to`), and that of one address. Those of callers who are known go on, whoever comes beside.
Strangers give way: who idles at once, who is slow to send after a second. A few beyond the number are *surplus*: they
are read, so that probes are answered and others are told why not, and closed after their request, or soon if they send
none. Any more are turned away unread.
"""

from __future__ import annotations

import asyncio
import enum
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from greenroom import errors, random_bits, telemetry
from greenroom.api import heads, problems
from greenroom.api.heads import MAX_HEAD_BYTES
from greenroom.api.routes import PROBES
from greenroom.core import networks

WHOLE = "greenroom.whole"  # the extension of ASGI that is a `Whole`
HEAD_TIMEOUT_S = 10.0
PATIENCE_S = 1.0  # how long a stranger who has yet to send its request is spared where there are too many
LINGER_S = 2.0  # how long a body is read that nobody waits for: so that its sender reads the answer
MAX_UNSENT_BYTES = 64 * 1024  # more is the transport's: it knows how much its reader has left unread
BODY_TIMEOUT_S = 30.0  # from the end of the head, and another second for each of these that has come and is waited for
LEAST_BODY_BYTES_PER_S = 64 * 1024
HEAD_END = b"\r\n\r\n"
CHUNK_ENDS_BYTES = 4  # line ends, behind a chunk's size and behind itself
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

    def abort(self) -> None:
        """Close without waiting for the peer."""
        self._flush()
        self._transport.abort()

    def _flush(self) -> None:
        unsent, self._unsent, self._unsent_bytes = self._unsent, [], 0
        if unsent and not self._transport.is_closing():
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))


class Whole:
    """A request that is here as a whole, and an answer that goes as one, without ASGI's messages for their parts.

    Each of those is looked at header by header: together they are a tenth of the Python that a task costs.
    """

    __slots__ = ("_connection", "_cycle")

    def __init__(self, cycle: RequestResponseCycle, connection: Connection) -> None:
        self._cycle, self._connection = cycle, connection

    def know_caller(self) -> None:
        """Say that the request has a valid credential: its connection does not give way."""
        self._connection.know_caller()

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

    def __init__(self, why: str) -> None:
        super().__init__(
            f"cannot take another connection: {why}; use those that you have, or try again later",
            retry_after_s=RETRY_AFTER_S,
        )


class _Refused(Exception):
    """Ends the parser's work in the middle of what it was given."""


class Connection(HttpToolsProtocol):
    most = sys.maxsize
    emit: Callable[[telemetry.Fact], None] = staticmethod(lambda _: None)
    is_spared: Callable[[str], bool] = staticmethod(lambda _: False)  # an address that may have as many as there are
    # Strangers, since when, the oldest first: who has a request to send, and who has had its answer.
    slow: ClassVar[dict[Connection, float]] = {}
    idle: ClassVar[dict[Connection, float]] = {}
    held: ClassVar[Counter[str]] = Counter()  # connections, by the address that they come from

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._part = Part.HEAD
        self._raw = b""  # what has come since there was no head
        self._dry_bytes = 0  # of the part, but for the body itself and the sizes of its chunks
        self._is_overlong = False  # so much stood around a body that has ended
        self._timer: asyncio.TimerHandle | None = None  # of the part, where it did not come in one piece
        self._is_split = False  # the head came in more pieces than one
        self._refusal: errors.GreenroomError | None = None
        self._body_bytes, self._granted_s = 0, BODY_TIMEOUT_S
        self._chunk_begun = 0  # at so many bytes of the body
        self._is_surplus = self._is_turned_away = self._is_known = False
        self._source: str | None = None  # where it is counted
        self._running: RequestResponseCycle | None = None  # others may wait in line behind it

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Gathering(transport, self.loop))  # type: ignore[arg-type] # one, but for its class
        while len(self.connections) > self.most and self._make_room():
            pass
        self.slow[self] = self.loop.time()
        self._is_surplus = len(self.connections) > self.most
        if self._is_beyond_share():
            self._turn_away("half of all are open from your address")
        elif len(self.connections) > self.most + SURPLUS:
            self._turn_away(self._all_are_open)
        else:
            self._start_timer()

    def _is_beyond_share(self) -> bool:
        """Count the connection; tell whether its address has more than half of all."""
        if self.client is None or self.is_spared(self.client[0]):
            return False
        self._source = networks.limited_as(self.client[0])
        self.held[self._source] += 1
        return self.held[self._source] > max(1, self.most // 2)

    @property
    def _all_are_open(self) -> str:
        return f"{self.most} are open (cluster.max_connections)"

    def _make_room(self) -> bool:
        """Close a stranger's connection, if there is one to close: slow, refused or answered, they keep nobody out."""
        oldest = next(iter(self.idle), None)
        if oldest is None:
            oldest = next(iter(self.slow), None)
            if oldest is None or self.loop.time() - self.slow[oldest] < PATIENCE_S:
                return False
        oldest.leave()
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True

    def leave(self) -> None:
        """Be no more among those that are counted."""
        self.slow.pop(self, None)
        self.idle.pop(self, None)
        source, self._source = self._source, None
        if source is not None:
            self.held[source] -= 1
            if not self.held[source]:
                del self.held[source]

    def know_caller(self) -> None:
        self._is_known = True
        self.slow.pop(self, None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.leave()
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
            part = self._part
            self._raw = self._raw + piece if part is Part.HEAD else piece
            if part is not Part.NOTHING:
                self._dry_bytes += len(piece)
                self._is_split = part is Part.HEAD
            self._feed(piece)
            if self.transport.is_closing():
                return
            if part is not Part.BODY and self._part is Part.BODY:
                self._dry_bytes += len(piece) - max(0, piece.find(HEAD_END) + len(HEAD_END))
            if self._is_overlong or (self._part is not Part.NOTHING and self._dry_bytes > MAX_HEAD_BYTES):
                self._refuse(heads.too_large())
                return
        if self._part is not Part.HEAD:
            self._raw = b""
        if self._part is Part.NOTHING and self.timeout_keep_alive_task is None and self.cycle.response_complete:
            self._begin(Part.HEAD)  # line ends before it, which have stopped the timer of idle connections
        if self._part is not Part.NOTHING and self._timer is None:  # most requests come in one piece, and need no timer
            self._start_timer()

    def _feed(self, piece: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or heads.malformed(str(error).rstrip(".") or "it is no HTTP"))
        except httptools.HttpParserUpgrade:
            pass  # answered as if it had not asked, and the last on its connection

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin(Part.HEAD)
        self._is_split = False
        if self.idle.pop(self, None) is not None:
            self.slow[self] = self.loop.time()

    def on_headers_complete(self) -> None:
        if (why := self._fault()) is not None:
            self._refusal = why
            raise _Refused
        self._begin(Part.BODY)
        self._body_bytes, self._granted_s = 0, BODY_TIMEOUT_S
        self._is_surplus = self._is_surplus and len(self.connections) > self.most  # others may have left
        if self._is_surplus and httptools.parse_url(self.url).path.decode("ascii", "replace") not in PROBES:
            self._turn_away(self._all_are_open)
            return
        super().on_headers_complete()
        if self._is_surplus or self.parser.should_upgrade():
            self.cycle.keep_alive = False
        self.scope["extensions"] = {WHOLE: Whole(self.cycle, self)}  # type: ignore[dict-item]

    def _fault(self) -> errors.GreenroomError | None:
        method, url, raw = self.parser.get_method(), self.url, self._raw
        if self._is_split and heads.size(url, self.headers) > MAX_HEAD_BYTES:
            return heads.too_large()
        line = b"%b %b HTTP/" % (method, url)
        if not raw.startswith(line) and b"\n" + line not in raw:
            return heads.malformed("one space stands before its target, and one behind it")
        return heads.fault(method, url, self.parser.get_http_version(), self.headers)

    def on_body(self, body: bytes) -> None:
        self._dry_bytes -= len(body)
        self._body_bytes += len(body)
        if not self._is_turned_away:
            super().on_body(body)

    def on_chunk_header(self) -> None:
        self._chunk_begun = self._body_bytes

    def on_chunk_complete(self) -> None:
        size = self._body_bytes - self._chunk_begun
        self._dry_bytes -= len(b"%x" % size) + CHUNK_ENDS_BYTES  # what stands around each, without an extension

    def on_message_complete(self) -> None:
        self._is_overlong = self._part is Part.BODY and self._dry_bytes > MAX_HEAD_BYTES
        self._begin(Part.NOTHING)
        self.slow.pop(self, None)
        if not self._is_turned_away and not self._is_overlong:
            super().on_message_complete()

    def _turn_away(self, why: str) -> None:
        self._is_turned_away = True
        error = TooManyConnections(why)
        self._close_with(error, b"retry-after: %d\r\n" % error.retry_after_s)

    def _close_with(self, error: errors.GreenroomError, lines: bytes = b"") -> None:
        body = msgspec.json.encode(problems.problem(error, random_bits.token_hex(8)))
        self.transport.write(
            b"%bcontent-type: %b\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n%b"
            % (STATUS_LINE[error.status], problems.MEDIA_TYPE.encode(), len(body), lines, body)
        )
        self.transport.close()

    def on_response_complete(self) -> None:
        was_queued = bool(self.pipeline)
        super().on_response_complete()
        if was_queued:
            if self._part is not Part.NOTHING:  # nothing of it was read while it had to wait for its turn
                self._start_timer()
            return
        if self._part is Part.BODY:  # an answer that did not wait for it
            self._start_timer(LINGER_S)
        is_known, self._is_known = self._is_known, False
        if not is_known and not self.transport.is_closing():
            self.slow.pop(self, None)
            self.idle[self] = self.loop.time()

    def _refuse(self, error: errors.GreenroomError) -> None:
        """Say *error* and close; only close where a request before it is not answered, whose answer it would be."""
        source = self.client[0] if self.client else ""
        self.emit(telemetry.RequestForged(source, str(error)))
        is_first = self._running is None or self.cycle.response_complete
        if is_first and (self._part is Part.HEAD or self._refusal is not None):
            self._close_with(error, b"allow: GET, POST, PUT, PATCH, DELETE\r\n" if error.status == 405 else b"")
        else:  # or a body, whose request has an answer, or will not have one
            self._refuse_body(error)

    def _refuse_body(self, error: errors.GreenroomError) -> None:
        cycle = self._running
        if cycle is None or cycle.response_started or cycle is not self.cycle:
            self.transport.close()
            return
        cycle.response_started = cycle.response_complete = cycle.disconnected = True
        self._close_with(error)
        cycle.message_event.set()

    def _begin(self, part: Part) -> None:
        if part is not self._part:
            self._part, self._dry_bytes = part, 0
            if self._timer is not None:
                self._stop_timer()

    def _start_timer(self, timeout_s: float | None = None) -> None:
        self._stop_timer()
        if timeout_s is None:
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
        if self._part is Part.BODY and not self.cycle.response_complete:
            earned_s = BODY_TIMEOUT_S + self._body_bytes // LEAST_BODY_BYTES_PER_S
            if earned_s > self._granted_s:
                self._timer = self.loop.call_later(earned_s - self._granted_s, self._give_up)
                self._granted_s = earned_s
                return
        if not self.pipeline and not self.transport.is_closing():
            self.transport.close()


def limited_to(
    most: int,
    *,
    emit: Callable[[telemetry.Fact], None] = lambda _: None,
    is_spared: Callable[[str], bool] = lambda _: False,
) -> type[Connection]:
    """Return the protocol of a server that has at most so many connections, and half of them from one address.

    *emit* is told of what it refuses; *is_spared* tells which addresses may have all of them.
    """
    own = {"emit": staticmethod(emit), "is_spared": staticmethod(is_spared), "slow": {}, "idle": {}, "held": Counter()}
    return type("LimitedConnection", (Connection,), {"most": most, **own})
