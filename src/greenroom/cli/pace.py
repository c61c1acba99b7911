"""How often a follower asks: often at first, then so that a caller of a hundred requests a minute has some left."""

from __future__ import annotations

from collections.abc import Callable

from greenroom import clock
from greenroom.core import rates

PER_MINUTE = 40  # as many at once before
MOST = 30  # what one look counts as: of more, those that are too many wait in the client, as the node says

_monotonic_s = clock.SystemClock().monotonic_s


class Pace:
    def __init__(self, monotonic_s: Callable[[], float] = _monotonic_s) -> None:
        self._monotonic_s = monotonic_s
        self._asked = rates.RateLimit(PER_MINUTE)

    def delay_s(self, requests: int, *, least_s: float) -> float:
        """Return the seconds before the next *requests*, at least *least_s*; each call counts them."""
        now_s, count = self._monotonic_s(), min(max(1, requests), MOST)
        wait_s = self._asked.wait_s("", now_s, count)
        self._asked.spend("", now_s, count)
        return max(least_s, wait_s)
