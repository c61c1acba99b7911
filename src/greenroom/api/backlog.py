"""The bounds on the queue: how many tasks wait, counted at most once a second and guessed from above in between.

The guess only grows, also where tasks end as quickly as they come. So nobody is refused on a guess: what it leaves no
room for waits for a count, which all who wait share. Who is refused is told when to come again, by how fast the queue
drains (`core.admission`). Sub-tasks are not refused: their parents hold them, and are bounded themselves.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict

from greenroom import clock as clocks
from greenroom import errors
from greenroom.core import admission
from greenroom.store.news import News
from greenroom.store.store import Store

COUNT_EVERY_S = 1.0
COUNT_AGAIN_S = 0.02  # where there is no room: overload costs 50 counts a second, ...
COUNT_SHARE = 3  # ... or fewer, if one takes so long that it would be going on for more than a part of the time
MAX_DRAINS = 10_000  # of tenants


class Backlog:
    """*per_tenant*: None for as many as in all."""

    def __init__(self, store: Store, clock: clocks.Clock, *, limit: int, per_tenant: int | None = None) -> None:
        self._store, self._clock = store, clock
        self._given = self._bounds = admission.Bounds(limit, limit if per_tenant is None else per_tenant)
        # What the last count found, by tenant, and what was let in since it began; None: nothing is known yet.
        self._counted: Counter[str] | None = None
        self._since = Counter[str]()
        self._queued = self._let_in = 0  # the sums of the two
        self._counts, self._count_took_s = 0, 0.0
        self._count_at_s = 0.0
        self._counting = asyncio.Lock()
        self._drain = admission.Drain(clock.monotonic_s())
        self._drains: OrderedDict[str, admission.Drain] = OrderedDict()  # of tenants, where they have a bound
        store.hub.subscribe(self._hear)

    def limit_admission(self, pct: float) -> None:
        """Let only *pct* percent of what may be queued be queued from now on; 100: all of it."""
        self._bounds = self._given.lowered(pct)

    async def admit(self, tenant: str, count: int = 1) -> None:
        """Let *count* more tasks of *tenant* in.

        Raises `errors.Overloaded` when that would be more than a limit, `errors.BodyInvalid` when it always would.
        """
        if self._clock.monotonic_s() >= self._count_at_s and not self._counting.locked():
            async with self._counting:
                await self._count()
        # Where all that is queued fits one tenant's bound, whoever comes does.
        fits_all = self._counted is not None and self._queued + self._let_in + count <= self._bounds.per_tenant
        if not fits_all and self._room(tenant) < count:
            await self._look_again(tenant, count)
        self._since[tenant] += count
        self._let_in += count

    def _own(self, tenant: str) -> int:
        return self._since[tenant] + (0 if self._counted is None else self._counted[tenant])

    def _room(self, tenant: str) -> int:
        if self._counted is None:
            return 0
        return self._bounds.room(queued=self._queued + self._let_in, own=self._own(tenant))

    async def _look_again(self, tenant: str, count: int) -> None:
        bounds = self._given
        most, setting = (
            (bounds.total, "max_queued_tasks")
            if bounds.per_tenant == bounds.total
            else (bounds.per_tenant, "max_queued_tasks_per_tenant")
        )
        if count > most:
            raise errors.BodyInvalid(
                f"cannot take a batch of {count} tasks: at most {most} may be queued (server.{setting}); "
                "send smaller ones"
            )
        counts = self._counts
        async with self._counting:
            if self._counts == counts:  # else another who waits here has counted
                await self._clock.sleep(max(COUNT_AGAIN_S, COUNT_SHARE * self._count_took_s))
                await self._count()
        if self._room(tenant) < count:
            raise self._refusal(tenant, count)

    def _refusal(self, tenant: str, count: int) -> errors.Overloaded:
        bounds, own, now_s = self._bounds, self._own(tenant), self._clock.monotonic_s()
        what = "the task" if count == 1 else f"{count} tasks"
        if own + count > bounds.per_tenant and bounds.per_tenant < bounds.total:
            drain, places = self._drain_of(tenant), own + count - bounds.per_tenant
            why = f"{own} of your tasks are queued, and at most {bounds.per_tenant} may be"
            setting = "max_queued_tasks_per_tenant"
        else:
            queued = self._queued + self._let_in
            drain, places = self._drain, queued + count - bounds.total
            why, setting = f"{queued} are queued, and at most {bounds.total} may be", "max_queued_tasks"
        told = f"server.{setting}" if bounds == self._given else "for now: the CPUs are busy"
        after_s = drain.refuse(count, places=places, now_s=now_s)
        return errors.Overloaded(
            f"cannot accept {what}: {why} ({told}); "
            f"{drain.rate_per_s(now_s):.3g} leave the queue each second: try again in {after_s} s",
            retry_after_s=after_s,
        )

    async def _count(self) -> None:
        self._counts += 1
        begun_s = self._clock.monotonic_s()
        before, on_their_way = self._since.copy(), self._store.tasks.submitting()
        counted = await self._store.tasks.queued_counts()
        # What was on its way, or let in meanwhile, may have been counted or not.
        self._counted, self._since = Counter(counted), self._since - before + on_their_way
        self._queued, self._let_in = self._counted.total(), self._since.total()
        now_s = self._clock.monotonic_s()
        self._count_took_s, self._count_at_s = now_s - begun_s, now_s + COUNT_EVERY_S
        if not counted:
            self._drain.begin(now_s)
        for tenant, drain in self._drains.items():
            if tenant not in counted:
                drain.begin(now_s)

    # --- how fast it drains

    def _hear(self, news: News) -> None:
        if not news.left:
            return
        now_s = self._clock.monotonic_s()
        self._drain.note(news.left.total(), now_s)
        if self._bounds.per_tenant < self._bounds.total:
            for tenant, count in news.left.items():
                self._drain_of(tenant).note(count, now_s)

    def _drain_of(self, tenant: str) -> admission.Drain:
        if tenant not in self._drains:
            self._drains[tenant] = admission.Drain(self._clock.monotonic_s())
            if len(self._drains) > MAX_DRAINS:
                self._drains.popitem(last=False)
        self._drains.move_to_end(tenant)
        return self._drains[tenant]
