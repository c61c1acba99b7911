"""What faults cost: a replica or the node killed, a replica that hangs; and what watching for them costs.

Part of ``run.py``. Default settings; the node is started again at once, as an init system would.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import figures, servers, switches
from bench.figures import Figure
from bench.scale import Scale

NAP = 'factory = "agents:nap"\nconcurrency = 4\nscaling = { min_replicas = 2 }'
NAP_S = 0.2
THREE = dict.fromkeys(("one", "two", "three"), 'factory = "agents:nap"\nconcurrency = 4')
TASKS = 100


def recovery(folder: Path, scale: Scale) -> Iterator[Figure]:
    """From faults to work that goes on; and the rate with health checks beside the one without."""
    yield from _kills(folder / "kills", scale.kills)
    yield from _node_kills(folder / "sqlite", "SQLite", None, scale.node_kills)
    with servers.postgres(folder / "postgres") as new_database:
        yield from _node_kills(folder / "node", "PostgreSQL", new_database(), scale.node_kills)
    yield from _hangs(folder / "hangs", scale.hangs)
    yield from switches.beside(folder, scale, switch="health_checks")


# --- a replica is killed


def _kills(folder: Path, count: int) -> Iterator[Figure]:
    """SIGKILL of a replica to its task running on another one, while other tasks come one after the other."""
    with servers.greenroom(folder, {"nap": NAP}) as node, _light_load(node):
        noticed_ms, answered_ms = zip(*(_kill_once(node) for _ in range(count)), strict=True)
    for name, values in (("the task runs again", noticed_ms), ("its caller has the answer", answered_ms)):
        p50, p99 = (figures.percentile(values, percent) for percent in (50, 99))
        yield Figure(f"SIGKILL until {name}, p50 of {count}", "ms", [p50])
        yield Figure(f"SIGKILL until {name}, p99 of {count}", "ms", [p99], aim="≤ 1,000 ms")


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
    answers: queue.Queue[float] = queue.Queue()
    id, pid = _running(node, NAP_S)

    def wait() -> None:
        ended = node.call("GET", f"/v1/tasks/{id}?wait=30")
        assert ended["state"] == "succeeded", ended
        answers.put(time.time())

    threading.Thread(target=wait).start()
    killed_at = time.time()
    os.kill(pid, signal.SIGKILL)
    answered_at = answers.get(timeout=30)
    _, second = node.call("GET", f"/v1/tasks/{id}")["attempts"]
    noticed_ms = (servers.instant(second["started_at"]) - killed_at) * 1000
    return noticed_ms, (answered_at - killed_at - NAP_S) * 1000


def _running(node: servers.Server, nap_s: float) -> tuple[str, int]:
    """Submit a task when all replicas are ready; return its id and the process that runs it."""
    servers.until(lambda: sum(row["state"] == "ready" for row in node.replicas().values()) == 2)
    id = node.call("POST", "/v1/tasks", {"agent": "nap", "input": nap_s})["id"]
    (first,) = servers.until(lambda: node.call("GET", f"/v1/tasks/{id}")["attempts"])
    return id, node.replicas()[first["replica"]]["pid"]


# --- a replica hangs


def _hangs(folder: Path, count: int) -> Iterator[Figure]:
    """SIGSTOP of a replica to its task running on another one."""
    with servers.greenroom(folder, {"nap": NAP}) as node:
        found_s = [_hang_once(node) for _ in range(count)]
    yield Figure("SIGSTOP until the task runs again", "s", found_s, aim="≤ 10 s")


def _hang_once(node: servers.Server) -> float:
    id, pid = _running(node, 0.5)
    stopped_at = time.time()
    os.kill(pid, signal.SIGSTOP)
    try:
        attempts = servers.until(lambda: _attempts(node, id, 2), every_s=0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return servers.instant(attempts[1]["started_at"]) - stopped_at


def _attempts(node: servers.Server, id: str, count: int) -> list[dict[str, Any]] | None:
    attempts: list[dict[str, Any]] = node.call("GET", f"/v1/tasks/{id}")["attempts"]
    return attempts if len(attempts) >= count else None


# --- the node is killed


def _node_kills(folder: Path, name: str, store: str | None, count: int) -> Iterator[Figure]:
    """SIGKILL of the node with three agents and a hundred tasks, a part of them running, and its start in the same
    folder.
    """
    servers.prepare(folder, THREE)
    ready_s, accepted_s, resumed_s = zip(*(_kill_node(folder, store) for _ in range(count)), strict=True)
    yield Figure(f"{name}: node SIGKILL to /readyz", "s", ready_s, aim="≤ 3 s")
    yield Figure(f"{name}: node SIGKILL to a task accepted", "s", accepted_s, aim="≤ 3 s")
    yield Figure(f"{name}: node SIGKILL to all running again", "s", resumed_s, aim="≤ 5 s")


def _kill_node(folder: Path, store: str | None) -> tuple[float, float, float]:
    with servers.up(folder, store=store) as node:
        tasks = [{"agent": agent, "input": NAP_S} for agent in THREE] * (TASKS // len(THREE) + 1)
        items = node.call("POST", "/v1/tasks/batch", {"tasks": tasks[:TASKS]})["items"]
        servers.until(lambda: node.call("GET", "/v1/tasks?state=running")["items"])
        killed_at = time.time()
        os.kill(node.pid, signal.SIGKILL)
    with servers.up(folder, store=store) as node:
        ready_s = time.time() - killed_at
        node.call("POST", "/v1/tasks", {"agent": "one", "input": 0})
        accepted_s = time.time() - killed_at
        ended = [node.call("GET", f"/v1/tasks/{item['id']}?wait=60") for item in items]
    assert {task["state"] for task in ended} == {"succeeded"}, ended
    resumed_at = [servers.instant(task["attempts"][1]["started_at"]) for task in ended if len(task["attempts"]) > 1]
    return ready_s, accepted_s, max(resumed_at) - killed_at
