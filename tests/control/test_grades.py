"""Agents are graded by what the history says of their last minutes, also before the node's start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from greenroom import telemetry
from greenroom.control.grades import LOOK_EVERY_S, Grades
from greenroom.core import grades, health, history
from greenroom.core.health import Grade
from greenroom.store import database
from greenroom.store.history import Part

if TYPE_CHECKING:
    from control.conftest import Loops


@dataclass
class Graded:
    loops: Loops
    told: telemetry.Telemetry = field(default_factory=telemetry.Telemetry)
    heard: list[telemetry.AgentGraded] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.told.subscribe(self.heard.append, telemetry.AgentGraded)
        self.restart()

    def restart(self) -> None:
        """Let one go on that knows nothing but what the store does."""
        self.loop = Grades(self.loops.store, self.loops.scratch.clock, self.told)

    async def end(self, good: int = 0, bad: int = 0, *, agent: str = "agent", took_s: float = 0.1) -> None:
        """Attempts that have ended in this minute, in the history as the history's loop writes it."""
        counts = history.Counts()
        for state, reason, count in (("succeeded", "ok", good), ("failed", "agent_error", bad)):
            if count:
                counts.end(state, reason, count)
        for _ in range(good + bad):
            counts.response.add(took_s)
            counts.wait.add(0.0)
        now_us = database.microseconds(self.loops.scratch.clock.now())
        begin_us = history.begin_us(now_us, history.MINUTE_S)
        part = Part(agent, history.MINUTE_S, begin_us, f"n{now_us}", history.encode(counts))
        await self.loops.store.history.put([part])

    async def look(self, times: int = 1) -> Grade:
        for _ in range(times):
            assert await self.loop.step() == LOOK_EVERY_S
            await self.loops.scratch.advance(LOOK_EVERY_S)
        return self.loop.finding("agent").grade


@pytest.fixture
async def graded(loops: Loops) -> Graded:
    await loops.deploy()
    return Graded(loops)


async def test_a_grade_is_there_at_once_after_a_restart_and_goes_with_its_window(graded: Graded) -> None:
    assert graded.loop.finding("agent") is grades.TOO_FEW
    assert await graded.look() is Grade.UNKNOWN
    await graded.end(good=7, bad=3)
    assert await graded.look() is Grade.UNHEALTHY
    assert "(30 %)" in graded.loop.finding("agent").reason
    graded.restart()
    assert await graded.look() is Grade.UNHEALTHY
    await graded.loops.scratch.advance(330)
    assert await graded.look() is Grade.UNKNOWN
    assert [fact.grade for fact in graded.heard] == ["unhealthy", "unhealthy", "unknown"]


async def test_a_grade_changes_when_some_looks_in_a_row_have_found_it(graded: Graded) -> None:
    await graded.end(good=50)
    assert await graded.look() is Grade.HEALTHY
    await graded.end(bad=50)
    assert await graded.look(health.WORSEN_AFTER - 1) is Grade.HEALTHY
    assert await graded.look() is Grade.UNHEALTHY
    await graded.end(good=5000)
    assert await graded.look(health.IMPROVE_AFTER - 1) is Grade.UNHEALTHY
    assert await graded.look() is Grade.HEALTHY


async def test_too_few_attempts_grade_nobody_and_each_agent_has_its_own(graded: Graded) -> None:
    await graded.loops.deploy("other")
    await graded.end(bad=9)
    await graded.end(good=10, agent="other")
    await graded.end(bad=99, agent="nobody's")
    assert await graded.look() is Grade.UNKNOWN
    assert graded.loop.finding("other").grade is Grade.HEALTHY
    assert graded.loop.recent("agent").errors == 9
    assert graded.loop.finding("nobody's") is grades.TOO_FEW


async def test_an_agent_whose_work_takes_a_minute_says_so_and_is_well(graded: Graded) -> None:
    await graded.loops.deploy("slow", health={"response_s": 120, "window_s": 1800, "min_samples": 5})
    for _ in range(6):
        for agent in ("agent", "slow"):
            await graded.end(good=2, agent=agent, took_s=60.0)
        await graded.loops.scratch.advance(240)
    assert await graded.look() is Grade.UNKNOWN, "there are two in five minutes"
    assert graded.loop.finding("slow").grade is Grade.HEALTHY
    await graded.end(good=9, took_s=60.0)
    assert await graded.look() is Grade.UNHEALTHY
    assert "raise agents.agent.health.response_s" in graded.loop.finding("agent").reason


async def test_no_grade_of_an_agent_stops_a_replica(graded: Graded) -> None:
    before = [replica.id for replica in graded.loops.engine.started]
    await graded.end(bad=100, took_s=100.0)
    assert await graded.look(5) is Grade.UNHEALTHY
    await graded.loops.step(times=10)
    assert [replica.id for replica in graded.loops.engine.started] == before
    assert graded.loops.engine.killed == {}
    assert [row.state for row in await graded.loops.store.agents.replicas()] == ["ready"]
