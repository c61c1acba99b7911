"""What all replicas of this node use together, by what the engine sees of each. Asked by `control.autoscaler`."""

from __future__ import annotations

from greenroom import clock as clocks
from greenroom.control.bounds import Use
from greenroom.engine.contract import Engine

EVERY_S = 2.0  # shorter spans say little about processor time


class Meter:
    def __init__(self, engine: Engine, clock: clocks.Clock) -> None:
        self._engine, self._clock = engine, clock
        self._at_s, self._spent_s = clock.monotonic_s(), dict[str, float]()
        self._use = Use(0.0, 0.0)

    def __call__(self) -> Use:
        now_s = self._clock.monotonic_s()
        elapsed_s = now_s - self._at_s
        if elapsed_s < EVERY_S:
            return self._use
        seen = self._engine.observe()
        spent_s = sum(max(0.0, each.cpu_s - self._spent_s.get(each.replica, 0.0)) for each in seen)
        self._use = Use(spent_s / elapsed_s, sum(each.rss_mb for each in seen))
        self._at_s, self._spent_s = now_s, {each.replica: each.cpu_s for each in seen}
        return self._use
