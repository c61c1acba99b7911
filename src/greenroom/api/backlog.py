"""The bound on the queue: how many tasks wait, counted at most once a second and guessed from above in between."""

from __future__ import annotations

import asyncio

from greenroom import clock as clocks
from greenroom import errors
from greenroom.store.store import Store

COUNT_EVERY_S = 1.0


class Backlog:
    def __init__(self, store: Store, clock: clocks.Clock, *, limit: int) -> None:
        self._store, self._clock, self._limit = store, clock, limit
        self._counted, self._since = 0, 0
        self._count_at_s = 0.0
        self._counting = asyncio.Lock()

    async def admit(self, count: int = 1) -> None:
        """Let *count* more tasks in; raises `errors.Overloaded` when that would be more than the limit."""
        if self._clock.monotonic_s() >= self._count_at_s and not self._counting.locked():
            async with self._counting:
                self._counted = await self._store.tasks.queued_count()
                self._since = 0
                self._count_at_s = self._clock.monotonic_s() + COUNT_EVERY_S
        if self._counted + self._since + count > self._limit:
            raise errors.Overloaded(
                f"cannot accept the task: {self._limit} are queued (server.max_queued_tasks)", retry_after_s=2.0
            )
        self._since += count
