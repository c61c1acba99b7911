"""The analysis of a rollout: whether a new revision is worse than the one that serves, or has shown that it is not.

Pure; the rollout machine asks again and again while tasks end. Each task is an error, a refusal, slow, costly, or good.
The same two questions are put for each of the four kinds of bad ones. *Is it worse?* is answered by a test that may be
looked at after every task without more false alarms. *Has it shown that it is not?* is answered by a confidence
bound, and never by an absence of evidence. See decision 12 for the mathematics, the sources and the figures.
"""

from __future__ import annotations

import bisect
import enum
import math
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

# --- what a task was


class Kind(enum.StrEnum):
    """Of bad tasks. A task is of the first that fits: how long an error took, or what a refusal cost, tells nothing."""

    ERROR = "error"
    REFUSED = "refused"
    SLOW = "slow"
    COSTLY = "costly"


class Sample(msgspec.Struct, frozen=True, gc=False):
    """A task that has ended on a revision."""

    is_error: bool
    is_refusal: bool
    duration_s: float
    tokens: int


class Limits(msgspec.Struct, frozen=True):
    """Over what a task is slow or costly; None: cannot be told."""

    slow_s: float | None = None
    costly_tokens: float | None = None


MIN_SAMPLES: Final = 20  # a p90 of fewer is the second longest of them
LIMIT_RATIO: Final = 1.5
SLOW_BY_S: Final = 0.1  # what is quick anyway varies by more than half
COSTLY_BY: Final = 200  # tokens, a paragraph: where none were used, a first call of a model is to count


def limits(samples: Sequence[Sample]) -> Limits:
    """Take the limits from recent samples of the serving revision.

    Take them once, before the rollout's first stage: both revisions have to be judged against the same ones, and by
    samples that did not make them.

    >>> limits([Sample(False, False, seconds / 10, 1000) for seconds in range(20)])
    Limits(slow_s=2.55, costly_tokens=1500.0)
    """
    good = [sample for sample in samples if not sample.is_error and not sample.is_refusal]
    if len(good) < MIN_SAMPLES:
        return Limits()
    usual_s, tokens = _p90(sample.duration_s for sample in good), _p90(sample.tokens for sample in good)
    return Limits(
        slow_s=max(LIMIT_RATIO * usual_s, usual_s + SLOW_BY_S),
        costly_tokens=max(LIMIT_RATIO * tokens, tokens + COSTLY_BY),
    )


def _p90(values: Iterable[float]) -> float:
    ranked = sorted(values)
    return ranked[math.ceil(0.9 * len(ranked)) - 1]


# --- counts of them


class Share(msgspec.Struct, frozen=True):
    """*bad* ones of those that were *judged*; fractions where they are foretold."""

    bad: float
    judged: float

    @property
    def rate(self) -> float:
        return self.bad / self.judged if self.judged else 0.0


class Tally(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The tasks of one revision that began in one stage: those of an earlier one that end in it must be left out.

    Of the *tasks* that have ended, *timed* and *metered* were compared with a limit, and *slow* and *costly* are over
    it. How many are *running* has to be known of the current stage alone.
    """

    tasks: int = 0
    errors: int = 0
    refused: int = 0
    timed: int = 0
    slow: int = 0
    metered: int = 0
    costly: int = 0
    running: int = 0

    @property
    def answers(self) -> int:
        return self.tasks - self.errors

    def share(self, kind: Kind) -> Share:
        match kind:
            case Kind.ERROR:
                return Share(self.errors, self.tasks)
            case Kind.REFUSED:
                return Share(self.refused, self.answers)
            case Kind.SLOW:
                return Share(self.slow, self.timed)
            case Kind.COSTLY:
                return Share(self.costly, self.metered)

    def share_begun(self, kind: Kind) -> Share:
        """As `share`, with the running ones among those that are not bad.

        Errors often come sooner than answers. Without the running ones, who has just begun would seem to fail often.
        """
        ended = self.share(kind)
        return Share(ended.bad, ended.judged + self.running)


def counted(tally: Tally, sample: Sample, limits: Limits) -> Tally:
    """Return *tally* with *sample* in it, which began in its stage.

    >>> counted(Tally(), Sample(False, False, 3.0, 0), Limits(slow_s=2.0))
    Tally(tasks=1, errors=0, refused=0, timed=1, slow=1, metered=0, costly=0, running=0)
    """
    is_refused = sample.is_refusal and not sample.is_error
    is_work = not sample.is_error and not sample.is_refusal
    is_timed = is_work and limits.slow_s is not None
    is_metered = is_work and limits.costly_tokens is not None
    return Tally(
        tasks=tally.tasks + 1,
        errors=tally.errors + sample.is_error,
        refused=tally.refused + is_refused,
        timed=tally.timed + is_timed,
        slow=tally.slow + (is_timed and sample.duration_s > (limits.slow_s or 0)),
        metered=tally.metered + is_metered,
        costly=tally.costly + (is_metered and sample.tokens > (limits.costly_tokens or 0)),
        running=tally.running,
    )


class Stage(msgspec.Struct, frozen=True):
    """What was seen while the candidate got *weight_pct* of the traffic."""

    weight_pct: int
    serving: Tally = Tally()
    candidate: Tally = Tally()


# --- the judgement


class Verdict(enum.StrEnum):
    PASS = "pass"  # noqa: S105 no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Finding(msgspec.Struct, frozen=True):
    """A verdict on the current stage, why for people, and how many of the candidate's tasks in it stand behind it."""

    verdict: Verdict
    reason: str
    samples: int


def judge(stages: Sequence[Stage]) -> Finding:
    """Judge the candidate from all *stages* of its rollout so far, of which the last is the current one.

    In a stage of 100 % nobody serves beside it, so that it is compared with what is known of the serving revision from
    the stages before.

    >>> judge([Stage(5, serving=Tally(tasks=475), candidate=Tally(tasks=25))]).verdict
    <Verdict.PASS: 'pass'>
    >>> judge([Stage(5, serving=Tally(tasks=475, errors=2), candidate=Tally(tasks=25, errors=7))]).reason
    "7 of its 25 tasks failed, and 2 of the serving revision's 475"
    """
    if not stages:
        return Finding(Verdict.INCONCLUSIVE, "no stage has begun", 0)
    tasks = stages[-1].candidate.tasks
    for kind in Kind:
        if told := _worse(kind, stages):
            return Finding(Verdict.FAIL, told, tasks)
    return _judge_promotion(stages)


# --- is it worse?

# Of false alarms in a rollout, however long it is watched. Errors get the most: they hurt at once. A stage of 100 %
# has a test of its own, so that the sum is 0.8 % and a quarter of it: 1 %.
ALPHA: Final = {Kind.ERROR: 0.005, Kind.REFUSED: 0.001, Kind.SLOW: 0.001, Kind.COSTLY: 0.001}
ALONE: Final = 0.25  # of ALPHA, for the test without a revision beside it

# What the test bets on, in equal parts: rates of the serving revision, and of a candidate that is worse. One that is a
# third slower has about three times as many slow tasks: by these bets it mostly goes on, however long it is watched.
_FAULTS: Final = (
    *((0.001, worse) for worse in (0.01, 0.1, 0.5)),
    *((0.01, worse) for worse in (0.03, 0.2, 0.7)),
    *((0.05, worse) for worse in (0.12, 0.3, 0.7)),
    *((0.2, worse) for worse in (0.35, 0.55, 0.9)),
)
_EXCESSES: Final = (
    *((0.01, worse) for worse in (0.2, 0.5, 0.9)),
    *((0.05, worse) for worse in (0.3, 0.6)),
    *((0.1, worse) for worse in (0.4, 0.8)),
)
BETS: Final = {Kind.ERROR: _FAULTS, Kind.REFUSED: _FAULTS, Kind.SLOW: _EXCESSES, Kind.COSTLY: _EXCESSES}

MIN_BAD: Final = 3  # nobody believes in fewer

# Tasks. Of a serving revision of which fewer are known, the others are taken to have been good: so a candidate that
# fails everything is found after four, and one that fails a fifth, as the serving one may, is not called worse.
BENEFIT: Final = 15


def _worse(kind: Kind, stages: Sequence[Stage]) -> str | None:
    """Say by what the candidate is worse, if it certainly is."""
    beside = [stage for stage in stages if stage.weight_pct < 100]
    candidate = _sum(stage.candidate.share_begun(kind) for stage in beside)
    serving = _sum(stage.serving.share_begun(kind) for stage in beside)
    if candidate.bad >= MIN_BAD and _evidence(kind, beside) >= -math.log(ALPHA[kind]):
        return _told(kind, candidate, serving)
    if stages[-1].weight_pct < 100:
        return None
    alone = stages[-1].candidate.share_begun(kind)
    known = _sum(stage.serving.share_begun(kind) for stage in stages)
    assumed = Share(known.bad, max(known.judged, BENEFIT))
    if alone.bad >= MIN_BAD:
        weight = _observed(alone, assumed)
        evidence = _log_mean([_log_ratio(bet, alone, assumed, weight=weight) for bet in BETS[kind]])
        if evidence >= -math.log(ALPHA[kind] * ALONE):
            return _told(kind, alone, known)
    return None


def _evidence(kind: Kind, stages: Sequence[Stage]) -> float:
    """Return the logarithm of the evidence from stages in which both revisions got traffic.

    By the share of the traffic that the candidate was to get, it is a martingale if the revisions do not differ, so
    that it passes 1/alpha with a probability of at most alpha, ever. By the share that it did get, it does not mistake
    a skewed assignment for a difference: sessions that stay, a revision that ends its tasks sooner. The smaller holds.
    """
    pairs = [
        (stage.weight_pct / 100, stage.candidate.share_begun(kind), stage.serving.share_begun(kind)) for stage in stages
    ]
    meant, observed = [], []
    for bet in BETS[kind]:
        meant.append(sum(_log_ratio(bet, candidate, serving, weight=weight) for weight, candidate, serving in pairs))
        observed.append(
            sum(
                _log_ratio(bet, candidate, serving, weight=_observed(candidate, serving))
                for _, candidate, serving in pairs
            )
        )
    return min(_log_mean(meant), _log_mean(observed))


def _observed(candidate: Share, serving: Share) -> float:
    judged = candidate.judged + serving.judged
    return candidate.judged / judged if judged else 0.0


def _log_ratio(bet: tuple[float, float], candidate: Share, serving: Share, *, weight: float) -> float:
    """Return how much likelier it is, by *bet*, that just these tasks were the candidate's, given how each has ended.

    Where the revisions do not differ, a task is the candidate's with probability *weight*, however it has ended.
    """
    low, high = bet
    bad = weight * high + (1 - weight) * low
    return (
        candidate.bad * math.log(high / bad)
        + serving.bad * math.log(low / bad)
        + (candidate.judged - candidate.bad) * math.log((1 - high) / (1 - bad))
        + (serving.judged - serving.bad) * math.log((1 - low) / (1 - bad))
    )


def _log_mean(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(math.fsum(math.exp(each - top) for each in logs) / len(logs))


# --- has it shown that it is not?

MARGIN: Final = 0.10  # of bad tasks more than the serving revision has
MIN_ANSWERS: Final = 10  # however bad the serving revision is: to fail like it proves nothing
_Z: Final = 1.6448536269514722  # one-sided 95 %
_FORESEEN: Final = 100_000  # tasks: who needs more waits for very long anyway


class _Comparison(msgspec.Struct, frozen=True):
    kind: Kind
    candidate: Share
    serving: Share
    is_beside: bool  # both get tasks

    @property
    def excess(self) -> float:
        return self.candidate.rate - self.serving.rate

    @property
    def bound(self) -> float:
        return _most_excess(self.candidate, self.serving)

    @property
    def missing(self) -> int:
        """How many tasks more it takes to pass, if the candidate's are as good as the serving revision's."""
        rate = self.serving.rate
        beside = self.serving.judged / self.candidate.judged if self.is_beside else 0.0

        def suffice(more: int) -> bool:
            return _most_excess(_grown(self.candidate, more, rate), _grown(self.serving, more * beside, rate)) <= MARGIN

        return bisect.bisect_left(range(_FORESEEN), x=True, key=suffice)


def _judge_promotion(stages: Sequence[Stage]) -> Finding:
    current = stages[-1].candidate
    compared = [_compared(kind, stages) for kind in Kind if current.share(kind).judged]
    if not compared:
        return Finding(Verdict.INCONCLUSIVE, "no task has ended on it in this stage", 0)
    worst = max(compared, key=lambda each: (each.candidate.bad > 0, each.excess))
    seen = _told(worst.kind, worst.candidate, worst.serving) if worst.candidate.bad else "no errors"
    least_sure = max(compared, key=lambda each: each.bound)
    if least_sure.bound > MARGIN:
        needed = _needed(least_sure.missing, worst)
    elif current.answers < MIN_ANSWERS:
        needed = f"{MIN_ANSWERS} have to succeed"
    else:
        return Finding(Verdict.PASS, f"{_tasks(current.tasks)}; {seen}", current.tasks)
    return Finding(Verdict.INCONCLUSIVE, f"{_tasks(current.tasks)} so far; {seen}; {needed}", current.tasks)


def _needed(missing: int, worst: _Comparison) -> str:
    told = f"about {missing} more {'is' if missing == 1 else 'are'} needed"
    return f"{told}, if as good as the serving revision's" if worst.candidate.bad and worst.excess > 0 else told


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _compared(kind: Kind, stages: Sequence[Stage]) -> _Comparison:
    current = stages[-1]
    candidate, serving = current.candidate.share(kind), current.serving.share(kind)
    if current.weight_pct < 100 and serving.judged:
        return _Comparison(kind, candidate, serving, is_beside=True)
    return _Comparison(kind, candidate, _sum(stage.serving.share(kind) for stage in stages), is_beside=False)


def _grown(share: Share, more: float, rate: float) -> Share:
    return Share(share.bad + more * rate, share.judged + more)


def _most_excess(candidate: Share, serving: Share) -> float:
    """Return the one-sided 95 % upper bound of the difference of the rates.

    Of a serving revision of which nothing is known, the rate is taken to be nought.
    """
    upper, lower = _wilson(candidate, 1), _wilson(serving, -1) if serving.judged else 0.0
    return candidate.rate - serving.rate + math.hypot(upper - candidate.rate, serving.rate - lower)


def _wilson(share: Share, side: int) -> float:
    """Return the upper (1) or lower (-1) end of the score interval of a rate."""
    judged, rate, square = share.judged, share.rate, _Z * _Z
    half = _Z * math.sqrt(rate * (1 - rate) / judged + square / (4 * judged * judged))
    return (rate + square / (2 * judged) + side * half) / (1 + square / judged)


# --- both


def _sum(shares: Iterable[Share]) -> Share:
    bad, judged = 0.0, 0.0
    for share in shares:
        bad, judged = bad + share.bad, judged + share.judged
    return Share(bad, judged)


_TOLD: Final = {
    Kind.ERROR: ("tasks", "failed"),
    Kind.REFUSED: ("answers", "were refusals"),
    Kind.SLOW: ("answers", "were slow"),
    Kind.COSTLY: ("answers", "were costly"),
}


def _told(kind: Kind, candidate: Share, serving: Share) -> str:
    what, was = _TOLD[kind]
    told = f"{candidate.bad:.0f} of its {candidate.judged:.0f} {what} {was}"
    if not serving.judged:
        return f"{told}, and none of the serving revision's are known"
    return f"{told}, and {serving.bad:.0f} of the serving revision's {serving.judged:.0f}"
