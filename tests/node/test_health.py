"""The grades of agents and of the system, and error budgets, as a node tells them; they survive its restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nodes
from greenroom import telemetry
from greenroom.core import history
from greenroom.core.health import Grade
from greenroom.store import database
from greenroom.store.history import Part

AGENTS = {
    "echo": nodes.agent("echo", slo={"success_pct": 90, "latency_s": 8, "latency_pct": 50}),
    "failing": nodes.agent("failing", health={"min_samples": 4}, slo={"success_pct": 75, "min_tasks": 4}),
}


async def _health(api: nodes.Api, agent: str) -> Any:
    return await api.get(f"/v1/agents/{agent}/health")


async def _is_graded(api: nodes.Api, agent: str, grade: Grade) -> Any:
    async def asked() -> Any:
        found = await _health(api, agent)
        has_looked = found["slo"] is None or found["slo"]["at"]
        return found if found["grade"] == grade and has_looked else None

    return await nodes.eventually(asked)


async def _look(api: nodes.Api) -> None:
    await api.running.history.step()
    for loop in api.running.health.loops:
        await loop.step()


@pytest.mark.slow
@pytest.mark.parametrize("server", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)], indirect=True)
async def test_a_restart_keeps_grades_and_budgets(data_dir: Path, store_url: str | None) -> None:
    async with nodes.opened(data_dir, AGENTS, store_url=store_url) as api:
        for _ in range(5):
            await api.run("failing", {})
            await api.run("echo", 1)
        await _look(api)
        before = {agent: (await _health(api, agent))["slo"]["objectives"] for agent in AGENTS}
        assert before["failing"][0]["budget_left_pct"] == -300.0
        assert {alert["id"] for alert in (await api.get("/v1/alerts"))["items"]} == {"slo-failing-success-ticket"}
    async with nodes.opened(data_dir, AGENTS, store_url=store_url) as api:
        found = await _is_graded(api, "failing", Grade.UNHEALTHY)
        assert found["reason"] == found["recent"]["reason"]
        assert "5 of the last 5 attempts (100 %) ended with an error in 5 min" in found["reason"]
        assert "greenroom tasks ls --agent failing --state failed" in found["reason"]
        assert (found["recent"]["judged"], found["recent"]["error_pct"]) == (5, 100.0)
        assert [each["grade"] for each in found["replicas"]] != []
        (success,) = found["slo"]["objectives"]
        assert (success["tasks"], success["missed"], success["met_pct"]) == (5, 5, 0.0)
        assert success["budget_left_pct"] == -300.0
        assert [rate["alerts"] for rate in success["burn_rates"]] == [False, False, True]
        success, latency = (await _health(api, "echo"))["slo"]["objectives"]
        assert (success["budget_left_pct"], latency["budget_left_pct"]) == (100.0, 100.0)
        assert (latency["name"], latency["latency_s"], latency["measured_s"]) == ("latency", 8.0, 8.0)
        rendered = (await api.http.get("/metrics")).text
        for line in (
            'greenroom_agent_grade{agent="failing"} 3.0',
            "greenroom_system_grade 3.0",
            'greenroom_slo_budget_left_ratio{agent="failing",objective="success"} -3.0',
            'greenroom_slo_burn_rate{agent="failing",burn="slow",objective="success",window="long"} 4.0',
        ):
            assert f"{line}\n" in rendered
        assert 'greenroom_slo_burn_rate{agent="echo"' not in rendered, "too few of its tasks have ended"
        status = await api.get("/v1/status")
        assert status["grade"] == "unhealthy"
        assert status["grade_reason"].startswith("failing: 5 of the last 5 attempts")
        by_name = {agent["name"]: agent for agent in status["agents"]}
        assert by_name["failing"]["grade"] == "unhealthy"
        assert by_name["failing"]["grade_reason"] == found["reason"]


async def test_the_system_is_as_well_as_the_node(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {"echo": nodes.agent("echo")}) as api:
        facts = api.running.facts

        async def grade() -> tuple[str, str]:
            status = await api.get("/v1/status")
            return status["grade"], status["grade_reason"]

        async def is_well() -> bool:
            return await grade() == ("healthy", "the node and its agents are well")

        await nodes.eventually(is_well)
        facts.emit(telemetry.StoreTrouble("api", "of one request"))
        assert await is_well()
        facts.emit(telemetry.StoreTrouble("janitor", "the disk is full"))
        assert await grade() == ("unhealthy", "the store: the disk is full (told by janitor)")
        facts.emit(telemetry.StoreRecovered("janitor"))
        assert await is_well()


@pytest.mark.slow
async def test_who_sleeps_is_no_trouble_of_the_system_and_health_checks_may_be_off(tmp_path: Path) -> None:
    asleep = nodes.agent("echo", scaling={"min_replicas": 0, "idle_s": 0})
    async with nodes.opened(tmp_path / "a", {"echo": asleep}, cluster={"autoscaling": True}) as api:

        async def sleeps() -> bool:
            return bool((await api.get("/v1/agents/echo"))["replicas"]["desired"] == 0)

        await nodes.eventually(sleeps)
        assert (await api.get("/v1/status"))["grade"] == "healthy"
    off = {"health_checks": False}
    async with nodes.opened(tmp_path / "b", {"failing": AGENTS["failing"]}, cluster=off) as api:
        for _ in range(5):
            await api.run("failing", {})
        await _look(api)
        found = await _health(api, "failing")
        assert (found["grade"], found["reason"]) == ("unknown", "health checks are off")
        assert found["recent"]["grade"] == "unknown"
        assert found["slo"]["objectives"][0]["missed"] == 5, "an SLO is no grade"


async def test_an_slo_over_more_than_is_kept_is_refused_by_the_api(tmp_path: Path) -> None:
    kept = {"keep_hours_days": 7}
    async with nodes.opened(tmp_path / "data", {"echo": nodes.agent("echo")}, history=kept) as api:
        answer = await api.call("PUT", "/v1/agents/new", nodes.agent("echo", slo={"success_pct": 99}))
        assert answer.status_code == 409
        assert "slo.window_days: 30 days are more than the history is kept" in answer.json()["detail"]
        answer = await api.call("PUT", "/v1/agents/new", nodes.agent("echo", slo={"success_pct": 99, "window_days": 7}))
        assert answer.status_code == 200
        assert (await _health(api, "new"))["slo"] == {"window_days": 7.0, "min_tasks": 20, "at": None, "objectives": []}


async def test_an_agent_without_an_slo_says_so_and_old_history_is_no_grade(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {"echo": nodes.agent("echo")}) as api:
        counts = history.Counts()
        counts.end("failed", "agent_error", 50)
        begin_us = history.begin_us(database.microseconds(api.running.clock.now()), 60) - 360_000_000
        await api.running.store.history.put([Part("echo", 60, begin_us, "n", history.encode(counts))])
        await _look(api)
        found = await _health(api, "echo")
        assert found["slo"] is None
        assert found["recent"]["judged"] == 0
        assert found["recent"]["error_pct"] is None
