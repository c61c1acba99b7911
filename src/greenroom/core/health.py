"""Health: whether a replica is hung, and how it is graded. Pure; `control.checks` asks. Agents: `core.grades`.

A replica is *hung* when nothing was heard of it for its agent's ``hang_after_s`` after a probe, while the node itself
was seen to turn. A *grade* comes from the evidence of the last minute: probes that came back, attempts that ended.
Without any it is ``unknown``, never ``healthy``. Instants are monotonic seconds of the node.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Iterable, Sequence

import msgspec

from greenroom.core import tasks

# --- hangs

LOOK_EVERY_S = 0.25
MAX_GAP_S = 2.0  # between two looks; after more it was the node that stood still, and says nothing about others
MOST_PROBE_EVERY_S = 5.0  # however long an agent may be silent: grades need evidence


class Look(msgspec.Struct, frozen=True):
    """A look of the node at its replicas, and when the one before was."""

    now_s: float
    before_s: float

    @property
    def is_late(self) -> bool:
        return self.now_s - self.before_s > MAX_GAP_S


class Do(enum.Enum):
    WAIT = enum.auto()
    PROBE = enum.auto()
    KILL = enum.auto()


def probe_after_s(hang_after_s: float) -> float:
    """Return the silence after which a replica is probed: short beside the deadline, which begins with the probe."""
    return min(hang_after_s / 10, MOST_PROBE_EVERY_S)


def judge(asked_s: float | None, heard_s: float, look: Look, *, hang_after_s: float) -> tuple[float | None, Do]:
    """Decide about a replica that was last heard at *heard_s* and has an open question since *asked_s*, or none.

    Return since when a question is open now, and what to do. Only what was open at the look before counts: between the
    two looks the node has read all that was there to be read. So a replica that is blocked for less than *hang_after_s*
    is never killed, however late the node is. A late look starts the deadline anew.

    >>> judge(None, 0.0, Look(1.0, 0.75), hang_after_s=8)
    (1.0, <Do.PROBE: 2>)
    >>> judge(1.0, 0.0, Look(9.25, 9.0), hang_after_s=8)
    (1.0, <Do.KILL: 3>)
    >>> judge(1.0, 0.0, Look(39.0, 8.75), hang_after_s=8)
    (39.0, <Do.WAIT: 1>)
    """
    if asked_s is None or heard_s >= asked_s:
        is_due = look.now_s - heard_s >= probe_after_s(hang_after_s)
        return (look.now_s, Do.PROBE) if is_due else (None, Do.WAIT)
    if look.is_late:
        return look.now_s, Do.WAIT
    return asked_s, Do.KILL if look.before_s - asked_s >= hang_after_s else Do.WAIT


def why_hung(hang_after_s: float) -> str:
    return (
        f"no answer for {hang_after_s:g} s: its process was stopped, or its event loop was blocked (a blocking call in "
        "async code?); use asyncio.to_thread or raise hang_after_s"
    )


# --- evidence

WINDOW_S = 60.0  # older evidence is stale
MAX_OUTCOMES, MAX_TRIPS = 50, 5  # of one replica: a median and a rate need no more
GRADE_EVERY_S = 2.0


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """An attempt that ended in a way that says something about its replica."""

    at_s: float
    is_error: bool
    duration_s: float


class Trip(msgspec.Struct, frozen=True, gc=False):
    """A probe that came back, *took_s* after it was sent."""

    at_s: float
    took_s: float


class Summary(msgspec.Struct, frozen=True):
    """The evidence of one replica that is not stale."""

    outcomes: int = 0
    errors: int = 0
    duration_s: float = 0.0  # median of the attempts that succeeded
    trip_s: float | None = None  # median of the last probes

    @property
    def error_rate(self) -> float:
        return self.errors / self.outcomes if self.outcomes else 0.0


_IS_ERROR: dict[str, bool] = {tasks.Reason.OK: False, tasks.Reason.AGENT_ERROR: True, tasks.Reason.TIMEOUT: True}


def is_error(reason: str) -> bool | None:
    """Say whether an attempt that ended for *reason* speaks against its replica; None if it says nothing about it."""
    return _IS_ERROR.get(reason)


def summed(outcomes: Iterable[Outcome], trips: Iterable[Trip], *, now_s: float) -> Summary:
    fresh = [outcome for outcome in outcomes if outcome.at_s > now_s - WINDOW_S]
    durations_s = [outcome.duration_s for outcome in fresh if not outcome.is_error]
    trips_s = [trip.took_s for trip in trips if trip.at_s > now_s - WINDOW_S]
    return Summary(
        len(fresh),
        len(fresh) - len(durations_s),
        statistics.median(durations_s) if durations_s else 0.0,
        statistics.median(trips_s) if trips_s else None,
    )


# --- grades


class Grade(enum.StrEnum):
    HEALTHY = "healthy"
    UNKNOWN = "unknown"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


_SEVERITY = {grade: place for place, grade in enumerate(Grade)}

MIN_VOLUME = 5  # attempts; one error of four is an accident, no rate
ERROR_RATE = 0.5  # users notice when every second task fails; agents raise on bad input all the time
ERROR_EXCESS = 0.5  # over the siblings' rate: the same tasks come to them, so that it is the replica and not its work
SLOW_TRIP_S = 1.0  # an idle loop answers in a millisecond; after a second, cancels and heartbeats come late, too
SLOW_RATIO, SLOW_BY_S = 3.0, 0.5  # of the siblings' median; by less than the latter nobody is hurt
WORSEN_AFTER, IMPROVE_AFTER = 3, 5  # looks in a row, so 6 and 10 s: trust is lost faster than it is won


class Finding(msgspec.Struct, frozen=True):
    """What one look at the evidence says. *cause* tells reasons apart whose numbers differ. *is_urgent*: it stands."""

    grade: Grade
    reason: str
    cause: str = ""
    is_urgent: bool = False


NO_EVIDENCE = Finding(
    Grade.UNKNOWN, f"no probe was answered and no task has succeeded in the last {WINDOW_S:g} s", "no evidence"
)
OFF = Finding(Grade.UNKNOWN, "health checks are off", "off")
WELL = Finding(Grade.HEALTHY, "it answers", "well")


def grade(own: Summary, siblings: Sequence[Summary], *, unanswered_s: float = 0.0, hang_after_s: float) -> Finding:
    """Grade one look at a replica; *siblings* are the others of its revision, *unanswered_s* is of its open probe.

    What the siblings share is the agent's or its input's fault, and makes nobody unhealthy.
    """
    if unanswered_s >= hang_after_s / 2:
        reason = f"it has not answered for {hang_after_s / 2:g} s"
        return Finding(Grade.UNHEALTHY, reason, "silent", is_urgent=True)
    if own.outcomes >= MIN_VOLUME and own.error_rate >= ERROR_RATE:
        return _errors(own, siblings)
    if own.trip_s is None and own.outcomes == own.errors:
        return NO_EVIDENCE
    if own.trip_s is not None and own.trip_s > SLOW_TRIP_S:
        reason = f"its event loop answers after {own.trip_s:.1f} s: a blocking call in async code?"
        return Finding(Grade.DEGRADED, reason, "slow loop")
    others_s = [each.duration_s for each in siblings if each.outcomes - each.errors >= MIN_VOLUME]
    if others_s and own.outcomes - own.errors >= MIN_VOLUME:
        usual_s = statistics.median(others_s)
        if own.duration_s >= max(SLOW_RATIO * usual_s, usual_s + SLOW_BY_S):
            reason = f"its tasks take {own.duration_s:.1f} s, those of its siblings {usual_s:.1f} s"
            return Finding(Grade.DEGRADED, reason, "slow tasks")
    return WELL


def _errors(own: Summary, siblings: Sequence[Summary]) -> Finding:
    told = f"{own.errors} of its last {own.outcomes} tasks ended with an error"
    errors, outcomes = sum(each.errors for each in siblings), sum(each.outcomes for each in siblings)
    if outcomes < MIN_VOLUME:
        return Finding(Grade.DEGRADED, f"{told}; see the tasks' errors", "errors")
    told = f"{told}, and {errors} of its siblings' {outcomes}"
    if own.error_rate - errors / outcomes >= ERROR_EXCESS:
        return Finding(Grade.UNHEALTHY, f"{told}: it is this replica", "outlier")
    return Finding(Grade.DEGRADED, f"{told}: it is the agent's code or its input", "errors")


class Standing(msgspec.Struct, frozen=True):
    """The grade that holds, and what *looks* in a row have found instead: the one of them that is nearest to it."""

    finding: Finding = NO_EVIDENCE
    nearest: Finding = NO_EVIDENCE
    looks: int = 0


def settle(standing: Standing, found: Finding) -> Standing:
    """Let *found* change what stands, with hysteresis: evidence that alternates changes nothing.

    The first evidence, its going stale and what is urgent hold at once.
    """
    held = standing.finding
    if found.is_urgent or Grade.UNKNOWN in (held.grade, found.grade):
        return standing if found.cause == held.cause else Standing(found)
    direction = _SEVERITY[found.grade] - _SEVERITY[held.grade]
    if not direction:
        return Standing(held if found.cause == held.cause else found)
    before = _SEVERITY[standing.nearest.grade] - _SEVERITY[held.grade]
    goes_on = standing.looks > 0 and before * direction > 0
    nearest = standing.nearest if goes_on and abs(before) < abs(direction) else found
    looks = standing.looks + 1 if goes_on else 1
    if looks >= (WORSEN_AFTER if direction > 0 else IMPROVE_AFTER):
        return Standing(nearest)
    return Standing(held, nearest, looks)
