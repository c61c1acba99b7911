"""The least that a durable task can cost here: the denominator of Greenroom's rates.

HTTP in, a row inserted by a group commit that waits for the disk, a msgpack frame to one of two forked echo processes
and back, the row updated by another group commit, HTTP out. No authentication, validation, queue, lease, event, retry,
metric or supervision. ``run.py`` starts it; by hand: ``python bench/limit.py STORE``, where STORE is a file for SQLite
or a ``postgresql://`` URL. Says its URL on stdout once it listens; ends with its standard input.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import apsw
import msgspec
import uvicorn
import uvloop

ECHOES = 2
LENGTH = struct.Struct("<I")
Rows = Sequence[tuple[object, ...]]
Commit = Callable[[Rows, Rows], Awaitable[None]]
encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
encode_json, decode_json = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


class Frames(asyncio.Protocol):
    """Length-prefixed msgpack both ways; what is sent within one turn of the loop leaves in one write."""

    def __init__(self, on_message: Callable[[Any], None], on_end: Callable[[], None] = lambda: None) -> None:
        self._on_message, self._on_end = on_message, on_end
        self._loop = asyncio.get_running_loop()
        self._unread, self._unsent = b"", bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._on_end()

    def data_received(self, data: bytes) -> None:
        data, start = self._unread + data, 0
        while len(data) >= start + 4 and len(data) >= (end := start + 4 + LENGTH.unpack_from(data, start)[0]):
            self._on_message(decode(data[start + 4 : end]))
            start = end
        self._unread = data[start:]

    def send(self, message: object) -> None:
        body = encode(message)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent += LENGTH.pack(len(body)) + body

    def _flush(self) -> None:
        self._transport.write(bytes(self._unsent))
        self._unsent.clear()


async def echo(channel: socket.socket) -> None:
    """Answer each task with its own input until the parent is gone."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    frames = Frames(lambda message: frames.send(message), ended.set)  # noqa: PLW0108 - it names itself
    await loop.create_connection(lambda: frames, sock=channel)
    await ended.wait()


def fork_echoes() -> list[socket.socket]:
    channels = []
    for _ in range(ECHOES):
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            uvloop.run(echo(theirs))
            os._exit(0)
        theirs.close()
        channels.append(ours)
    return channels


def sqlite(path: str) -> Commit:
    db = apsw.Connection(path)
    db.pragma("journal_mode", "wal")
    db.pragma("synchronous", "full")
    db.execute("create table task (seq integer primary key, id text unique, agent text, input blob, output blob)")
    thread = ThreadPoolExecutor(1)

    def write(inserts: Rows, updates: Rows) -> None:
        db.execute("begin immediate")
        db.executemany("insert into task (id, agent, input) values (?, ?, ?)", inserts)
        db.executemany("update task set output = ? where id = ?", updates)

    async def commit(inserts: Rows, updates: Rows) -> None:
        write(inserts, updates)
        await asyncio.get_running_loop().run_in_executor(thread, db.execute, "commit")

    return commit


async def postgres(url: str) -> Commit:
    import asyncpg

    db = await asyncpg.connect(url)
    await db.execute(
        "create table task (seq bigserial primary key, id text unique, agent text, input bytea, output bytea)"
    )

    async def commit(inserts: Rows, updates: Rows) -> None:
        async with db.transaction():
            if inserts:
                await db.executemany("insert into task (id, agent, input) values ($1, $2, $3)", inserts)
            if updates:
                await db.executemany("update task set output = $1 where id = $2", updates)

    return commit


class Limit:
    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self._pending: tuple[list[Any], list[Any]] = ([], [])  # of the next commit: inserts, updates
        self._done = asyncio.Event()  # of the next commit
        self._work = asyncio.Event()
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._echoes: list[Frames] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = 0

    async def start(self, channels: Sequence[socket.socket]) -> None:
        for channel in channels:
            _, frames = await asyncio.get_running_loop().create_connection(
                lambda: Frames(lambda message: self._keep(self._finish(*message))), sock=channel
            )
            self._echoes.append(frames)
        self._keep(self._write())

    def _keep(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self) -> None:
        """Group commit: what arrives while one commit is in flight goes together into the next."""
        while await self._work.wait():
            self._work.clear()
            (inserts, updates), self._pending = self._pending, ([], [])
            done, self._done = self._done, asyncio.Event()
            await self._commit(inserts, updates)
            done.set()

    async def _store(self, kind: int, row: tuple[object, ...]) -> None:
        self._pending[kind].append(row)
        self._work.set()
        await self._done.wait()

    async def run(self, agent: str, value: object) -> tuple[str, bytes]:
        id = secrets.token_hex(16)
        answer = self._waiting[id] = asyncio.get_running_loop().create_future()
        await self._store(0, (id, agent, encode_json(value)))
        self._turn = (self._turn + 1) % len(self._echoes)
        self._echoes[self._turn].send((id, value))
        return id, await answer

    async def _finish(self, id: str, value: object) -> None:
        output = encode_json(value)
        await self._store(1, (output, id))
        self._waiting.pop(id).set_result(output)

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        task = decode_json(body)
        id, output = await self.run(task["agent"], task["input"])
        answer = encode_json({"id": id, "output": msgspec.Raw(output)})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


async def main(store: str, channels: Sequence[socket.socket]) -> None:
    limit = Limit(await postgres(store) if store.startswith("postgres") else sqlite(store))
    await limit.start(channels)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(limit, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    asyncio.get_running_loop().add_reader(sys.stdin, lambda: setattr(server, "should_exit", True))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    await server.serve(sockets=[listener])


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], fork_echoes()))
