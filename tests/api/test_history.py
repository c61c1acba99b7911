"""The history of an agent, as it is asked for."""

from __future__ import annotations

from datetime import timedelta

import pytest

import nodes
from greenroom.core import history
from greenroom.store import database
from greenroom.store.history import Part

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOUR_US = 3_600_000_000


def _record(attempts: int) -> bytes:
    counts = history.Counts(tokens=attempts)
    counts.end("succeeded", "ok", attempts)
    for _ in range(attempts):
        counts.run.add(1.0)
    return history.encode(counts)


async def test_what_has_ended_is_shown_after_a_step(api: nodes.Api) -> None:
    before = sum(item["attempts"] for item in (await api.get("/v1/agents/failing/history"))["items"])
    assert before == 0
    for _ in range(3):
        await api.run("failing", {})
    await api.running.history.step()
    items = (await api.get("/v1/agents/failing/history"))["items"]
    assert sum(item["attempts"] for item in items) == sum(item["errors"] for item in items) == 3
    assert items[-1]["states"].keys() == {"failed"}
    assert items[-1]["reasons"].keys() == {"agent_error"}
    assert sum(item["tasks"]["failed"] for item in items) == 3
    assert sum(item["run"]["count"] for item in items) == sum(item["response"]["count"] for item in items) == 3
    assert items[-1]["run"]["p50_s"] <= items[-1]["run"]["p95_s"]
    assert {item["step_s"] for item in items} == {60}
    (day,) = (await api.get("/v1/agents/failing/history?step_s=86400"))["items"][-1:]
    assert day["errors"] in (3, items[-1]["errors"])  # it may be midnight


async def test_steps_are_whole_and_begin_where_since_is(api: nodes.Api) -> None:
    now = api.running.clock.now()
    begin_us = history.begin_us(database.microseconds(now), history.HOUR_S) - 30 * HOUR_US
    parts = [Part("gated", 60, begin_us + minute * 60_000_000, "n", _record(minute + 1)) for minute in range(6)]
    hours = [Part("gated", 3600, begin_us + hour * HOUR_US, "n", _record(hour + 1)) for hour in range(2)]
    await api.running.store.history.put([*parts, *hours])
    since = (now - timedelta(hours=31)).isoformat().replace("+", "%2B")

    async def attempts(query: str) -> list[int]:
        found = (await api.get(f"/v1/agents/gated/history?{query}"))["items"]
        return [item["attempts"] for item in found if item["at"] < (now - timedelta(hours=20)).isoformat()]

    assert await attempts(f"since={since}&step_s=300") == [15, 6]
    assert await attempts(f"since={since}&step_s=900") == [21]
    assert await attempts(f"since={since}&step_s=3600") == [1, 2]
    later = database.instant(begin_us + 4 * 60_000_000 + 30_000_000).isoformat().replace("+", "%2B")
    assert await attempts(f"since={later}&step_s=900") == [21], "the step that it lies in is whole"


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("step_s=61", "give one of 60, 300, 900, 3600, 86400"),
        ("step_s=a", "give a whole number from 0 to 86400"),
        ("since=yesterday", "give an instant, for example 2030-01-01T00:00:00Z"),
        ("since=2020-01-01T00:00:00", "give an instant"),
        ("since=2020-01-01T00:00:00Z&step_s=3600", "at most 1500; give a later ?since= or a longer ?step_s="),
    ],
)
async def test_what_cannot_be_shown_is_told(api: nodes.Api, query: str, told: str) -> None:
    answer = await api.call("GET", f"/v1/agents/gated/history?{query}")
    assert answer.status_code == 422
    assert told in answer.json()["detail"]
    assert (await api.get("/v1/agents/gated/history?since=2999-01-01T00:00:00Z"))["items"] == []
