"""What a switch costs the main path: a node with it and one without, in turns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from bench import servers
from bench.figures import Figure
from bench.scale import Scale

ECHO = 'factory = "agents:echo"\nconcurrency = 500\nscaling = { min_replicas = 2 }'
TEXT = "x" * 180
BATCH = 500
BODY = json.dumps({"agent": "echo", "input": TEXT})
BATCH_BODY = json.dumps({"tasks": [{"agent": "echo", "input": TEXT}] * BATCH})


def beside(folder: Path, scale: Scale, *, switch: str) -> Iterator[Figure]:
    """The main path's rate with *switch* of the cluster, beside the one without, round by round."""
    nodes = (
        servers.greenroom(folder / switch / word, {"echo": ECHO}, settings=f"[cluster]\n{switch} = {word}")
        for word in ("false", "true")
    )
    with next(nodes) as off, next(nodes) as on:
        for node in (off, on):
            _rate(node, 0.5)
        rates, batches = [], []
        for _ in range(scale.rounds):
            rates.append([_rate(node, scale.seconds) for node in (off, on)])
            batches.append([servers.batch_rate(node, scale.batches, BATCH_BODY) for node in (off, on)])
    for name, pairs in (("64 connections, ?wait", rates), (f"batches of {BATCH}", batches)):
        without, with_it = zip(*pairs, strict=True)
        yield Figure(f"{name}, beside no {switch}", "tasks/s", with_it, without, aim="ratio ≥ 0.95")


def _rate(node: servers.Server, seconds: float) -> float:
    return node.load("/v1/tasks?wait=30", [BODY], connections=64, seconds=seconds).rate
