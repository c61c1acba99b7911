"""``make bench``: what Greenroom costs, beside the least that the same job can cost, in the same run.

Greenroom is a real node (``greenroom up``, environment development: authentication, validation, leases, events and
metrics on); the bare loop is ``limit.py``; the load comes from ``load.py``. They take turns, round by round, and each
ratio is of one round, because a machine is rarely as fast as a minute ago. docs/performance.md explains the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import figures, servers
from bench.figures import Figure

ECHO = 'factory = "agents:echo"\nconcurrency = 500\nscaling = { min_replicas = 2 }'
NAP = 'factory = "agents:nap"\nconcurrency = 4\nscaling = { min_replicas = 2 }'
NAP_S = 0.2
THREE = dict.fromkeys(("one", "two", "three"), 'factory = "agents:echo"')
TEXT = "x" * 180
BODY = json.dumps({"agent": "echo", "input": TEXT})
BATCH = 500


@dataclass(frozen=True)
class Scale:
    """How long and how often everything is measured."""

    rounds: int
    seconds: float
    batches: int  # of 500 tasks, in each round
    kills: int
    starts: int
    idle_s: float
    replicas: int


FULL = Scale(rounds=5, seconds=2.5, batches=60, kills=60, starts=5, idle_s=10.0, replicas=200)
QUICK = Scale(rounds=3, seconds=1.0, batches=30, kills=10, starts=3, idle_s=3.0, replicas=30)


def sqlite(folder: Path, scale: Scale) -> Iterator[Figure]:
    """Tasks on SQLite, one by one and in batches."""
    with servers.limit(str(folder / "limit.db")) as bare, servers.greenroom(folder, {"echo": ECHO}) as node:
        yield from _rates("SQLite", bare, node, scale)


def postgres(folder: Path, scale: Scale) -> Iterator[Figure]:
    """The same on PostgreSQL."""
    with servers.postgres(folder / "postgres") as new_database, servers.limit(new_database()) as bare:  # noqa: SIM117
        with servers.greenroom(folder / "node", {"echo": ECHO}, store=new_database()) as node:
            yield from _rates("PostgreSQL", bare, node, scale)


def _rates(store: str, bare: servers.Server, node: servers.Server, scale: Scale) -> Iterator[Figure]:
    path = "/v1/tasks?wait=30"
    for server in (bare, node):
        server.load(path, [BODY], connections=64, seconds=0.5)
    one, many, batches, batches_us = [], [], [], []
    for _ in range(scale.rounds):
        one.append([server.load(path, [BODY], connections=1, seconds=scale.seconds) for server in (bare, node)])
        many.append([server.load(path, [BODY], connections=64, seconds=scale.seconds) for server in (bare, node)])
        before_s, rate = servers.cpu_s(node.pid), _batch_rate(node, scale.batches)
        batches.append(rate)
        batches_us.append((servers.cpu_s(node.pid) - before_s) / (scale.batches * BATCH) * 1e6)
    bare_rates = [seen.rate for seen, _ in many]
    yield Figure(
        f"{store}: 64 connections, ?wait", "tasks/s", [seen.rate for _, seen in many], bare_rates, aim="ratio ≥ 0.5"
    )
    yield Figure(f"{store}: batches of {BATCH}", "tasks/s", batches, bare_rates, aim="ratio ≥ 1.3")
    bare_us = [seen.server_cpu_us for seen, _ in many]
    yield Figure(
        f"{store}: CPU of the node, 64 connections", "µs/task", [seen.server_cpu_us for _, seen in many], bare_us
    )
    yield Figure(f"{store}: CPU of the node, batches", "µs/task", batches_us, bare_us)
    for percent, aim in ((50, "ratio ≤ 2"), (99, "")):
        yield Figure(
            f"{store}: one connection, p{percent}",
            "ms",
            [seen.percentile_ms(percent) for _, seen in one],
            [seen.percentile_ms(percent) for seen, _ in one],
            aim,
        )
    yield Figure(
        f"{store}: 64 connections, p99",
        "ms",
        [seen.percentile_ms(99) for _, seen in many],
        [seen.percentile_ms(99) for seen, _ in many],
    )


def _batch_rate(node: servers.Server, count: int) -> float:
    """Return tasks a second from the first batch sent until the last task has ended, its result stored."""
    body = json.dumps({"tasks": [{"agent": "echo", "input": TEXT}] * BATCH})
    seen = node.load("/v1/tasks/batch", [body], connections=2, seconds=60, count=count)
    servers.until(lambda: node.call("GET", "/v1/status")["tasks"].keys() == {"succeeded"}, every_s=0.02)
    ended = [_instant(task["finished_at"]) for task in node.call("GET", "/v1/tasks?limit=200")["items"]]
    return count * BATCH / (max(ended) - seen.begun_at)


def kills(folder: Path, scale: Scale) -> Iterator[Figure]:
    """SIGKILL of a replica to its task running on another one, while other tasks come one after the other."""
    with servers.greenroom(folder, {"nap": NAP}) as node, _light_load(node):
        noticed_ms, answered_ms = zip(*(_kill_once(node) for _ in range(scale.kills)), strict=True)
    for name, values in (("the task runs again", noticed_ms), ("its caller has the answer", answered_ms)):
        p50, p99 = (figures.percentile(values, percent) for percent in (50, 99))
        yield Figure(f"SIGKILL until {name}, p50 of {scale.kills}", "ms", [p50])
        yield Figure(f"SIGKILL until {name}, p99 of {scale.kills}", "ms", [p99], aim="≤ 1,000 ms")


@contextlib.contextmanager
def _light_load(node: servers.Server) -> Iterator[None]:
    is_over = threading.Event()

    def submit() -> None:
        while not is_over.is_set():
            node.call("POST", "/v1/tasks?wait=30", {"agent": "nap", "input": 0.01})

    thread = threading.Thread(target=submit)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _kill_once(node: servers.Server) -> tuple[float, float]:
    """Return the milliseconds from the kill to the second attempt, and to the answer (less the task's own time)."""
    servers.until(lambda: sum(row["state"] == "ready" for row in _replicas(node).values()) == 2)
    answers: queue.Queue[float] = queue.Queue()
    id = node.call("POST", "/v1/tasks", {"agent": "nap", "input": NAP_S})["id"]

    def wait() -> None:
        ended = node.call("GET", f"/v1/tasks/{id}?wait=30")
        assert ended["state"] == "succeeded", ended
        answers.put(time.time())

    threading.Thread(target=wait).start()
    (first,) = servers.until(lambda: node.call("GET", f"/v1/tasks/{id}")["attempts"])
    pid = _replicas(node)[first["replica"]]["pid"]
    killed_at = time.time()
    os.kill(pid, signal.SIGKILL)
    answered_at = answers.get(timeout=30)
    _, second = node.call("GET", f"/v1/tasks/{id}")["attempts"]
    noticed_ms = (_instant(second["started_at"]) - killed_at) * 1000
    return noticed_ms, (answered_at - killed_at - NAP_S) * 1000


def _replicas(node: servers.Server) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in node.call("GET", "/v1/replicas")["items"]}


def _instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def idle(folder: Path, scale: Scale) -> Iterator[Figure]:
    """A node with three agents and nothing to do."""
    with servers.greenroom(folder, THREE) as node:
        time.sleep(1)
        replicas = {int(row["pid"]) for row in _replicas(node).values()}
        children = servers.descendants(node.pid)
        zygotes = [pid for pid in children if pid not in replicas]
        before_s = {pid: servers.cpu_s(pid) for pid in (node.pid, *children)}
        time.sleep(scale.idle_s)
        shares = {pid: (servers.cpu_s(pid) - used_s) / scale.idle_s * 100 for pid, used_s in before_s.items()}
        yield Figure("idle node, resident", "MB", [servers.memory_mb(node.pid, "Rss")], aim="≤ 120 MB")
        yield Figure("idle node, proportional", "MB", [servers.memory_mb(node.pid)])
        yield Figure("each zygote, proportional", "MB", [servers.memory_mb(pid) for pid in zygotes])
        yield Figure("each replica, proportional", "MB", [servers.memory_mb(pid) for pid in replicas])
        yield Figure("idle node, share of a core", "%", [shares.pop(node.pid)], aim="< 1 %")
        yield Figure("its zygotes and replicas together", "%", [sum(shares.values())])


def start(folder: Path, scale: Scale) -> Iterator[Figure]:
    """From the command to /readyz, with three agents that import nothing; beside the bare loop's start."""
    took_s, bare_s = [], []
    for number in range(scale.starts):
        with servers.limit(str(folder / f"{number}.db")) as bare:
            bare_s.append(bare.started_s)
        with servers.greenroom(folder / str(number), THREE) as node:
            took_s.append(node.started_s)
    yield Figure("start to /readyz with three agents", "s", took_s, bare_s, aim="≤ 2 s")


def replicas(folder: Path, scale: Scale) -> Iterator[Figure]:
    """Start and memory of replicas with AutoGen imported, beside a bare fork: ``replicas.py`` prints its own lines."""
    environment = os.environ | {"TMPDIR": str(folder)}
    subprocess.run([sys.executable, servers.HERE / "replicas.py", str(scale.replicas)], check=True, env=environment)
    yield from ()


BENCHES: dict[str, Callable[[Path, Scale], Iterator[Figure]]] = {
    bench.__name__: bench for bench in (sqlite, postgres, kills, idle, start, replicas)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: about a minute in all")
    parser.add_argument("--only", action="append", choices=BENCHES, help="one of them; may be given several times")
    parser.add_argument("--json", type=Path, help="also write every value to this file")
    parser.add_argument("--folder", type=Path, help="where the data is kept: whose disk is measured")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(
        prefix="greenroom-bench-", dir=asked.folder, ignore_cleanup_errors=True
    ) as temporary:
        folder = Path(temporary)
        machine, found = figures.machine(folder), []
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
        print(figures.HEADING)
        for name in asked.only or BENCHES:
            (folder / name).mkdir()
            for figure in BENCHES[name](folder / name, QUICK if asked.quick else FULL):
                print(figure.line(), flush=True)
                found.append(figure.document())
    if asked.json is not None:
        asked.json.write_text(json.dumps({"machine": machine, "figures": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
