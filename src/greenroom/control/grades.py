"""Grades agents by what became of their tasks in the last minutes: see `core.grades`.

Reads the history in the store, so that a restart keeps the grades, and writes nothing: who shows an agent asks
`finding`. No grade of an agent stops a replica.
"""

from __future__ import annotations

import asyncio

import msgspec

from greenroom import clock as clocks
from greenroom import settings, telemetry
from greenroom.core import grades, health, history
from greenroom.store import database
from greenroom.store.store import Store

LOOK_EVERY_S = 10.0  # the history is written each five
_UNGRADED = health.Standing(grades.TOO_FEW, grades.TOO_FEW)


class _Judged(msgspec.Struct, frozen=True):
    recent: grades.Recent = grades.Recent()
    standing: health.Standing = _UNGRADED


class Grades:
    name = "grades"

    def __init__(self, store: Store, clock: clocks.Clock, facts: telemetry.Telemetry) -> None:
        self._store, self._clock, self._facts = store, clock, facts
        self.wakeup = asyncio.Event()
        self._judged: dict[str, _Judged] = {}

    async def step(self) -> float:
        bounds = {name: settings.health_bounds(entry.spec) for name, entry in self._store.directory.entries.items()}
        now_us = database.microseconds(self._clock.now())
        since_us = {name: now_us - int(each.window_s * 1e6) for name, each in bounds.items()}
        recent = await self._recent(since_us)
        self._judged = {name: self._judge(name, recent.get(name, grades.Recent()), bounds[name]) for name in bounds}
        return LOOK_EVERY_S

    def finding(self, agent: str) -> health.Finding:
        """Return what its tasks say of *agent*, with the reason."""
        return self._judged.get(agent, _Judged()).standing.finding

    def recent(self, agent: str) -> grades.Recent:
        """Return what was counted of *agent* at the last look."""
        return self._judged.get(agent, _Judged()).recent

    async def _recent(self, since_us: dict[str, int]) -> dict[str, grades.Recent]:
        """Return what became of each agent's tasks in its window: of whole minutes, the first of which lies in it."""
        if not since_us:
            return {}
        begin_us = {name: history.begin_us(at_us, history.MINUTE_S) for name, at_us in since_us.items()}
        records = await self._store.history.recent(history.MINUTE_S, since_us=min(begin_us.values()))
        counted: dict[str, history.Counts] = {}
        for agent, at_us, record in records:
            if at_us >= begin_us.get(agent, 2**62):
                counted.setdefault(agent, history.Counts()).merge(history.decode(record))
        return {agent: grades.Recent.of(counts) for agent, counts in counted.items()}

    def _judge(self, agent: str, recent: grades.Recent, bounds: grades.Bounds) -> _Judged:
        held = self._judged.get(agent, _Judged()).standing
        found = grades.judge(agent, recent, bounds, is_graded=held.finding.grade is not health.Grade.UNKNOWN)
        standing = health.settle(held, found)
        if standing.finding.grade is not held.finding.grade:
            self._facts.emit(telemetry.AgentGraded(agent, standing.finding.grade, standing.finding.reason))
        return _Judged(recent, standing)
