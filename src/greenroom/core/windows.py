"""Windows over what was seen: the mean, and the highest, of the last so many seconds. Pure; of bounded size.

Instants are seconds of the node's life. Used by `core.scaling`.
"""

from __future__ import annotations

import msgspec

BUCKETS = 60  # of a window: what is older leaves it by that fraction
FINEST_S = 1.0


class Mean(msgspec.Struct, frozen=True):
    """The mean of a window of *window_s*. Each bucket weighs the same, however often somebody looked in it."""

    window_s: float
    buckets: tuple[tuple[float, float, int], ...] = ()  # since when, the sum, and how many it is of

    @property
    def value(self) -> float:
        """The mean of what there is; 0 of nothing."""
        if not self.buckets:
            return 0.0
        return sum(total / count for _, total, count in self.buckets) / len(self.buckets)

    def add(self, at_s: float, value: float) -> Mean:
        kept = tuple(bucket for bucket in self.buckets if bucket[0] > at_s - self.window_s)
        width_s = max(FINEST_S, self.window_s / BUCKETS)
        if kept and at_s - kept[-1][0] < width_s:
            since_s, total, count = kept[-1]
            return Mean(self.window_s, (*kept[:-1], (since_s, total + value, count + 1)))
        return Mean(self.window_s, (*kept, (at_s, value, 1)))


class Highest(msgspec.Struct, frozen=True):
    """The highest of a window of *window_s*: of each value, when it was seen last, while nothing later is as high."""

    window_s: float
    peaks: tuple[tuple[float, int], ...] = ()  # falling

    @property
    def value(self) -> int:
        return self.peaks[0][1] if self.peaks else 0

    def add(self, at_s: float, value: int) -> Highest:
        kept = (peak for peak in self.peaks if peak[0] > at_s - self.window_s and peak[1] > value)
        return Highest(self.window_s, (*kept, (at_s, value)))
