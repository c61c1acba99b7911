"""``make bench``: what Greenroom costs, beside the least that the same job can cost, in the same run.

Greenroom is a real node (``greenroom up``, environment development: authentication, validation, leases, events and
metrics on); the bare loop is ``limit.py``; the load comes from ``load.py``. They take turns, round by round, and each
ratio is of one round, because a machine is rarely as fast as a minute ago. docs/performance.md explains the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import figures, servers
from bench import filled as filled_bench
from bench.audit import audit_log
from bench.authentication import authentication
from bench.dashboard import dashboard
from bench.door import door
from bench.encryption import encryption
from bench.fairness import fairness
from bench.figures import Figure
from bench.isolation import isolation
from bench.keys import keys
from bench.overload import overload
from bench.recovery import recovery
from bench.rollouts import rollouts
from bench.scale import FULL, QUICK, Scale
from bench.scaling import scaling
from bench.scrape import scrape
from bench.switches import BATCH, BATCH_BODY, BODY, ECHO, observation, security
from bench.webhooks import webhooks

THREE = dict.fromkeys(("one", "two", "three"), 'factory = "agents:echo"')


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
        before_s, rate = servers.cpu_s(node.pid), servers.batch_rate(node, scale.batches, BATCH_BODY)
        batches.append(rate)
        batches_us.append((servers.cpu_s(node.pid) - before_s) / (scale.batches * BATCH) * 1e6)
    bare_rates = [seen.rate for seen, _ in many]
    yield Figure(
        f"{store}: 64 connections, ?wait", "tasks/s", [seen.rate for _, seen in many], bare_rates, aim="ratio ≥ 0.6"
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


def filled(folder: Path, scale: Scale) -> Iterator[Figure]:
    """The rates on a store that has many finished tasks, beside an empty one's."""
    yield from filled_bench.rates(folder, scale, agent=ECHO, body=BODY, batch=BATCH_BODY)


def idle(folder: Path, scale: Scale) -> Iterator[Figure]:
    """A node with three agents and nothing to do."""
    with servers.greenroom(folder, THREE) as node:
        time.sleep(1)
        replicas = {int(row["pid"]) for row in node.replicas().values()}
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
    bench.__name__: bench
    for bench in (
        sqlite,
        filled,
        postgres,
        encryption,
        recovery,
        rollouts,
        scaling,
        fairness,
        overload,
        security,
        observation,
        keys,
        authentication,
        door,
        webhooks,
        dashboard,
        scrape,
        idle,
        start,
        replicas,
        isolation,
        audit_log,
        scrape,
    )
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
