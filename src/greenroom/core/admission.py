"""Admission: how much. Pure.

Queues are bounded; who is refused is told when to come again, by how fast the queue drains.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque

import msgspec


class Bounds(msgspec.Struct, frozen=True):
    """How many tasks may be queued: in all, and of one tenant."""

    total: int
    per_tenant: int

    @property
    def door(self) -> int:
        """How many each tenant may have queued though the queue is full: one closes it for itself, not for others."""
        return min(self.per_tenant, max(1, self.total // 100))

    def lowered(self, pct: float) -> Bounds:
        """Return *pct* percent of both, and one task at least: nothing at all would be no bound, but an end.

        >>> Bounds(1000, 800).lowered(10), Bounds(1000, 800).lowered(0)
        (Bounds(total=100, per_tenant=80), Bounds(total=1, per_tenant=1))
        """
        share = min(100.0, max(0.0, pct)) / 100
        return Bounds(max(1, int(self.total * share)), max(1, int(self.per_tenant * share)))

    def room(self, *, queued: int, own: int) -> int:
        """Return how many more tasks a tenant may queue that has *own* of the *queued* ones.

        >>> Bounds(1000, 800).room(queued=1000, own=4)
        6
        """
        return max(0, min(self.per_tenant - own, max(self.total - queued, self.door - own)))


RETRY_LEAST_S, RETRY_MOST_S = 1, 300


def retry_after_s(places: int, rate_per_s: float) -> int:
    """Return the whole seconds after which *places* will have come free, where tasks leave the queue at that rate.

    >>> retry_after_s(25, 10.0), retry_after_s(1, 1000.0), retry_after_s(1, 0.0)
    (3, 1, 300)
    """
    if rate_per_s <= 0:
        return RETRY_MOST_S
    return max(RETRY_LEAST_S, min(RETRY_MOST_S, math.ceil(places / rate_per_s)))


class Drain:
    """How fast a queue drains, in a sliding window, and how many who were refused are yet to come again.

    They are counted before whoever is refused next: else all would be told to come for the same place. Bounded: by the
    seconds that both look at.
    """

    WINDOW_S = 10

    def __init__(self, now_s: float) -> None:
        self._begun_s = now_s
        self._left: deque[tuple[int, int]] = deque()  # how many in each second
        self._awaited: OrderedDict[int, int] = OrderedDict()  # how many were told to come in each second

    def begin(self, now_s: float) -> None:
        """Note that nothing waits: how little has left the queue until now does not say how fast it drains."""
        self._begun_s = now_s
        self._left.clear()

    def note(self, count: int, now_s: float) -> None:
        """Note that *count* tasks have left the queue."""
        second = int(now_s)
        if self._left and self._left[-1][0] == second:
            count += self._left.pop()[1]
        self._left.append((second, count))
        self._forget(second)

    def rate_per_s(self, now_s: float) -> float:
        self._forget(int(now_s))
        elapsed_s = min(now_s - self._begun_s, now_s - int(now_s) + self.WINDOW_S - 1)
        return sum(count for _, count in self._left) / max(1.0, elapsed_s)

    def refuse(self, count: int, *, places: int, now_s: float) -> int:
        """Return the seconds after which one may come again who is refused with *count* tasks, for want of *places*."""
        self._awaited = OrderedDict((second, n) for second, n in self._awaited.items() if second > now_s)
        after_s = retry_after_s(places + sum(self._awaited.values()), self.rate_per_s(now_s))
        at_s = int(now_s) + after_s
        self._awaited[at_s] = self._awaited.get(at_s, 0) + count
        return after_s

    def _forget(self, second: int) -> None:
        while self._left and self._left[0][0] <= second - self.WINDOW_S:
            self._left.popleft()
