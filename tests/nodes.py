"""A node with real replicas, and a client that speaks to its API: what the tests of node and API stand on."""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from greenroom import node, settings

AGENTS = Path(__file__).parent / "node" / "agents"
DEADLINE_S = 30.0
TERMINAL = {"succeeded", "failed", "cancelled", "expired"}

T = TypeVar("T")


def agent(name: str, **spec: Any) -> dict[str, Any]:
    """The manifest's entry of an agent of `tests/node/agents/agents.py`."""
    return {"factory": f"agents:{name}", **spec}


async def eventually(ask: Callable[[], Awaitable[T | None]], *, within_s: float = DEADLINE_S) -> T:
    """Ask until the answer is neither None nor false."""
    deadline_s = time.monotonic() + within_s
    while True:
        answer = await ask()
        if answer:
            return answer
        assert time.monotonic() < deadline_s, f"it has not come true within {within_s:g} s"
        await asyncio.sleep(0.01)


def kill(pid: int) -> None:
    """SIGKILL; it may be gone already."""
    assert pid > 1
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def lines_of(path: Path, count: int = 1, *, within_s: float = DEADLINE_S) -> list[str]:
    """Wait until *path* has *count* lines."""

    async def read() -> list[str] | None:
        lines = path.read_text().splitlines() if path.exists() else []
        return lines if len(lines) >= count else None

    return await eventually(read, within_s=within_s)


@dataclass
class Api:
    """A node's API with a key; of a node that runs in this process."""

    http: httpx.AsyncClient
    running: node.Node = field(repr=False)

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        if body is not None:
            options["content"] = json.dumps(body)
            options["headers"] = {"content-type": "application/json", **options.get("headers", {})}
        return await self.http.request(method, path, **options)

    async def get(self, path: str) -> Any:
        response = await self.http.get(path)
        assert response.status_code == 200, response.text
        return response.json()

    async def submit(self, agent: str | None, input: Any, **given: Any) -> Any:
        named = {} if agent is None else {"agent": agent}
        response = await self.call("POST", "/v1/tasks", {**named, "input": input, **given})
        assert response.status_code == 202, response.text
        return response.json()

    async def run(self, agent: str, input: Any, **given: Any) -> Any:
        """Submit, and return the task when it has ended."""
        response = await self.call("POST", "/v1/tasks?wait=60", {"agent": agent, "input": input, **given})
        assert response.status_code == 200, response.text
        return response.json()

    async def task(self, id: str) -> Any:
        return await self.get(f"/v1/tasks/{id}")

    async def end_of(self, id: str) -> Any:
        task = await self.get(f"/v1/tasks/{id}?wait=60")
        assert task["state"] in TERMINAL, task
        return task

    async def until(self, id: str, state: str, *, within_s: float = DEADLINE_S) -> Any:
        async def ask() -> Any:
            task = await self.task(id)
            return task if task["state"] == state else None

        return await eventually(ask, within_s=within_s)

    async def replicas(self, agent: str, state: str = "ready") -> list[Any]:
        items = (await self.get("/v1/replicas"))["items"]
        return [item for item in items if item["agent"] == agent and item["state"] == state]

    async def key(self, role: str = "user", *, tenant: str = node.TENANT, expires_in_s: float | None = None) -> str:
        made = await self.running.auth.create(
            tenant=tenant, name=role, role=role, word="dev", expires_in_s=expires_in_s
        )
        return made.text

    def of(self, key: str | None, *, source: str = "127.0.0.1") -> Api:
        """The same API, with another key or none, and from another place."""
        return Api(_client(self.running, key, source), self.running)


def _client(running: node.Node, key: str | None, source: str = "127.0.0.1") -> httpx.AsyncClient:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app=running.app, client=(source, 4711))
    return httpx.AsyncClient(transport=transport, base_url="http://greenroom.test", headers=headers, timeout=120)


def options(
    data_dir: Path,
    agents: Mapping[str, Any],
    *,
    store_url: str | None = None,
    folder: Path = AGENTS,
    **overrides: Any,
) -> node.Options:
    found = settings.load(overrides={"agents": agents, **overrides}, environ={})
    return node.Options(settings=found, folder=folder, data_dir=data_dir, store_url=store_url, port=0)


@contextlib.asynccontextmanager
async def opened(
    data_dir: Path, agents: Mapping[str, Any], *, grace_s: float = 0.0, is_settled: bool = True, **given: Any
) -> AsyncIterator[Api]:
    """A node without a socket, with *agents* ready, and its owner's API."""
    async with node.opened(options(data_dir, agents, **given), grace_s=grace_s) as running:
        if is_settled:
            await asyncio.wait_for(running.host.settled.wait(), DEADLINE_S)
        key = (data_dir / "local.key").read_text().strip()
        async with _client(running, key) as http:
            yield Api(http, running)
