"""A real Prometheus scrapes a real node with the example's configuration, and answers what the dashboard asks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import debian
import nodes

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFEST = """
environment = "development"
[agents.echo]
factory = "agents:echo"
[agents.failing]
factory = "agents:failing"
max_attempts = 1
"""
LISTENS = re.compile(r'msg="Listening on" address=(127\.0\.0\.1:\d+)')


class Prometheus:
    """A running one, on a port of its own choice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log, self._http = folder / "prometheus.log", httpx.Client()
        with self._log.open("w") as output:
            self._process = subprocess.Popen(
                [
                    debian.program("prometheus"),
                    "--config.file=prometheus.yml",
                    "--storage.tsdb.path=data",
                    "--web.listen-address=127.0.0.1:0",
                ],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            nodes.wait_until(lambda: LISTENS.search(self.log) or self._process.poll() is not None)
            found = LISTENS.search(self.log)
            assert found is not None, self.log[-2000:]
            self._http = httpx.Client(base_url=f"http://{found[1]}", timeout=10)
            nodes.wait_until(lambda: self._http.get("/-/ready").status_code == 200)
        except BaseException:
            self.close()
            raise

    @property
    def log(self) -> str:
        return self._log.read_text()

    def get(self, path: str, **query: str) -> Any:
        answer = self._http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def value(self, query: str) -> float | None:
        """The only sample that *query* has; None while it has none."""
        found = self.get("/api/v1/query", query=query)["result"]
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def close(self) -> None:
        self._http.close()
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nodes.Up]:
    folder = nodes.Folder(tmp_path_factory.mktemp("scraped") / "node")
    folder.manifest(MANIFEST)
    try:
        yield folder.up()
    finally:
        folder.close()


@pytest.fixture(scope="module")  # it takes five seconds before it scrapes for the first time
def prometheus(up: nodes.Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """With the example's configuration; only where the node is, and how often to look, is another."""
    folder = tmp_path_factory.mktemp("scraping") / "prometheus"
    shutil.copytree(DEPLOY / "prometheus", folder)
    text = (folder / "prometheus.yml").read_text()
    place = str(up.http.base_url).removeprefix("http://").rstrip("/")
    for old, new in (("localhost:7080", place), ("scrape_interval: 15s", "scrape_interval: 200ms")):
        assert old in text
        text = text.replace(old, new)
    (folder / "prometheus.yml").write_text(text)
    key = up.call("POST", "/v1/keys", {"name": "prometheus", "role": "viewer"}).json()["key"]
    (folder / "greenroom.key").write_text(key)
    running = Prometheus(folder)
    try:
        yield running
    finally:
        running.close()


@pytest.mark.slow
def test_a_real_prometheus_scrapes_a_real_node_and_answers(up: nodes.Up, prometheus: Prometheus) -> None:
    nodes.wait_until(lambda: prometheus.value("greenroom_store_up") == 1)
    asked = 'sum(greenroom_http_requests_total{route="/v1/tasks",method="POST",status="2xx"}) or vector(0)'
    before, done = prometheus.value(asked), 'greenroom_tasks_total{agent="echo",outcome="succeeded"}'
    expected = (prometheus.value(done) or 0) + 2
    for agent in ("echo", "echo", "failing"):
        up.end_of(up.submit(agent, "one"))
    nodes.wait_until(lambda: prometheus.value(done) == expected)
    assert prometheus.value('greenroom_tasks_total{agent="failing",outcome="failed"}') == 1
    assert prometheus.value('greenroom_attempts_total{agent="failing",reason="agent_error",revision="1"}') == 1
    assert prometheus.value('sum(greenroom_replicas{agent="echo",state="ready"})') == 1
    assert prometheus.value(asked) == (before or 0) + 3
    assert (prometheus.value("greenroom_store_commit_seconds_count") or 0) >= 3
    assert prometheus.value("greenroom_store_up") == 1
    assert prometheus.value('greenroom_cold_starts_total{agent="echo"}') == 1
    known = {item["help"] for item in prometheus.get("/api/v1/targets/metadata")}
    assert "Tasks that ended, by the final state" in known
    (target,) = prometheus.get("/api/v1/targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


@pytest.mark.slow
def test_a_real_prometheus_takes_the_rules_and_every_query_of_the_dashboard(
    up: nodes.Up, prometheus: Prometheus
) -> None:
    up.end_of(up.submit("echo", "one"))
    nodes.wait_until(lambda: prometheus.value("greenroom_store_up") == 1)
    groups = prometheus.get("/api/v1/rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    board = json.loads((DEPLOY / "grafana" / "greenroom.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "5m").replace("$agent", ".*")
            prometheus.get("/api/v1/query", query=query)  # an error is an HTTP status


@pytest.mark.slow
def test_a_key_that_is_refused_is_seen_as_a_node_that_is_down(prometheus: Prometheus) -> None:
    file = prometheus.folder / "greenroom.key"
    key = file.read_text()
    nodes.wait_until(lambda: prometheus.value('up{job="greenroom"}') == 1)
    file.write_text(key[:-4] + "0000")
    nodes.wait_until(lambda: prometheus.value('up{job="greenroom"}') == 0)
    file.write_text(key)
    nodes.wait_until(lambda: prometheus.value('up{job="greenroom"}') == 1)
