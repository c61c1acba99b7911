"""The bound on the queue: how many tasks wait, counted at most once a second and guessed from above in between.

The guess only grows, also where tasks end as quickly as they come. So nobody is refused on a guess: what it leaves no
room for waits for a count, which all who wait share.
"""

from __future__ import annotations

import asyncio

from greenroom import clock as clocks
from greenroom import errors
from greenroom.store.store import Store

COUNT_EVERY_S = 1.0
COUNT_AGAIN_S = 0.05  # overload costs 20 counts a second
RETRY_AFTER_S = 2.0


class Backlog:
    def __init__(self, store: Store, clock: clocks.Clock, *, limit: int) -> None:
        self._store, self._clock, self._limit = store, clock, limit
        # What the last count found, and what was let in since it began; full, until something is known.
        self._counted, self._since = limit, 0
        self._counts = 0
        self._count_at_s = 0.0
        self._counting = asyncio.Lock()
        self._share_pct = 100.0  # of the limit

    def limit_admission(self, pct: float) -> None:
        """Let only *pct* percent of what may be queued be queued from now on; 100: all of it."""
        self._share_pct = min(100.0, max(0.0, pct))

    @property
    def _most(self) -> int:
        return max(1, int(self._limit * self._share_pct / 100))

    async def admit(self, count: int = 1) -> None:
        """Let *count* more tasks in.

        Raises `errors.Overloaded` when that would be more than the limit, `errors.BodyInvalid` when it always would.
        """
        if self._clock.monotonic_s() >= self._count_at_s and not self._counting.locked():
            async with self._counting:
                await self._count()
        if self._counted + self._since + count > self._most:
            await self._look_again(count)
        self._since += count

    async def _look_again(self, count: int) -> None:
        if count > self._limit:
            raise errors.BodyInvalid(
                f"cannot take a batch of {count} tasks: at most {self._limit} may be queued "
                "(server.max_queued_tasks); send smaller ones"
            )
        counts = self._counts
        async with self._counting:
            if self._counts == counts:  # else another who waits here has counted
                await self._clock.sleep(COUNT_AGAIN_S)
                await self._count()
        queued = self._counted + self._since
        if queued + count > self._most:
            what = "the task" if count == 1 else f"{count} tasks"
            why = "server.max_queued_tasks" if self._most == self._limit else "for now: the CPUs are busy"
            raise errors.Overloaded(
                f"cannot accept {what}: {queued} are queued, and at most {self._most} may be ({why}); try again later",
                retry_after_s=RETRY_AFTER_S,
            )

    async def _count(self) -> None:
        self._counts += 1
        before, on_their_way = self._since, self._store.tasks.submitting
        self._counted = await self._store.tasks.queued_count()
        # What was on its way, or let in meanwhile, may have been counted or not.
        self._since += on_their_way - before
        self._count_at_s = self._clock.monotonic_s() + COUNT_EVERY_S
