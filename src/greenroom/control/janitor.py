"""The janitor: lets due tasks become claimable, expires late ones, rescues what dead nodes held, and drops results
that were kept for long enough.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from greenroom import clock as clocks
from greenroom.store.news import News
from greenroom.store.store import Store

RESCUE_EVERY_S = 5.0
LONGEST_NAP_S = 1.0  # nobody announces the deadlines of queued tasks


class Janitor:
    name = "janitor"

    def __init__(self, store: Store, clock: clocks.Clock, *, jitter: Callable[[], float] = random.random) -> None:
        self._store, self._clock, self._jitter = store, clock, jitter
        self.wakeup = asyncio.Event()
        self._rescue_at_s = clock.monotonic_s()
        store.hub.subscribe(self._hear)

    async def step(self) -> float:
        if self._clock.monotonic_s() >= self._rescue_at_s:
            await self._store.tasks.rescue(spared=self._store.claims.owner, jitter=self._jitter())
            await self._store.cache.expire()
            self._rescue_at_s = self._clock.monotonic_s() + RESCUE_EVERY_S
        next_s = await self._store.tasks.tick()
        return LONGEST_NAP_S if next_s is None else min(next_s, LONGEST_NAP_S)

    def _hear(self, news: News) -> None:
        if news.due_at_us is not None:
            self.wakeup.set()
