"""The bound on the queue is one of what is queued: not of how much comes, and not paid for by whoever finds room."""

from __future__ import annotations

import asyncio
import doctest
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom import errors
from greenroom.api import backlog
from greenroom.core import admission
from greenroom.core.admission import RETRY_MOST_S, Bounds, Drain
from greenroom.store.news import News
from greenroom.store.store import Store
from greenroom.testing.fakes import FakeClock


class Queue:
    """A store of nothing but numbers, and how often somebody asked for them. Counting takes a turn of the loop."""

    def __init__(self) -> None:
        self.tasks = self.hub = self
        self.tenants, self.counts, self.is_reachable = Counter[str](), 0, True
        self.on_their_way = Counter[str]()

    def subscribe(self, hear: Callable[[News], None]) -> None:
        self.hear = hear

    @property
    def queued(self) -> int:
        return self.tenants.total()

    @queued.setter
    def queued(self, number: int) -> None:
        self.tenants = Counter(acme=number)

    def submitting(self) -> Counter[str]:
        return +self.on_their_way

    async def queued_counts(self) -> dict[str, int]:
        self.counts += 1
        counted = dict(+self.tenants)
        await asyncio.sleep(0)
        if not self.is_reachable:
            raise errors.StoreUnavailable("cannot count: a test said so")
        return counted


class Bound:
    """A backlog over a queue; time passes only while somebody waits for it."""

    def __init__(self, limit: int, per_tenant: int | None = None) -> None:
        self.queue, self.clock = Queue(), FakeClock()
        self.stored = asyncio.Event()  # unset: commits are slow
        self.stored.set()
        self.backlog = backlog.Backlog(cast("Store", self.queue), self.clock, limit=limit, per_tenant=per_tenant)

    async def admit(self, count: int = 1, tenant: str = "acme") -> None:
        """What a submission does: it is let in, and then stored."""
        await self.backlog.admit(tenant, count)
        self.queue.on_their_way[tenant] += count
        await self.stored.wait()
        self.queue.on_their_way[tenant] -= count
        self.queue.tenants[tenant] += count

    def leave(self, count: int, tenant: str = "acme") -> None:
        """Tasks begin, or end without."""
        self.queue.tenants[tenant] -= count
        self.queue.hear(News(left=Counter({tenant: count})))

    async def together(self, *counts: int, tenant: str = "acme") -> list[Any]:
        """Let submissions come at once; what became of each."""
        answers = asyncio.gather(*(self.admit(count, tenant) for count in counts), return_exceptions=True)
        while not answers.done():
            await asyncio.sleep(0)
            if self.clock.sleepers:
                self.clock.advance(0.01)
        return await answers

    async def one(self, count: int = 1, tenant: str = "acme") -> None:
        (answer,) = await self.together(count, tenant=tenant)
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
            bound.backlog.admit("acme").send(None)
    assert bound.queue.counts == 1


async def test_of_many_at_once_as_many_are_let_in_as_there_is_room_for() -> None:
    bound = Bound(limit=5)
    answers = await bound.together(*[1] * 100)
    assert answers.count(None) == bound.queue.queued == 5
    refused = [answer for answer in answers if answer is not None]
    assert {type(answer) for answer in refused} == {errors.Overloaded}
    assert "5 are queued, and at most 5 may be (server.max_queued_tasks)" in str(refused[0])


async def test_all_who_find_no_room_share_a_count_and_there_are_at_most_50_a_second() -> None:
    bound = Bound(limit=5)
    bound.queue.queued = 5
    assert None not in await bound.together(*[1] * 1000)
    assert bound.queue.counts == 2  # the first ever, and one for all who found no room
    began_s = bound.clock.monotonic_s()
    for _ in range(10):
        assert None not in await bound.together(*[1] * 10)
    assert bound.queue.counts - 2 <= (bound.clock.monotonic_s() - began_s) / 0.02 + 1


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


async def test_a_tenant_cannot_close_the_door_for_the_others() -> None:
    bound = Bound(limit=1000)
    await bound.one(1000)
    with pytest.raises(errors.Overloaded):
        await bound.one()
    answers = await bound.together(*[1] * 20, tenant="quiet")
    assert answers.count(None) == 10  # one hundredth of the bound
    await bound.one(10, tenant="third")
    with pytest.raises(errors.Overloaded):
        await bound.one(11, tenant="fourth")


async def test_a_tenant_has_a_bound_of_its_own() -> None:
    bound = Bound(limit=100, per_tenant=5)
    await bound.one(5)
    with pytest.raises(
        errors.Overloaded, match=r"5 of your tasks are queued, and at most 5 may be \(server.max_queued_t"
    ):
        await bound.one()
    await bound.one(5, tenant="quiet")
    with pytest.raises(errors.BodyInvalid, match=r"at most 5 may be queued \(server.max_queued_tasks_per_tenant\)"):
        await bound.one(6, tenant="third")


async def test_who_is_refused_is_told_when_by_how_fast_the_queue_drains() -> None:
    bound = Bound(limit=100)
    await bound.one(100)
    for _ in range(30):
        bound.leave(20)
        await bound.one(20)
        bound.clock.advance(1.0)
    (refused,) = await bound.together(50)
    assert 2 <= refused.retry_after_s <= 4
    assert " leave the queue each second: try again in " in str(refused)
    later = await bound.together(*[1] * 100)
    assert max(each.retry_after_s for each in later) >= 7  # those come after the 50, not for the same places


@pytest.mark.parametrize("per_tenant", [None, 99])
async def test_seconds_in_which_nothing_waited_do_not_count(per_tenant: int | None) -> None:
    bound = Bound(limit=100, per_tenant=per_tenant)
    await bound.one(1)
    bound.leave(1)
    bound.clock.advance(60.0)
    await bound.one(99)
    for _ in range(4):
        bound.clock.advance(0.5)
        bound.leave(1)
        await bound.one(1)
    (refused,) = await bound.together(10)
    assert refused.retry_after_s in (5, 6)  # two leave in each second, whatever was before


async def test_who_is_refused_at_its_own_bound_waits_for_its_own_tasks() -> None:
    bound = Bound(limit=1000, per_tenant=10)
    await bound.one(10, tenant="slow")
    for _ in range(20):
        await bound.one(10, tenant="fast")
        bound.leave(10, tenant="fast")
        bound.clock.advance(1.0)
    (refused,) = await bound.together(1, tenant="slow")
    assert refused.retry_after_s == RETRY_MOST_S


def test_the_examples_are_right() -> None:
    assert doctest.testmod(admission).failed == 0


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 1200), st.integers(0, 1200))
def test_there_is_room_within_the_bounds_and_always_some_for_who_has_least(
    total: int, per_tenant: int, others: int, own: int
) -> None:
    bounds = Bounds(total, min(total, per_tenant))
    room = bounds.room(queued=others + own, own=own)
    assert room >= 0
    if room:
        assert own + room <= bounds.per_tenant
        assert others + own + room <= total or own + room <= bounds.door
    if not own:
        assert room >= 1


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 50), st.integers(0, 5)), max_size=60))
def test_who_is_refused_later_is_told_no_earlier_instant_while_the_rate_stays(
    steps: list[tuple[float, int, int]],
) -> None:
    drain, now_s = Drain(0.0), 0.0
    for elapsed_s, left, refused in steps:
        now_s += elapsed_s
        drain.note(left, now_s)
        assert drain.rate_per_s(now_s) >= 0
        told = [drain.refuse(1, places=1, now_s=now_s) for _ in range(refused)]
        assert told == sorted(told)
        assert all(1 <= after_s <= RETRY_MOST_S for after_s in told)


def test_a_steady_rate_is_measured_as_it_is() -> None:
    drain = Drain(0.0)
    for tenth in range(600):
        drain.note(3, tenth / 10)
    assert drain.rate_per_s(59.9) == pytest.approx(30.0, rel=0.02)
    assert drain.rate_per_s(80.0) == 0


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
