"""The clock that tests move, and the database that fails when they say so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from greenroom import errors
from greenroom.store import store
from greenroom.testing.fakes import START, FakeClock, FaultyDatabase


async def _settle() -> None:
    """Let every other task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_time_passes_only_when_it_is_moved() -> None:
    clock = FakeClock()
    assert (clock.now(), clock.monotonic_s()) == (START, 0.0)
    clock.advance(2.5)
    assert ((clock.now() - START).total_seconds(), clock.monotonic_s()) == (2.5, 2.5)


async def test_sleepers_wake_in_the_order_of_their_alarms() -> None:
    clock, woken = FakeClock(), list[int]()

    async def sleep(delay_s: int) -> None:
        await clock.sleep(delay_s)
        woken.append(delay_s)

    async with asyncio.TaskGroup() as group:
        for delay_s in (3, 1, 2, 9):
            group.create_task(sleep(delay_s))
        await _settle()
        clock.advance(3)
        await _settle()
        assert woken == [1, 2, 3]
        clock.advance(6)
    assert woken == [1, 2, 3, 9]


async def test_a_wakeup_ends_a_sleep_and_is_cleared() -> None:
    clock, wakeup = FakeClock(), asyncio.Event()
    wakeup.set()
    await clock.sleep(60, wakeup)
    assert not wakeup.is_set()
    sleeping = asyncio.create_task(clock.sleep(60, wakeup))
    await _settle()
    assert clock.sleepers == 1
    wakeup.set()
    await sleeping
    assert (wakeup.is_set(), clock.sleepers) == (False, 0)


async def test_a_sleep_of_no_time_ends() -> None:
    await FakeClock().sleep(0)


async def test_reads_and_look_ups_fail_as_they_are_told_and_then_as_they_are_drawn(tmp_path: Path) -> None:
    drawn = iter([True, False])
    real = store.open(f"sqlite:///{tmp_path / 'greenroom.db'}", clock=FakeClock(), owner="me").db
    faulty = FaultyDatabase(real, draw_read=lambda: next(drawn))
    faulty.read_faults = [True, False, True]
    try:
        for reading, fails in [("lookup", True), ("read", False), ("read", True), ("lookup", True), ("read", False)]:
            asked = getattr(faulty, reading)("select 1", {})
            if fails:
                with pytest.raises(errors.StoreUnavailable):
                    await asked
            else:
                assert [tuple(row) for row in await asked] == [(1,)]
    finally:
        await faulty.close()
