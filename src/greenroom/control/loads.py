"""The load of each agent, ten seconds at a time, for who replays it (`core.replays`). Called by `control.autoscaler`.

What arrives is told by what has ended and by what is there: so it counts whatever may be claimed when it may be, tasks
of sessions and those that run again among it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import msgspec

from greenroom import clock as clocks
from greenroom import telemetry
from greenroom.core.scaling import Sample
from greenroom.store import scaling as rows
from greenroom.store.store import Store


class _Sum(msgspec.Struct):
    """What was seen of an agent since the last record."""

    ends: int = 0
    run_s: float = 0.0
    starts: int = 0
    start_s: float = 0.0
    waiting: int = 0
    busy: float = 0.0
    looks: int = 0
    open_before: int = 0  # tasks that were there when it began


class Loads:
    def __init__(self, store: Store, clock: clocks.Clock, facts: telemetry.Telemetry) -> None:
        self._store, self._clock = store, clock
        self._sums: dict[str, _Sum] = defaultdict(_Sum)
        self._write_at_s = clock.monotonic_s() + rows.BUCKET_S
        self._has_looked = False
        facts.subscribe(self._on_end, telemetry.AttemptEnded)
        facts.subscribe(self._on_ready, telemetry.ReplicaReady)

    def _on_end(self, fact: telemetry.AttemptEnded) -> None:
        found = self._sums[fact.agent]
        found.ends += 1
        found.run_s += fact.duration_s

    def _on_ready(self, fact: telemetry.ReplicaReady) -> None:
        found = self._sums[fact.agent]
        found.starts += 1
        found.start_s += fact.start_s

    async def note(self, samples: Mapping[str, Sample]) -> None:
        """Take *samples* in; write ten seconds down when they are over."""
        if not self._has_looked:  # what is there came in an earlier life of the node
            self._has_looked = True
            self._open(samples)
        for agent, sample in samples.items():
            found = self._sums[agent]
            found.waiting = max(found.waiting, sample.waiting)
            found.busy += sample.busy
            found.looks += 1
        now_s = self._clock.monotonic_s()
        if now_s < self._write_at_s:
            return
        self._write_at_s = now_s + rows.BUCKET_S
        sums, self._sums = self._sums, defaultdict(_Sum)
        loads = [_load(agent, sample, sums[agent]) for agent, sample in samples.items()]
        self._open(samples)
        if busy := [load for load in loads if load.arrivals or load.ends or load.waiting or load.busy]:
            await self._store.scaling.record(busy)

    def _open(self, samples: Mapping[str, Sample]) -> None:
        for agent, sample in samples.items():
            self._sums[agent].open_before = sample.waiting + sample.busy


def _load(agent: str, sample: Sample, found: _Sum) -> rows.Load:
    return rows.Load(
        agent=agent,
        arrivals=max(0, found.ends + sample.waiting + sample.busy - found.open_before),
        ends=found.ends,
        run_us=round(found.run_s * 1e6 / found.ends) if found.ends else None,
        waiting=found.waiting,
        busy=found.busy / found.looks if found.looks else 0.0,
        replicas=sample.ready,
        start_us=round(found.start_s * 1e6 / found.starts) if found.starts else None,
    )
