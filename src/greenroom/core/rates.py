"""Rates: how often. Pure; the time is an argument.

`RateLimit` is the generic cell rate algorithm (GCRA): of each name it keeps one number, the instant at which that name
will have its whole quota again. `Rejections` counts rejected credentials. Both are bounded: who was quiet for longest
is forgotten first.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

import msgspec

PERIOD_S = 60.0
MAX_NAMES = 10_000
_ROUNDING_S = 1e-6  # a hundred steps of 0.6 s are a little more than a minute


class RateLimit:
    """So many a minute for each name: at an even pace, or all at once after a minute of rest.

    Whoever spends steadily has exactly its rate; the most in any one minute is twice that, after a rest.
    """

    def __init__(self, per_minute: int, *, is_shared: bool = False, most_names: int = MAX_NAMES) -> None:
        self.per_minute = per_minute
        self._step_s = PERIOD_S / per_minute
        self._is_shared, self._most_names = is_shared, most_names
        self._full_at_s: OrderedDict[str, float] = OrderedDict()
        self._unsettled: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._full_at_s)

    def wait_s(self, name: str, now_s: float, count: int = 1) -> float:
        """Return the seconds after which *name* may spend *count*, at most `per_minute`; 0 if it may now."""
        debt_s = self._full_at_s.get(name, 0.0) - now_s
        excess_s = max(0.0, debt_s) + count * self._step_s - PERIOD_S
        return excess_s if excess_s > _ROUNDING_S else 0.0

    def spend(self, name: str, now_s: float, count: int = 1) -> None:
        """Charge *name*, whatever it has left."""
        self.take(name, now_s, count, most_s=math.inf)

    def take(self, name: str, now_s: float, count: int = 1, *, most_s: float = PERIOD_S + _ROUNDING_S) -> float:
        """Charge *name* and return 0; or nothing, and return `wait_s`, where its debt would be more than *most_s*."""
        names = self._full_at_s
        full_at_s = max(names.get(name, now_s), now_s) + count * self._step_s
        if full_at_s - now_s > most_s:
            return full_at_s - now_s - PERIOD_S
        names[name] = full_at_s
        names.move_to_end(name)
        if len(names) > self._most_names:
            names.popitem(last=False)
        if self._is_shared and (name in self._unsettled or len(self._unsettled) < self._most_names):
            self._unsettled[name] = self._unsettled.get(name, 0) + count
        return 0.0

    def give_back(self, name: str, count: int = 1) -> None:
        """Undo a charge that was made just now."""
        self._full_at_s[name] -= count * self._step_s
        if name in self._unsettled:
            self._unsettled[name] -= count

    def standing(self, name: str, now_s: float) -> tuple[int, ...]:
        """Return what *name* has left of its quota, and in how many whole seconds it will have all of it."""
        debt_s = self._full_at_s.get(name, now_s) - now_s - _ROUNDING_S
        if debt_s <= 0.0:
            return self.per_minute, 0
        return int((PERIOD_S - debt_s) / self._step_s) if debt_s < PERIOD_S else 0, math.ceil(debt_s)

    # Between nodes: each decides by what it knows, and tells the others in the background.

    def take_unsettled(self) -> dict[str, int]:
        """Return what each name has spent since the last call."""
        unsettled, self._unsettled = self._unsettled, {}
        return unsettled

    def put_back(self, unsettled: Mapping[str, int]) -> None:
        """Keep what was taken for the next time: it could not be told."""
        for name, count in unsettled.items():
            self._unsettled[name] = self._unsettled.get(name, 0) + count

    def debt_s(self, count: int) -> float:
        return count * self._step_s

    def settle(self, debts_s: Mapping[str, float], now_s: float) -> None:
        """Take over what all nodes together know; what was spent here since the last `take_unsettled` comes to it."""
        for name, debt_s in debts_s.items():
            if name in self._full_at_s:
                self._full_at_s[name] = now_s + debt_s + self._unsettled.get(name, 0) * self._step_s


class _Recent(msgspec.Struct):
    times: list[float] = []
    told_at_s: float = -PERIOD_S


class Rejections:
    """Counts rejected credentials by name (a source, the id of a key) in a sliding minute."""

    LIMIT_PER_MINUTE = 30

    def __init__(self, *, most_names: int = MAX_NAMES) -> None:
        self._most_names = most_names
        self._recent: OrderedDict[str, _Recent] = OrderedDict()

    def __len__(self) -> int:
        return len(self._recent)

    def note(self, name: str, now_s: float) -> bool:
        """Count one more; True where the limit is reached by it, at most once a minute."""
        recent = self._recent.setdefault(name, _Recent())
        recent.times.append(now_s)
        del recent.times[: -self.LIMIT_PER_MINUTE]
        self._recent.move_to_end(name)
        if len(self._recent) > self._most_names:
            self._recent.popitem(last=False)
        is_reached = self.wait_s(name, now_s) > 0 and now_s - recent.told_at_s >= PERIOD_S
        if is_reached:
            recent.told_at_s = now_s
        return is_reached

    def wait_s(self, name: str, now_s: float) -> float:
        """Return the seconds for which *name* has to wait; 0 if it may try."""
        recent = self._recent.get(name)
        if recent is None or len(recent.times) < self.LIMIT_PER_MINUTE:
            return 0.0
        return max(0.0, recent.times[0] + PERIOD_S - now_s)
