"""Strategies: what a rollout does, as data. Pure.

A strategy is a tuple of stages, so that blue-green, rolling and canary are one machine, that of `core.rollouts`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """*capacity_pct* and *old_pct* are shares of the replicas that the agent should have: of the new revision, and of
    the one before. *weight_pct* is the traffic that the new one gets as soon as that capacity is ready and proven.
    """

    weight_pct: int
    capacity_pct: float
    old_pct: float = 100.0
    hold_s: float = 0.0  # how long it is watched then
    has_checks: bool = True  # beside the probe of each replica
    needs_samples: bool = False  # it goes on only with evidence from users' tasks
    needs_promotion: bool = False


class Strategy(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of a rollout. *surge* and *unavailable* are numbers of replicas."""

    kind: str  # "rolling", "blue-green" or "canary"
    hold_s: float = 0.0
    weights: tuple[int, ...] = (10, 25, 50, 100)
    surge: int = 1
    unavailable: int = 0
    needs_promotion: bool = False


def bound(given: int | str, desired: int) -> int:
    """Return a number of replicas that is given as one, or as a percentage of *desired*, rounded up.

    >>> bound(2, 10), bound("25%", 10), bound("0%", 10)
    (2, 3, 0)
    """
    if isinstance(given, int):
        return given
    return math.ceil(desired * int(given.removesuffix("%")) / 100)


def stages(strategy: Strategy, desired: int) -> tuple[Stage, ...]:
    """Return what *strategy* does with *desired* replicas.

    >>> [(stage.weight_pct, stage.capacity_pct, stage.old_pct) for stage in stages(Strategy(kind="rolling"), 4)]
    [(25, 25.0, 100.0), (50, 50.0, 75.0), (75, 75.0, 50.0), (100, 100.0, 25.0)]
    """
    gate = strategy.needs_promotion
    match strategy.kind:
        case "blue-green":
            return (
                Stage(weight_pct=0, capacity_pct=100, needs_promotion=gate),
                Stage(weight_pct=100, capacity_pct=100, hold_s=strategy.hold_s, has_checks=False),
            )
        case "canary":
            return tuple(
                Stage(
                    weight_pct=weight_pct,
                    capacity_pct=weight_pct,
                    hold_s=strategy.hold_s,
                    has_checks=place == 0,
                    needs_samples=weight_pct < 100,
                    needs_promotion=gate and weight_pct < 100,
                )
                for place, weight_pct in enumerate(strategy.weights)
            )
        case "rolling":
            return _batches(strategy, desired)
        case _:
            raise ValueError(f"no strategy is called {strategy.kind!r}")


def _batches(strategy: Strategy, desired: int) -> tuple[Stage, ...]:
    """Return one stage for each batch: at most *surge* replicas too many, and *unavailable* too few, at any time.

    One replica of the revision before stays to the end, whatever the bounds: the agent is always served.
    """
    surge = strategy.surge or (0 if strategy.unavailable else 1)  # or nothing could move
    batch = surge + strategy.unavailable
    found, moved = [], 0
    while moved < desired:
        new = min(desired, moved + batch)
        old = max(1, desired - moved - max(0, new - moved - surge))
        found.append(
            Stage(
                weight_pct=100 * new // desired,
                capacity_pct=100 * new / desired,
                old_pct=100 * old / desired,
                hold_s=strategy.hold_s,
                needs_promotion=strategy.needs_promotion and new < desired,
            )
        )
        moved = new
    return tuple(found)


def replicas(pct: float, desired: int) -> int:
    """Return *pct* percent of *desired* replicas, rounded up, and one at least.

    >>> replicas(5, 10), replicas(100 / 3, 3), replicas(0, 3)
    (1, 1, 1)
    """
    return max(1, math.ceil(desired * pct / 100 - 1e-9))


def surge(stages: Sequence[Stage], desired: int) -> int:
    """Return how many replicas more than *desired* there are when it is most."""
    if not desired:
        return 0
    return max(
        (replicas(stage.old_pct, desired) + replicas(stage.capacity_pct, desired) - desired for stage in stages),
        default=0,
    )
