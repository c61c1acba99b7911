"""Rollouts that can go well, go wrong, or be meddled with: what is asked for, and how each has to end.

`rollouts` runs each of them once undisturbed, and once more for every point at which something can be struck.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from greenroom import settings

AGENT = "a"
DEADLINE_S = 6.0
HOLD_S = 1.5
WATCH_S = 4.0  # what tells errors takes longer
DELAY_S = 2.0  # before the revision that was left goes


class Plot(enum.StrEnum):
    """What happens to the deployment of revision 2, and 3 where there is one, of an agent that revision 1 serves."""

    GOOD = "good"
    CHECK_FAILS = "check-fails"
    PROBE_FAILS = "probe-fails"
    REFUSED = "refused"  # it cannot even be started
    CRASHES = "crashes"  # before it is ready
    NEVER_READY = "never-ready"
    ERRORS = "errors"  # on users' tasks
    ABORTED = "aborted"  # by two people at once, and once more
    PAUSED = "paused"  # and resumed
    PROMOTED = "promoted"  # stage by stage
    UNDONE = "undone"  # when it was complete
    REDONE = "redone"  # the undoing is undone, too
    SUPERSEDED = "superseded"
    SUPERSEDED_BY_BAD = "superseded-by-bad"
    TWO_AT_ONCE = "two-at-once"
    FIRST = "first"  # there was no revision 1 before
    FIRST_FAILS = "first-fails"


BAD = frozenset({Plot.CHECK_FAILS, Plot.PROBE_FAILS, Plot.REFUSED, Plot.CRASHES, Plot.NEVER_READY, Plot.ERRORS})
_FIRSTS = frozenset({Plot.FIRST, Plot.FIRST_FAILS})
_HELD = frozenset({Plot.ABORTED, Plot.PAUSED, Plot.SUPERSEDED, Plot.SUPERSEDED_BY_BAD})  # something happens at a stage


@dataclass(frozen=True, slots=True)
class End:
    """How the last rollout ends, and which revisions may serve then."""

    phase: str
    serving: frozenset[int]


_ENDS = {
    Plot.GOOD: End("complete", frozenset({2})),
    Plot.PAUSED: End("complete", frozenset({2})),
    Plot.PROMOTED: End("complete", frozenset({2})),
    Plot.ABORTED: End("aborted", frozenset({1})),
    Plot.UNDONE: End("complete", frozenset({1})),
    Plot.REDONE: End("complete", frozenset({2})),
    Plot.SUPERSEDED: End("complete", frozenset({3})),
    Plot.SUPERSEDED_BY_BAD: End("rolled_back", frozenset({1})),
    Plot.TWO_AT_ONCE: End("complete", frozenset({2, 3})),
    Plot.FIRST: End("complete", frozenset({1})),
    Plot.FIRST_FAILS: End("failed", frozenset({1})),
    **{plot: End("rolled_back", frozenset({1})) for plot in BAD},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """*stage*: the one at which it is meddled with; -1: as soon as it has begun.

    *in_manifest*: each node deploys what is wanted anew when it starts, unless that was undone.
    """

    strategy: str
    plot: Plot
    desired: int = 2
    stage: int | None = None
    in_manifest: bool = False

    @property
    def name(self) -> str:
        stage = "" if self.stage is None else f"@{self.stage}"
        return f"{self.strategy}/{self.plot}{stage}/{self.desired}{'/manifest' if self.in_manifest else ''}"

    @property
    def end(self) -> End:
        return _ENDS[self.plot]

    @property
    def has_first(self) -> bool:
        """Whether something serves before the rollout that is looked at."""
        return self.plot not in _FIRSTS

    @property
    def bad(self) -> dict[int, Plot]:
        """What is wrong with which revision."""
        match self.plot:
            case Plot.SUPERSEDED_BY_BAD:
                return {3: Plot.CHECK_FAILS}
            case Plot.FIRST_FAILS:
                return {1: Plot.CHECK_FAILS}
            case plot if plot in BAD:
                return {2: plot}
            case _:
                return {}

    @property
    def min_ready(self) -> int:
        """How many replicas of the serving revision are ready at any time, undisturbed."""
        return 1 if self.strategy == "rolling" else self.desired

    @property
    def spec(self) -> settings.AgentSettings:
        rollout: dict[str, Any] = {
            "strategy": self.strategy,
            "checks": ["module:check"],
            "hold_s": WATCH_S if self.plot is Plot.ERRORS else HOLD_S,
            "scale_down_delay_s": DELAY_S,
            "progress_deadline_s": DEADLINE_S,
            "promotion": "manual" if self.plot is Plot.PROMOTED else "automatic",
        }
        if self.strategy == "rolling":
            rollout["max_surge"] = 1
        if self.strategy == "canary":
            rollout["weights"] = [50, 100]
        return settings.parse_agent(
            AGENT,
            {
                "factory": "module:agent",
                "concurrency": 2,
                "timeout_s": 20.0,
                "max_attempts": 3,
                "on_replica_loss": "retry",
                "scaling": {"min_replicas": self.desired},
                "rollout": rollout,
            },
        )


def _stages(strategy: str, desired: int) -> int:
    return desired if strategy == "rolling" else 2


def _plotted(strategy: str) -> Iterator[Scenario]:
    for desired in (1, 3) if strategy == "canary" else (1, 2, 3, 4):  # evidence takes its time
        yield Scenario(strategy=strategy, plot=Plot.GOOD, desired=desired)
    for plot in (*sorted(BAD), Plot.PROMOTED, Plot.UNDONE, Plot.REDONE, Plot.TWO_AT_ONCE):
        yield Scenario(strategy=strategy, plot=plot)
    for plot in sorted(_HELD):
        for stage in range(-1, _stages(strategy, 2)):
            yield Scenario(strategy=strategy, plot=plot, stage=stage)
    for plot in (Plot.GOOD, Plot.CHECK_FAILS, Plot.UNDONE):
        yield Scenario(strategy=strategy, plot=plot, in_manifest=True)
    yield Scenario(strategy=strategy, plot=Plot.ABORTED, stage=0, in_manifest=True)


def every() -> list[Scenario]:
    """Return all that `make simulate` runs."""
    firsts = [Scenario(strategy="rolling", plot=plot, desired=count) for plot in sorted(_FIRSTS) for count in (1, 3)]
    return firsts + list(itertools.chain.from_iterable(_plotted(each) for each in ("rolling", "blue-green", "canary")))


def named(name: str) -> Scenario:
    """Return the scenario of this name."""
    return next(scenario for scenario in every() if scenario.name == name)
