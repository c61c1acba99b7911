"""Recovery: what is done about the death of a replica, and when.

Pure; `control.recovery` keeps one `Record` for each agent, and the store remembers it. Deaths that count lead up a
ladder, until one of the agent's new incarnations has shown that it works:

    restart      another process, from the same interpreter
    replace      another process, from a fresh interpreter that imports the code anew
    migrate      all replicas move to a fresh interpreter (on another node, where there is one) and hand over their work
    roll back    the revision before serves again, where this one has not succeeded with a task yet
    quarantine   nothing is started any more, tasks stay queued, one alert

Only deaths before readiness or before a first success count: a replica that was killed from outside at work, or died
after good work, is replaced at once, however often. What becomes of the tasks is decided in `core.tasks`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from fractions import Fraction

import msgspec
from msgspec.structs import replace


class Rung(enum.StrEnum):
    RESTART = "restart"
    REPLACE = "replace"
    MIGRATE = "migrate"
    ROLL_BACK = "roll_back"
    QUARANTINE = "quarantine"


BUDGETS = {Rung.RESTART: 2, Rung.REPLACE: 1, Rung.MIGRATE: 1}  # deaths in full that each is tried after
INTENSITY = sum(BUDGETS.values()) + 1  # the death that ends the ladder (Erlang/OTP's supervisors have the same five)
PERIOD_S = 60.0  # a replica that was ready for so long has shown that it works
RECURRING, RECURRING_PERIOD_S = 3, 3600.0  # deaths that count: so many within an hour, and a restart is no remedy
BASE_S, CAP_S = 0.5, 30.0
MOST_AT_WORK = 3  # deaths at work that weigh as one
CAP_AT_WORK_S = 1.0  # others wait in the queue behind the task that it died of
WHOLE = 6  # sixths: what a death in full weighs


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """How a replica of *revision* ended. *max_attempts* is how often a task of its agent is begun."""

    revision: int
    started_s: float
    was_working: bool  # tasks were on it
    has_succeeded: bool  # with a task
    by_itself: bool  # it crashed or broke its bounds; else somebody killed it
    max_attempts: int
    ready_s: float | None  # how long it was; None: it never was
    what: str = ""  # for people
    for_suspects: bool = False  # it ran tasks that are known to kill replicas, one by one

    @property
    def was_ready(self) -> bool:
        return self.ready_s is not None


class Record(msgspec.Struct, frozen=True):
    """What the deaths of an agent's serving *revision* add up to. Instants are monotonic seconds."""

    revision: int = 0
    generation: int = 0  # of the agent; another one is judged anew
    is_proven: bool = False  # one of its replicas has succeeded with a task
    fallback: int | None = None  # a proven revision to go back to, until it is proven itself
    undone: int | None = None  # the revision that was rolled back to this one
    reason: str = ""  # what the last death that counts was, for people
    rung: Rung | None = None  # what it led to; None: nothing is wrong
    spent: int = 0  # what the deaths since the last proof weigh, in sixths
    deaths: int = 0  # how many of them count
    recent_s: tuple[float, ...] = ()  # the last deaths that count, proof or not; at most `RECURRING`
    last_death_s: float | None = None
    start_not_before_s: float = 0.0
    interpreter: int = 0  # grows when a fresh one is wanted
    moved_at_s: float | None = None  # replicas from before that are to move
    is_on_probation: bool = False  # it was quarantined, and may try once more
    restarts: int = 0

    @property
    def is_given_up(self) -> bool:
        return self.rung is Rung.QUARANTINE

    @property
    def is_halted(self) -> bool:
        """Whether nothing is to be started for this revision any more."""
        return self.rung in (Rung.QUARANTINE, Rung.ROLL_BACK)

    def is_recurring(self, now_s: float) -> bool:
        within = [at_s for at_s in self.recent_s if at_s > now_s - RECURRING_PERIOD_S]
        return len(within) >= RECURRING


def weight(record: Record, death: Death) -> Fraction:
    """Return how much *death* counts: 0 not at all, 1 in full.

    A death at work is that of the task, which has attempts of its own: until the revision is proven, as many as one
    task may have, three at most, weigh as one death in full. So a task that kills every replica it is given to does not
    end its agent, and an agent that no task survives does not go on for ever. Where there is a proven revision to go
    back to, the new one is the likelier cause: each death weighs in full.

    >>> crash = Death(revision=1, started_s=0, ready_s=5, was_working=True, has_succeeded=False,
    ...               by_itself=True, max_attempts=3)
    >>> weight(Record(1), crash)
    Fraction(1, 3)
    >>> weight(Record(1, is_proven=True), crash)
    Fraction(0, 1)
    """
    if death.has_succeeded or death.revision != record.revision:
        return Fraction(0)
    if record.last_death_s is not None and death.started_s <= record.last_death_s:
        return Fraction(0)  # it is no answer to the death before, but its companion: what kills ten at once counts once
    if not death.was_ready:
        return Fraction(1)
    if record.fallback is not None and death.was_working and death.by_itself:
        return Fraction(1)
    if death.for_suspects:
        return Fraction(0)
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
    if _stood(record, death):
        record = _proven(record)
    counted = weight(record, death)
    if not counted:  # at once; unless it had nothing to do, for then the next one may die as quickly
        was_killed = death.was_working or (death.has_succeeded and not death.by_itself)
        delay_s = 0.0 if was_killed else BASE_S * (0.5 + jitter / 2)
        recent_s = record.recent_s if was_killed or not death.by_itself else (*record.recent_s, now_s)[-RECURRING:]
        start_s = max(record.start_not_before_s, now_s + delay_s)
        return replace(record, start_not_before_s=start_s, recent_s=recent_s, reason=death.what or record.reason)
    cap_s = CAP_AT_WORK_S if death.was_working else CAP_S
    delay_s = min(cap_s, BASE_S * 2.0 ** min(record.deaths, 10)) * (0.5 + jitter / 2)
    record = replace(
        record,
        spent=record.spent + int(counted * WHOLE),
        deaths=record.deaths + 1,
        reason=death.what,
        recent_s=(*record.recent_s, now_s)[-RECURRING:],
        last_death_s=now_s,
        start_not_before_s=max(record.start_not_before_s, now_s + delay_s),
    )
    return _climbed(record, now_s)


def _stood(record: Record, death: Death) -> bool:
    """Whether the dead replica had shown by its standing that what is done about the death before has helped."""
    is_later = record.last_death_s is None or death.started_s > record.last_death_s
    return is_later and not record.is_halted and death.ready_s is not None and death.ready_s >= PERIOD_S


def _climbed(record: Record, now_s: float) -> Record:
    """Set foot on the rung that what was spent has come to."""
    before, rung = record.rung, _rung(record, now_s)
    is_new = rung is not before
    return replace(
        record,
        rung=rung,
        interpreter=record.interpreter + (rung in (Rung.REPLACE, Rung.MIGRATE) and is_new),
        moved_at_s=now_s if rung is Rung.MIGRATE and is_new else record.moved_at_s,
    )


def _rung(record: Record, now_s: float) -> Rung:
    if record.is_given_up:
        return Rung.QUARANTINE
    deaths = record.spent // WHOLE
    if record.is_recurring(now_s):
        deaths = max(deaths, BUDGETS[Rung.RESTART] + 1)
    for rung, budget in BUDGETS.items():
        deaths -= budget
        if deaths <= 0:
            return rung
    return Rung.QUARANTINE if record.fallback is None else Rung.ROLL_BACK


def after_success(record: Record, revision: int, *, started_s: float) -> Record:
    """Note that a replica of *revision* that was started at *started_s* has succeeded with a task.

    Only one that was started after the last death that counts shows that the ladder has led to something. The success
    of an older revision, before this one has had any, is a way back.
    """
    if revision != record.revision:
        if record.is_proven or revision > record.revision or revision == record.fallback:
            return record
        return replace(record, fallback=max(revision, record.fallback or revision))
    if record.is_proven and not record.deaths:
        return record
    record = replace(record, is_proven=True, fallback=None)
    if record.last_death_s is not None and started_s < record.last_death_s:
        return record
    return _proven(record)


def _proven(record: Record) -> Record:
    """Return *record* with nothing to hold against the agent; it stays in mind for an hour that it was otherwise."""
    return replace(record, rung=None, spent=0, deaths=0, start_not_before_s=0.0, moved_at_s=None, is_on_probation=False)


def after_settling(record: Record) -> Record:
    """Note that all replicas of the serving revision are ready: the one try of who was quarantined has helped."""
    return replace(record, is_on_probation=False) if record.is_on_probation else record


def judged_anew(record: Record, revision: int, *, generation: int, fallback: int | None) -> Record:
    """Begin a record for *revision*, which was deployed, scaled, released or rolled back to; what it proved stays.

    *fallback* is the last proven revision before it, as the store knows; that of *record* may have proved itself since.
    """
    is_same = record.revision == revision
    if record.is_proven and record.revision < revision:
        fallback = record.revision
    is_back = record.rung is Rung.ROLL_BACK and record.fallback == revision
    undone = record.revision if is_back else record.undone if is_same else None
    return Record(
        revision,
        generation,
        is_proven=(record.is_proven and is_same) or is_back,
        fallback=None if is_back else record.fallback if is_same else fallback,
        undone=undone,
        reason=record.reason if undone is not None else "",
        interpreter=record.interpreter,
    )


def on_probation(record: Record) -> Record:
    """Let an agent that is quarantined try once more: the next death that counts ends it again.

    For a node that was stopped in order: whoever starts it again may have changed what was wrong.
    """
    if not record.is_given_up:
        return record
    spent = INTENSITY * WHOLE - 1
    return replace(record, rung=Rung.MIGRATE, spent=spent, start_not_before_s=0.0, is_on_probation=True)


def is_tried_out(record: Record, started_s: Iterable[float]) -> bool:
    """Tell whether one replica has to show that it gets ready before others are started beside it.

    *started_s*: when those of the serving revision were that are ready.
    """
    if not record.deaths or record.last_death_s is None:
        return False
    return not any(at_s > record.last_death_s for at_s in started_s)


def is_dying(record: Record, *, now_s: float, oldest_s: float) -> bool:
    """Tell whether the agent's replicas die, as far as is known; *oldest_s* is how long one has lived that is ready."""
    if not record.deaths or record.last_death_s is None or oldest_s >= PERIOD_S:
        return False
    return now_s - record.last_death_s < PERIOD_S


def moved(record: Record, by_s: float) -> Record:
    """Return *record* with all its instants *by_s* later: the store keeps them relative to the time of writing."""

    def later(at_s: float | None) -> float | None:
        return None if at_s is None else at_s + by_s

    return replace(
        record,
        recent_s=tuple(at_s + by_s for at_s in record.recent_s),
        last_death_s=later(record.last_death_s),
        start_not_before_s=record.start_not_before_s + by_s,
        moved_at_s=later(record.moved_at_s),
    )


class Alarm(msgspec.Struct, frozen=True):
    """What people are to be told of an agent: one thing at a time."""

    kind: str
    severity: str
    reason: str


def alarm(record: Record, agent: str, *, now_s: float) -> Alarm | None:
    if record.is_given_up or record.is_on_probation:
        remedy = f"its tasks stay queued; mend it and deploy it again, or run: greenroom agents release {agent}"
        what = f"{agent} is quarantined after {record.deaths} deaths: {record.reason}"
        return Alarm("quarantined", "critical", f"{what}; {remedy}")
    if record.undone is not None:
        what = f"revision {record.undone} of {agent} was rolled back to {record.revision}"
        return Alarm("rolled-back", "warning", f"{what}: {record.reason}")
    if record.is_recurring(now_s) and record.deaths < RECURRING:  # else it is the ladder's
        what = f"replicas of {agent} have died {RECURRING} times or more within the hour"
        return Alarm("recurring", "warning", f"{what}: {record.reason}")
    return None
