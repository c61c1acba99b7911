"""Outliers: which replica fails where its peers do not, so that another has to take its place.

Pure; `control.outliers` asks. A bad one among good ones fails its tasks quickly, is free again at once, and so draws
ever more of them. It is told by comparison with the other replicas of its revision, in the same stretch of time: what
all of them share is the agent's code, its input, or what it calls, and ejects nobody.

The comparison is Fisher's exact test, one-sided, with the sizes of effect that `core.health` calls an outlier. Tested
are the shortest stretches of time in which there is enough of both: their lengths do not depend on how attempts ended,
so that the test stays exact. There is at most one look for each attempt that ends, and two stretches are tested for
each replica: three equal replicas are told apart by chance in 10,000 tasks with a probability of at most
10,000 x 3 x 2 x `ALPHA` = 0.0006.

Source: R. A. Fisher, "Statistical Methods for Research Workers", section 21.02 (the exact test of a table of four).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from greenroom.core import health

ALPHA = 1e-8
STRETCHES = ((15, 30), (60, 120))  # outcomes of its own and of its peers: who fails always, who fails every other time
WINDOW_S = 300.0  # older evidence is stale, and ejections are forgotten
MAX_OUTCOMES = 4000  # of one agent
GRACE = 5  # the first outcomes of a replica say nothing: it is cold
STREAK = 5  # failures in a row that make a replica distrusted (Envoy's outlier detection: consecutive_5xx)
LARGEST_PART = 3  # of the ready replicas at most a third is ejected in a window


class Outcome(msgspec.Struct, frozen=True):
    """How attempts of *replica* ended; *count* failures with nothing of its peers in between are one outcome."""

    at_s: float
    replica: str
    is_failure: bool = False
    session: str | None = None  # of a failure: it may be its state that fails, and it comes back to the same replica
    count: int = 1


class Evidence:
    """The outcomes of an agent's replicas in their order, bounded; a success makes no object of its own."""

    def __init__(self) -> None:
        self.outcomes: deque[Outcome] = deque(maxlen=MAX_OUTCOMES)
        self._ended: dict[str, int] = {}  # up to `GRACE`
        self._successes: dict[str, Outcome] = {}  # one for all of the same instant

    def note(self, replica: str, *, is_failure: bool, session: str | None = None, at_s: float) -> None:
        ended = self._ended.get(replica, 0)
        if ended < GRACE:
            self._ended[replica] = ended + 1
            return
        if not is_failure:
            success = self._successes.get(replica)
            if success is None or success.at_s != at_s:
                success = self._successes[replica] = Outcome(at_s, replica)
            self.outcomes.append(success)
            return
        last = self.outcomes[-1] if self.outcomes else None
        if last is not None and last.is_failure and last.replica == replica and last.session == session:
            # One run of bad input meets the one replica that is free, for it fails at once: that is one sign, not many.
            self.outcomes[-1] = replace(last, count=last.count + 1, at_s=at_s)
        else:
            self.outcomes.append(Outcome(at_s, replica, is_failure=True, session=session))

    def forget(self, replica: str) -> None:
        """Forget how warm *replica* is: it has ended. Its outcomes age."""
        self._ended.pop(replica, None)
        self._successes.pop(replica, None)


class Outlier(msgspec.Struct, frozen=True):
    replica: str
    reason: str


class _Tally(msgspec.Struct):
    """What is compared."""

    ended: int = 0
    failed: int = 0


def judge(outcomes: Sequence[Outcome], replicas: Collection[str], *, now_s: float) -> Outlier | None:
    """Return the one of *replicas*, the ready ones of a revision, that is an outlier; None: nobody is.

    Only who fails most is compared with the others.
    """
    if len(replicas) < 2:
        return None
    fresh = [each for each in outcomes if each.replica in replicas and each.at_s > now_s - WINDOW_S]
    suspect = _suspect(fresh)
    return None if suspect is None else _compared(suspect, fresh)


def _suspect(outcomes: Sequence[Outcome]) -> str | None:
    """Return who fails most of its last tasks; those of one session count once."""
    tallies: dict[str, _Tally] = {}
    seen: set[tuple[str, str]] = set()
    for each in reversed(outcomes):
        tally = tallies.setdefault(each.replica, _Tally())
        if tally.ended == STRETCHES[0][0] or (each.session is not None and (each.replica, each.session) in seen):
            continue
        tally.ended += 1
        tally.failed += each.is_failure
        if each.session is not None:
            seen.add((each.replica, each.session))
    rates = {name: tally.failed for name, tally in tallies.items() if tally.ended == STRETCHES[0][0] and tally.failed}
    return max(sorted(rates), key=rates.__getitem__, default=None)


def _compared(replica: str, outcomes: Sequence[Outcome]) -> Outlier | None:
    own, peers, sessions = _Tally(), _Tally(), set[str]()
    stretches = list(STRETCHES)
    for each in reversed(outcomes):
        if each.replica != replica:
            peers.ended += each.count
            peers.failed += each.count if each.is_failure else 0
        elif each.session is None or each.session not in sessions:
            own.ended += 1
            own.failed += each.is_failure
            if each.session is not None:
                sessions.add(each.session)
        if own.ended >= stretches[0][0] and peers.ended >= stretches[0][1]:
            if is_outlier(own.failed, own.ended, peers.failed, peers.ended):
                reason = (
                    f"{own.failed} of its last {own.ended} tasks failed, and {peers.failed} of its peers' {peers.ended}"
                )
                return Outlier(replica, reason)
            del stretches[0]
            if not stretches:
                break
    return None


def is_outlier(failed: int, ended: int, peers_failed: int, peers_ended: int) -> bool:
    """Tell whether so many failures are this replica's own: too many by half, and not by chance.

    >>> is_outlier(15, 15, 0, 30), is_outlier(15, 15, 20, 30), is_outlier(4, 4, 0, 30)
    (True, False, False)
    """
    rate, usual = failed / ended, peers_failed / peers_ended
    if rate < health.ERROR_RATE or rate - usual < health.ERROR_EXCESS:
        return False
    return chance(failed, ended, peers_failed, peers_ended) <= ALPHA


def chance(failed: int, ended: int, peers_failed: int, peers_ended: int) -> float:
    """Return how probable so many failures, or more, are where all replicas are equal.

    >>> round(chance(1, 1, 0, 1), 3), round(chance(3, 3, 0, 3), 3)
    (0.5, 0.05)
    """
    all_failed = failed + peers_failed
    of_all = _ways_log(ended + peers_ended, all_failed)
    return sum(
        math.exp(_ways_log(ended, k) + _ways_log(peers_ended, all_failed - k) - of_all)
        for k in range(failed, min(ended, all_failed) + 1)
    )


def _ways_log(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)


def may_distrust(replica: str, streaks: Mapping[str, int], *, distrusted: Collection[str]) -> bool:
    """Tell whether *replica* is to get less than its peers until more is known; *streaks* are the failures in a row of
    each ready one of its revision.

    So that it does not draw all there is, and what it fails does not speak against what the agent calls. Where its
    peers fail alike, it is not the replica; at most a third of them is distrusted, and never all.
    """
    others = [name for name in distrusted if name != replica and name in streaks]
    fails_alone = any(streak < STREAK for name, streak in streaks.items() if name != replica)
    return streaks.get(replica, 0) >= STREAK and fails_alone and len(others) < max(1, len(streaks) // LARGEST_PART)


def may_eject(ready: int, ejected_s: Iterable[float], *, now_s: float) -> bool:
    """Tell whether one more of *ready* replicas may go: a third in a window, at least one, and never the only one."""
    recent = sum(at_s > now_s - WINDOW_S for at_s in ejected_s)
    return ready >= 2 and recent < max(1, ready // LARGEST_PART)
