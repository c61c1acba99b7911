"""How long a tenant waits beside one that floods the queue.

Tenant A has 10,000 tasks queued for an agent of four slots, 50 s of work. Then tenant B comes with half of what half
the slots can do: bursts of 20 tasks of 20 ms, each 0.4 s. *Its fair share* is half of the slots: what B's tasks wait is
compared with what the same bursts wait at an agent of two slots that nobody else uses. A wait is from a task's
acceptance to the claim of a slot, both by the database's clock, and counts with a task's own 20 ms, because a slot that
another tenant holds comes free only when its task ends.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
from bench import servers
from bench.figures import Figure, percentile
from bench.scale import Scale

TASK_S = 0.02
QUEUED, BATCH = 10_000, 500
BURST, EVERY_S = 20, 0.4
AGENTS = {
    "shared": 'factory = "agents:nap"\nconcurrency = 4',
    "half": 'factory = "agents:nap"\nconcurrency = 2',
}


def fairness(folder: Path, scale: Scale) -> Iterator[Figure]:
    """A tenant's bursts beside 10,000 queued tasks of another, and alone with half of the slots."""
    waits, alone, queued_s = [], [], []
    for number in range(scale.rounds):
        place = folder / str(number)
        servers.prepare(place, AGENTS)
        with servers.up(place) as node:
            key = node.call("POST", "/v1/keys", {"name": "b", "role": "user"})["key"]
        _move_to_tenant(place / "data", "b")
        with servers.up(place) as node:
            b = dataclasses.replace(node, key=key)
            alone.append(_p95_ms(b, "half", scale.bursts))
            for _ in range(QUEUED // BATCH):
                node.call("POST", "/v1/tasks/batch", {"tasks": [{"agent": "shared", "input": TASK_S}] * BATCH})
            queued_s.append(_queued(node) * TASK_S / 4)
            waits.append(_p95_ms(b, "shared", scale.bursts))
            if not _queued(node):
                raise RuntimeError("the flood was over before the other tenant was through")
    yield Figure("p95 wait beside a flood; with half the slots", "ms", waits, alone, aim="ratio ≤ 2")
    yield Figure("in one line it would have waited", "s", queued_s)


def _p95_ms(node: servers.Server, agent: str, bursts: int) -> float:
    """Send bursts at fixed instants; return what 95 of 100 of their tasks waited at most, with a task's own time."""
    due_s, ids = time.monotonic(), list[str]()
    for _ in range(bursts):
        time.sleep(max(0.0, due_s - time.monotonic()))
        answer = node.call("POST", "/v1/tasks/batch", {"tasks": [{"agent": agent, "input": TASK_S}] * BURST})
        ids += [task["id"] for task in answer["items"]]
        due_s += EVERY_S
    ended = [node.call("GET", f"/v1/tasks/{id}?wait=60") for id in ids]
    return percentile([(_waited_s(task) + TASK_S) * 1000 for task in ended], 95)


def _waited_s(task: dict[str, str]) -> float:
    if task["state"] != "succeeded":
        raise RuntimeError(f"a task is {task['state']}: {json.dumps(task)[:500]}")
    return servers.instant(task["started_at"]) - servers.instant(task["created_at"])


def _move_to_tenant(data_dir: Path, name: str) -> None:
    """Make the key of that name another tenant's: the API makes keys of its caller's tenant only."""
    connection = apsw.Connection(str(data_dir / "greenroom.db"))
    try:
        connection.execute("update principal set tenant = ? where name = ?", (name, name))
    finally:
        connection.close()


def _queued(node: servers.Server) -> int:
    return int(node.call("GET", "/v1/status")["tasks"].get("queued", 0))
