"""Recovery: when a replica that died is started again, and when its agent is given up.

Pure; `control.host` keeps one `Record` for each agent. Only deaths before readiness or before a first success count: a
replica that was killed from outside at work, or died after good work, is replaced at once, however often.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

INTENSITY = 5  # deaths in full ...
PERIOD_S = 60.0  # ... within this, and the agent is given up (Erlang/OTP's supervisor has the same two numbers)
BASE_S, CAP_S = 0.5, 30.0
MOST_AT_WORK = 3  # deaths at work that weigh as one: more of them do not fit into the period
CAP_AT_WORK_S = 1.0  # others wait in the queue behind the task that it died of


@dataclass(frozen=True, slots=True)
class Death:
    """How a replica of *revision* ended. *max_attempts* is how often a task of its agent is begun."""

    revision: int
    was_ready: bool
    was_working: bool  # tasks were on it
    has_succeeded: bool  # with a task
    by_itself: bool  # it crashed or broke its bounds; else somebody killed it
    max_attempts: int


@dataclass(frozen=True, slots=True)
class Record:
    """What the deaths of an agent's serving *revision* add up to. Instants are monotonic seconds."""

    revision: int = 0
    is_proven: bool = False  # one of its replicas has succeeded with a task
    deaths: tuple[tuple[float, Fraction], ...] = ()  # the counted ones of the last period: when, and how much
    start_not_before_s: float = 0.0
    is_given_up: bool = False
    restarts: int = 0


def weight(record: Record, death: Death) -> Fraction:
    """Return how much *death* counts: 0 not at all, 1 in full.

    A death at work is that of the task, which has attempts of its own: until the revision is proven, as many as one
    task may have, three at most, weigh as one death in full. So a task that kills every replica it is given to does not
    end its agent, and an agent that no task survives does not go on for ever.

    >>> crash = Death(1, was_ready=True, was_working=True, has_succeeded=False, by_itself=True, max_attempts=3)
    >>> weight(Record(1), crash)
    Fraction(1, 3)
    >>> weight(Record(1, is_proven=True), crash)
    Fraction(0, 1)
    """
    if death.has_succeeded or death.revision != record.revision:
        return Fraction(0)
    if not death.was_ready:
        return Fraction(1)
    if not death.was_working:
        return Fraction(1 if death.by_itself or not record.is_proven else 0)
    if record.is_proven or not death.by_itself:
        return Fraction(0)
    return Fraction(1, min(death.max_attempts, MOST_AT_WORK))


def after_death(record: Record, death: Death, *, now_s: float, jitter: float) -> Record:
    """Note *death*; *jitter* is uniform in [0, 1)."""
    record = replace(record, restarts=record.restarts + 1)
    if death.revision != record.revision:
        return record  # one of these is not started again
    counted = weight(record, death)
    if not counted:  # at once; unless it had done nothing yet, for then the next one may be killed as quickly
        delay_s = 0.0 if death.was_working or death.has_succeeded else BASE_S * (0.5 + jitter / 2)
        return replace(record, start_not_before_s=max(record.start_not_before_s, now_s + delay_s))
    deaths = (*(each for each in record.deaths if each[0] > now_s - PERIOD_S), (now_s, counted))
    cap_s = CAP_AT_WORK_S if death.was_working else CAP_S
    delay_s = min(cap_s, BASE_S * 2.0 ** min(len(deaths) - 1, 10)) * (0.5 + jitter / 2)
    return replace(
        record,
        deaths=deaths,
        start_not_before_s=max(record.start_not_before_s, now_s + delay_s),
        is_given_up=record.is_given_up or sum(each for _, each in deaths) >= INTENSITY,
    )


def after_success(record: Record, revision: int) -> Record:
    """Note that a replica of *revision* has succeeded with a task."""
    if revision != record.revision or (record.is_proven and not record.deaths):
        return record
    return replace(record, is_proven=True, deaths=(), start_not_before_s=0.0, is_given_up=False)


def judged_anew(record: Record, revision: int) -> Record:
    """Begin a record for *revision*, which was deployed or scaled; what it has proved stays."""
    return Record(revision, is_proven=record.is_proven and record.revision == revision)
