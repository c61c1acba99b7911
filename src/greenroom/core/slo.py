"""SLOs: how much of its goals an agent may still miss, and whether it misses them too fast. Pure; `control.slos` asks.

A *goal* is a share of the tasks that ended, but for those that were cancelled: it succeeded, or it succeeded in time.
What may miss it in the window is the *error budget*. The *burn rate* is how fast that is spent: at 1 it is gone when
the window is over, at 10 after a tenth. An alert needs a high rate in two windows: the long one says that it matters,
the short one that it still goes on, so that the alert ends soon after its cause does.

Source: The Site Reliability Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts": its rates and windows, which
are of a budget of 30 days, and are scaled for others.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import msgspec

from greenroom.core import history

DAY_S, HOUR_S, MINUTE_S = history.DAY_S, history.HOUR_S, history.MINUTE_S
FINE_S = 6.0 * HOUR_S  # windows up to here are read minute by minute: the hour that has begun would be a fifth of more
NEW_S = {MINUTE_S: 600.0, HOUR_S: 3600.0}  # how old a bucket may be that still changes, while the store takes writes
SHORTEST_S = 60.0  # of a window: the history knows no less
SHORTEST_LONG_S = 300.0
MIN_BAD = 2  # one task is an accident, however tight the goal


class Goal(msgspec.Struct, frozen=True):
    """*target_pct* of the tasks succeed; within *latency_s* of their acceptance, if given."""

    target_pct: float
    latency_s: float | None = None

    @property
    def name(self) -> str:
        return "success" if self.latency_s is None else "latency"

    @property
    def measured_s(self) -> float | None:
        """What *latency_s* counts as: the next bound of the history's, which is up to a fifth more."""
        return None if self.latency_s is None else history.next_bound_s(self.latency_s)

    @property
    def budget(self) -> float:
        """The share of the tasks that may miss it."""
        return (100 - self.target_pct) / 100

    def told(self) -> str:
        within = "" if self.latency_s is None else f" within {self.latency_s:g} s"
        return f"{self.target_pct:g} % of the tasks succeed{within}"


class Policy(msgspec.Struct, frozen=True):
    """*window_s* is the budget's; no alert is made of fewer than *min_tasks*."""

    goals: tuple[Goal, ...]
    window_s: float = 30.0 * DAY_S
    min_tasks: int = 20


class Tally(msgspec.Struct, frozen=True, gc=False):
    """Tasks that ended, and how many of them missed a goal: a part of one where times are known of some only."""

    tasks: float = 0.0
    bad: float = 0.0

    @property
    def bad_share(self) -> float:
        return self.bad / self.tasks if self.tasks else 0.0


NOTHING = Tally()


def tally(counts: history.Counts, goal: Goal) -> Tally:
    """Judge a bucket. Who was cancelled says nothing; what failed, or expired in the queue, is bad for each goal.

    How long tasks took is known of some: of those that succeeded as many are late, by share, as of these.

    >>> tally(history.Counts(tasks={"succeeded": 97, "failed": 2, "expired": 1, "cancelled": 50}), Goal(99.0))
    Tally(tasks=100, bad=3)
    """
    succeeded = counts.tasks.get("succeeded", 0)
    bad: float = counts.tasks.get("failed", 0) + counts.tasks.get("expired", 0)
    total = succeeded + bad
    if goal.latency_s is not None:
        bad += succeeded * counts.response.share_over(goal.latency_s)
    return Tally(total, bad)


def burn_rate(seen: Tally, goal: Goal) -> float:
    """Return how many times faster than it may the budget is spent; 0 of nothing.

    >>> round(burn_rate(Tally(1000, 14), Goal(99.9)), 1)
    14.0
    """
    return seen.bad_share / goal.budget


def budget_left(seen: Tally, goal: Goal) -> float:
    """Return the part of the budget that is left of the tasks that there were; below 0 it is overspent.

    >>> [budget_left(Tally(1000, bad), Goal(99.0)) for bad in (0, 5, 20)]
    [1.0, 0.5, -1.0]
    """
    return 1.0 - burn_rate(seen, goal)


# --- alerts


class Severity(enum.StrEnum):
    """*page*: somebody has to look now; *ticket*: within some days."""

    PAGE = "page"
    TICKET = "ticket"


class Tier(msgspec.Struct, frozen=True):
    """It alerts where the budget burns at *rate* in both windows. *name* is of how fast that is."""

    name: str
    severity: Severity
    rate: float
    long_s: float
    short_s: float


_OF_30_DAYS = (
    Tier("fast", Severity.PAGE, 14.4, HOUR_S, 5 * MINUTE_S),  # 2 % of the budget, in an hour
    Tier("steady", Severity.PAGE, 6.0, 6 * HOUR_S, 30 * MINUTE_S),  # 5 %
    Tier("slow", Severity.TICKET, 1.0, 3 * DAY_S, 6 * HOUR_S),  # 10 %
)


def tiers(window_s: float) -> tuple[Tier, ...]:
    """Return what alerts for a budget of *window_s*, the most urgent first: as far as windows may be shortened, each
    stands for the same part of the budget.

    >>> [(tier.rate, tier.long_s / 60, tier.short_s / 60) for tier in tiers(7 * DAY_S)]
    [(14.4, 14.0, 1.1666666666666667), (6.0, 84.0, 7.0), (1.0, 1008.0, 84.0)]
    """
    scale = window_s / (30 * DAY_S)
    return tuple(
        msgspec.structs.replace(
            tier, long_s=max(scale * tier.long_s, SHORTEST_LONG_S), short_s=max(scale * tier.short_s, SHORTEST_S)
        )
        for tier in _OF_30_DAYS
    )


class Burn(msgspec.Struct, frozen=True):
    """What a tier sees of a goal."""

    tier: Tier
    goal: Goal
    long: Tally
    short: Tally
    min_tasks: int = 1

    @property
    def long_rate(self) -> float:
        return burn_rate(self.long, self.goal)

    @property
    def short_rate(self) -> float:
        return burn_rate(self.short, self.goal)

    @property
    def has_volume(self) -> bool:
        """Whether enough tasks have ended for a rate to say something."""
        return self.long.tasks >= self.min_tasks

    @property
    def alerts(self) -> bool:
        is_fast = self.long_rate >= self.tier.rate and self.short_rate >= self.tier.rate
        return is_fast and self.has_volume and self.long.bad >= MIN_BAD

    def told(self, agent: str) -> str:
        """Say of *agent* what burns, how fast, and what to do."""
        next = (
            f"greenroom tasks ls --agent {agent} --state failed"
            if self.goal.latency_s is None
            else f"greenroom history {agent}"
        )
        return (
            f"{agent}: {self.long.bad:.0f} of {self.long.tasks:.0f} tasks of the last {_span(self.tier.long_s)} missed "
            f"its goal ({self.goal.told()}), which spends the error budget {self.long_rate:.1f} times faster than it "
            f"lasts, also in the last {_span(self.tier.short_s)}; see greenroom health {agent}, and {next}"
        )


class State(msgspec.Struct, frozen=True):
    """How a goal stands: *seen* in the whole window, and what each tier sees."""

    goal: Goal
    seen: Tally
    burns: tuple[Burn, ...]

    @property
    def budget_left(self) -> float:
        return budget_left(self.seen, self.goal)

    @property
    def alert(self) -> Burn | None:
        """Return the most urgent one that alerts."""
        return next((burn for burn in self.burns if burn.alerts), None)


def _span(window_s: float) -> str:
    """Return a window in words.

    >>> _span(300.0), _span(3600.0), _span(3 * DAY_S)
    ('5 min', '1 h', '3 d')
    """
    for unit, unit_s in (("d", DAY_S), ("h", HOUR_S)):
        if window_s >= unit_s:
            return f"{window_s / unit_s:.3g} {unit}"
    return f"{window_s / 60:.3g} min"


class Past(msgspec.Struct):
    """An agent's buckets, judged by each goal of *policy*, by when they began in microseconds; read at *read_us*."""

    policy: Policy
    minutes: dict[int, tuple[Tally, ...]] = msgspec.field(default_factory=dict)
    hours: dict[int, tuple[Tally, ...]] = msgspec.field(default_factory=dict)
    read_us: int | None = None

    def of(self, step_s: int) -> dict[int, tuple[Tally, ...]]:
        return self.minutes if step_s == MINUTE_S else self.hours

    def to_read(self, step_s: int, now_us: int) -> int:
        """Return from when on buckets of *step_s* are to be read: all, or what may have changed since."""
        if self.read_us is None:
            return self._oldest_us(step_s, now_us)
        return since_us(min(self.read_us, now_us), NEW_S[step_s], step_s)

    def put(self, step_s: int, buckets: Mapping[int, history.Counts], *, now_us: int) -> None:
        """Take *buckets* for what they are now, and forget what is too old."""
        kept = self.of(step_s)
        for at_us, counts in buckets.items():
            kept[at_us] = tuple(tally(counts, goal) for goal in self.policy.goals)
        oldest_us = self._oldest_us(step_s, now_us)
        for at_us in [at_us for at_us in kept if at_us < oldest_us]:
            del kept[at_us]

    def _oldest_us(self, step_s: int, now_us: int) -> int:
        window_s = self.policy.window_s
        return since_us(now_us, min(window_s, FINE_S) if step_s == MINUTE_S else window_s, step_s)

    def states(self, now_us: int) -> list[State]:
        """Return how each goal stands."""
        return [self._state(place, goal, now_us) for place, goal in enumerate(self.policy.goals)]

    def _state(self, place: int, goal: Goal, now_us: int) -> State:
        def seen(window_s: float) -> Tally:
            step_s = MINUTE_S if window_s <= FINE_S else HOUR_S
            return self._sum(place, step_s, since_us(now_us, window_s, step_s), now_us)

        burns = tuple(
            Burn(tier, goal, seen(tier.long_s), seen(tier.short_s), self.policy.min_tasks)
            for tier in tiers(self.policy.window_s)
        )
        return State(goal, seen(self.policy.window_s), burns)

    def _sum(self, place: int, step_s: int, begin_us: int, now_us: int) -> Tally:
        kept = self.of(step_s)
        return summed(kept[at_us][place] for at_us in kept if begin_us <= at_us <= now_us)


def summed(tallies: Iterable[Tally]) -> Tally:
    found = list(tallies)
    return Tally(sum(each.tasks for each in found), sum(each.bad for each in found))


def since_us(now_us: int, window_s: float, step_s: int) -> int:
    """Return when the oldest bucket began of which a part lies in the last *window_s*."""
    return history.begin_us(now_us - int(window_s * 1e6), step_s)
