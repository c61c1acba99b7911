"""How long and how often the benchmarks measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How long and how often everything is measured."""

    rounds: int
    seconds: float
    batches: int  # of 500 tasks, in each round
    kills: int  # of replicas
    hangs: int
    node_kills: int  # on each store
    rollouts: int  # of each strategy
    bursts: int  # of a tenant beside a flood
    overload_s: float
    starts: int
    idle_s: float
    replicas: int
    finished: int  # tasks in a store that is full


FULL = Scale(
    rounds=5,
    seconds=2.5,
    batches=60,
    kills=60,
    hangs=5,
    node_kills=7,
    rollouts=10,
    bursts=25,
    overload_s=10.0,
    starts=5,
    idle_s=10.0,
    replicas=200,
    finished=1_000_000,
)
QUICK = Scale(
    rounds=3,
    seconds=1.0,
    batches=30,
    kills=10,
    hangs=2,
    node_kills=2,
    rollouts=3,
    bursts=10,
    overload_s=4.0,
    starts=3,
    idle_s=3.0,
    replicas=30,
    finished=100_000,
)
