"""Load over HTTP: so many connections, each of which sends its next request when the answer to the last is there.

A process of its own (``run.py`` starts it), because who measures must not wait for who is measured. Reads the plan as
JSON from standard input, writes what it saw as JSON to standard output. About 20 µs of CPU a request with 64
connections.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Iterator
from itertools import repeat
from typing import cast

import msgspec
import uvloop

_HEAD = re.compile(rb"HTTP/1\.1 (\d+).*?\r\ncontent-length: *(\d+).*?\r\n\r\n", re.DOTALL | re.IGNORECASE)


class Plan(msgspec.Struct):
    """Ends after *seconds* or *count* requests, whichever comes first. The bodies are sent in turn, again and again."""

    host: str
    port: int
    path: str
    bodies: list[str]
    connections: int
    seconds: float
    count: int = 1_000_000
    key: str = ""


class Seen(msgspec.Struct):
    begun_at: float  # seconds since 1970
    elapsed_s: float
    latencies_ms: list[float]  # sorted
    refused: int  # answers other than 200 and 202
    cpu_us: float  # of this process for each request
    server_cpu_us: float = 0.0  # of the server's process for each request, which is for who started it to fill in

    @property
    def rate(self) -> float:
        return len(self.latencies_ms) / self.elapsed_s

    def percentile_ms(self, percent: float) -> float:
        return self.latencies_ms[min(len(self.latencies_ms) - 1, int(len(self.latencies_ms) * percent / 100))]


class Client(asyncio.Protocol):
    """One connection in its closed loop."""

    def __init__(self, requests: Iterator[bytes], seen: Seen, *, until_s: float) -> None:
        self._requests, self._seen, self._until_s = requests, seen, until_s
        self._unread = b""
        self._sent_s = 0.0
        self.ended = asyncio.get_running_loop().create_future()

    def itself(self) -> Client:
        """The protocol factory of its connection."""
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(exc or ConnectionResetError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._unread += data
        head = _HEAD.match(self._unread)
        if head is None or len(self._unread) < head.end() + int(head[2]):
            return
        self._seen.latencies_ms.append((time.perf_counter() - self._sent_s) * 1000)
        self._seen.refused += head[1] not in (b"200", b"202")
        self._unread = b""
        self._send_next()

    def _send_next(self) -> None:
        self._sent_s = time.perf_counter()
        request = next(self._requests, None) if self._sent_s < self._until_s else None
        if request is not None:
            self._transport.write(request)
        elif not self.ended.done():
            self.ended.set_result(None)


def requests(plan: Plan) -> Iterator[bytes]:
    authorization = f"Authorization: Bearer {plan.key}\r\n" if plan.key else ""
    head = (
        f"POST {plan.path} HTTP/1.1\r\nHost: {plan.host}\r\n{authorization}"
        "Content-Type: application/json\r\nContent-Length: "
    )
    built = [f"{head}{len(body.encode())}\r\n\r\n{body}".encode() for body in plan.bodies]
    sent = 0
    for bodies in repeat(built):
        for request in bodies:
            if sent == plan.count:
                return
            sent += 1
            yield request


async def run(plan: Plan) -> Seen:
    seen, shared = Seen(time.time(), 0.0, [], 0, 0.0), requests(plan)
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    clients = [Client(shared, seen, until_s=begun_s + plan.seconds) for _ in range(plan.connections)]
    for client in clients:
        await asyncio.get_running_loop().create_connection(client.itself, plan.host, plan.port)
    await asyncio.gather(*(client.ended for client in clients))
    seen.elapsed_s = time.perf_counter() - begun_s
    seen.cpu_us = (time.process_time() - begun_cpu_s) / max(1, len(seen.latencies_ms)) * 1e6
    seen.latencies_ms.sort()
    return seen


if __name__ == "__main__":
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(run(plan))))
