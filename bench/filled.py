"""The main path's rate on a store with many finished tasks, beside an empty one's: two nodes that take turns."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
from bench import servers
from bench.figures import Figure
from bench.scale import Scale

PATH = "/v1/tasks?wait=30"
IDLE_S = 0.02  # of CPU in half a second: it has looked through its file


def rates(folder: Path, scale: Scale, *, agent: str, body: str, batch: str) -> Iterator[Figure]:
    """Fill the store of a node as `Scale.finished` says, and compare."""
    full, empty = folder / "full", folder / "empty"
    for each in (full, empty):
        servers.prepare(each, {"echo": agent})
    with servers.up(full) as node:
        node.load(PATH, [body], connections=1, seconds=60, count=1)
    fill(full / "data" / "greenroom.db", scale.finished)
    with servers.up(full) as filled, servers.up(empty) as fresh:
        servers.until(lambda: _is_idle(filled), within_s=300)
        for node in (filled, fresh):
            node.load(PATH, [body], connections=64, seconds=0.5)
        many, batches, batches_us = [], [], []
        for _ in range(scale.rounds):
            many.append([node.load(PATH, [body], connections=64, seconds=scale.seconds) for node in (filled, fresh)])
            before_s = [servers.cpu_s(node.pid) for node in (filled, fresh)]
            batches.append([servers.batch_rate(node, scale.batches, batch) for node in (filled, fresh)])
            tasks = scale.batches * batch.count('"input"')
            batches_us.append(
                [(servers.cpu_s(node.pid) - s) / tasks * 1e6 for node, s in zip((filled, fresh), before_s, strict=True)]
            )
    told = f"SQLite with {scale.finished:,} finished tasks, beside none"
    full_rates, empty_rates = [[pair[side].rate for pair in many] for side in (0, 1)]
    yield Figure(f"{told}: 64 connections", "tasks/s", full_rates, empty_rates, aim="ratio ≥ 0.95")
    yield Figure(f"{told}: batches", "tasks/s", [a for a, _ in batches], [b for _, b in batches], aim="ratio ≥ 0.95")
    full_us, empty_us = [[pair[side].server_cpu_us for pair in many] for side in (0, 1)]
    yield Figure(f"{told}: CPU of the node, 64 connections", "µs/task", full_us, empty_us)
    yield Figure(f"{told}: CPU of the node, batches", "µs/task", [a for a, _ in batches_us], [b for _, b in batches_us])


def fill(path: Path, count: int) -> None:
    """Copy the one task of the store at *path* *count* times, each with an id of its own, of a moment before it."""
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        columns = [row[1] for row in connection.execute("pragma table_info(task)")]
        values = {
            "seq": "seq + i",
            "id": f"printf('%011x', created_at / 1000 - {count} + i) || lower(hex(randomblob(16)))",
            "idempotency_key": "null",
        }
        connection.execute("pragma synchronous=off")
        connection.execute(
            f"""with recursive number (i) as (select 1 union all select i + 1 from number where i < {count})
            insert into task ({", ".join(columns)})
            select {", ".join(values.get(name, name) for name in columns)} from task, number"""
        )
        connection.execute(f"update ended_count set tasks = tasks + {count}")
        connection.pragma("wal_checkpoint(truncate)")
    os.sync()  # what was filled in is not to be written while the nodes are measured


def _is_idle(node: servers.Server) -> bool:
    before_s = servers.cpu_s(node.pid)
    time.sleep(0.5)
    return servers.cpu_s(node.pid) - before_s < IDLE_S
