"""Constant load over HTTP: so many tasks a second, whether or not the answers to those before are there.

A process of its own (``rollouts.py`` starts it). Reads the plan as a line of JSON from standard input, and ends when
that is closed; writes what it saw as JSON to standard output. Latencies count from the instant at which a task was due,
so that a server that stalls is not excused by its callers' waiting for it.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import cast

import msgspec
import uvloop

_HEAD = re.compile(rb"HTTP/1\.1 (\d+).*?\r\ncontent-length: *(\d+).*?\r\n\r\n", re.DOTALL | re.IGNORECASE)
_SUCCEEDED = b'"state":"succeeded"'


class Plan(msgspec.Struct):
    host: str
    port: int
    path: str
    body: str
    key: str
    rate_per_s: float
    connections: int


class Seen(msgspec.Struct):
    """One entry for each task, by the order of the answers; instants are of the monotonic clock, in seconds."""

    due_s: list[float]
    latencies_ms: list[float]
    failed: list[str]  # what was answered instead of success
    statuses: list[int] = []  # 0: the connection was lost


class Client(asyncio.Protocol):
    """A connection that is lent to one task after another."""

    def __init__(self, free: asyncio.Queue[Client], seen: Seen) -> None:
        self._free, self._seen = free, seen
        self._unread = b""
        self._due_s = 0.0

    def itself(self) -> Client:
        """The protocol factory of its connection."""
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._free.put_nowait(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._due_s:
            self._note(f"connection lost: {exc}", 0)

    def send(self, request: bytes, due_s: float) -> None:
        self._due_s = due_s
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        head = _HEAD.match(self._unread)
        if head is None or len(self._unread) < head.end() + int(head[2]):
            return
        is_success = head[1] == b"200" and _SUCCEEDED in self._unread
        self._note("" if is_success else self._unread.decode(errors="replace")[:500], int(head[1]))
        self._unread, self._due_s = b"", 0.0
        self._free.put_nowait(self)

    def _note(self, failure: str, status: int) -> None:
        self._seen.statuses.append(status)
        self._seen.due_s.append(self._due_s)
        self._seen.latencies_ms.append((time.monotonic() - self._due_s) * 1000)
        if failure:
            self._seen.failed.append(failure)


async def run(plan: Plan, ended: asyncio.Event) -> Seen:
    seen, loop = Seen([], [], []), asyncio.get_running_loop()
    free: asyncio.Queue[Client] = asyncio.Queue()
    body = plan.body.encode()
    request = (
        f"POST {plan.path} HTTP/1.1\r\nHost: {plan.host}\r\nAuthorization: Bearer {plan.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    for _ in range(plan.connections):
        await loop.create_connection(Client(free, seen).itself, plan.host, plan.port)
    due_s = time.monotonic()
    while not ended.is_set():
        delay_s = due_s - time.monotonic()
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        (await free.get()).send(request, due_s)
        due_s += 1 / plan.rate_per_s
    for _ in range(plan.connections):  # each answer is there when each connection is free
        await free.get()
    return seen


async def main(plan: Plan) -> Seen:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    return await run(plan, ended)


if __name__ == "__main__":
    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(main(plan))))
    sys.stdout.buffer.flush()
