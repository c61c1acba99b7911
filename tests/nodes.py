"""Nodes with real replicas, and clients that speak to their APIs: what the tests of node and API stand on.

`opened` is a node in this process, without a socket; `Folder.up` is ``greenroom up``, a process of its own.
"""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import httpx

import greenroom
from greenroom import node, settings

AGENTS = Path(__file__).parent / "node" / "agents"
DEADLINE_S = 30.0
MARKER = "GREENROOM_TEST_MARKER"
SOURCE = str(Path(greenroom.__file__).parents[1])
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
        made = await self.running.access.auth.create(
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
    # Agents of these tests note what they do in files of the test's own, beside the data directory.
    security = {"isolation": "T0", **overrides.pop("security", {})}
    # Whether this machine's disk is full is no matter of theirs.
    off = {"enabled": False}
    alerts = overrides.pop("alerts", {"rules": {"disk_free": off, "disk_full": off}})
    found = settings.load(overrides={"agents": agents, "security": security, "alerts": alerts, **overrides}, environ={})
    return node.Options(settings=found, folder=folder, data_dir=data_dir, store_url=store_url, port=0)


@contextlib.asynccontextmanager
async def opened(
    data_dir: Path, agents: Mapping[str, Any], *, grace_s: float = 0.0, is_settled: bool = True, **given: Any
) -> AsyncIterator[Api]:
    """A node without a socket, with *agents* ready, and its owner's API."""
    async with node.opened(options(data_dir, agents, **given), grace_s=grace_s) as running:
        if is_settled:
            await asyncio.wait_for(running.ready.wait(), DEADLINE_S)
        key = (data_dir / "local.key").read_text().strip()
        async with _client(running, key) as http:
            yield Api(http, running)


# Processes


@dataclass
class Up:
    """A running `greenroom up`."""

    process: subprocess.Popen[str]
    folder: Path
    http: httpx.Client

    def call(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return self.http.request(method, path, **({} if body is None else {"json": body}))

    def submit(self, agent: str, input: Any, **given: Any) -> str:
        answer = self.call("POST", "/v1/tasks", {"agent": agent, "input": input, **given})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def end_of(self, id: str) -> Any:
        task = self.call("GET", f"/v1/tasks/{id}?wait=60").json()
        assert task["state"] in TERMINAL, task
        return task

    def pids(self) -> list[int]:
        return [item["pid"] for item in self.call("GET", "/v1/replicas").json()["items"]]

    def ended(self, *, within_s: float) -> int:
        """The exit code."""
        return self.process.wait(within_s)


def wait_until(is_so: Callable[[], object], *, within_s: float = DEADLINE_S) -> None:
    deadline_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline_s, f"it has not come true within {within_s:g} s"
        time.sleep(0.01)


def marked(folder: Path) -> set[int]:
    """The processes that work for a node of *folder*: whoever was started in it or below, by name or environment."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            variables = (entry / "environ").read_bytes().split(b"\0")
            if f"{MARKER}={folder}".encode() in variables or str(folder) in str((entry / "cwd").readlink()):
                found.add(int(entry.name))
    return found


class Folder:
    """A manifest's folder with the tests' agents."""

    def __init__(self, path: Path) -> None:
        self.path, self.log = path, path.parent / f"{path.name}.log"
        shutil.copytree(AGENTS, path, ignore=shutil.ignore_patterns("__pycache__"))
        self.environment: dict[str, str] = {}  # of its nodes, beside the usual
        self.interpreter: tuple[str, ...] = (sys.executable, "-m", "greenroom.cli")
        self._stack = contextlib.ExitStack()

    def manifest(self, text: str) -> None:
        (self.path / "greenroom.toml").write_text(text)

    def command(self, *words: str, output: IO[str] | int = subprocess.PIPE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.interpreter, "up", *([] if "--port" in words else ["--port", "0"]), *words],
            cwd=self.path,
            env={"GREENROOM_SECURITY__ISOLATION": "T0"}
            | os.environ
            | {MARKER: str(self.path), "PYTHONPATH": SOURCE}
            | self.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a group that can be killed
        )

    def refused(self, *words: str) -> tuple[int, str]:
        """Exit code and output of an `up` that does not start."""
        process = self.command(*words)
        try:
            output, _ = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
        return process.returncode, output

    def up(self, *words: str, is_settled: bool = True) -> Up:
        """Start a node, and return when it is ready, or listens only; what it says goes to `log`."""
        place = self.path / ".greenroom" / "node.json"
        place.unlink(missing_ok=True)
        with self.log.open("a") as output:
            process = self.command(*words, output=output)
        self._stack.callback(self._end, process)
        wait_until(lambda: place.exists() or process.poll() is not None)
        assert process.poll() is None, self.log.read_text()[-2000:]
        key = (self.path / ".greenroom" / "local.key").read_text().strip()
        url = json.loads(place.read_text())["url"]
        http = self._stack.enter_context(
            httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=90)
        )
        if is_settled:
            wait_until(lambda: http.get("/readyz").status_code == 200)
        return Up(process, self.path, http)

    def ask(self, *words: str) -> subprocess.Popen[str]:
        """Start a command of somebody who asks the node of this folder."""
        process = subprocess.Popen(
            [*self.interpreter, *words],
            cwd=self.path,
            env=os.environ | {MARKER: str(self.path), "PYTHONPATH": SOURCE},
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(self._end, process)
        return process

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def close(self) -> None:
        self._stack.close()
        for pid in marked(self.path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
