"""What tasks cost, and a budget that is spent, as a node tells them; both survive its restart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import nodes
from greenroom import settings

AGENTS = {
    "echo": nodes.agent("echo", cost={"usd_per_task": 0.25, "budget_usd_per_day": 0.5, "on_budget": "refuse"}),
    "failing": nodes.agent("failing", max_attempts=1),
}


async def _submit(api: nodes.Api, agent: str = "echo", **headers: str) -> Any:
    return await api.call("POST", "/v1/tasks", {"agent": agent, "input": 1}, headers=headers)


async def _look(api: nodes.Api) -> None:
    await api.running.history.step()
    await api.running.budgets.step()


def _assert_refused(answer: Any) -> None:
    assert answer.status_code == 429
    problem = answer.json()
    assert problem["type"].endswith("budget-spent")
    assert "echo has spent its budget of today ($0.50)" in problem["detail"]
    tomorrow = datetime.now(UTC) + timedelta(seconds=int(answer.headers["retry-after"]) + 1)
    assert tomorrow.hour == tomorrow.minute == 0


@pytest.mark.slow
async def test_a_spent_budget_refuses_new_tasks_of_its_agent_alone_also_after_a_restart(
    data_dir: Path, store_url: str | None
) -> None:
    async with nodes.opened(data_dir, AGENTS, store_url=store_url) as api:
        first = await api.run("echo", {})
        assert first["usage"]["cost_usd"] == 0.25
        known = await _submit(api, **{"idempotency-key": "known"})
        await api.run("echo", {})
        assert (await api.run("failing", {}))["usage"]["cost_usd"] is None
        await nodes.eventually(lambda: _has_ended(api, known.json()["id"]))
        await _look(api)
        (bucket, *_) = (await api.get("/v1/agents/echo/history?step_s=86400"))["items"]
        assert bucket["cost_usd"] == 0.75
        (bucket, *_) = (await api.get("/v1/agents/failing/history?step_s=86400"))["items"]
        assert bucket["cost_usd"] is None
        _assert_refused(await _submit(api))
        _assert_refused(await api.call("POST", f"/v1/tasks/{first['id']}/retry"))
        items = [{"agent": agent, "input": 1} for agent in ("echo", "failing")]
        refused, taken = (await api.call("POST", "/v1/tasks/batch", {"tasks": items})).json()["items"]
        assert (refused["status"], taken["agent"]) == (429, "failing")
        again = await _submit(api, **{"idempotency-key": "known"})
        assert again.json()["id"] == known.json()["id"], "what was taken stays taken"
        (alert,) = [each for each in (await api.get("/v1/alerts"))["items"] if each["kind"] == "budget"]
        assert (alert["id"], alert["severity"], alert["state"]) == ("budget-echo-critical", "critical", "firing")
        assert 'greenroom_cost_usd_total{agent="echo"} 0.75' in (await api.call("GET", "/metrics")).text
    async with nodes.opened(data_dir, AGENTS, store_url=store_url) as api:
        await _look(api)
        _assert_refused(await _submit(api))
        assert (await api.task(first["id"]))["usage"]["cost_usd"] == 0.25
    cheaper = {**AGENTS, "echo": nodes.agent("echo", cost={"usd_per_task": 0.25, "budget_usd_per_day": 5})}
    async with nodes.opened(data_dir, cheaper, store_url=store_url) as api:
        assert (await api.get("/v1/agents/echo"))["revision"] == 1, "neither price nor budget is part of a revision"
        await _look(api)
        assert (await _submit(api)).status_code == 202


async def _has_ended(api: nodes.Api, id: str) -> bool | None:
    return (await api.task(id))["state"] == "succeeded" or None


def test_a_budget_is_of_this_name() -> None:
    assert settings.budget(settings.parse_agent("a", AGENTS["echo"])) is not None
    assert settings.budget(settings.parse_agent("a", AGENTS["failing"])) is None
