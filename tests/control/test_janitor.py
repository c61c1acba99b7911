"""The janitor, and the supervisor that keeps every loop."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from greenroom import errors, telemetry
from greenroom.control import janitor, supervisor
from greenroom.testing.fakes import FakeClock

if TYPE_CHECKING:
    from control.conftest import Loops


async def test_a_task_is_claimable_when_its_time_has_come(loops: Loops) -> None:
    await loops.deploy()
    id = await loops.submit(not_before=loops.scratch.clock.now() + timedelta(seconds=30))
    await loops.advance(29)
    assert (await loops.task(id)).state == "queued"
    await loops.advance(1.5)
    assert (await loops.task(id)).state == "running"


async def test_a_queued_task_expires_at_its_deadline(loops: Loops) -> None:
    await loops.deploy()
    holding, waiting = await loops.submit(), await loops.submit(timeout_s=5)
    await loops.advance(4)
    assert (await loops.task(waiting)).state == "queued"
    await loops.advance(1.1)
    assert (await loops.task(waiting)).state == "expired"
    assert (await loops.task(holding)).state == "running"


async def test_what_a_dead_node_held_is_taken_back_when_its_lease_is_over(loops: Loops) -> None:
    await loops.deploy()
    mine, loops.store.claims.owner = loops.store.claims.owner, "a node that is gone"
    id = await loops.submit()
    loops.store.claims.owner = mine
    await loops.advance(14)
    task = await loops.task(id)
    assert (task.state, task.epoch) == ("running", 1)
    await loops.advance(1 + janitor.RESCUE_EVERY_S)
    task = await loops.task(id)
    assert (task.state, task.epoch, task.attempts_charged) == ("running", 2, 2)
    assert b'"fenced"' in (await loops.store.tasks.state_events(task))[2].data


async def test_a_jump_of_the_clock_takes_no_work_away_from_the_node_that_does_it(loops: Loops) -> None:
    await loops.deploy()
    id = await loops.submit()
    await loops.scratch.advance(3600)
    await loops.janitor.step()  # before the dispatcher has renewed its leases
    task = await loops.task(id)
    assert (task.state, task.epoch) == ("running", 1)


async def test_the_janitor_naps_no_longer_than_the_next_due_time(loops: Loops) -> None:
    await loops.deploy()
    assert await loops.janitor.step() == janitor.LONGEST_NAP_S
    await loops.submit(not_before=loops.scratch.clock.now() + timedelta(seconds=0.25))
    assert loops.janitor.wakeup.is_set()
    assert await loops.janitor.step() == pytest.approx(0.25)


# Supervision


class _Loop:
    name = "broken"

    def __init__(self, *raised: Exception) -> None:
        self.wakeup = asyncio.Event()
        self.steps = 0
        self._raised = list(raised)

    async def step(self) -> float:
        self.steps += 1
        if self._raised:
            raise self._raised.pop(0)
        return 60.0


async def _run(loop: _Loop, clock: FakeClock, facts: telemetry.Telemetry, steps: int) -> asyncio.Task[None]:
    running = asyncio.create_task(supervisor.supervise([loop], clock, facts))
    async with asyncio.timeout(10):
        while loop.steps < steps and not running.done():
            await asyncio.sleep(0)
            clock.advance(1.0)
    return running


async def test_a_loop_that_crashes_is_started_again_until_it_crashes_too_often() -> None:
    heard: list[telemetry.Fact] = []
    facts = telemetry.Telemetry()
    facts.subscribe(heard.append)
    loop = _Loop(*[RuntimeError("a bug")] * supervisor.INTENSITY)
    running = await _run(loop, FakeClock(), facts, supervisor.INTENSITY + 1)
    assert not running.done()
    running.cancel()
    assert len(heard) == supervisor.INTENSITY
    loop = _Loop(*[RuntimeError("a bug")] * (supervisor.INTENSITY + 1))
    running = await _run(loop, FakeClock(), facts, supervisor.INTENSITY + 2)
    await asyncio.wait([running])
    assert isinstance(running.exception(), ExceptionGroup)


async def test_weather_is_waited_out_and_said_once_and_again_when_it_is_over() -> None:
    heard: list[telemetry.Fact] = []
    facts = telemetry.Telemetry()
    facts.subscribe(heard.append)
    loop = _Loop(*[errors.StoreUnavailable("the disk is full")] * 20)
    running = await _run(loop, FakeClock(), facts, 21)
    assert not running.done()
    running.cancel()
    assert heard == [telemetry.StoreTrouble("broken", "the disk is full"), telemetry.StoreRecovered("broken")]


async def test_weather_of_weeks_does_not_overflow_the_delay() -> None:
    loop = _Loop(*[errors.StoreUnavailable("the disk is full")] * 1100)
    running = await _run(loop, FakeClock(), telemetry.Telemetry(), 1101)
    assert not running.done()
    assert loop.steps == 1101
    running.cancel()
