"""Reads what rules of alerts look at: history, queue, failures and replicas in the store, and the node's gauges.

Of `control.monitor`. What cannot be read now is unknown, and no reason not to read the rest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from greenroom import clock as clocks
from greenroom import errors
from greenroom.core import history, signals
from greenroom.core.history import Counts
from greenroom.core.signals import OF_HISTORY, Reading, Rule, Signal
from greenroom.store import database
from greenroom.store.store import Store

Answer = TypeVar("Answer")
Gauge = Callable[[], float | None]
"""Reads a signal of the node, in a thread; None where it is not known."""

_NO_COUNTS = Counts()


class Look(msgspec.Struct, frozen=True):
    """What was seen at one moment, by agent; None is unknown, and who is not named has nothing."""

    history: Mapping[float, Mapping[str, Counts]] | None  # by the window
    deaths: Mapping[float, Mapping[str, int] | None]
    queue: Mapping[str, tuple[int, float]] | None  # how many wait, and the oldest for how long
    replicas: Mapping[str, int] | None
    gauges: Mapping[Signal, float | None]

    def read(self, rule: Rule, agent: str | None) -> Reading | None:
        """Return what *rule* looks at says, of *agent* or of the node; None: that is unknown."""
        if agent is None:
            return _reading(self.gauges.get(rule.signal))
        if rule.signal in OF_HISTORY:
            if self.history is None:
                return None
            return signals.read(rule.signal, self.history[rule.window_s].get(agent, _NO_COUNTS))
        if rule.signal is Signal.RESTARTS:
            deaths = self.deaths[rule.window_s]
            return _reading(None if deaths is None else deaths.get(agent, 0))
        if rule.signal is Signal.REPLICAS:
            return _reading(None if self.replicas is None else self.replicas.get(agent, 0))
        count, oldest_s = (None, None) if self.queue is None else self.queue.get(agent, (0, 0.0))
        return _reading(count if rule.signal is Signal.QUEUED else oldest_s)


def _reading(value: float | None) -> Reading | None:
    return None if value is None else Reading(value)


class Readings:
    def __init__(self, store: Store, clock: clocks.Clock, gauges: Mapping[Signal, Gauge]) -> None:
        self._store, self._clock, self._gauges = store, clock, gauges

    async def look(self, rules: Sequence[Rule]) -> Look:
        """Read what *rules* look at, and nothing else."""
        wanted = {rule.signal for rule in rules}
        windows_s = {rule.window_s for rule in rules if rule.signal in OF_HISTORY}
        deaths_s = {rule.window_s for rule in rules if rule.signal is Signal.RESTARTS}
        is_queue = bool(wanted & {Signal.QUEUED, Signal.OLDEST_WAIT_S})
        now_us = database.microseconds(self._clock.now())
        return Look(
            history=await _known(self._history(windows_s, now_us)) if windows_s else None,
            deaths={window_s: await _known(self._deaths(window_s, now_us)) for window_s in deaths_s},
            queue=await _known(self._queue(now_us)) if is_queue else None,
            replicas=await _known(self._replicas()) if Signal.REPLICAS in wanted else None,
            gauges={
                signal: await asyncio.to_thread(gauge) for signal, gauge in self._gauges.items() if signal in wanted
            },
        )

    async def _history(self, windows_s: set[float], now_us: int) -> signals.Sums:
        since_us = now_us - int(max(windows_s) * 1e6)
        records = await self._store.history.recent(history.MINUTE_S, since_us=since_us)
        # With hundreds of busy agents that takes longer than the event loop should wait.
        return await asyncio.to_thread(signals.summed, records, windows_s, now_us=now_us)

    async def _deaths(self, window_s: float, now_us: int) -> Mapping[str, int]:
        return await self._store.recovery.failure_counts(after_us=now_us - int(window_s * 1e6))

    async def _queue(self, now_us: int) -> Mapping[str, tuple[int, float]]:
        waiting = await self._store.tasks.waiting()
        return {agent: (count, max(0.0, (now_us - since_us) / 1e6)) for agent, (count, since_us) in waiting.items()}

    async def _replicas(self) -> Mapping[str, int]:
        return Counter(row.agent for row in await self._store.agents.replicas() if row.state == "ready")


async def _known(read: Awaitable[Answer]) -> Answer | None:
    try:
        return await read
    except errors.StoreUnavailable:
        return None
