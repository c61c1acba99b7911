"""What a task costs the node's loop, counted so that a busy machine cannot blur it: ``python -m bench.counts``.

A real node with its API and its store on disk; callers' connections and replicas are played in the same loop, so that
all but the kernel's part of a task is done as ever. Prints the bytecodes that a task runs, with ``--top N`` by
function, and the loop's CPU time in the best twentieth of many short turns. `PYTHONPATH` chooses the code.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import uvicorn
import uvloop
from bench import servers, switches
from uvicorn.server import ServerState

from greenroom import node, settings
from greenroom.api import connections
from greenroom.engine import contract, envelope, protocol
from greenroom.node import composition
from greenroom.testing import fake_engine

TURNS, TASKS_OF_A_TURN = 100, {1: 320, switches.BATCH: 2 * switches.BATCH}  # by how many tasks a request has


class Replicas(fake_engine.FakeEngine):
    """Replicas that echo in the next turn of the loop; every message takes the form that it has on a channel."""

    limits, enforcement, spares = envelope.Limits(), envelope.Enforcement(), 0

    def __init__(self, *_: object, **_given: object) -> None:
        super().__init__(is_eager=True)
        self._frames, self._due = protocol.Frames(), list[tuple[str, protocol.Invoke]]()

    async def measure(self, **_: object) -> contract.Usage:
        return contract.Usage({}, 0.0, {})

    def invoke(self, replica: str, message: protocol.ToReplica) -> bool:
        if not isinstance(message, protocol.Invoke):
            return super().invoke(replica, message)
        protocol.frame(message)
        if not self._due:
            asyncio.get_running_loop().call_soon(self._answer)
        self._due.append((replica, message))
        return True

    def _answer(self) -> None:
        due, self._due = self._due, []
        for replica, message in due:
            ended = protocol.Ended(message.task, message.epoch, output=message.input)
            (body,) = self._frames.feed(protocol.frame(ended))
            for listener in self._listeners:
                listener.on_message(replica, protocol.decode_for_node(body))

    async def sweep(self) -> None:
        """There is nothing of an earlier life."""


class Caller:
    """A connection's transport; whole answers are told to *on_answer*."""

    def __init__(self, connection: connections.Connection, request: bytes, on_answer: Callable[[Caller], None]) -> None:
        self._connection, self._request, self._on_answer = connection, request, on_answer
        connection.connection_made(self)  # type: ignore[arg-type] # what it uses of one

    def ask(self) -> None:
        self._connection.data_received(self._request)

    def write(self, data: bytes) -> None:
        assert data[9:12] in (b"200", b"202"), data
        self._on_answer(self)

    def get_extra_info(self, name: str, default: object = None) -> object:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...


class Load:
    """So many callers in closed loops."""

    def __init__(self, running: node.Node, key: str, *, path: str, body: str, callers: int, tasks: int) -> None:
        self._store, self._tasks = running.store, tasks
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        config = uvicorn.Config(
            running.app,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            timeout_keep_alive=600,
        )
        config.load()
        state, loop = ServerState(), asyncio.get_running_loop()
        made = [connections.Connection(config, state, {}, loop) for _ in range(callers)]
        self._callers = [Caller(connection, request, self._note) for connection in made]
        self._left, self._done = 0, asyncio.Event()

    def _note(self, caller: Caller) -> None:
        self._left -= 1
        if self._left >= len(self._callers):
            asyncio.get_running_loop().call_soon(caller.ask)
        elif not self._left:
            self._done.set()

    async def turn(self) -> int:
        """Run tasks until all have ended; return how many."""
        requests = max(TASKS_OF_A_TURN[self._tasks] // self._tasks, len(self._callers))
        self._left = requests
        self._done.clear()
        for caller in self._callers:
            asyncio.get_running_loop().call_soon(caller.ask)
        await self._done.wait()
        while await self._store.tasks.open_counts():  # noqa: ASYNC110 - the looks are part of no task
            await asyncio.sleep(0.002)
        return requests * self._tasks


async def bytecodes(load: Load) -> Counter[str]:
    """Return how many bytecodes each function runs for a task."""
    found = Counter[str]()

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        code = frame.f_code
        if code.co_filename == __file__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        name = f"{code.co_qualname} ({Path(code.co_filename).name})"

        def step(_frame: FrameType, event: str, _argument: Any) -> Any:
            found[name] += event == "opcode"
            return step

        return step

    sys.settrace(trace)
    try:
        tasks = sum([await load.turn() for _ in range(3)])
    finally:
        sys.settrace(None)
    return Counter({name: round(count / tasks) for name, count in found.items()})


async def measure(load: Load, name: str, *, top: int) -> None:
    for _ in range(3):
        await load.turn()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)  # as `greenroom up` does
    turns_us = []
    for _ in range(TURNS):
        begun_s = time.thread_time()
        tasks = await load.turn()
        turns_us.append((time.thread_time() - begun_s) / tasks * 1e6)
    found = await bytecodes(load)
    best_us = sorted(turns_us)[TURNS // 20]
    print(f"{name}: {sum(found.values()):,} bytecodes, {best_us:.1f} µs of the loop's CPU in the best turns, a task")
    for function, count in found.most_common(top):
        print(f"  {count:5}  {function}")


async def main(folder: Path, *, top: int, security: str | None, tracing: float | None) -> None:
    (folder / "agents.py").write_text(servers.AGENTS)
    agent = {"factory": "agents:echo", "concurrency": 500, "scaling": {"min_replicas": 2}}
    given = {None: {}, "on": tomllib.loads(switches.SECURITY_ON), "off": tomllib.loads(switches.SECURITY_OFF)}[security]
    if tracing is not None:  # nobody listens there, which costs the loop nothing
        given |= {"cluster": given.get("cluster", {}) | {"tracing": True}}
        given |= {"tracing": {"endpoint": "http://127.0.0.1:9", "sample_ratio": tracing}}
    found = settings.load(overrides=given | {"agents": {"echo": agent}}, environ={})
    options = node.Options(settings=found, folder=folder, data_dir=folder / "data", port=0)
    with mock.patch.object(composition, "LocalEngine", Replicas):
        async with node.opened(options, grace_s=0) as running:
            await running.ready.wait()
            key = (folder / "data" / "local.key").read_text().strip()
            one = Load(running, key, path="/v1/tasks?wait=30", body=switches.BODY, callers=64, tasks=1)
            await measure(one, "64 connections", top=top)
            many = Load(running, key, path="/v1/tasks/batch", body=switches.BATCH_BODY, callers=2, tasks=switches.BATCH)
            await measure(many, f"batches of {switches.BATCH}", top=top)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--top", type=int, default=0, help="also print this many functions, those that cost most first")
    parser.add_argument("--security", choices=("on", "off"), help="every control of it, or authentication alone")
    parser.add_argument("--tracing", type=float, metavar="RATIO", help="trace, and sample this part of the tasks")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="greenroom-counts-") as temporary:
        uvloop.run(main(Path(temporary), top=arguments.top, security=arguments.security, tracing=arguments.tracing))
