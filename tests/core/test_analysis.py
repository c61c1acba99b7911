"""The analysis of rollouts: what it says of single tallies, and how often it is right in simulated rollouts."""

from __future__ import annotations

import collections
import doctest
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import analysis
from greenroom.core.analysis import Limits, Sample, Stage, Tally, Verdict

CANARY = (5, 25, 50, 100)
RATE_PER_S = 10
RUNS = 20  # of each simulated rollout, half of them with tasks spread evenly; decision 12 has the figures of a thousand


@dataclass(frozen=True)
class Revision:
    """How the tasks of one end; errors come early."""

    errors: float = 0.0
    refusals: float = 0.0
    duration_s: float = 1.0
    tokens: float = 1000.0
    sigma: float = 0.5  # of the logarithms of durations and tokens

    def sample(self, chance: random.Random) -> Sample:
        is_error = chance.random() < self.errors
        return Sample(
            is_error=is_error,
            is_refusal=chance.random() < self.refusals,
            duration_s=self.duration_s * chance.lognormvariate(0.0, self.sigma) * (0.05 if is_error else 1.0),
            tokens=round(self.tokens * chance.lognormvariate(0.0, self.sigma)),
        )


@dataclass(frozen=True)
class Watched:
    """How a rollout has ended, or not: how many stages it passed, and after how long."""

    verdict: Verdict
    passed: int
    after_s: int
    reason: str


def ended(tally: Tally) -> Tally:
    return msgspec.structs.replace(tally, running=0)


def watch(
    serving: Revision,
    candidate: Revision,
    *,
    seed: int,
    weights: Sequence[int] = CANARY,
    seconds: int = 600,
    is_spread: bool = False,
    is_held: bool = False,
) -> Watched:
    """Roll *candidate* out while ten tasks arrive each second, and look once per second.

    The assignment is random, or *is_spread* evenly. A rollout that *is_held* stays in its first stage.
    """
    chance = random.Random(seed)
    limits = analysis.limits([serving.sample(chance) for _ in range(50)])
    ending: collections.defaultdict[int, list[tuple[int, bool, Sample]]] = collections.defaultdict(list)
    stages, number, finding = [Stage(weights[0])], seed * 1000, analysis.judge(())
    running = {True: 0, False: 0}
    for second in range(1, seconds + 1):
        stage = len(stages)
        for _ in range(RATE_PER_S):
            number += 1
            weight = stages[-1].weight_pct
            is_new = number * 61803 % 100_000 < weight * 1000 if is_spread else chance.random() < weight / 100
            sample = (candidate if is_new else serving).sample(chance)
            ending[second + int(sample.duration_s)].append((stage, is_new, sample))
            running[is_new] += 1
        tallies = {True: stages[-1].candidate, False: stages[-1].serving}
        for began_in, is_new, sample in ending.pop(second, ()):
            if began_in == stage:
                tallies[is_new] = analysis.counted(tallies[is_new], sample, limits)
                running[is_new] -= 1
        seen = {new: msgspec.structs.replace(tally, running=running[new]) for new, tally in tallies.items()}
        stages[-1] = Stage(stages[-1].weight_pct, serving=seen[False], candidate=seen[True])
        finding = analysis.judge(stages)
        if finding.verdict is Verdict.FAIL:
            return Watched(finding.verdict, len(stages) - 1, second, finding.reason)
        if finding.verdict is Verdict.PASS and not is_held:
            if len(stages) == len(weights):
                return Watched(finding.verdict, len(stages), second, finding.reason)
            stages[-1] = Stage(stages[-1].weight_pct, serving=ended(tallies[False]), candidate=ended(tallies[True]))
            stages.append(Stage(weights[len(stages)]))
            running = {True: 0, False: 0}
    return Watched(Verdict.INCONCLUSIVE, len(stages) - 1, seconds, finding.reason)


# --- simulated rollouts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("serving", "candidate", "within_s"),
    [
        (Revision(), Revision(errors=0.3), 120),
        (Revision(errors=0.05), Revision(errors=0.3), 180),
        (Revision(errors=0.2), Revision(errors=0.5), 240),
        (Revision(), Revision(duration_s=3.0), 120),
        (Revision(), Revision(tokens=3000.0), 120),
        (Revision(tokens=0.0), Revision(tokens=2000.0), 120),
        (Revision(), Revision(refusals=0.3), 120),
    ],
)
def test_a_bad_revision_is_found(serving: Revision, candidate: Revision, within_s: int) -> None:
    ends = [watch(serving, candidate, seed=seed, is_spread=seed % 2 == 1) for seed in range(RUNS)]
    in_time = [each for each in ends if each.verdict is Verdict.FAIL and each.after_s <= within_s]
    assert len(in_time) >= 0.99 * RUNS - 1
    assert not any(each.verdict is Verdict.PASS for each in ends)


@pytest.mark.slow
@pytest.mark.parametrize("errors", [0.0, 0.01, 0.05, 0.2])
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_a_revision_as_good_as_the_serving_one_is_let_through(errors: float, sigma: float) -> None:
    alike = Revision(errors=errors, refusals=0.02, sigma=sigma)
    ends = [watch(alike, alike, seed=seed, is_spread=seed % 2 == 1) for seed in range(RUNS // 2)]
    assert sum(each.verdict is Verdict.FAIL for each in ends) <= 1
    assert statistics.median(each.after_s for each in ends) <= 300


@pytest.mark.slow
@pytest.mark.parametrize("errors", [0.0, 0.05, 0.2])
def test_to_look_for_half_an_hour_makes_no_false_alarms(errors: float) -> None:
    alike = Revision(errors=errors, refusals=0.02, sigma=1.0)
    ends = [watch(alike, alike, seed=seed, seconds=1800, is_held=True) for seed in range(2)]
    assert {each.verdict for each in ends} == {Verdict.INCONCLUSIVE}  # it is held in its first stage


@pytest.mark.slow
@pytest.mark.parametrize("errors", [0.05, 0.2])
def test_long_tasks_of_which_errors_come_early_make_no_false_alarms(errors: float) -> None:
    alike = Revision(errors=errors, duration_s=30.0)
    ends = [watch(alike, alike, seed=seed).verdict for seed in range(RUNS // 2)]
    assert ends.count(Verdict.FAIL) <= 1
    assert ends.count(Verdict.PASS) >= RUNS // 2 - 2


def test_who_is_better_or_a_little_slower_is_not_stopped() -> None:
    for seed in range(5):
        assert watch(Revision(errors=0.2), Revision(errors=0.02), seed=seed).verdict is Verdict.PASS
        assert watch(Revision(), Revision(duration_s=1.2), seed=seed, seconds=300).verdict is not Verdict.FAIL


# --- single looks


def test_without_tasks_nothing_is_proved() -> None:
    for stages in ([], [Stage(0)], [Stage(5)], [Stage(100)], [Stage(5, serving=Tally(tasks=1000))]):
        finding = analysis.judge(stages)
        assert (finding.verdict, finding.samples) == (Verdict.INCONCLUSIVE, 0)


@pytest.mark.parametrize("weight_pct", [5, 50, 100])
def test_a_candidate_without_errors_passes_after_25_tasks(weight_pct: int) -> None:
    serving = Tally(tasks=100) if weight_pct < 100 else Tally()
    before = analysis.judge([Stage(weight_pct, serving=serving, candidate=Tally(tasks=24))])
    assert before.verdict is Verdict.INCONCLUSIVE
    assert before.reason == "24 tasks so far; no errors; about 1 more is needed"
    after = analysis.judge([Stage(weight_pct, serving=serving, candidate=Tally(tasks=25))])
    assert (after.verdict, after.reason, after.samples) == (Verdict.PASS, "25 tasks; no errors", 25)


def test_what_is_missing_is_told() -> None:
    finding = analysis.judge([Stage(5, serving=Tally(tasks=133), candidate=Tally(tasks=7))])
    assert finding.reason == "7 tasks so far; no errors; about 18 more are needed"
    finding = analysis.judge([Stage(5, serving=Tally(tasks=133, errors=3), candidate=Tally(tasks=7, errors=1))])
    assert finding.reason == (
        "7 tasks so far; 1 of its 7 tasks failed, and 3 of the serving revision's 133; "
        "about 38 more are needed, if as good as the serving revision's"
    )


def test_to_fail_like_the_serving_revision_proves_nothing() -> None:
    down = Tally(tasks=100, errors=100)
    finding = analysis.judge([Stage(50, serving=down, candidate=down)])
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert finding.reason.endswith("10 have to succeed")


def test_after_a_switch_of_all_traffic_a_revision_that_fails_everything_is_found_soon() -> None:
    known = Stage(0, serving=Tally(tasks=200, errors=10))
    for history in ([known], []):
        for tasks in range(1, 10):
            finding = analysis.judge([*history, Stage(100, candidate=Tally(tasks, errors=tasks))])
            assert (finding.verdict is Verdict.FAIL) is (tasks >= 4)


def test_two_bad_tasks_are_believed_of_nobody() -> None:
    for bad, verdict in ((2, Verdict.INCONCLUSIVE), (3, Verdict.FAIL)):
        stage = Stage(5, serving=Tally(tasks=1000), candidate=Tally(tasks=bad, errors=bad))
        assert analysis.judge([stage]).verdict is verdict


def test_a_stage_of_all_traffic_is_compared_with_what_was_before() -> None:
    before = Stage(50, serving=Tally(tasks=200, errors=40), candidate=Tally(tasks=200, errors=40))
    assert analysis.judge([before, Stage(100, candidate=Tally(tasks=200, errors=40))]).verdict is Verdict.PASS
    worse = analysis.judge([before, Stage(100, candidate=Tally(tasks=40, errors=25))])
    assert (worse.verdict, worse.reason) == (
        Verdict.FAIL,
        "25 of its 40 tasks failed, and 40 of the serving revision's 200",
    )


def test_a_failure_stays_one_in_the_stages_that_follow() -> None:
    bad = Stage(50, serving=Tally(tasks=200), candidate=Tally(tasks=200, errors=60))
    for after in ([], [Stage(100, candidate=Tally(tasks=1000))]):
        assert analysis.judge([bad, *after]).verdict is Verdict.FAIL


def test_the_stages_add_up() -> None:
    stage = Stage(50, serving=Tally(tasks=30), candidate=Tally(tasks=30, errors=6))
    assert analysis.judge([stage]).verdict is Verdict.INCONCLUSIVE
    assert analysis.judge([stage, stage]).verdict is Verdict.FAIL


def test_a_skewed_assignment_is_not_mistaken_for_a_difference() -> None:
    """A session that stays with the candidate gives it half of the tasks where 5 % were meant."""
    alike = Tally(tasks=200, errors=20)
    assert analysis.judge([Stage(5, serving=alike, candidate=alike)]).verdict is Verdict.PASS
    few = Stage(50, serving=Tally(tasks=10_000, errors=100), candidate=Tally(tasks=100, errors=2))
    assert analysis.judge([few]).verdict is Verdict.PASS


def test_whose_good_tasks_only_take_longer_to_end_is_not_said_to_have_more_errors() -> None:
    """Both got a hundred tasks, and seven of each failed; most of the candidate's are still running."""
    serving, candidate = Tally(tasks=100, errors=7), Tally(tasks=10, errors=7, running=90)
    assert analysis.judge([Stage(50, serving, candidate)]).verdict is Verdict.INCONCLUSIVE
    assert analysis.judge([Stage(50, serving), Stage(100, candidate=candidate)]).verdict is Verdict.INCONCLUSIVE
    assert analysis.judge([Stage(50, serving, ended(candidate))]).verdict is Verdict.FAIL


def test_a_session_that_gives_the_candidate_less_than_was_meant_does_not_hide_what_it_is() -> None:
    few = Stage(50, serving=Tally(tasks=1000, errors=10), candidate=Tally(tasks=30, errors=12))
    assert analysis.judge([few]).verdict is Verdict.FAIL


def test_a_task_is_of_one_kind() -> None:
    limits = Limits(slow_s=1.0, costly_tokens=100.0)
    tally = Tally()
    for is_error, is_refusal in ((True, True), (True, False), (False, True), (False, False)):
        tally = analysis.counted(tally, Sample(is_error, is_refusal, 2.0, 200), limits)
    assert tally == Tally(tasks=4, errors=2, refused=1, timed=1, slow=1, metered=1, costly=1)


def test_what_was_not_compared_with_a_limit_is_not_counted_as_within_it() -> None:
    tally = analysis.counted(Tally(), Sample(False, False, 99.0, 10**6), Limits())
    assert tally == Tally(tasks=1)
    slow = Tally(tasks=60, timed=20, slow=15)
    assert analysis.judge([Stage(5, serving=Tally(tasks=900, timed=300), candidate=slow)]).verdict is Verdict.FAIL


def test_limits_are_of_enough_good_samples_with_slack_for_small_ones() -> None:
    good = [Sample(False, False, 0.01, 0)] * 20
    bad = [Sample(True, False, 100.0, 10**6), Sample(False, True, 100.0, 10**6)] * 50
    assert analysis.limits(good[1:] + bad) == Limits(None, None)
    assert analysis.limits(good + bad) == Limits(0.01 + 0.1, 200)
    assert analysis.limits([Sample(False, False, 10.0, 4000)] * 20) == Limits(15.0, 6000)


def test_it_is_stored_and_read_back() -> None:
    stage = Stage(5, serving=Tally(tasks=3, errors=1), candidate=Tally())
    assert msgspec.json.decode(msgspec.json.encode(stage), type=Stage) == stage


# --- properties


@st.composite
def tallies(draw: st.DrawFn, most: int = 10**6) -> Tally:
    count = st.one_of(st.integers(0, 60), st.integers(0, most))
    tasks = draw(count)
    errors = draw(st.integers(0, tasks))
    refused = draw(st.integers(0, tasks - errors))
    timed = draw(st.integers(0, tasks - errors - refused))
    metered = draw(st.integers(0, tasks - errors - refused))
    slow, costly = draw(st.integers(0, timed)), draw(st.integers(0, metered))
    return Tally(tasks, errors, refused, timed, slow, metered, costly)


def rollouts(most: int = 10**6) -> st.SearchStrategy[list[Stage]]:
    return st.lists(st.builds(Stage, st.integers(0, 100), tallies(most), tallies(most)), max_size=4)


@given(rollouts(most=10**18))
def test_every_rollout_gets_one_line(stages: list[Stage]) -> None:
    finding = analysis.judge(stages)
    assert finding.reason
    assert "\n" not in finding.reason
    assert finding.samples == (stages[-1].candidate.tasks if stages else 0)


@given(rollouts())
def test_another_error_of_the_candidate_never_makes_it_pass(stages: list[Stage]) -> None:
    if not stages:
        return
    *before, last = stages
    tally = last.candidate
    more = msgspec.structs.replace(tally, tasks=tally.tasks + 1, errors=tally.errors + 1)
    verdict = analysis.judge(stages).verdict
    if verdict is not Verdict.PASS:
        worse = msgspec.structs.replace(last, candidate=more)
        assert analysis.judge([*before, worse]).verdict is not Verdict.PASS


@given(tallies(), st.integers(0, 100))
def test_a_candidate_that_is_no_worse_in_anything_is_never_called_worse(tally: Tally, weight_pct: int) -> None:
    tasks = Tally(tally.tasks, timed=tally.timed, metered=tally.metered)
    for candidate in (tally, tasks):
        finding = analysis.judge([Stage(50, serving=tally, candidate=tally), Stage(weight_pct, tally, candidate)])
        assert finding.verdict is not Verdict.FAIL


def test_the_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(analysis).failed == 0
