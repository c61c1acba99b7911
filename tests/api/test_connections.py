"""How long a request may take to arrive: by a loop whose timers are rung by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from greenroom.api import connections, heads

CHUNKED = b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
HEAD = b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
GET = b"GET /v1/tasks/x?wait=300 HTTP/1.1\r\nHost: x\r\n\r\n"


class Timer:
    def __init__(self, delay_s: float, ring: Callable[[], None]) -> None:
        self.delay_s, self._ring, self.is_over = delay_s, ring, False

    def cancel(self) -> None:
        self.is_over = True

    def ring(self) -> None:
        assert not self.is_over
        self.is_over = True
        self._ring()


class Loop:
    """Notes timers and starts nothing."""

    def __init__(self, time: Callable[[], float] = lambda: 0.0) -> None:
        self.timers: list[Timer] = []
        self.time = time

    def call_later(self, delay_s: float, ring: Callable[[], None]) -> Timer:
        self.timers.append(Timer(delay_s, ring))
        return self.timers[-1]

    def call_soon(self, act: Callable[[], None]) -> None: ...

    def create_task(self, request: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        request.close()
        return asyncio.Future(loop=asyncio.get_running_loop())


class Transport:
    def __init__(self, address: str | None = None) -> None:
        self.is_closed, self._address = False, address

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        return (self._address, 1) if name == "peername" and self._address is not None else None

    def is_closing(self) -> bool:
        return self.is_closed

    def write(self, data: bytes) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True


class Wire:
    """A connection, and what its peer and its application do."""

    def __init__(
        self,
        kind: type[connections.Connection] = connections.Connection,
        state: ServerState | None = None,
        address: str | None = None,
        time: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.loop, self.transport = Loop(time), Transport(address)
        config = uvicorn.Config(_application, http=kind, ws="none", lifespan="off", log_config=None)
        self.connection = kind(config, state or ServerState(), {}, self.loop)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type] # what it uses of one
        self._unanswered: list[Any] = []

    def send(self, *pieces: bytes) -> None:
        """Let *pieces* come one by one, while the connection stands; none has the end of two heads."""
        for piece in pieces:
            if self.transport.is_closed:
                return
            before = self.connection.cycle
            self.connection.data_received(piece)
            if self.connection.cycle is not before:
                self._unanswered.append(self.connection.cycle)

    def answer(self) -> None:
        """Complete the response to the oldest request."""
        self._unanswered.pop(0).response_complete = True
        self.connection.on_response_complete()

    @property
    def running(self) -> list[Timer]:
        return [timer for timer in self.loop.timers if not timer.is_over]


async def _application(scope: Any, receive: Any, send: Any) -> None: ...


@pytest.fixture
async def wire() -> Wire:
    return Wire()


async def test_a_request_in_one_piece_needs_no_timer(wire: Wire) -> None:
    wire.send(HEAD + b"12345")
    wire.answer()
    made = len(wire.loop.timers)
    wire.send(HEAD + b"12345")
    assert len(wire.loop.timers) == made
    assert wire.running == []  # nothing but the application ends a request that is here, however long that takes


async def test_a_body_has_its_time_from_the_end_of_the_head_however_it_trickles(wire: Wire) -> None:
    wire.send(HEAD)
    (timer,) = wire.running
    assert timer.delay_s == connections.BODY_TIMEOUT_S == 30
    wire.send(b"1", b"2", b"3", b"4")
    assert wire.running == [timer]
    timer.ring()
    assert wire.transport.is_closed


async def test_a_chunked_body_has_the_same_time_to_its_very_end(wire: Wire) -> None:
    wire.send(CHUNKED)
    (timer,) = wire.running
    wire.send(b"1\r\nx\r\n", b"1\r\nx\r\n", b"0\r\n", b"A-Trailer: x\r\n")
    assert wire.running == [timer]
    wire.send(b"\r\n")
    assert wire.running == []
    assert not wire.transport.is_closed


async def test_a_body_that_nobody_waits_for_any_more_has_no_more_time(wire: Wire) -> None:
    """The request was refused for its head, and the answer is out."""
    wire.send(HEAD)
    wire.answer()
    wire.send(b"1")
    (timer,) = (timer for timer in wire.running if timer.delay_s != wire.connection.timeout_keep_alive)
    assert timer.delay_s == connections.LINGER_S == 2
    timer.ring()
    assert wire.transport.is_closed


async def test_a_body_that_came_in_time_leaves_the_connection_to_its_response(wire: Wire) -> None:
    wire.send(HEAD, b"12", b"345")
    assert wire.running == []
    wire.answer()
    (keep_alive,) = wire.running
    assert keep_alive.delay_s == wire.connection.timeout_keep_alive


async def test_a_head_has_its_time_from_the_connection_or_its_own_first_byte(wire: Wire) -> None:
    (first,) = wire.running
    assert first.delay_s == connections.HEAD_TIMEOUT_S
    wire.send(b"GET / HT", b"TP/1.1\r\nHost: x\r\nX: ")
    assert wire.running == [first]
    wire.send(b"y\r\n\r\n")
    assert wire.running == []
    wire.answer()
    wire.send(b"GET / HT")
    (second,) = wire.running
    assert second.delay_s == connections.HEAD_TIMEOUT_S
    second.ring()
    assert wire.transport.is_closed


async def test_line_ends_on_an_idle_connection_are_the_beginning_of_a_head(wire: Wire) -> None:
    wire.send(HEAD + b"12345\r\n")
    assert wire.running == []
    wire.answer()
    wire.send(b"\r\n", b"\r\n")
    (timer,) = wire.running
    assert timer.delay_s == connections.HEAD_TIMEOUT_S
    wire.send(GET)
    assert wire.running == []
    assert not wire.transport.is_closed


async def test_the_time_of_a_request_that_waits_behind_another_begins_with_its_turn(wire: Wire) -> None:
    """Nothing of it is read before."""
    wire.send(GET, HEAD + b"1")
    (timer,) = wire.running
    timer.ring()
    assert not wire.transport.is_closed
    wire.answer()
    (timer,) = wire.running
    assert timer.delay_s == connections.BODY_TIMEOUT_S
    timer.ring()
    assert wire.transport.is_closed


async def test_what_stands_around_a_chunked_body_is_bounded_as_its_head_is(wire: Wire) -> None:
    large = heads.MAX_HEAD_BYTES
    wire.send(CHUNKED + b"%x\r\n%s\r\n" % (3 * large, b"x" * 3 * large), *[b"1\r\nx\r\n"] * 10_000)
    assert not wire.transport.is_closing()
    wire.send(b"0\r\n", *[b"A-Trailer: %s\r\n" % (b"x" * 1000)] * 100)
    assert wire.transport.is_closing()
    assert sum(len(value) for _, value in wire.connection.headers) < 2 * large


@pytest.mark.parametrize("piece_bytes", [1, 7_000, 10**6])
@pytest.mark.parametrize("times", [1, 400])
@pytest.mark.parametrize("is_too_much", [False, True])
async def test_extensions_of_chunks_and_trailers_are_bounded_all_together(
    wire: Wire, piece_bytes: int, times: int, is_too_much: bool
) -> None:
    """However many there are, and however they come."""
    most = heads.MAX_HEAD_BYTES + (1_000 if is_too_much else -2_000) - 1_000
    extension = b"x" * (most // times)
    body = b"".join(b"1;%b\r\ny\r\n" % extension for _ in range(times))
    sent = CHUNKED + body + b"0\r\nA-Trailer: %b\r\n\r\n" % (b"x" * 1_000)
    wire.send(*[sent[start : start + piece_bytes] for start in range(0, len(sent), piece_bytes)])
    assert wire.transport.is_closed == is_too_much


@pytest.mark.parametrize("line", [b"GET  / HTTP/1.1", b"GET /  HTTP/1.1"])
@pytest.mark.parametrize("piece_bytes", [1, 5, 1_000])
async def test_one_space_stands_on_either_side_of_the_target(wire: Wire, line: bytes, piece_bytes: int) -> None:
    good, bad = b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", line + b"\r\nHost: x\r\nX: GET / HTTP/1.1\r\n\r\n"
    sent = good + good
    wire.send(*[sent[start : start + piece_bytes] for start in range(0, len(sent), piece_bytes)])
    assert not wire.transport.is_closed
    wire.send(*[bad[start : start + piece_bytes] for start in range(0, len(bad), piece_bytes)])
    assert wire.transport.is_closed


async def test_a_lost_connection_leaves_no_timer(wire: Wire) -> None:
    wire.send(HEAD)
    wire.connection.connection_lost(None)
    assert wire.running == []


# Who gives way where all places are taken


class Door:
    """A protocol of few places, and connections to it; its clock is set by hand."""

    def __init__(self, most: int, *, is_spared: Callable[[str], bool] = lambda _: True) -> None:
        self.kind = connections.limited_to(most, is_spared=is_spared)
        self.state, self.now_s = ServerState(), 0.0

    def connect(self, address: str = "192.0.2.1") -> Wire:
        return Wire(self.kind, self.state, address, lambda: self.now_s)

    def open(self, wires: list[Wire]) -> list[bool]:
        return [not wire.transport.is_closed for wire in wires]


def _is_taken(wire: Wire) -> bool:
    """Tell whether it is served; one that is not leaves again."""
    if not wire.connection._is_surplus:
        return not wire.transport.is_closed
    wire.connection.connection_lost(None)
    return False


async def test_strangers_that_idle_or_were_refused_give_way_at_once_the_oldest_first() -> None:
    door = Door(3)
    held = [door.connect() for _ in range(3)]
    held[1].send(GET)
    held[0].send(HEAD + b"1")  # refused by its head
    for wire in (held[1], held[0]):
        wire.answer()
    assert _is_taken(door.connect())
    assert door.open(held) == [True, False, True]
    assert _is_taken(door.connect())
    assert door.open(held) == [False, False, True]
    assert not _is_taken(door.connect())


async def test_a_stranger_that_sends_slowly_gives_way_after_a_second_be_it_its_second_request_or_a_body() -> None:
    door = Door(3)
    held = [door.connect() for _ in range(3)]
    held[0].send(HEAD, b"1")
    held[1].send(GET)
    held[1].answer()
    held[1].send(b"GET / HT")
    assert not _is_taken(door.connect())
    door.now_s = connections.PATIENCE_S
    assert [_is_taken(door.connect()) for _ in range(3)] == [True, True, True]
    assert door.open(held) == [False, False, False]


async def test_who_is_known_or_waits_for_an_answer_does_not_give_way() -> None:
    door = Door(3)
    held = [door.connect() for _ in range(3)]
    for wire, request in zip(held, (GET, HEAD, GET), strict=True):
        wire.send(request)
        if wire is not held[2]:
            _whole(wire.connection.cycle).know_caller()
    held[0].answer()
    door.now_s = 60
    assert not _is_taken(door.connect())
    assert door.open(held) == [True, True, True]
    held[0].send(GET)  # with a credential that is good no more
    held[0].answer()
    assert _is_taken(door.connect())
    assert door.open(held) == [False, True, True]


async def test_one_address_has_half_of_all_unless_it_speaks_for_many() -> None:
    door = Door(8, is_spared=lambda address: address == "192.0.2.9")
    held = [door.connect(f"2001:db8::{number:x}") for number in range(5)]  # a network of one caller
    assert door.open(held) == [True, True, True, True, False]
    assert door.open([door.connect("192.0.2.9") for _ in range(4)]) == [True] * 4
    for wire in held:
        wire.connection.connection_lost(None)
    assert _is_taken(door.connect("2001:db8::1"))
    assert sum(door.kind.held.values()) == 1


def test_what_an_answer_writes_leaves_at_once_and_much_of_it_is_the_transports_to_hold_back() -> None:
    transport, loop = Written(), Turns()
    gathering = connections.Gathering(transport, loop)  # type: ignore[arg-type] # as much of them as is needed
    gathering.write(b"head")
    gathering.write(b"body")
    assert transport.writes == []
    loop.turn()
    assert transport.writes == [b"headbody"]
    for _ in range(3):
        gathering.write(bytes(connections.MAX_UNSENT_BYTES // 2))
    assert [len(data) for data in transport.writes[1:]] == [connections.MAX_UNSENT_BYTES]
    gathering.close()
    assert [len(data) for data in transport.writes[2:]] == [connections.MAX_UNSENT_BYTES // 2]
    loop.turn()
    assert (len(transport.writes), transport.is_closed) == (3, True)


async def test_a_whole_answer_is_one_write_and_the_connection_goes_on(wire: Wire) -> None:
    wire.transport = transport = Written()
    wire.connection.connection_made(transport)  # type: ignore[arg-type] # what it uses of one
    wire.connection.transport = transport  # type: ignore[assignment] # not gathered: what is written is seen at once
    wire.send(HEAD + b"12345")
    assert _answer_whole(wire, 202, b"{}")
    (written,) = transport.writes
    assert written == b"HTTP/1.1 202 Accepted\r\nx-own: 1\r\ncontent-length: 2\r\n\r\n{}"
    assert [timer.delay_s for timer in wire.running] == [wire.connection.timeout_keep_alive]
    wire.send(HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + b"12345")
    assert _answer_whole(wire, 200, b"{}")
    assert b"\r\nconnection: close\r\n" in transport.writes[1]
    assert transport.is_closed


async def test_whole_answers_come_in_the_order_of_their_requests(wire: Wire) -> None:
    wire.send(HEAD + b"12345", HEAD + b"67890")
    first, second = wire.connection.pipeline[0][0], wire.connection.cycle
    assert first is second
    assert _answer_whole(wire, 200, b"{}", place=0)
    assert not wire.connection.pipeline


@pytest.mark.parametrize("why", ["disconnected", "response_started", "write_paused"])
async def test_an_answer_that_cannot_be_whole_is_left_to_the_messages(wire: Wire, why: str) -> None:
    wire.send(HEAD + b"12345")
    setattr(wire.connection.flow if why == "write_paused" else wire.connection.cycle, why, True)
    assert not _answer_whole(wire, 200, b"{}")
    assert not wire.connection.cycle.response_complete


def _whole(cycle: Any) -> connections.Whole:
    found = cycle.scope["extensions"][connections.WHOLE]
    assert isinstance(found, connections.Whole)
    return found


def _answer_whole(wire: Wire, status: int, body: bytes, *, place: int = -1) -> bool:
    return _whole(wire._unanswered.pop(place)).answer(status, b"x-own: 1\r\n", body)


async def test_a_body_is_taken_once_when_all_of_it_is_there(wire: Wire) -> None:
    wire.send(HEAD + b"123")
    whole = _whole(wire.connection.cycle)
    assert whole.take_body() is None
    wire.send(b"45")
    assert whole.take_body() == b"12345"
    assert not wire.connection.cycle.body
    wire.connection.cycle.disconnected = True
    assert whole.take_body() is None


class Written(Transport):
    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True


class Turns:
    """A loop that takes its turns when told."""

    def __init__(self) -> None:
        self._due: list[Callable[[], None]] = []

    def call_soon(self, act: Callable[[], None]) -> None:
        self._due.append(act)

    def turn(self) -> None:
        due, self._due = self._due, []
        for act in due:
            act()
