"""The bound on the queue is one of what is queued: not of how much comes, and not paid for by whoever finds room."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from greenroom import errors
from greenroom.api import backlog
from greenroom.store.store import Store
from greenroom.testing.fakes import FakeClock


class Queue:
    """A store of nothing but a number, and how often somebody asked for it. Counting takes a turn of the loop."""

    def __init__(self) -> None:
        self.tasks = self
        self.queued, self.counts, self.is_reachable = 0, 0, True
        self.submitting = 0

    async def queued_count(self) -> int:
        self.counts += 1
        counted = self.queued
        await asyncio.sleep(0)
        if not self.is_reachable:
            raise errors.StoreUnavailable("cannot count: a test said so")
        return counted


class Bound:
    """A backlog over a queue; time passes only while somebody waits for it."""

    def __init__(self, limit: int) -> None:
        self.queue, self.clock = Queue(), FakeClock()
        self.stored = asyncio.Event()  # unset: commits are slow
        self.stored.set()
        self.backlog = backlog.Backlog(cast("Store", self.queue), self.clock, limit=limit)

    async def admit(self, count: int = 1) -> None:
        """What a submission does: it is let in, and then stored."""
        await self.backlog.admit(count)
        self.queue.submitting += count
        await self.stored.wait()
        self.queue.submitting -= count
        self.queue.queued += count

    async def together(self, *counts: int) -> list[Any]:
        """Let submissions come at once; what became of each."""
        answers = asyncio.gather(*map(self.admit, counts), return_exceptions=True)
        while not answers.done():
            await asyncio.sleep(0)
            if self.clock.sleepers:
                self.clock.advance(0.01)
        return await answers

    async def one(self, count: int = 1) -> None:
        (answer,) = await self.together(count)
        if answer is not None:
            raise answer


async def test_any_number_of_tasks_pass_that_end_before_the_next_one_comes() -> None:
    bound = Bound(limit=50)
    for _ in range(300):
        await bound.one()
        bound.queue.queued = 0
    assert bound.queue.counts <= 1 + 300 // 50


async def test_what_finds_room_waits_for_nothing() -> None:
    bound = Bound(limit=50)
    await bound.one()
    for _ in range(40):
        with pytest.raises(StopIteration):  # it ends without having been suspended
            bound.backlog.admit().send(None)
    assert bound.queue.counts == 1


async def test_of_many_at_once_as_many_are_let_in_as_there_is_room_for() -> None:
    bound = Bound(limit=5)
    answers = await bound.together(*[1] * 100)
    assert answers.count(None) == bound.queue.queued == 5
    refused = [answer for answer in answers if answer is not None]
    assert {type(answer) for answer in refused} == {errors.Overloaded}
    assert "5 are queued, and at most 5 may be (server.max_queued_tasks)" in str(refused[0])


async def test_all_who_find_no_room_share_a_count_and_there_are_at_most_20_a_second() -> None:
    bound = Bound(limit=5)
    bound.queue.queued = 5
    assert None not in await bound.together(*[1] * 1000)
    assert bound.queue.counts == 2  # the first ever, and one for all who found no room
    began_s = bound.clock.monotonic_s()
    for _ in range(10):
        assert None not in await bound.together(*[1] * 10)
    assert bound.queue.counts - 2 <= (bound.clock.monotonic_s() - began_s) / 0.05 + 1


async def test_room_that_is_made_is_found_at_the_next_submission() -> None:
    bound = Bound(limit=5)
    await bound.one(5)
    with pytest.raises(errors.Overloaded):
        await bound.one()
    bound.queue.queued = 4
    await bound.one()
    with pytest.raises(errors.Overloaded):
        await bound.one()


async def test_what_comes_by_other_ways_is_noticed_within_a_second() -> None:
    bound = Bound(limit=5)
    await bound.one()
    bound.queue.queued = 5  # sub-tasks, other nodes
    bound.clock.advance(1.0)
    with pytest.raises(errors.Overloaded):
        await bound.one()


async def test_where_the_store_cannot_be_asked_nobody_waits_for_long() -> None:
    bound = Bound(limit=1)
    await bound.one()
    bound.queue.is_reachable = False
    answers = await bound.together(*[1] * 100)
    assert {type(answer) for answer in answers} <= {errors.StoreUnavailable, errors.Overloaded}
    assert bound.clock.monotonic_s() < 0.2


async def test_what_a_slow_commit_holds_up_counts_as_queued() -> None:
    bound = Bound(limit=5)
    await bound.one()
    bound.stored.clear()
    held_up = [asyncio.create_task(bound.admit()) for _ in range(4)]
    for _ in range(3):
        assert {type(answer) for answer in await bound.together(1, 1)} == {errors.Overloaded}
    bound.stored.set()
    await asyncio.gather(*held_up)
    assert bound.queue.queued == 5


@pytest.mark.parametrize("queued", [0, 5])
async def test_a_batch_that_can_never_be_taken_is_told_so_at_once(queued: int) -> None:
    bound = Bound(limit=5)
    bound.queue.queued = queued
    with pytest.raises(errors.BodyInvalid, match=r"^cannot take a batch of 6 tasks: at most 5 may be queued \(server"):
        await bound.one(6)
    assert bound.clock.monotonic_s() == 0


async def test_what_may_be_queued_can_be_lowered_for_a_while() -> None:
    bound = Bound(100)
    bound.backlog.limit_admission(10)
    await bound.together(*[1] * 10)
    assert bound.queue.queued == 10
    with pytest.raises(errors.Overloaded, match=r"10 are queued, and at most 10 may be \(for now: the CPUs are busy\)"):
        await bound.one()
    with pytest.raises(errors.Overloaded):  # it would fit at another time
        await bound.one(20)
    bound.backlog.limit_admission(100)
    await bound.one(90)
    with pytest.raises(errors.Overloaded, match=r"at most 100 may be \(server.max_queued_tasks\)"):
        await bound.one()
    with pytest.raises(errors.BodyInvalid):
        await bound.one(101)
    bound.backlog.limit_admission(0)  # nothing at all would be no bound, but an end
    assert bound.backlog._most == 1
