"""Four times as many tasks as there is capacity for, whether or not they are taken.

Capacity is measured just before: what an agent of ten slots does of tasks of 50 ms for callers who wait. Then another
process submits four times that, at a constant rate for ten seconds, over many connections. The queue takes half a
second of work; what it does not take is answered 429. Goodput is what succeeded in those ten seconds.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from bench import constant, servers
from bench.figures import Figure, percentile
from bench.rollouts import load
from bench.scale import Scale

TASK_S, SLOTS = 0.05, 10
QUEUED = 100
CONNECTIONS = 256
TIMES = 4
BODY = f'{{"agent": "slow", "input": {TASK_S}}}'
AGENTS = {"slow": f'factory = "agents:nap"\nconcurrency = {SLOTS}'}
SETTINGS = f"[cluster]\nmax_connections = 1000\n[server]\nmax_queued_tasks = {QUEUED}"


def overload(folder: Path, scale: Scale) -> Iterator[Figure]:
    """Goodput, and how fast refusals and probes are answered, at four times the capacity."""
    refused_ms, accepted_ms, probes_ms, goodput, capacity, refused_pct = [], [], [], [], [], []
    with servers.greenroom(folder, AGENTS, settings=SETTINGS) as node:
        node.load("/v1/tasks?wait=30", [BODY], connections=SLOTS * 2, seconds=1)
        for _ in range(scale.rounds):
            measured = node.load("/v1/tasks?wait=30", [BODY], connections=SLOTS * 2, seconds=2 * scale.seconds)
            before, begun_s = _succeeded(node), time.monotonic()
            with _probing(node) as took_ms, load(node, "/v1/tasks", BODY, TIMES * measured.rate, CONNECTIONS) as seen:
                time.sleep(scale.overload_s)
                after, elapsed_s = _succeeded(node), time.monotonic() - begun_s
            answers = {status: _of(seen, status) for status in (202, 429)}
            if len(seen.statuses) != sum(map(len, answers.values())):
                raise RuntimeError(f"other answers than 202 and 429: {sorted(set(seen.statuses))}")
            capacity.append(measured.rate)
            goodput.append((after - before) / elapsed_s)
            refused_ms.append(percentile(answers[429], 99))
            accepted_ms.append(percentile(answers[202], 99))
            probes_ms.append(percentile(took_ms, 99))
            refused_pct.append(100 * len(answers[429]) / len(seen.statuses))
            servers.until(lambda: node.call("GET", "/v1/status")["tasks"].keys() == {"succeeded"}, every_s=0.05)
    yield Figure("goodput at four times the capacity, and that", "tasks/s", goodput, capacity, aim="ratio ≥ 0.8")
    yield Figure("p99 of 429", "ms", refused_ms, aim="≤ 50 ms")
    yield Figure("p99 of 202", "ms", accepted_ms)
    yield Figure("p99 of /healthz", "ms", probes_ms, aim="≤ 100 ms")
    yield Figure("refused", "%", refused_pct)


def _of(seen: constant.Seen, status: int) -> list[float]:
    return [took_ms for took_ms, found in zip(seen.latencies_ms, seen.statuses, strict=True) if found == status]


def _succeeded(node: servers.Server) -> int:
    return int(node.call("GET", "/v1/status")["tasks"].get("succeeded", 0))


@contextlib.contextmanager
def _probing(node: servers.Server) -> Iterator[list[float]]:
    """Ask /healthz fifty times a second for the length of the block; what it took is in the list."""
    took_ms, ended = list[float](), threading.Event()

    def probe() -> None:
        with contextlib.closing(http.client.HTTPConnection(urllib.parse.urlsplit(node.url).netloc, timeout=10)) as one:
            while not ended.wait(0.02):
                begun_s = time.perf_counter()
                one.request("GET", "/healthz")
                one.getresponse().read()
                took_ms.append((time.perf_counter() - begun_s) * 1000)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield took_ms
    finally:
        ended.set()
        thread.join()
