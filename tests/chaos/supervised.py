"""A node as an init system has it, which starts it again whatever it died of; and faults of the whole node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import nodes
from greenroom.sdk.async_client import AsyncClient
from greenroom.store import postgres
from greenroom.testing import databases
from greenroom.testing.chaos import held, nemesis, processes
from greenroom.testing.chaos.nemesis import Hit, Injector
from greenroom.testing.chaos.processes import NotInjectable
from greenroom.testing.chaos.schedule import Planned

AGENT = "chaos"
STARTS = 10
STOP_WITHIN_S = 60.0
WATCH_EVERY_S = 0.05


class Supervised:
    """*deaths* are those that nobody asked for: each is a bug of the node."""

    def __init__(self, folder: Path, store_url: str | None) -> None:
        self.folder = nodes.Folder(folder)
        self.deaths: list[str] = []
        self.turn = asyncio.Lock()  # one at a time stops or starts the node
        self._words = ["--port", str(_free_port()), *(["--store", store_url] if store_url else [])]
        self._up: nodes.Up | None = None

    @property
    def data_dir(self) -> Path:
        return self.folder.path / ".greenroom"

    @property
    def up(self) -> nodes.Up:
        assert self._up is not None, "it has not been started"
        return self._up

    def pid(self) -> int:
        if self.up.process.poll() is not None:
            raise NotInjectable("the node is down")
        return self.up.process.pid

    async def start(self) -> None:
        """Start the node, again where a fault of its store stands in its way."""
        for left in reversed(range(STARTS)):
            try:
                self._up = await asyncio.to_thread(self.folder.up, *self._words)
            except AssertionError:
                if not left:
                    raise
            else:
                return

    async def watch(self) -> None:
        """Start the node again when it has ended by itself."""
        while True:
            async with self.turn:
                if (code := self.up.process.poll()) is not None:
                    self.deaths.append(f"the node ended by itself with {code}: {self.folder.log.read_text()[-2000:]}")
                    await self.start()
            await asyncio.sleep(WATCH_EVERY_S)

    async def stop(self, signal_number: int) -> None:
        self.up.process.send_signal(signal_number)
        await asyncio.to_thread(self.up.process.wait, STOP_WITHIN_S)

    def close(self) -> None:
        self.folder.close()


class NodeFaults:
    """What can be done to a node as a whole, and to its PostgreSQL server, beside `nemesis.LocalFaults`."""

    def __init__(
        self, node: Supervised, client: AsyncClient, *, server: databases.Server | None, store_url: str | None
    ) -> None:
        self._node, self._client, self._server, self._store_url = node, client, server, store_url

    def injectors(self) -> dict[str, Injector]:
        found: dict[str, Injector] = {
            "node-kill": self._ended(lambda pid: os.kill(pid, signal.SIGKILL)),
            "group-kill": self._ended(lambda pid: os.killpg(pid, signal.SIGKILL)),
            "node-restart": self._ended(lambda pid: os.kill(pid, signal.SIGTERM)),
            "node-freeze": self._freeze,
            "zygote-kill": self._kill_zygote,
        }
        if self._server is not None:
            found["pg-fast"] = found["pg-immediate"] = self._restart_postgres
            found["pg-end"] = self._end_connections
        return found

    def _ended(self, end: Callable[[int], None]) -> Injector:
        async def inject(_: Planned) -> Hit:
            async with self._node.turn:
                replicas, pid, at = await self._replicas(), self._node.pid(), time.time()
                end(pid)
                await asyncio.to_thread(self._node.up.process.wait, STOP_WITHIN_S)
                await self._node.start()
            return Hit(at, replicas, replicas)

        return inject

    async def _freeze(self, planned: Planned) -> Hit:
        async with self._node.turn:
            pid = self._node.pid()
            order = held.Order(kind="stop", hold_s=planned.hold_s, pid=pid, started=processes.start_of(pid))
            return Hit(await nemesis.hold(order))

    async def _kill_zygote(self, planned: Planned) -> Hit:
        async with self._node.turn:
            replicas = {replica.pid for replica in await self._client.replicas() if replica.pid is not None}
            found = processes.zygotes(self._node.pid(), replicas)
            if not found:
                raise NotInjectable("no zygote is there")
            at = time.time()
            with contextlib.suppress(ProcessLookupError):
                os.kill(found[int(planned.draw * len(found))], signal.SIGKILL)
        return Hit(at)

    async def _restart_postgres(self, planned: Planned) -> Hit:
        assert self._server is not None
        async with self._node.turn:
            at = time.time()
            await self._server.restart(planned.kind.removeprefix("pg-"))
        return Hit(at)

    async def _end_connections(self, _: Planned) -> Hit:
        assert self._store_url is not None
        at = time.time()
        if not await postgres.end_connections(self._store_url):
            raise NotInjectable("the node has no connection")
        return Hit(at)

    async def _replicas(self) -> frozenset[str]:
        return frozenset(each.id for each in await self._client.replicas() if each.state == "ready")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
