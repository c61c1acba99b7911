"""Grades agents by what became of their tasks in the last minutes: see `core.grades`.

Reads the history in the store, so that a restart keeps the grades, and writes nothing: who shows an agent asks
`finding`. No grade of an agent stops a replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

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
        recent = await self._recent(bounds)
        self._judged = {name: self._judge(name, recent.get(name, grades.Recent()), bounds[name]) for name in bounds}
        return LOOK_EVERY_S

    def finding(self, agent: str) -> health.Finding:
        """Return what its tasks say of *agent*, with the reason."""
        return self._judged.get(agent, _Judged()).standing.finding

    def recent(self, agent: str) -> grades.Recent:
        """Return what was counted of *agent* at the last look."""
        return self._judged.get(agent, _Judged()).recent

    async def _recent(self, bounds: Mapping[str, grades.Bounds]) -> dict[str, grades.Recent]:
        """Return what became of each agent's tasks in its window: in whole minutes, of the first of them a part."""
        if not bounds:
            return {}
        now_us = database.microseconds(self._clock.now())
        begin_us = {
            name: history.begin_us(now_us - int(each.window_s * 1e6), history.MINUTE_S) for name, each in bounds.items()
        }
        records = await self._store.history.recent(history.MINUTE_S, since_us=min(begin_us.values()))
        return await asyncio.to_thread(_counted, records, begin_us)  # of a hundred agents it takes a while

    def _judge(self, agent: str, recent: grades.Recent, bounds: grades.Bounds) -> _Judged:
        held = self._judged.get(agent, _Judged()).standing
        found = grades.judge(agent, recent, bounds, is_graded=held.finding.grade is not health.Grade.UNKNOWN)
        standing = health.settle(held, found)
        if standing.finding.grade is not held.finding.grade:
            self._facts.emit(telemetry.AgentGraded(agent, standing.finding.grade, standing.finding.reason))
        return _Judged(recent, standing)


def _counted(records: Sequence[tuple[str, int, bytes]], begin_us: Mapping[str, int]) -> dict[str, grades.Recent]:
    """Add up each agent's records that began since; those of agents that are gone are left out."""
    counted: dict[str, history.Counts] = {}
    for agent, at_us, record in records:
        if at_us >= begin_us.get(agent, 2**62):
            counted.setdefault(agent, history.Counts()).merge(history.decode(record))
    return {agent: grades.Recent.of(counts) for agent, counts in counted.items()}
