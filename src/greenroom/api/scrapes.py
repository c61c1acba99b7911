"""What the store says at a scrape of the metrics: asked for at most once a second, however many scrape."""

from __future__ import annotations

import asyncio
from collections import Counter

from greenroom import clock as clocks
from greenroom import errors, telemetry
from greenroom.api import grading, views
from greenroom.store import database
from greenroom.store.store import Store

LOOK_EVERY_S = 1.0
WITHIN_S = 5.0  # Prometheus gives a scrape ten seconds, unless it is told otherwise


class Scrapes:
    def __init__(self, store: Store, clock: clocks.Clock, health: grading.Health, *, queue_limit: int) -> None:
        self._store, self._clock, self._health, self._queue_limit = store, clock, health, queue_limit
        self._seen: telemetry.Seen | None = None
        self._look_at_s = 0.0
        self._looking = asyncio.Lock()

    async def look(self) -> telemetry.Seen | None:
        """Return what there is; None where the store does not answer in time: what a node has counted it tells then,
        too.
        """
        async with self._looking:
            if self._clock.monotonic_s() >= self._look_at_s:
                self._seen = None
                try:
                    async with asyncio.timeout(WITHIN_S):
                        self._seen = await self._read()
                except (TimeoutError, errors.StoreUnavailable, errors.StoreDamaged):
                    pass  # told by who needs the store; here it is a metric
                self._look_at_s = self._clock.monotonic_s() + LOOK_EVERY_S
            return self._seen

    async def _read(self) -> telemetry.Seen:
        store = self._store
        entries = await store.directory.refresh()
        traffic = {}
        for name, entry in entries.items():
            shares = {entry.agent.revision: 100} if entry.rollout is None else entry.rollout.traffic.shares
            traffic.update({(name, revision): pct for revision, pct in shares.items()})
        rows = await store.agents.replicas()
        replicas = Counter((row.agent, row.revision, row.state, row.grade) for row in rows if row.ended_at is None)
        ready = views.ready(rows, store.board)
        graded = [grading.agent(entry, ready, self._health.finding(name)) for name, entry in entries.items()]
        now_us = database.microseconds(self._clock.now())
        waiting = await store.tasks.waiting()
        return telemetry.Seen(
            agents=entries.keys(),
            open=await store.tasks.open_counts(),
            queue={agent: (count, max(0.0, (now_us - since_us) / 1e6)) for agent, (count, since_us) in waiting.items()},
            replicas=replicas,
            traffic=traffic,
            alerts=Counter((row.kind, row.severity, row.state) for row in await store.alerts.open()),
            queue_limit=self._queue_limit,
            grades={each.id: each.grade for each in graded},
            system_grade=grading.system(self._health.node(), entries.values(), graded).grade,
            objectives={name: found.states for name in entries if (found := self._health.objectives(name))},
        )
