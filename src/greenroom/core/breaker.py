"""The circuit breaker of an agent: while what it calls is down, its tasks wait instead of being tried in vain.

Pure; `control.breakers` asks. `TRANSITIONS` is the whole machine; docs/state-machines.md is drawn from it. Counted are
attempts whose end says something about what the agent calls: successes, errors that are worth a retry, and attempts
that had the agent's whole time and did not end. Instants are monotonic seconds of the node.
"""

from __future__ import annotations

import enum

import msgspec
from msgspec.structs import replace

from greenroom.core import tasks

MOST_OPEN_S = 600.0  # whatever comes back is found within ten minutes
BUCKETS = 10  # of a window: what is forgotten at once is a tenth of it
_MOST_DOUBLINGS = 16


class State(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Move(enum.StrEnum):
    TRIP = "trip"  # too many attempts have failed
    TRY = "try"  # its time is over
    CLOSE = "close"  # attempts have succeeded
    RELEASE = "release"  # by hand, or other revisions serve


TRANSITIONS: dict[tuple[State, Move], State] = {
    (State.CLOSED, Move.TRIP): State.OPEN,
    (State.OPEN, Move.TRY): State.HALF_OPEN,
    (State.OPEN, Move.RELEASE): State.CLOSED,
    (State.HALF_OPEN, Move.TRIP): State.OPEN,
    (State.HALF_OPEN, Move.CLOSE): State.CLOSED,
    (State.HALF_OPEN, Move.RELEASE): State.CLOSED,
}


def move(state: State, by: Move) -> State:
    """Return the state after *by*; raises ValueError naming both if the table has no such move."""
    try:
        return TRANSITIONS[state, by]
    except KeyError:
        raise ValueError(f"a breaker that is {state} cannot {by}") from None


class Policy(msgspec.Struct, frozen=True):
    """When it opens, and for how long; see `greenroom.settings.Breaker`."""

    failure_pct: int = 50
    min_attempts: int = 20
    window_s: float = 30.0
    open_s: float = 10.0

    def trips(self, ended: int, failed: int) -> bool:
        return failed > 0 and 100 * failed >= self.failure_pct * ended


class Breaker(msgspec.Struct, frozen=True):
    """*reason* says why it opened, for people; *trips* counts its openings in a row.

    While it is half-open, *allowed* tasks may run at once, of *tried* ones *failed* have.
    """

    state: State = State.CLOSED
    since_s: float = 0.0
    until_s: float = 0.0  # while it is open
    trips: int = 0
    allowed: int = 0
    tried: int = 0
    failed: int = 0
    reason: str = ""


class Window:
    """How many attempts have ended and failed in the last *window_s*: `BUCKETS` pairs of numbers, for each task counts.

    >>> window = Window(10.0)
    >>> window.note(is_failure=True, now_s=0.0)
    >>> window.note(is_failure=False, now_s=9.0)
    >>> window.counts(9.5), window.counts(10.5)
    ((2, 1), (1, 0))
    """

    __slots__ = ("_ended", "_failed", "_latest", "_place", "window_s")

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._ended, self._failed = [0] * BUCKETS, [0] * BUCKETS
        self._latest = self._place = 0  # the number of the newest bucket, and where it is

    def note(self, *, is_failure: bool, now_s: float) -> None:
        """Count an attempt; one that comes with an older instant than the last counts as if it came with that."""
        self._turn_to(now_s)
        self._ended[self._place] += 1
        self._failed[self._place] += is_failure

    def note_success(self) -> None:
        """Count a success as if it came with the instant of the last `note` or `counts`."""
        self._ended[self._place] += 1

    def counts(self, now_s: float) -> tuple[int, int]:
        """Return how many have ended, and how many of them failed."""
        self._turn_to(now_s)
        return sum(self._ended), sum(self._failed)

    def clear(self) -> None:
        self._ended, self._failed = [0] * BUCKETS, [0] * BUCKETS

    def _turn_to(self, now_s: float) -> None:
        number = int(now_s * BUCKETS / self.window_s)
        if number <= self._latest:
            return
        for stale in range(max(self._latest + 1, number - BUCKETS + 1), number + 1):
            self._ended[stale % BUCKETS] = self._failed[stale % BUCKETS] = 0
        self._latest, self._place = number, number % BUCKETS


def is_failure(end: tasks.End | None, *, timeout_s: float) -> bool | None:
    """Say whether *end* speaks against what the agent calls; None: it says nothing about that.

    An error without a retry is the task's own, and so is the end of a time that was shorter than the agent's
    *timeout_s*: else who submits tasks in a great hurry could open the breaker for everybody. Lost replicas have the
    ladder of `core.recovery`.
    """
    if type(end) is tasks.Succeeded:
        return False
    if isinstance(end, tasks.AgentFailed):
        return True if end.retryable else None
    if isinstance(end, tasks.TimedOut):
        return True if end.timeout_s >= timeout_s - 0.001 else None  # the store keeps microseconds
    return None


def told(end: tasks.End | None) -> str:
    """Return what a failure was, for people; not its text, which is its task's tenant's, for others read it, too."""
    match end:
        case tasks.AgentFailed(type):
            return type
        case tasks.TimedOut(timeout_s):
            return f"it did not end within {timeout_s:g} s"
        case _:
            return ""


def after_failures(
    breaker: Breaker, policy: Policy, counts: tuple[int, int], *, last: str, now_s: float, jitter: float
) -> Breaker:
    """Decide about a closed one when an attempt has failed; *counts* are those of its window, *last* is the error."""
    ended, failed = counts
    if breaker.state is not State.CLOSED or ended < policy.min_attempts or not policy.trips(ended, failed):
        return breaker
    # Who opens again soon after it was closed has not come back: it is not asked as often as one that was well.
    is_again = breaker.trips > 0 and now_s - breaker.since_s < policy.window_s
    reason = f"{failed} of {ended} attempts failed within {policy.window_s:g} s; the last one: {last}"
    return _tripped(breaker, policy, breaker.trips + 1 if is_again else 1, reason, now_s=now_s, jitter=jitter)


def after_trial(
    breaker: Breaker,
    policy: Policy,
    *,
    is_failure: bool,
    began_s: float,
    slots: int,
    last: str = "",
    now_s: float,
    jitter: float,
) -> Breaker:
    """Decide about a half-open one when an attempt that began at *began_s* has ended.

    Each success lets twice as many run at once, until that is as many as there are *slots*: then it closes. It opens
    again, for twice as long as before, when `failure_pct` of those tried have failed, so with the first if that fails.
    What began before it was half-open tells of that time, and moves nothing.
    """
    if breaker.state is not State.HALF_OPEN or began_s < breaker.since_s:
        return breaker
    tried, failed = breaker.tried + 1, breaker.failed + is_failure
    if is_failure:
        if policy.trips(tried, failed):
            reason = f"{failed} of {tried} attempts failed when it was tried again; the last one: {last}"
            return _tripped(breaker, policy, breaker.trips + 1, reason, now_s=now_s, jitter=jitter)
        return replace(breaker, tried=tried, failed=failed)
    allowed = breaker.allowed * 2
    if allowed >= slots:
        return Breaker(move(breaker.state, Move.CLOSE), since_s=now_s, trips=breaker.trips)
    return replace(breaker, tried=tried, failed=failed, allowed=allowed)


def after_time(breaker: Breaker, *, now_s: float) -> Breaker:
    """Let one task be tried when an open one's time is over; half-open it waits for as long as nothing comes."""
    if breaker.state is not State.OPEN or now_s < breaker.until_s:
        return breaker
    return replace(breaker, state=move(breaker.state, Move.TRY), since_s=now_s, allowed=1, tried=0, failed=0)


def released(breaker: Breaker, *, now_s: float) -> Breaker:
    """Close it, whatever was seen."""
    if breaker.state is State.CLOSED:
        return breaker
    return Breaker(move(breaker.state, Move.RELEASE), since_s=now_s)


def open_s(policy: Policy, trips: int, *, jitter: float) -> float:
    """Return how long it stays open for the *trips*-th time in a row (from 1); *jitter* is uniform in [0, 1).

    It doubles, up to ten minutes, less up to a fifth: not all that wait for the same service ask for it at once.
    """
    longest_s = min(max(MOST_OPEN_S, policy.open_s), policy.open_s * 2.0 ** min(trips - 1, _MOST_DOUBLINGS))
    return longest_s * (1 - jitter / 5)


def limit(breaker: Breaker, max_running: int | None, *, before: int = 0) -> int | None:
    """Return how many tasks of the agent may run at once; None: as many as there are slots.

    *before* of those that run have begun before it was half-open: they take nobody's place.

    >>> limit(Breaker(State.HALF_OPEN, allowed=4), 3), limit(Breaker(State.OPEN), 3), limit(Breaker(), None)
    (3, 0, None)
    """
    match breaker.state:
        case State.CLOSED:
            return max_running
        case State.OPEN:
            return 0
        case State.HALF_OPEN:
            allowed = breaker.allowed + before
            return allowed if max_running is None else min(allowed, max_running)


def _tripped(breaker: Breaker, policy: Policy, trips: int, reason: str, *, now_s: float, jitter: float) -> Breaker:
    until_s = now_s + open_s(policy, trips, jitter=jitter)
    return Breaker(move(breaker.state, Move.TRIP), since_s=now_s, until_s=until_s, trips=trips, reason=reason)
