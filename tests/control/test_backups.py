"""When the loop has a backup made, and what it says of it; the clock is moved by hand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

import msgspec
import pytest

from greenroom import errors, telemetry
from greenroom.control.backups import LONGEST_NAP_S, Backups
from greenroom.sdk import models
from greenroom.testing.fakes import FakeClock

HOUR_S = 3600.0


@dataclass
class World:
    """The loop with a place that it finds backups at, or that fails as *weather* says."""

    clock: FakeClock = field(default_factory=FakeClock)
    made: list[models.Backup] = field(default_factory=list)
    weather: list[str] = field(default_factory=list)
    facts: list[telemetry.Fact] = field(default_factory=list)
    gate: asyncio.Event | None = None

    def loop(self, every_s: float | None = HOUR_S) -> Backups:
        told = telemetry.Telemetry()
        told.subscribe(self.facts.append)
        return Backups(self.clock, told, make=self._make, newest=self._newest, every_s=every_s)

    async def _make(self) -> models.Backup:
        if self.gate is not None:
            await self.gate.wait()
        if self.weather:
            raise errors.BackupFailed(self.weather.pop(0))
        backup = models.Backup(id=str(len(self.made)), created_at=self.clock.now(), stored_bytes=10, new_bytes=3)
        self.made.append(backup)
        return backup

    async def _newest(self) -> models.Backup | None:
        if self.weather:
            raise errors.BackupFailed(self.weather.pop(0))
        return self.made[-1] if self.made else None


@pytest.fixture
def world() -> World:
    return World()


async def test_the_first_backup_is_made_at_once_and_then_one_each_hour(world: World) -> None:
    loop = world.loop()
    assert await loop.step() == HOUR_S
    assert loop.state.last == world.made[0]
    world.clock.advance(HOUR_S - 1)
    assert await loop.step() == 1
    assert len(world.made) == 1
    world.clock.advance(1)
    await loop.step()
    assert len(world.made) == 2
    assert [type(fact) for fact in world.facts] == [telemetry.BackupMade, telemetry.NewestBackup] * 2


async def test_a_node_that_starts_again_waits_for_what_is_left_of_the_hour(world: World) -> None:
    await world.loop().step()
    world.clock.advance(1000)
    loop = world.loop()
    assert await loop.step() == HOUR_S - 1000
    assert (len(world.made), loop.state.last) == (1, world.made[0])


async def test_a_node_that_starts_again_tells_how_old_the_newest_is_if_it_can_be_read(world: World) -> None:
    await world.loop().step()
    world.clock.advance(1000)
    world.facts.clear()
    await world.loop().step()
    assert world.facts == [telemetry.NewestBackup(world.made[0].created_at)]
    world.made[0] = msgspec.structs.replace(world.made[0], problem="it is damaged")
    world.facts.clear()
    await world.loop().step()
    assert world.facts == []


async def test_a_failure_is_told_and_tried_again_sooner(world: World) -> None:
    loop = world.loop()
    world.weather += ["cannot list", "the disk is full", "the disk is full"]
    assert await loop.step() == 60
    assert (loop.state.error, loop.state.is_running) == ("the disk is full", False)
    world.clock.advance(60)
    assert await loop.step() == 120
    world.clock.advance(120)
    assert await loop.step() == HOUR_S
    assert (loop.state.error, loop.state.last) == (None, world.made[0])
    assert [type(fact) for fact in world.facts] == [
        telemetry.BackupFailed,
        telemetry.BackupFailed,
        telemetry.BackupMade,
        telemetry.NewestBackup,
    ]


async def test_a_failure_keeps_the_last_one_in_sight(world: World) -> None:
    loop = world.loop()
    await loop.step()
    world.weather.append("gone")
    world.clock.advance(HOUR_S)
    await loop.step()
    assert (loop.state.last, loop.state.error) == (world.made[0], "gone")


async def test_whoever_asks_gets_one_and_only_one_at_a_time(world: World) -> None:
    loop = world.loop(every_s=None)
    assert await loop.step() == LONGEST_NAP_S
    assert world.made == []
    assert loop.ask()
    assert loop.wakeup.is_set()
    assert loop.state.is_running
    assert not loop.ask()
    world.gate = asyncio.Event()
    stepping = asyncio.create_task(loop.step())
    await asyncio.sleep(0)
    assert not loop.ask()
    world.gate.set()
    assert await stepping == LONGEST_NAP_S
    assert (len(world.made), loop.state.is_running) == (1, False)
    assert loop.ask()


async def test_one_that_is_asked_for_puts_off_the_next(world: World) -> None:
    loop = world.loop()
    await loop.step()
    world.clock.advance(3000)
    loop.ask()
    assert await loop.step() == HOUR_S


async def test_a_clock_that_jumps_neither_hurries_nor_holds_up(world: World) -> None:
    loop = world.loop()
    await loop.step()
    world.clock._now -= timedelta(days=1)
    world.clock.advance(HOUR_S)
    assert await loop.step() == HOUR_S
    assert len(world.made) == 2
    other = world.loop()
    assert await other.step() == HOUR_S


async def test_a_cancelled_one_is_running_no_more(world: World) -> None:
    loop = world.loop()
    world.gate = asyncio.Event()
    stepping = asyncio.create_task(loop.step())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert loop.state.is_running
    stepping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stepping
    assert not loop.state.is_running
