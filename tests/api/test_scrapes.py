"""What a scrape of the metrics asks the store for, and what the API counts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import parser

import nodes
from greenroom import settings, telemetry
from greenroom.api import scrapes
from greenroom.node.health import NodeHealth
from greenroom.store import database
from greenroom.store.alerts import Raised
from greenroom.store.store import Store
from greenroom.testing import databases, fakes


@pytest.fixture
async def scratch(tmp_path: Path) -> AsyncIterator[databases.Scratch]:
    async with databases.sqlite(tmp_path) as opened:
        yield opened


def _health(store: Store, scratch: databases.Scratch) -> NodeHealth:
    return NodeHealth(
        store,
        scratch.clock,
        telemetry.Telemetry(),
        settings.load(),
        data_dir=Path(),
        use_pct=dict,
        failure=lambda: None,
    )


async def test_the_store_is_asked_once_a_second_however_many_scrape(scratch: databases.Scratch) -> None:
    store = await scratch.open()
    looked = scrapes.Scrapes(store, scratch.clock, _health(store, scratch), queue_limit=5)
    first = await looked.look()
    assert first == telemetry.Seen(agents=first.agents if first else (), queue_limit=5, system_grade="healthy")
    await store.alerts.tell(Raised("a", "quarantined", "a", "critical", "why"))
    assert await looked.look() is first
    await scratch.advance(scrapes.LOOK_EVERY_S)
    second = await looked.look()
    assert second is not None
    assert second.alerts == {("quarantined", "critical", "firing"): 1}


async def test_a_store_that_does_not_answer_is_no_error_of_the_scrape(scratch: databases.Scratch) -> None:
    faulty: list[fakes.FaultyDatabase] = []

    def wrap(db: database.Database) -> fakes.FaultyDatabase:
        faulty.append(fakes.FaultyDatabase(db))
        return faulty[0]

    store = await scratch.open(wrap=wrap)
    looked = scrapes.Scrapes(store, scratch.clock, _health(store, scratch), queue_limit=5)
    assert await looked.look() is not None
    await scratch.advance(1)
    faulty[0].read_faults = [False, True]
    assert await looked.look() is None
    await scratch.advance(1)
    assert await looked.look() is not None


async def _counts(api: nodes.Api) -> dict[tuple[str, str, str], float]:
    text = (await api.http.get("/metrics")).text
    return {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "greenroom_http_requests_total"
    }


async def test_answers_are_counted_by_route_and_never_by_what_a_stranger_has_asked_for(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {"echo": nodes.agent("echo")}) as api:
        before = await _counts(api)
        task = await api.run("echo", 1)
        await api.task(task["id"])
        await api.http.get("/v1/tasks/unknown")
        await api.http.get("/v1/strange/path")
        await api.of("gr_bad").http.get("/v1/tasks")
        await api.of(None).http.get("/login")
        after = await _counts(api)
    moved = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    assert moved == {
        ("POST", "/v1/tasks", "2xx"): 1,
        ("GET", "/v1/tasks/{id}", "2xx"): 1,
        ("GET", "/v1/tasks/{id}", "4xx"): 1,
        ("", "", "4xx"): 2,
        ("GET", "/login", "2xx"): 1,
        ("GET", "/metrics", "2xx"): 1,
    }


async def test_what_a_node_does_is_in_its_metrics(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {"echo": nodes.agent("echo")}) as api:
        await api.run("echo", 1)
        text = (await api.http.get("/metrics")).text
        for line in (
            'greenroom_tasks_total{agent="echo",outcome="succeeded"} 1.0',
            'greenroom_attempts_total{agent="echo",reason="ok",revision="1",state="succeeded"} 1.0',
            'greenroom_task_wait_seconds_count{agent="echo",revision="1"} 1.0',
            'greenroom_cold_starts_total{agent="echo"} 1.0',
            'greenroom_revision_traffic_ratio{agent="echo",revision="1"} 1.0',
            'greenroom_queue_tasks{agent="echo"} 0.0',
            f"greenroom_queue_limit_tasks {float(api.running.settings.server.max_queued_tasks)}",
            "greenroom_store_up 1.0",
        ):
            assert line in text.splitlines(), line
        assert 'greenroom_replicas{agent="echo",grade="healthy",revision="1",state="ready"} 1.0' in text
        api.running.metrics.committed(0.1, 0)
        assert "greenroom_store_commit_items_count 0.0" not in text


async def test_an_agent_that_is_removed_takes_its_series_along(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {"echo": nodes.agent("echo"), "failing": nodes.agent("failing")}) as api:
        await api.run("echo", 1)
        assert 'agent="echo"' in (await api.http.get("/metrics")).text
        assert (await api.call("DELETE", "/v1/agents/echo")).status_code in (200, 202, 204)

        async def is_gone() -> bool:
            api.running.services.scrapes._look_at_s = 0.0
            return 'agent="echo"' not in (await api.http.get("/metrics")).text

        await nodes.eventually(is_gone)


async def test_metrics_that_are_off_count_nothing_and_say_so(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {"echo": nodes.agent("echo")}, cluster={"metrics": False}) as api:
        await api.run("echo", 1)
        answer = await api.http.get("/metrics")
        assert (answer.status_code, answer.json()["detail"]) == (
            409,
            "cannot tell metrics: they are off (cluster.metrics)",
        )
        rendered = api.running.metrics.render(None).decode()
    counted = [line for line in rendered.splitlines() if not line.startswith("#") and float(line.split()[-1])]
    assert counted == []
