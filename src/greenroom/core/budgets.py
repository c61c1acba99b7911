"""Budgets: what an agent's tasks may cost and use in a day, which is that of UTC. Pure; `control.budgets` asks."""

from __future__ import annotations

from typing import NamedTuple

from greenroom.core import costs, history

WARN_PCT = 80
DAY_US = history.DAY_S * 1_000_000


class Budget(NamedTuple):
    """Of a day: *cost* in nano-dollars, tokens; None: as much as it takes."""

    cost: int | None = None
    tokens: int | None = None

    def used(self, today: history.Counts) -> list[Use]:
        """Return how much of each is used, that first of which most is.

        >>> used = Budget(cost=10 * costs.NANO, tokens=1000).used(history.Counts(cost=4 * costs.NANO, tokens=950))
        >>> [(round(use.pct), use.told, use.severity) for use in used]
        [(95, '1,000 tokens', 'warning'), (40, '$10.00', None)]
        """
        uses = []
        if self.cost is not None:
            uses.append(Use(100 * (today.cost or 0) / self.cost, costs.told(costs.usd(self.cost))))
        if self.tokens is not None:
            uses.append(Use(100 * today.tokens / self.tokens, f"{self.tokens:,} tokens"))
        return sorted(uses, reverse=True)


class Use(NamedTuple):
    """What share of a budget is used; *told* is the budget."""

    pct: float
    told: str

    @property
    def severity(self) -> str | None:
        """Return how bad that is; None: not yet."""
        if self.pct >= 100:
            return "critical"
        return "warning" if self.pct >= WARN_PCT else None


def day_end_us(now_us: int) -> int:
    """Return when the next day begins.

    >>> day_end_us(1) == day_end_us(DAY_US - 1) == DAY_US, day_end_us(DAY_US) == 2 * DAY_US
    (True, True)
    """
    return history.begin_us(now_us, history.DAY_S) + DAY_US
