"""What encryption at rest costs the main path, and a rotation of its keys: 100,000 rows sealed anew under load.

Part of ``run.py``. The nodes are alike but for ``security.encryption_at_rest``, and take turns.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench import servers
from bench.figures import Figure
from bench.scale import Scale
from bench.switches import BATCH, BATCH_BODY, BODY, ECHO

PATH = "/v1/tasks?wait=30"
ON = "[security]\nencryption_at_rest = true"
ROTATED_WITHIN_S = 600.0


def encryption(folder: Path, scale: Scale) -> Iterator[Figure]:
    """The main path's rate with encryption beside the one without; then a rotation while tasks come."""
    with servers.greenroom(folder / "off", {"echo": ECHO}) as off:  # noqa: SIM117
        with servers.greenroom(folder / "on", {"echo": ECHO}, settings=ON) as on:
            yield from _costs(off, on, scale)
            yield from _rotation(on, scale.finished // 10)


def _costs(off: servers.Server, on: servers.Server, scale: Scale) -> Iterator[Figure]:
    for node in (off, on):
        node.load(PATH, [BODY], connections=64, seconds=0.5)
    many, batches = [], []
    for _ in range(scale.rounds):
        many.append([node.load(PATH, [BODY], connections=64, seconds=scale.seconds) for node in (off, on)])
        batches.append([servers.batch_rate(node, scale.batches, BATCH_BODY) for node in (off, on)])
    plain, sealed = zip(*many, strict=True)
    rates, plain_rates = [seen.rate for seen in sealed], [seen.rate for seen in plain]
    yield Figure("64 connections, ?wait, beside no encryption", "tasks/s", rates, plain_rates, aim="ratio ≥ 0.95")
    costs_us, plain_us = [seen.server_cpu_us for seen in sealed], [seen.server_cpu_us for seen in plain]
    yield Figure("CPU of the node, beside no encryption", "µs/task", costs_us, plain_us)
    without, with_it = zip(*batches, strict=True)
    yield Figure(f"batches of {BATCH}, beside no encryption", "tasks/s", with_it, without, aim="ratio ≥ 0.9")


def _rotation(node: servers.Server, rows: int) -> Iterator[Figure]:
    for _ in range(max(0, rows - _rows(node)) // BATCH):
        node.call("POST", "/v1/tasks/batch", json.loads(BATCH_BODY))
    servers.until(lambda: not node.call("GET", "/v1/status")["tasks"].get("queued"), within_s=300)
    quiet = node.load(PATH, [BODY], connections=4, seconds=2.0)
    took_s: list[float] = []

    def rotate() -> None:
        begun_s = time.perf_counter()
        node.call("POST", "/v1/encryption/rotate")
        servers.until(lambda: node.call("GET", "/v1/encryption")["progress"]["is_done"], within_s=ROTATED_WITHIN_S)
        took_s.append(time.perf_counter() - begun_s)

    rotating = threading.Thread(target=rotate)
    rotating.start()
    latencies_ms: list[float] = []
    while rotating.is_alive():
        latencies_ms += node.load(PATH, [BODY], connections=4, seconds=1.0).latencies_ms  # raises where one is refused
    progress = node.call("GET", "/v1/encryption")["progress"]
    if not took_s or progress["unreadable"]:
        raise RuntimeError(f"the rotation has not ended well: {progress}")
    yield Figure(f"rotation of {progress['rows']:,} rows under load", "s", took_s)
    latencies_ms.sort()
    p99_ms = latencies_ms[int(0.99 * (len(latencies_ms) - 1))]
    name = f"p99 of {len(latencies_ms):,} tasks meanwhile, none refused, beside before"
    yield Figure(name, "ms", [p99_ms], [quiet.percentile_ms(99)])


def _rows(node: servers.Server) -> int:
    return int(node.call("GET", "/v1/status")["tasks"].get("succeeded", 0))
