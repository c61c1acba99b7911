"""What a scrape of ``/metrics`` takes of a node with many replicas, all of them at work a moment ago."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from bench import servers
from bench.figures import Figure
from bench.scale import Scale

AGENTS = 20
APART_S = 1.1  # what a scrape has read from the store serves those of the same second: see api/scrapes.py
SCRAPES = 4  # of each round


def scrape(folder: Path, scale: Scale) -> Iterator[Figure]:
    """Scrapes, each of which reads the store, of twenty agents that have their replicas and their histograms."""
    each = scale.replicas // AGENTS
    agents = {
        f"a{number:02}": f'factory = "agents:echo"\nscaling = {{ min_replicas = {each}, max_replicas = {each} }}'
        for number in range(AGENTS)
    }
    limits = f"[cluster]\nmax_replicas = {2 * scale.replicas}"
    with servers.greenroom(folder, agents, settings=limits) as node:
        servers.until(lambda: sum(row["state"] == "ready" for row in node.replicas().values()) >= each * AGENTS)
        tasks = [{"agent": name, "input": "x"} for name in agents]
        node.load("/v1/tasks/batch", [json.dumps({"tasks": tasks})], connections=1, seconds=60, count=10)
        took_ms = [_scrape_ms(node) for _ in range(scale.rounds * SCRAPES)]
    yield Figure(f"/metrics of {each * AGENTS} replicas", "ms", took_ms, aim="≤ 50 ms")


def _scrape_ms(node: servers.Server) -> float:
    time.sleep(APART_S)
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(node.url).netloc, timeout=30)
    begun_s = time.perf_counter()
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {node.key}"})
    answer = connection.getresponse()
    text = answer.read()
    took_ms = (time.perf_counter() - begun_s) * 1000
    connection.close()
    if answer.status != 200 or b"greenroom_replicas{" not in text:
        raise RuntimeError(f"/metrics: {answer.status} {text[:500]!r}")
    return took_ms
