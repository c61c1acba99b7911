"""Who is hung and who is not, whatever the node does meanwhile; and grades that need evidence and do not flap."""

from __future__ import annotations

import doctest
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import health, tasks
from greenroom.core.health import Do, Finding, Grade, Look, Outcome, Standing, Summary, Trip

HANG_AFTER_S = 8.0


def test_the_examples_in_the_documentation_are_true() -> None:
    assert not doctest.testmod(health).failed


# Hangs


@dataclass(frozen=True)
class Block:
    """For so long the replica's loop does not turn."""

    from_s: float
    to_s: float


def answered_s(asked_s: float, blocks: Sequence[Block]) -> float:
    """When a probe that is sent at *asked_s* is answered; *blocks* are in order and apart."""
    for block in blocks:
        if block.from_s <= asked_s < block.to_s:
            return block.to_s
    return asked_s


def first_kill_s(looks: Iterable[float], blocks: Sequence[Block]) -> float | None:
    """When the replica is killed by a node that looks at *looks* and is frozen in between.

    The node is as slow as can be: it reads once right after each look, so that it knows at a look only what had arrived
    by the look before.
    """
    asked_s, heard_s, answers = None, 0.0, list[float]()
    before_s = 0.0
    for now_s in looks:
        if any(answer_s <= before_s for answer_s in answers):
            heard_s = before_s
            answers = [answer_s for answer_s in answers if answer_s > before_s]
        asked_s, do = health.judge(asked_s, heard_s, Look(now_s, before_s), hang_after_s=HANG_AFTER_S)
        if do is Do.KILL:
            return now_s
        if do is Do.PROBE:
            answers.append(answered_s(now_s, blocks))
        before_s = now_s
    return None


steady = st.lists(st.floats(0.05, 0.5), min_size=200, max_size=200)
erratic = st.lists(st.floats(0.01, 40.0) | st.floats(0.05, health.MAX_GAP_S), min_size=10, max_size=200)
short_blocks = st.lists(st.tuples(st.floats(0.01, 5.0), st.floats(0.01, HANG_AFTER_S - 0.01)), max_size=40)


def _apart(pauses: list[tuple[float, float]]) -> list[Block]:
    blocks, now_s = [], 0.0
    for free_s, blocked_s in pauses:
        blocks.append(Block(now_s + free_s, now_s + free_s + blocked_s))
        now_s += free_s + blocked_s
    return blocks


@given(erratic, short_blocks)
def test_who_blocks_for_less_than_the_deadline_is_never_killed_however_the_node_stumbles(
    gaps_s: list[float], pauses: list[tuple[float, float]]
) -> None:
    assert first_kill_s(itertools.accumulate(gaps_s), _apart(pauses)) is None


@given(steady, st.floats(0.0, 20.0))
def test_who_stops_for_good_is_killed_soon_after_the_deadline(gaps_s: list[float], stopped_s: float) -> None:
    looks = list(itertools.accumulate(gaps_s))
    killed_s = first_kill_s(looks, [Block(stopped_s, float("inf"))])
    slack_s = health.probe_after_s(HANG_AFTER_S) + 4 * max(gaps_s)
    if killed_s is None:
        assert looks[-1] < stopped_s + HANG_AFTER_S + slack_s
    else:
        assert stopped_s + HANG_AFTER_S <= killed_s <= stopped_s + HANG_AFTER_S + slack_s


def test_by_default_a_hang_is_found_within_ten_seconds() -> None:
    looks = list(itertools.accumulate([health.LOOK_EVERY_S * 1.1] * 200))
    stops_s = [number / 100 for number in range(500)]
    worst_s = max((first_kill_s(looks, [Block(at, 1e9)]) or 1e9) - at for at in stops_s)
    assert worst_s < 10


def test_a_node_that_stood_still_starts_every_deadline_anew() -> None:
    looks = [*(number / 4 for number in range(1, 30)), 60.0, *(60 + number / 4 for number in range(1, 60))]
    killed_s = first_kill_s(looks, [Block(0.0, 1e9)])
    assert killed_s is not None
    assert killed_s >= 60 + HANG_AFTER_S


def test_an_answer_that_has_come_while_the_node_was_busy_is_read_before_anybody_is_judged() -> None:
    looks = [*(number / 4 for number in range(1, 36)), 10.5, *(10.5 + number / 4 for number in range(1, 60))]
    assert first_kill_s(looks, [Block(0.0, 8.9)]) is None


def test_a_question_that_is_answered_is_closed_and_the_next_one_waits_for_silence() -> None:
    assert health.judge(5.0, 5.5, Look(5.75, 5.5), hang_after_s=8) == (None, Do.WAIT)
    assert health.judge(None, 5.5, Look(6.5, 6.25), hang_after_s=8) == (6.5, Do.PROBE)


def test_an_agent_that_may_be_silent_for_an_hour_is_probed_all_the_same() -> None:
    assert health.probe_after_s(3600) == health.MOST_PROBE_EVERY_S
    assert health.probe_after_s(2) == 0.2


# Evidence


@pytest.mark.parametrize("reason", tasks.Reason)
def test_only_errors_and_timeouts_speak_against_a_replica(reason: tasks.Reason) -> None:
    said = {tasks.Reason.OK: False, tasks.Reason.AGENT_ERROR: True, tasks.Reason.TIMEOUT: True}
    assert health.is_error(reason) is said.get(reason)


def test_stale_evidence_does_not_count() -> None:
    outcomes = [Outcome(1.0, is_error=True, duration_s=9.0), Outcome(50.0, is_error=False, duration_s=2.0)]
    trips = [Trip(1.0, 5.0), Trip(50.0, 0.001)]
    assert health.summed(outcomes, trips, now_s=100.0) == Summary(1, 0, 2.0, 0.001)
    assert health.summed(outcomes, trips, now_s=111.0) == Summary()


# Grades


def found(own: Summary, *siblings: Summary, unanswered_s: float = 0.0) -> Finding:
    return health.grade(own, siblings, unanswered_s=unanswered_s, hang_after_s=HANG_AFTER_S)


summaries = st.builds(
    lambda outcomes, share, duration_s, trip_s: Summary(outcomes, int(outcomes * share), duration_s, trip_s),
    st.integers(0, 50),
    st.floats(0, 1),
    st.floats(0, 100),
    st.none() | st.floats(0, 10),
)


@given(st.lists(summaries, max_size=5), st.integers(0, health.MIN_VOLUME - 1))
def test_without_an_answer_and_a_success_nobody_is_healthy(siblings: list[Summary], errors: int) -> None:
    assert found(Summary(errors, errors), *siblings).grade is Grade.UNKNOWN


@given(summaries, st.lists(summaries, max_size=5), st.floats(HANG_AFTER_S / 2, 100))
def test_a_missing_answer_is_unhealthy_whatever_else_is_known(
    own: Summary, siblings: list[Summary], unanswered_s: float
) -> None:
    finding = found(own, *siblings, unanswered_s=unanswered_s)
    assert (finding.grade, finding.is_urgent) == (Grade.UNHEALTHY, True)


@given(summaries, st.lists(summaries, max_size=5))
def test_every_grade_has_its_reason(own: Summary, siblings: list[Summary]) -> None:
    assert found(own, *siblings).reason


SICK, FINE = Summary(10, 9, 1.0, 0.001), Summary(10, 0, 1.0, 0.001)


@pytest.mark.parametrize(
    ("own", "siblings", "grade", "words"),
    [
        (Summary(trip_s=0.001), (), Grade.HEALTHY, "it answers"),
        (Summary(1, 0, 1.0), (), Grade.HEALTHY, "it answers"),
        (Summary(4, 4, 0.0, 0.001), (), Grade.HEALTHY, "it answers"),
        (SICK, (), Grade.DEGRADED, "9 of its last 10 tasks ended with an error; see the tasks' errors"),
        (SICK, (Summary(4, 0),), Grade.DEGRADED, "see the tasks' errors"),
        (SICK, (FINE, FINE), Grade.UNHEALTHY, "and 0 of its siblings' 20: it is this replica"),
        (SICK, (SICK, SICK), Grade.DEGRADED, "it is the agent's code or its input"),
        (Summary(10, 4, 1.0, 0.001), (FINE,), Grade.HEALTHY, "it answers"),
        (Summary(trip_s=1.5), (Summary(trip_s=1.5),), Grade.DEGRADED, "its event loop answers after 1.5 s"),
        (Summary(10, 0, 4.0), (FINE, FINE), Grade.DEGRADED, "its tasks take 4.0 s, those of its siblings 1.0 s"),
        (Summary(10, 0, 4.0), (Summary(4, 0, 1.0),), Grade.HEALTHY, "it answers"),
        (Summary(10, 0, 0.3), (Summary(10, 0, 0.01),), Grade.HEALTHY, "it answers"),
        (Summary(10, 0, 4.0), (Summary(10, 0, 4.0),), Grade.HEALTHY, "it answers"),
    ],
)
def test_the_grade_of_a_look(own: Summary, siblings: tuple[Summary, ...], grade: Grade, words: str) -> None:
    finding = found(own, *siblings)
    assert finding.grade is grade
    assert words in finding.reason


@given(st.lists(summaries, min_size=2, max_size=6))
def test_an_agent_that_raises_on_its_input_makes_no_replica_unhealthy(replicas: list[Summary]) -> None:
    """All have the same share of errors, whatever their volume."""
    alike = [Summary(each.outcomes * 2, each.outcomes, each.duration_s, 0.001) for each in replicas]
    for place, own in enumerate(alike):
        assert found(own, *alike[:place], *alike[place + 1 :]).grade is not Grade.UNHEALTHY


# Hysteresis

GRADES = (Grade.HEALTHY, Grade.DEGRADED, Grade.UNHEALTHY)
known = st.sampled_from(GRADES)


def _held(grade: Grade) -> Standing:
    return Standing(_found(grade))


def _found(grade: Grade, reason: str = "") -> Finding:
    return Finding(grade, reason, grade.value)


def _grades(standing: Standing, looks: Iterable[Grade]) -> list[Grade]:
    grades = []
    for look in looks:
        standing = health.settle(standing, _found(look))
        grades.append(standing.finding.grade)
    return grades


@given(known, known, known)
def test_evidence_that_alternates_changes_nothing(held: Grade, one: Grade, other: Grade) -> None:
    """But for two that are on the same side of what is held: it moves to the nearer one, once."""
    grades = _grades(_held(held), [one, other] * 50)
    assert len({grade for grade, _ in itertools.groupby([held, *grades])}) <= 2
    assert [grade for grade, _ in itertools.groupby([held, *grades])][:3].count(held) == 1
    severities = [GRADES.index(grade) for grade in (held, one, other)]
    if min(severities[1:]) <= severities[0] <= max(severities[1:]):
        assert set(grades) == {held}


@given(st.lists(known, max_size=100), known)
def test_a_grade_changes_at_most_once_in_three_looks(looks: list[Grade], held: Grade) -> None:
    changes = [
        place
        for place, (one, other) in enumerate(itertools.pairwise([held, *_grades(_held(held), looks)]))
        if one != other
    ]
    assert all(later - earlier >= health.WORSEN_AFTER for earlier, later in itertools.pairwise([-1, *changes]))


def test_it_takes_more_looks_to_be_trusted_again_than_to_lose_trust() -> None:
    worsening = _grades(_held(Grade.HEALTHY), [Grade.DEGRADED] * 10)
    assert worsening.count(Grade.HEALTHY) == health.WORSEN_AFTER - 1
    improving = _grades(_held(Grade.UNHEALTHY), [Grade.HEALTHY] * 10)
    assert improving.count(Grade.UNHEALTHY) == health.IMPROVE_AFTER - 1 > health.WORSEN_AFTER - 1


def test_one_very_bad_look_among_bad_ones_does_not_decide() -> None:
    looks = [Grade.DEGRADED, Grade.UNHEALTHY, Grade.UNHEALTHY]
    assert _grades(_held(Grade.HEALTHY), looks)[-1] is Grade.DEGRADED


def test_the_first_evidence_and_its_end_hold_at_once() -> None:
    standing = health.settle(Standing(), health.WELL)
    assert standing.finding is health.WELL
    assert health.settle(standing, health.NO_EVIDENCE).finding is health.NO_EVIDENCE


def test_a_missing_answer_holds_at_once_and_keeps_its_reason_while_it_lasts() -> None:
    first, later = found(Summary(), unanswered_s=4.0), found(Summary(), unanswered_s=6.0)
    standing = health.settle(_held(Grade.HEALTHY), first)
    assert standing.finding == Finding(Grade.UNHEALTHY, "it has not answered for 4 s", "silent", is_urgent=True)
    assert health.settle(standing, later).finding is first


def test_a_reason_changes_with_its_cause_and_not_with_its_numbers() -> None:
    held = Finding(Grade.DEGRADED, "5 of 10", "errors")
    assert health.settle(Standing(held), Finding(Grade.DEGRADED, "6 of 10", "errors")).finding is held
    other = Finding(Grade.DEGRADED, "slow", "slow loop")
    assert health.settle(Standing(held), other).finding is other
