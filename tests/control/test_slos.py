"""Error budgets out of the store's history, and the alerts that fire and end with them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from greenroom import settings, telemetry
from greenroom.control.history import History
from greenroom.control.slos import LOOK_EVERY_S, Slos
from greenroom.core import history, slo
from greenroom.store import database
from greenroom.store.deployments import Deployment
from greenroom.store.history import Part
from greenroom.store.store import Store
from greenroom.testing import databases

if TYPE_CHECKING:
    from control.conftest import Loops

DAY_S = slo.DAY_S


@dataclass
class Kept:
    """A store with agents' SLOs over it, of a node that may be another one soon."""

    scratch: databases.Scratch
    store: Store

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.loop = Slos(self.store, self.scratch.clock, telemetry.Telemetry())

    async def deploy(self, agent: str = "agent", **of_slo: Any) -> None:
        parsed = settings.parse_agent(agent, {"factory": "module:agent", "slo": of_slo})
        await self.store.deployments.deploy(Deployment(agent=agent, digest="d", spec=parsed, by="ann"))
        await self.store.directory.refresh()

    async def end(self, good: int = 0, bad: int = 0, *, agent: str = "agent", took_s: float = 0.1) -> None:
        """Tasks that end now, in the minute and in the hour."""
        counts = history.Counts(tasks={"succeeded": good, "failed": bad})
        for _ in range(good):
            counts.response.add(took_s)
        now_us = database.microseconds(self.scratch.clock.now())
        await self.store.history.put(
            [
                Part(agent, step_s, history.begin_us(now_us, step_s), f"n{now_us}", history.encode(counts))
                for step_s in history.KEPT_S
            ]
        )

    async def look(self) -> list[str]:
        """Return the alerts that fire after a look."""
        assert await self.loop.step() == LOOK_EVERY_S
        return [row.id for row in await self.store.alerts.list() if row.is_firing]

    async def budget_left(self, agent: str = "agent", place: int = 0) -> float:
        await self.loop.step()
        look = self.loop.look(agent)
        assert look is not None
        return round(look.states[place].budget_left, 6)


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> databases.Server | None:
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_server")


@pytest.fixture
async def kept(server: databases.Server | None, tmp_path: Path) -> AsyncIterator[Kept]:
    async with databases.sqlite(tmp_path) if server is None else server.scratch() as scratch:
        yield Kept(scratch, await scratch.open())


async def test_an_alert_fires_when_the_budget_burns_and_ends_when_it_does_not(kept: Kept) -> None:
    await kept.deploy(success_pct=99.0)
    await kept.end(good=100)
    assert await kept.look() == []
    await kept.scratch.advance(60)
    await kept.end(good=10, bad=30)
    assert await kept.look() == ["slo-agent-success-page"]
    (row,) = await kept.store.alerts.list()
    assert (row.kind, row.agent, row.severity) == ("slo", "agent", "critical")
    assert "30 of 140 tasks of the last 1 h missed its goal (99 % of the tasks succeed)" in row.reason
    await kept.scratch.advance(60)
    await kept.end(good=5, bad=5)
    await kept.look()
    assert (await kept.store.alerts.list())[0] == row, "other numbers are no news"
    await kept.scratch.advance(3600)
    await kept.end(good=100)
    assert await kept.look() == ["slo-agent-success-ticket"], "nobody has to get up for what is over"
    await kept.scratch.advance(7 * 3600)
    await kept.end(good=100)
    assert await kept.look() == []


async def test_a_restart_keeps_the_budget_and_ends_the_alerts_of_the_life_before(kept: Kept) -> None:
    await kept.deploy(success_pct=99.0)
    await kept.end(good=800)
    await kept.scratch.advance(9 * DAY_S)
    await kept.end(good=194, bad=6)
    assert await kept.budget_left() == 0.4
    assert await kept.look() == ["slo-agent-success-ticket"]
    kept.restart()
    assert await kept.budget_left() == 0.4
    await kept.scratch.advance(4 * DAY_S)
    kept.restart()
    assert await kept.look() == []
    assert await kept.budget_left() == 0.4
    await kept.scratch.advance(18 * DAY_S)
    assert await kept.budget_left() == -2.0, "the first 800 are older than the window"
    await kept.scratch.advance(10 * DAY_S)
    assert await kept.budget_left() == 1.0


async def test_few_tasks_and_those_of_others_alert_nobody(kept: Kept) -> None:
    await kept.deploy(success_pct=99.0)
    await kept.deploy("quiet", success_pct=99.0, min_tasks=3)
    await kept.deploy("none")
    for agent in ("agent", "quiet", "none"):
        await kept.end(bad=19, agent=agent)
    assert await kept.look() == ["slo-quiet-success-page"]
    assert kept.loop.look("none") is None
    await kept.deploy("quiet")
    assert await kept.look() == [], "it has no goal any more"


async def test_a_late_success_spends_the_budget_of_the_latency_alone(kept: Kept) -> None:
    await kept.deploy(success_pct=99.0, latency_s=8.0, latency_pct=90.0)
    await kept.end(good=80, took_s=8.0)
    await kept.scratch.advance(60)
    await kept.end(good=20, took_s=9.6)
    assert await kept.look() == ["slo-agent-latency-ticket"]
    assert await kept.budget_left(place=0) == 1.0
    assert await kept.budget_left(place=1) == -1.0
    await kept.deploy(success_pct=99.0, latency_s=10.0, latency_pct=90.0)
    assert await kept.budget_left(place=1) == 1.0, "another goal judges what has been anew"


async def test_buckets_that_grow_late_are_seen_and_none_is_counted_twice(kept: Kept) -> None:
    await kept.deploy(success_pct=99.0)
    for _ in range(3):
        await kept.end(good=99, bad=1)
        assert await kept.budget_left() == 0.0
        await kept.scratch.advance(20)
    late = Part("agent", history.HOUR_S, 0, "late", history.encode(history.Counts(tasks={"failed": 3})))
    begin_us = history.begin_us(database.microseconds(kept.scratch.clock.now()) - 20 * 3_600_000_000, history.HOUR_S)
    await kept.store.history.put([Part("agent", late.step_s, begin_us, late.part, late.record)])
    assert await kept.budget_left() == 0.0, "so old a bucket does not change in general"
    await kept.scratch.advance(3600)
    assert await kept.budget_left() < 0.0


async def test_what_expired_in_the_queue_is_bad_though_nobody_has_tried_it(loops: Loops) -> None:
    kept = Kept(loops.scratch, loops.store)
    await loops.deploy(slo={"success_pct": 50.0, "min_tasks": 4})
    writer = History(loops.store, loops.scratch.clock, loops.told, settings.History(), node="node-1")
    tasks = [await loops.submit(timeout_s=5.0) for _ in range(4)]
    loops.engine.succeed(loops.replica_of(tasks[0]))
    await loops.settle()
    await loops.store.tasks.cancel(tasks[1], tenant="acme")
    await loops.settle()
    await loops.scratch.advance(10)
    await loops.step(times=3)
    await writer.step()
    assert {(await loops.task(id)).state for id in tasks[2:]} <= {"expired", "failed"}
    await kept.loop.step()
    look = kept.loop.look("agent")
    assert look is not None
    assert look.states[0].seen == slo.Tally(3, 2)
