"""Requests that two readers could take for different ones, on raw sockets: refused, and nothing behind them is done."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from greenroom import telemetry
from greenroom.api import connections

HOST = b"Host: greenroom.test\r\n"
GET = b"GET /done HTTP/1.1\r\n" + HOST + b"\r\n"  # what must not be done
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def _post(*lines: bytes, body: bytes = b"") -> bytes:
    return b"POST /x HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def _get(target: bytes = b"/x", host: bytes = HOST, version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET " + target + b" " + version + b"\r\n" + host + b"\r\n"


REFUSED = {
    "a length and chunks": (_post(b"Content-Length: 4", CHUNKED[:-2], body=b"0\r\n\r\n"), 400),
    "chunks and a length": (_post(CHUNKED[:-2], b"Content-Length: 4", body=b"0\r\n\r\n"), 400),
    "two lengths": (_post(b"Content-Length: 0", b"Content-Length: 5", body=b"GET /"), 400),
    "the same length twice": (_post(b"Content-Length: 1", b"Content-Length: 1", body=b"x"), 400),
    "a list of lengths": (_post(b"Content-Length: 1, 1", body=b"x"), 400),
    "a length with a sign": (_post(b"Content-Length: +1", body=b"x"), 400),
    "a negative length": (_post(b"Content-Length: -1"), 400),
    "a hexadecimal length": (_post(b"Content-Length: 0x1", body=b"x"), 400),
    "an empty length": (_post(b"Content-Length: "), 400),
    "a length of 30 digits": (_post(b"Content-Length: " + b"9" * 30), 400),
    "a length with a space in it": (_post(b"Content-Length: 1 1", body=b"x"), 400),
    "chunked twice": (_post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"), 400),
    "chunked on two lines": (_post(CHUNKED[:-2], CHUNKED[:-2], body=b"0\r\n\r\n"), 400),
    "chunked and more": (_post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"), 400),
    "gzip, chunked": (_post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 400),
    "identity": (_post(b"Transfer-Encoding: identity"), 400),
    "xchunked": (_post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 400),
    "chunked with a vertical tab": (_post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), 400),
    "chunked in quotes": (_post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"), 400),
    "chunked by HTTP/1.0": (b"POST /x HTTP/1.0\r\n" + HOST + CHUNKED + b"\r\n0\r\n\r\n", 400),
    "a space before the colon": (_post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"), 400),
    "a tab before the colon": (_post(b"Content-Length\t: 1", body=b"x"), 400),
    "a folded line": (_post(b"X: a\r\n b"), 400),
    "a folded length": (_post(b"Content-Length:\r\n 1", body=b"x"), 400),
    "a space before the first header": (b"GET /x HTTP/1.1\r\n Host: greenroom.test\r\n\r\n", 400),
    "line feeds alone": (b"GET /x HTTP/1.1\nHost: greenroom.test\n\n", 400),
    "a line feed alone behind a header": (b"GET /x HTTP/1.1\r\n" + HOST + b"X: y\nZ: z\r\n\r\n", 400),
    "a line feed alone at the end": (b"GET /x HTTP/1.1\r\n" + HOST + b"\n", 400),
    "a carriage return alone": (b"GET /x HTTP/1.1\r\n" + HOST + b"X: y\rZ: z\r\n\r\n", 400),
    "a chunk that ends in a line feed": (_post(CHUNKED[:-2], body=b"1\nx\r\n0\r\n\r\n"), 400),
    "a chunk without its line end": (_post(CHUNKED[:-2], body=b"1\r\nxx0\r\n\r\n"), 400),
    "a chunk of a wrong size": (_post(CHUNKED[:-2], body=b"g\r\nx\r\n0\r\n\r\n"), 400),
    "a chunk of a negative size": (_post(CHUNKED[:-2], body=b"-1\r\nx\r\n0\r\n\r\n"), 400),
    "a chunk of a size beyond 64 bits": (_post(CHUNKED[:-2], body=b"1" + b"0" * 17 + b"\r\nx\r\n0\r\n\r\n"), 400),
    "a chunk with a prefix": (_post(CHUNKED[:-2], body=b"0x1\r\nx\r\n0\r\n\r\n"), 400),
    "a NUL in a value": (_post(b"X: a\0b"), 400),
    "a NUL in a name": (_post(b"X\0: a"), 400),
    "a NUL in the target": (_get(b"/x\0y"), 400),
    "an empty name": (_post(b": a"), 400),
    "a name with a space": (_post(b"X Y: a"), 400),
    "a name with a control character": (_post(b"X\x01: a"), 400),
    "a line without a colon": (_post(b"nonsense"), 400),
    "no Host": (_get(host=b""), 400),
    "no Host by HTTP/1.0": (_get(host=b"", version=b"HTTP/1.0"), 400),
    "an empty Host": (_get(host=b"Host: \r\n"), 400),
    "two Hosts": (_get(host=HOST * 2), 400),
    "two different Hosts": (_get(host=HOST + b"Host: evil.test\r\n"), 400),
    "a Host with credentials": (_get(host=b"Host: a@greenroom.test\r\n"), 400),
    "a Host with a path": (_get(host=b"Host: greenroom.test/x\r\n"), 400),
    "a Host with a query": (_get(host=b"Host: greenroom.test?x\r\n"), 400),
    "a Host with a space": (_get(host=b"Host: a b\r\n"), 400),
    "a Host with a scheme": (_get(host=b"Host: http://greenroom.test\r\n"), 400),
    "a Host with two ports": (_get(host=b"Host: greenroom.test:1:2\r\n"), 400),
    "a Host with a port that is none": (_get(host=b"Host: greenroom.test:x\r\n"), 400),
    "a list of Hosts": (_get(host=b"Host: greenroom.test, evil.test\r\n"), 400),
    "a Host beyond ASCII": (_get(host=b"Host: gr\xc3\xa9enroom\r\n"), 400),
    "two credentials": (_post(b"Authorization: Bearer a", b"Authorization: Bearer b"), 400),
    "two types": (_post(b"Content-Type: text/plain", b"Content-Type: application/json"), 400),
    "another host's URL": (_get(b"http://evil.test/x"), 400),
    "another port's URL": (_get(b"http://greenroom.test:81/x"), 400),
    "a URL with credentials": (_get(b"http://a:b@greenroom.test/x"), 400),
    "a URL of another scheme": (_get(b"ftp://greenroom.test/x"), 400),
    "a target without a slash": (_get(b"x"), 400),
    "a star": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a fragment": (_get(b"/x#y"), 400),
    "a target beyond ASCII": (_get(b"/\xff"), 400),
    "CONNECT": (b"CONNECT greenroom.test:443 HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "TRACE": (b"TRACE /x HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "HTTP/0.9": (b"GET /x\r\n", 400),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/2.0": (_get(version=b"HTTP/2.0"), 400),
    "HTTP/1.2": (_get(version=b"HTTP/1.2"), 400),
    "http/1.1": (_get(version=b"http/1.1"), 400),
    "a method in small letters": (b"get /x HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "an unknown method": (b"EVIL /x HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "65 headers": (_post(*[b"X: y"] * 64), 431),
    "a header of 16 KB": (_post(b"X: " + b"y" * 16 * 1024), 431),
    "17 KB of headers": (_post(*[b"X: " + b"y" * 1000] * 17), 431),
    "a URL of 9 KB": (_get(b"/" + b"x" * 9 * 1024), 414),
    "extensions of chunks without an end": (_post(CHUNKED[:-2], body=b"1;" + b"x" * 40_000), 431),
    "trailers without an end": (_post(CHUNKED[:-2], body=b"0\r\n" + b"X: y\r\n" * 10_000), 431),
}
TAKEN = {
    "plain": _get(),
    "a port": _get(host=b"Host: greenroom.test:7080\r\n"),
    "an IPv6 address": _get(host=b"Host: [::1]:7080\r\n"),
    "our own URL": _get(b"http://greenroom.test/x"),
    "our own URL in capitals": _get(b"HTTP://GREENROOM.TEST/x"),
    "HTTP/1.0": _get(version=b"HTTP/1.0"),
    "a length": _post(b"Content-Length: 2", body=b"ab"),
    "chunks": _post(CHUNKED[:-2], body=b"1\r\na\r\n1;x=y\r\nb\r\n0\r\n\r\n"),
    "Chunked": _post(b"TRANSFER-ENCODING: Chunked", body=b"2\r\nab\r\n0\r\n\r\n"),
    "a trailer": _post(CHUNKED[:-2], body=b"2\r\nab\r\n0\r\nX: y\r\n\r\n"),
    "64 headers": _post(*[b"X: y"] * 61, b"Content-Length: 0"),
    "15 KB of headers": _post(*[b"X: " + b"y" * 1000] * 15, b"Content-Length: 0"),
    "an upgrade that nobody asked for": _post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 0"),
    "a tab before the value": _post(b"X:\ty", b"Content-Length: 0"),
}


class Server:
    def __init__(self) -> None:
        self.done: list[str] = []  # the paths that the application was asked for
        self.port = 0
        self.facts: list[telemetry.Fact] = []

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.done.append(scope["path"])
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def answer(self, *pieces: bytes) -> bytes:
        """All that comes back, to the end of the connection or a silence."""
        self.done.clear()
        self.facts.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for piece in pieces:
                writer.write(piece)
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                await asyncio.sleep(0.0005 if len(pieces) > 1 else 0)
                if reader._buffer:  # type: ignore[attr-defined] # what is sent after the answer could wipe it out
                    break
            came = b""
            with contextlib.suppress(ConnectionError, TimeoutError):
                while piece := await asyncio.wait_for(reader.read(65_536), 0.2 if came else 5):
                    came += piece
            return came
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    running = Server()
    protocol = connections.limited_to(100, emit=running.facts.append)
    config = uvicorn.Config(
        running.app,
        interface="asgi3",
        server_header=False,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        port=0,
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
    running.port = listening.sockets[0].getsockname()[1]
    yield running
    listening.close()


_STATUSES = re.compile(rb"HTTP/1\.1 (\d{3}) ")


def _status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


async def test_what_could_be_read_in_two_ways_is_refused_and_ends_the_connection(server: Server) -> None:
    wrong = {}
    for name, (request, status) in REFUSED.items():
        answer = await server.answer(request + GET * 3)
        if _status(answer) != status or server.done not in ([], ["/x"]) or len(_STATUSES.findall(answer)) != 1:
            wrong[name] = f"{status}: {answer[:12]!r} {len(_STATUSES.findall(answer))} {server.done}"
    assert wrong == {}


@pytest.mark.parametrize("name", ["no Host", "two lengths", "65 headers", "a URL of 9 KB", "TRACE"])
async def test_a_refusal_is_a_problem_and_told(server: Server, name: str) -> None:
    request, status = REFUSED[name]
    head, _, body = (await server.answer(request)).partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    problem = json.loads(body)
    assert problem["status"] == status
    (fact,) = server.facts
    assert isinstance(fact, telemetry.RequestForged)
    assert (fact.source, fact.what) == ("127.0.0.1", problem["detail"])


async def test_what_everybody_reads_alike_is_taken(server: Server) -> None:
    wrong = {}
    for name, request in TAKEN.items():
        answer = await server.answer(request.replace(HOST, HOST + b"Connection: close\r\n"))
        if _status(answer) != 200 or server.done != ["/x"]:
            wrong[name] = f"{answer[:12]!r} {server.done}"
    assert wrong == {}


async def test_a_byte_at_a_time_is_read_as_at_once(server: Server) -> None:
    for name in ("a length and chunks", "two Hosts", "a NUL in a value", "a chunk with a prefix", "another host's URL"):
        request, status = REFUSED[name]
        answer = await server.answer(*(bytes([byte]) for byte in request))
        assert (_status(answer), server.done in ([], ["/x"])) == (status, True), name


async def test_what_is_pipelined_behind_a_good_request_and_is_bad_is_not_done(server: Server) -> None:
    answer = await server.answer(GET + REFUSED["two lengths"][0] + GET)
    assert server.done == ["/done"]
    assert len(_STATUSES.findall(answer)) <= 1  # one that could be taken for the first one's answer is not sent


async def test_behind_an_upgrade_nothing_is_read(server: Server) -> None:
    answer = await server.answer(TAKEN["an upgrade that nobody asked for"] + GET)
    assert (_status(answer), server.done) == (200, ["/x"])
    assert b"connection: close" in answer
