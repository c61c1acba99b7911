"""Rollouts under constant load: what callers notice of ten of each strategy, and how long one takes.

A task that does not succeed, or an answer other than 200, ends the benchmark with an error: there are none.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import msgspec
from bench import constant, servers
from bench.figures import Figure, percentile
from bench.scale import Scale

RATE_PER_S = 1000.0
CONNECTIONS = 256
QUIET_S = 1.0  # before each rollout: what it is compared with
KINDS = ("rolling", "blue-green", "canary")
AGENT = {
    "factory": "agents:echo",
    "concurrency": 100,
    "scaling": {"min_replicas": 4},
    "rollout": {"strategy": "rolling", "scale_down_delay_s": 0},
}
MANY = {
    "factory": "agents:echo",
    "scaling": {"min_replicas": 10},
    "rollout": {"strategy": "blue-green", "scale_down_delay_s": 0},
}
BODY = '{"agent": "steady", "input": "x"}'


def rollouts(folder: Path, scale: Scale) -> Iterator[Figure]:
    """Ten rollouts of each strategy at 1,000 tasks a second, and blue-green of ten replicas."""
    with servers.greenroom(folder, {}, settings="[cluster]\nmax_replicas = 50\nmax_connections = 1000") as node:
        node.call("PUT", "/v1/agents/steady", AGENT)
        _ended(node, "steady")
        for kind in KINDS:
            yield from _under_load(node, kind, scale)
        yield from _of_ten(node, scale)


def _under_load(node: servers.Server, kind: str, scale: Scale) -> Iterator[Figure]:
    windows, took_s = [], []
    with load(node, "/v1/tasks?wait=30", BODY, RATE_PER_S, CONNECTIONS) as seen:
        time.sleep(2 * QUIET_S)
        for _ in range(scale.rollouts):
            rollout = {"strategy": kind, "scale_down_delay_s": 0}
            begun_s = time.monotonic()
            node.call("PUT", "/v1/agents/steady", AGENT | {"rollout": rollout, "timeout_s": _new_timeout_s()})
            took_s.append(_ended(node, "steady"))
            windows.append((begun_s, time.monotonic()))
            time.sleep(QUIET_S)
    if seen.failed:
        raise RuntimeError(f"{len(seen.failed)} of {len(seen.due_s)} tasks failed: {seen.failed[0]}")
    during, before = [], []
    for begun_s, ended_s in windows:
        during.append(_p99(seen, begun_s, max(ended_s, begun_s + QUIET_S)))  # of as many tasks as before it, at least
        before.append(_p99(seen, begun_s - QUIET_S, begun_s))
    rate = len(seen.due_s) / (max(seen.due_s) - min(seen.due_s))
    yield Figure(f"{kind}: tasks, none of which failed", "tasks/s", [rate], aim="1,000")
    yield Figure(f"{kind}: p99 while it goes on, and before", "ms", during, before, aim="ratio ≤ 2")
    yield Figure(f"{kind}: from the deployment to complete", "s", took_s)


def _of_ten(node: servers.Server, scale: Scale) -> Iterator[Figure]:
    node.call("PUT", "/v1/agents/many", MANY)
    _ended(node, "many")
    took_s = []
    for _ in range(scale.rollouts):
        node.call("PUT", "/v1/agents/many", MANY | {"timeout_s": _new_timeout_s()})
        took_s.append(_ended(node, "many"))
        servers.until(lambda: len([row for row in node.replicas().values() if row["agent"] == "many"]) == 10)
    yield Figure("blue-green of 10 replicas", "s", took_s, aim="≤ 3 s")


_numbers = iter(range(100, 10_000))


def _new_timeout_s() -> float:
    """Return a setting by which a revision differs from all before."""
    return float(next(_numbers))


def _ended(node: servers.Server, agent: str) -> float:
    """Wait until the agent's rollout is complete; return the seconds that it took by the node's own record."""

    def end() -> dict[str, str] | None:
        rollout: dict[str, str] = node.call("GET", f"/v1/agents/{agent}")["rollout"]
        return rollout if rollout["ended_at"] else None

    rollout = servers.until(end, every_s=0.05, within_s=300)
    if rollout["state"] != "complete":
        raise RuntimeError(f"the rollout is {rollout['state']}: {rollout['reason']}")
    return servers.instant(rollout["ended_at"]) - servers.instant(rollout["created_at"])


@contextlib.contextmanager
def load(node: servers.Server, path: str, body: str, rate_per_s: float, connections: int) -> Iterator[constant.Seen]:
    """Put constant load on *node* for the length of the block; what was seen is there after it."""
    address = urllib.parse.urlsplit(node.url)
    assert address.hostname is not None and address.port is not None
    plan = constant.Plan(address.hostname, address.port, path, body, node.key, rate_per_s, connections)
    seen = constant.Seen([], [], [])
    command = [sys.executable, str(servers.HERE / "constant.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(msgspec.json.encode(plan) + b"\n")
        process.stdin.flush()
        yield seen
        process.stdin.close()
        text = process.stdout.read()
        if process.wait() or not text:
            raise RuntimeError(f"the load has ended with {process.returncode}, and has said {len(text)} bytes")
        found = msgspec.json.decode(text, type=constant.Seen)
    seen.due_s, seen.latencies_ms, seen.failed = found.due_s, found.latencies_ms, found.failed
    seen.statuses = found.statuses


def _p99(seen: constant.Seen, begin_s: float, end_s: float) -> float:
    within = [
        latency_ms for due_s, latency_ms in zip(seen.due_s, seen.latencies_ms, strict=True) if begin_s <= due_s < end_s
    ]
    return percentile(within, 99)
