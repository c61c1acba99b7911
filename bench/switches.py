"""What a switch costs the main path: a node with it and one without, in turns."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
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
OBSERVATION_OFF = """[cluster]
max_connections = 512
metrics = false
tracing = false
alert_delivery = false
health_checks = false
[logs]
keep_days = 0"""
OBSERVATION_ON = """[cluster]
max_connections = 512
metrics = true
tracing = true
alert_delivery = true
health_checks = true
json_logs = true
[tracing]
endpoint = "{collector}"
sample_ratio = 0.01
[alerts.receivers.people]
type = "alertmanager"
url = "{collector}\""""
EVERYTHING = OBSERVATION_ON + SECURITY_ON.partition("max_connections = 512")[2]


def observation(folder: Path, scale: Scale) -> Iterator[Figure]:
    """The main path's rate with all observation (traces sampled at 1 %), beside none, and with security beside the
    least that the job can cost. History, rules, grades and SLOs have no switch: they are on both sides.
    """
    with _collector() as url:
        on, everything = (text.replace("{collector}", url) for text in (OBSERVATION_ON, EVERYTHING))
        yield from _pair(folder, scale, OBSERVATION_OFF, on, name="all observation beside none", aim="ratio ≥ 0.9")
        yield from _beside_bare(folder, scale, everything, name="all observation and all of security on")


@contextlib.contextmanager
def _collector() -> Iterator[str]:
    """Something that takes spans and alerts, as a collector and an Alertmanager do, and looks at none."""

    class Takes(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Takes) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def beside(folder: Path, scale: Scale, *, switch: str) -> Iterator[Figure]:
    """The main path's rate with *switch* of the cluster, beside the one without, round by round."""
    off, on = (f"[cluster]\n{switch} = {word}" for word in ("false", "true"))
    yield from _pair(folder / switch, scale, off, on, name=f"beside no {switch}", aim="ratio ≥ 0.95")


def security(folder: Path, scale: Scale) -> Iterator[Figure]:
    """The main path's rate with every control of security, beside authentication alone."""
    yield from _pair(
        folder, scale, SECURITY_OFF, SECURITY_ON, name="all of security beside authentication", aim="ratio ≥ 0.85"
    )
    yield from _beside_bare(folder, scale, SECURITY_ON, name="all of security on")


def _beside_bare(folder: Path, scale: Scale, settings: str, *, name: str) -> Iterator[Figure]:
    with (
        servers.limit(str(folder / "limit.db")) as bare,
        servers.greenroom(folder / "beside-bare", {"echo": ECHO}, settings=settings) as node,
    ):
        for server in (bare, node):
            _rate(server, 0.5)
        rounds = [[_rate(server, scale.seconds) for server in (bare, node)] for _ in range(scale.rounds)]
    bare_rates, rates = zip(*rounds, strict=True)
    yield Figure(f"64 connections, ?wait, {name}", "tasks/s", rates, bare_rates, aim="ratio ≥ 0.5")


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
