"""Five hundred who are slow on purpose, in every way, beside one who is not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

import nodes
from greenroom import node
from greenroom.api import connections

HOST = b"Host: x\r\n"
SLOW = {  # what is sent first, and then again and again
    "nothing": (b"", b""),
    "half a request line": (b"POST /v1/tasks HT", b""),
    "a header by the byte": (b"POST /v1/tasks HTTP/1.1\r\n" + HOST + b"X: ", b"a"),
    "no body": (b"POST /v1/tasks HTTP/1.1\r\n" + HOST + b"Content-Length: 100000\r\n\r\nabc", b""),
    "a body by the byte": (b"POST /v1/tasks HTTP/1.1\r\n" + HOST + b"Content-Length: 100000\r\n\r\n", b"z"),
    "chunks by the byte": (
        b"POST /v1/tasks HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n",
        b"1\r\nx\r\n",
    ),
}


@contextlib.asynccontextmanager
async def _slow(place: tuple[str, int], name: str) -> AsyncIterator[asyncio.Task[float]]:
    """A slow client; its task's value is how long the server bore with it."""
    reader, writer = await asyncio.open_connection(*place)

    async def go_on() -> float:
        begun_s = time.monotonic()
        first, again = SLOW[name]
        writer.write(first)
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                if again:
                    writer.write(again)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(65_536), 0.2)
        return time.monotonic() - begun_s

    task = asyncio.create_task(go_on())
    try:
        yield task
    finally:
        task.cancel()
        writer.transport.abort()


@pytest.mark.slow
async def test_slow_clients_are_closed_in_time_and_delay_nobody(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 1.0)
    monkeypatch.setattr(connections, "BODY_TIMEOUT_S", 1.0)
    monkeypatch.setattr(connections, "LINGER_S", 0.5)
    opened = nodes.opened(data_dir, {"echo": nodes.agent("echo")}, cluster={"max_connections": 1000})
    async with opened as api, node.listening(api.running) as url, contextlib.AsyncExitStack() as stack:
        headers = {"authorization": api.http.headers["authorization"]}
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, headers=headers, timeout=30))
        place = http.base_url.host, http.base_url.port or 0
        names = [name for name in SLOW for _ in range(84)]
        slow = [await stack.enter_async_context(_slow(place, name)) for name in names]
        took_s = []
        for _ in range(50):
            begun_s = time.monotonic()
            assert (await http.get("/v1/status")).status_code == 200
            took_s.append(time.monotonic() - begun_s)
        borne_s = await asyncio.wait_for(asyncio.gather(*slow), 20)
    assert sorted(took_s)[-3] < 0.5, took_s
    assert max(borne_s) < 8.0
    assert not api.running.failure


@pytest.mark.slow
async def test_who_sends_no_head_gives_way_to_who_does(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PATIENCE_S", 0.0)
    opened = nodes.opened(data_dir, {"echo": nodes.agent("echo")}, cluster={"max_connections": 5})
    async with opened as api, node.listening(api.running) as url, contextlib.AsyncExitStack() as stack:
        headers = {"authorization": api.http.headers["authorization"]}
        place = httpx.URL(url).host, httpx.URL(url).port or 0
        for _ in range(20):
            await stack.enter_async_context(_slow(place, "a header by the byte"))
        for _ in range(10):
            async with httpx.AsyncClient(base_url=url, headers=headers) as http:
                assert (await http.get("/v1/status")).status_code == 200
