"""What looking costs: the overview beside many finished tasks, and open pages while tasks run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from bench import filled, servers
from bench.figures import Figure
from bench.scale import Scale
from bench.switches import BODY, ECHO

NAP = 'factory = "agents:nap"'
PAGES = ("/", "/agents", "/agents/echo", "/agents/nap")
VIEWERS = 50
SECONDS, RENDERS = 15.0, 20
TASKS_EVERY_S = 0.1  # so that there is something to see


def dashboard(folder: Path, scale: Scale) -> Iterator[Figure]:
    """The overview beside many finished tasks, and what open pages take of a core."""
    servers.prepare(folder, {"echo": ECHO, "nap": NAP})
    with servers.up(folder) as node:
        node.load(filled.PATH, [BODY], connections=1, seconds=60, count=1)
    filled.fill(folder / "data" / "greenroom.db", scale.finished)
    with servers.up(folder) as node:
        key = {"authorization": f"Bearer {node.key}"}
        with httpx.Client(base_url=node.url, headers=key, timeout=60) as http:
            took_ms = _took_ms(http, "/")
        yield Figure(f"the overview with {scale.finished:,} finished tasks", "ms", took_ms, aim="≤ 300")
        for pages, told in ((PAGES[:1], "all the overview"), (PAGES, "of four kinds")):
            idle, watched = (_cpu_pct(node, key, pages, viewers) for viewers in (0, VIEWERS))
            yield Figure(f"{VIEWERS} open dashboards, {told}", "% of a core", [watched - idle], aim="≤ 5")


def _took_ms(http: httpx.Client, path: str) -> list[float]:
    took_ms = []
    for _ in range(RENDERS):
        begun_s = time.perf_counter()
        http.get(path).raise_for_status()
        took_ms.append((time.perf_counter() - begun_s) * 1000)
        time.sleep(1.1)  # what is asked for once a second is asked for anew
    return took_ms


def _cpu_pct(node: servers.Server, key: dict[str, str], pages: tuple[str, ...], viewers: int) -> float:
    """Return what the node takes while ten tasks a second run and so many watch."""
    stop = threading.Event()

    def watch(page: str) -> None:
        with httpx.stream("GET", f"{node.url}/ui/live", params={"page": page}, headers=key, timeout=60) as answer:
            for _ in answer.iter_raw():
                if stop.is_set():
                    return

    def work() -> None:
        with httpx.Client(base_url=node.url, headers=key | {"content-type": "application/json"}) as http:
            while not stop.wait(TASKS_EVERY_S):
                http.post("/v1/tasks", content=BODY)

    threads = [threading.Thread(target=watch, args=(pages[n % len(pages)],), daemon=True) for n in range(viewers)]
    threads.append(threading.Thread(target=work, daemon=True))
    for thread in threads:
        thread.start()
    time.sleep(3)
    before_s = servers.cpu_s(node.pid)
    time.sleep(SECONDS)
    used_s = servers.cpu_s(node.pid) - before_s
    stop.set()
    for thread in threads:
        thread.join(15)
    return used_s / SECONDS * 100
