"""Measurements: how the agents and the node do, as `core.optimizer` and the rules of users read it. Pure values.

What was not measured, or not often enough, is None: no data is no verdict. Durations are seconds, sizes MB, rates CPUs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

MIN_SAMPLES = 20  # fewer say nothing


class Spread(msgspec.Struct, frozen=True):
    mean: float
    p50: float
    p95: float
    count: int


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """*successor_mb* is what another in its place would hold when it is new; 0 where nobody knows."""

    id: str
    agent: str
    memory_mb: float = 0.0
    successor_mb: float = 0.0
    cpu: float = 0.0
    busy: int = 0
    slots: int = 1


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """An agent in the last ``window_s``.

    *response_s* is from acceptance to the end of a task, *run_s* of attempts. *wait_s* is to the first attempt, from
    when a free slot would have taken it: what waits for an earlier task of its session does not wait for a slot.
    *was_limited*: its circuit breaker was not closed. *max_running* is as in its settings.
    *busy_pct* is of its slots, on average. *cold_starts* counts replicas that became ready while no other was, and
    tasks waited; *start_s* is what they took. *idle_s* is since the last attempt ended, 0 while one runs.
    """

    name: str
    replicas: int = 0
    slots: int = 0
    busy: int = 0
    busy_pct: float | None = None
    queued: int = 0
    concurrency: int = 1
    min_replicas: int = 1
    max_replicas: int = 1
    max_running: int | None = None
    was_limited: bool = False
    attempts: int = 0
    error_pct: float | None = None
    response_s: Spread | None = None
    wait_s: Spread | None = None
    run_s: Spread | None = None
    memory_mb: float = 0.0
    cpu: float = 0.0
    cache_hits: int = 0
    cache_misses: int = 0
    cold_starts: int = 0
    start_s: float | None = None
    idle_s: float = 0.0

    @property
    def hit_pct(self) -> float | None:
        asked = self.cache_hits + self.cache_misses
        return 100 * self.cache_hits / asked if asked else None


class Measurements(msgspec.Struct, frozen=True, kw_only=True):
    """The whole node. *cpu_pct* and *memory_pct* are of the envelope; None where there is no limit, or no look yet."""

    window_s: float
    target_response_s: float
    is_autoscaled: bool = False
    cpu_pct: float | None = None
    memory_pct: float | None = None
    queued: int = 0
    max_queued: int = 0
    spares: int = 0
    cache_entries: int = 0
    agents: tuple[Agent, ...] = ()
    replicas: tuple[Replica, ...] = ()

    def agent(self, name: str) -> Agent | None:
        return next((each for each in self.agents if each.name == name), None)


def spread(values: Sequence[float], *, count: int | None = None) -> Spread | None:
    """Return the spread of *values*, a sample of *count*; None for fewer than `MIN_SAMPLES`.

    >>> spread([1.0] * 19), spread([float(n) for n in range(100)])
    (None, Spread(mean=49.5, p50=49.5, p95=94.0, count=100))
    """
    if len(values) < MIN_SAMPLES:
        return None
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered) - 0.5))]
    return Spread(statistics.fmean(ordered), statistics.median(ordered), p95, count or len(ordered))
