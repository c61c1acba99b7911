"""How long it took after each fault until work went on, and until all replicas were ready again. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from greenroom.sdk import models


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault as it happened; instants are seconds since 1970. *why_not*: it could not be injected.

    *hit* are the replicas whose tasks it interrupted, *gone* those that it ended.
    """

    kind: str
    at: float
    until: float
    hit: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class Sighting:
    """The ready replicas from *at* on, until the next sighting."""

    at: float
    ready: frozenset[str]


class Times(msgspec.Struct, frozen=True):
    """Seconds over *count* faults; a fault that hit nothing has none."""

    count: int
    p50_s: float
    p99_s: float
    worst_s: float


@dataclass(frozen=True, slots=True)
class Recovery:
    """*resumed_s*: to the first task that it hit running again; *ready_s*: to all replicas ready again."""

    kind: str
    resumed_s: float | None
    ready_s: float | None


def recoveries(
    faults: Iterable[Injection], tasks: Iterable[models.Task], sightings: Sequence[Sighting], *, desired: int
) -> list[Recovery]:
    resumptions = _resumptions(tasks)
    return [
        Recovery(fault.kind, _resumed_s(fault, resumptions), _ready_s(fault, sightings, desired))
        for fault in faults
        if fault.why_not is None
    ]


def not_ready_again(faults: Iterable[Injection], sightings: Sequence[Sighting], *, desired: int) -> list[str]:
    """Say after which faults not all replicas were ready again, and how many are missing in the end."""
    found = [
        f"{fault.kind} at {fault.at:.1f} ended {', '.join(sorted(fault.gone))}, and after that the {desired} replicas "
        "were never ready again"
        for fault in faults
        if fault.gone and _ready_s(fault, sightings, desired) is None
    ]
    if sightings and (ready := len(sightings[-1].ready)) < desired:
        found.append(f"in the end {ready} of {desired} replicas were ready")
    return found


def times(values: Iterable[float | None]) -> Times | None:
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    return Times(len(known), _percentile(known, 50), _percentile(known, 99), known[-1])


def _percentile(ordered: Sequence[float], percent: float) -> float:
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class _Resumption:
    """An attempt that was interrupted, and when the next one began."""

    begun_at: float
    ended_at: float
    resumed_at: float


def _resumptions(tasks: Iterable[models.Task]) -> Mapping[str, Sequence[_Resumption]]:
    found: dict[str, list[_Resumption]] = {}
    for task in tasks:
        for attempt, following in zip(task.attempts, task.attempts[1:], strict=False):
            begun_at, ended_at, resumed_at = attempt.started_at, attempt.ended_at, following.started_at
            if attempt.replica is not None and begun_at and ended_at and resumed_at:
                interrupted = _Resumption(*map(_seconds, (begun_at, ended_at, resumed_at)))
                found.setdefault(attempt.replica, []).append(interrupted)
    return found


def _resumed_s(fault: Injection, resumptions: Mapping[str, Sequence[_Resumption]]) -> float | None:
    hit = (each for replica in fault.hit for each in resumptions.get(replica, ()))
    return min((each.resumed_at - fault.at for each in hit if each.begun_at <= fault.at <= each.ended_at), default=None)


def _ready_s(fault: Injection, sightings: Sequence[Sighting], desired: int) -> float | None:
    if not fault.gone:
        return None
    after = (sighting for sighting in sightings if sighting.at > fault.at)
    return next(
        (each.at - fault.at for each in after if len(each.ready) >= desired and not each.ready & fault.gone), None
    )


def _seconds(instant: datetime) -> float:
    return instant.timestamp()
