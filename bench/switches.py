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


SECURITY_OFF = """[cluster]
max_connections = 512
[security]
audit_log = false
isolation = "T0\""""
SECURITY_ON = """[cluster]
max_connections = 512
[security]
rate_limit_per_minute = 1000000
encryption_at_rest = true
audit_log = true
intrusion_rules = true"""


def beside(folder: Path, scale: Scale, *, switch: str) -> Iterator[Figure]:
    """The main path's rate with *switch* of the cluster, beside the one without, round by round."""
    off, on = (f"[cluster]\n{switch} = {word}" for word in ("false", "true"))
    yield from _pair(folder / switch, scale, off, on, name=f"beside no {switch}", aim="ratio ≥ 0.95")


def security(folder: Path, scale: Scale) -> Iterator[Figure]:
    """The main path's rate with every control of security, beside authentication alone."""
    yield from _pair(
        folder, scale, SECURITY_OFF, SECURITY_ON, name="all of security beside authentication", aim="ratio ≥ 0.85"
    )
    with (
        servers.limit(str(folder / "limit.db")) as bare,
        servers.greenroom(folder / "beside-bare", {"echo": ECHO}, settings=SECURITY_ON) as node,
    ):
        for server in (bare, node):
            _rate(server, 0.5)
        rounds = [[_rate(server, scale.seconds) for server in (bare, node)] for _ in range(scale.rounds)]
    bare_rates, rates = zip(*rounds, strict=True)
    yield Figure("64 connections, ?wait, all of security on", "tasks/s", rates, bare_rates, aim="ratio ≥ 0.5")


def _pair(folder: Path, scale: Scale, without: str, with_it: str, *, name: str, aim: str) -> Iterator[Figure]:
    off_folder, on_folder = folder / "off", folder / "on"
    with (
        servers.greenroom(off_folder, {"echo": ECHO}, settings=without) as off,
        servers.greenroom(on_folder, {"echo": ECHO}, settings=with_it) as on,
    ):
        for node in (off, on):
            _rate(node, 0.5)
        rates, batches = [], []
        for _ in range(scale.rounds):
            rates.append([_rate(node, scale.seconds) for node in (off, on)])
            batches.append([servers.batch_rate(node, scale.batches, BATCH_BODY) for node in (off, on)])
    for path, pairs in (("64 connections, ?wait", rates), (f"batches of {BATCH}", batches)):
        plain, switched = zip(*pairs, strict=True)
        yield Figure(f"{path}, {name}", "tasks/s", switched, plain, aim=aim)


def _rate(node: servers.Server, seconds: float) -> float:
    return node.load("/v1/tasks?wait=30", [BODY], connections=64, seconds=seconds).rate
