"""Scaling: from a burst on one replica to ten that are ready, and from an agent that sleeps to its first result."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import servers, switches
from bench.figures import Figure
from bench.scale import Scale

TASKS, TASK_S, MOST = 200, 1.0, 10
SETTINGS = "[cluster]\nautoscaling = true\nmax_replicas = 200\nmax_surge = 200\ncpu = 64\nmemory_mb = 65536"
BURST = {"factory": "agents:nap", "scaling": {"max_replicas": MOST}}
ASLEEP = {
    "factory": "agents:echo",
    "scaling": {"min_replicas": 0, "max_replicas": 2, "idle_s": 0.2, "stabilisation_s": 0},
}


def scaling(folder: Path, scale: Scale) -> Iterator[Figure]:
    """A burst of tasks of a second each, waking from zero beside a warm replica, and what looking costs."""
    with servers.greenroom(folder, {}, settings=SETTINGS) as node:
        bursts = [_burst(node, f"burst-{number}") for number in range(scale.rounds)]
        yield Figure(f"{TASKS} tasks of {TASK_S:g} s: to {MOST} ready replicas", "s", bursts, aim="≤ 1 s")
        woken_ms, warm_ms = zip(*_wakings(node, 4 * scale.rounds), strict=True)
        yield Figure("from zero to the first result", "ms", woken_ms)
        yield Figure("the same of a warm replica", "ms", warm_ms)
        more_ms = [woken - warm for woken, warm in zip(woken_ms, warm_ms, strict=True)]
        yield Figure("from zero, beyond a warm replica's time", "ms", more_ms, aim="≤ 100 ms")
    yield from switches.beside(folder, scale, switch="autoscaling")


def _burst(node: servers.Server, agent: str) -> float:
    """Return the seconds from the batch that is sent until there are ten replicas ready."""
    node.call("PUT", f"/v1/agents/{agent}", BURST)
    servers.until(lambda: _has(node, agent, 1))
    tasks = [{"agent": agent, "input": TASK_S}] * TASKS
    begun_s = time.perf_counter()
    node.call("POST", "/v1/tasks/batch", {"tasks": tasks})
    servers.until(lambda: _has(node, agent, MOST))
    return time.perf_counter() - begun_s


def _wakings(node: servers.Server, count: int) -> Iterator[tuple[float, float]]:
    """Yield the milliseconds of a task that wakes the agent, and of the next one."""
    node.call("PUT", "/v1/agents/asleep", ASLEEP)
    for _ in range(count):
        servers.until(lambda: _has(node, "asleep", 0), every_s=0.05)
        time.sleep(0.3)
        yield _task_ms(node), _task_ms(node)


def _task_ms(node: servers.Server) -> float:
    begun_s = time.perf_counter()
    task = node.call("POST", "/v1/tasks?wait=30", {"agent": "asleep", "input": json.dumps("x")})
    if task["state"] != "succeeded":
        raise RuntimeError(f"the task has {task['state']}: {task['error']}")
    return (time.perf_counter() - begun_s) * 1000


def _has(node: servers.Server, agent: str, count: int) -> bool:
    shown: dict[str, Any] = node.call("GET", f"/v1/agents/{agent}")
    alive = sum(row["agent"] == agent for row in node.replicas().values())
    is_complete = shown["rollout"]["ended_at"] is not None
    return is_complete and shown["replicas"] == {"desired": count, "ready": count} and alive == count
