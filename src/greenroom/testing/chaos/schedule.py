"""When which fault happens: a pure function of a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

LATEST = 0.92  # of the time: the last fault is still felt by tasks


@dataclass(frozen=True, slots=True, order=True)
class Planned:
    """A fault *at_s* after the beginning, held for *hold_s*; *draw*, in [0, 1), chooses its victim."""

    at_s: float
    kind: str
    hold_s: float
    draw: float


def plan(
    seed: int, *, for_s: float, kinds: Sequence[str], count: int, holds_s: Mapping[str, tuple[float, float]]
) -> tuple[Planned, ...]:
    """Return *count* faults, spread over *for_s*: every kind equally often, or as often as it is named.

    *holds_s* bounds how long a kind is held, mostly nearer to the lower bound, and never beyond *for_s*.

    >>> [fault.kind for fault in plan(1, for_s=60, kinds=["kill", "lock"], count=4, holds_s={"lock": (1, 2)})]
    ['kill', 'lock', 'kill', 'lock']
    """
    chance = random.Random(seed)
    deck = _deck(chance, kinds)
    faults = []
    for number in range(count):
        kind = next(deck)
        least_s, most_s = holds_s.get(kind, (0.0, 0.0))
        hold_s = min(for_s, least_s + (most_s - least_s) * chance.random() ** 3)
        at_s = min(for_s * LATEST * (number + chance.random()) / count, for_s - hold_s)
        faults.append(Planned(at_s, kind, hold_s, chance.random()))
    return tuple(sorted(faults))


def _deck(chance: random.Random, kinds: Sequence[str]) -> Iterator[str]:
    while True:
        yield from chance.sample(kinds, len(kinds))
