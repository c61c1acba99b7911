"""When a replica that died is started again, and when its agent is given up."""

from __future__ import annotations

import doctest
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import recovery
from greenroom.core.recovery import Death, Record

REVISION = 7

WEIGHTS = """
# the replica    of the revision   ended       weighs
starting         unproven          by itself   1
starting         unproven          killed      1
starting         proven            by itself   1
idle             unproven          by itself   1
idle             unproven          killed      1
idle             proven            by itself   1
idle             proven            killed      0
at first work    unproven          by itself   1/3
at first work    unproven          killed      0
at first work    proven            by itself   0
at first work    proven            killed      0
idle later       proven            by itself   0
idle later       proven            killed      0
at later work    proven            by itself   0
at later work    proven            killed      0
"""


def death(replica: str = "idle", *, ended: str = "by itself", revision: int = REVISION, max_attempts: int = 4) -> Death:
    return Death(
        revision,
        was_ready=replica != "starting",
        was_working="work" in replica,
        has_succeeded="later" in replica,
        by_itself=ended == "by itself",
        max_attempts=max_attempts,
    )


def _rows() -> list[list[str]]:
    lines = [line for line in WEIGHTS.strip().splitlines() if not line.startswith("#")]
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


@pytest.mark.parametrize(("replica", "revision", "ended", "weighs"), _rows())
def test_a_death_weighs(replica: str, revision: str, ended: str, weighs: str) -> None:
    record = Record(REVISION, is_proven=revision == "proven")
    assert recovery.weight(record, death(replica, ended=ended)) == Fraction(weighs)


def test_an_agent_is_given_up_after_so_many_deaths_in_the_period_with_growing_pauses() -> None:
    record, now_s, pauses_s = Record(REVISION), 0.0, []
    for _ in range(recovery.INTENSITY):
        assert not record.is_given_up
        record = recovery.after_death(record, death(), now_s=now_s, jitter=0.999)
        pauses_s.append(round(record.start_not_before_s - now_s, 2))
        now_s = record.start_not_before_s
    assert pauses_s == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert record.is_given_up


def test_deaths_longer_apart_than_the_period_never_add_up() -> None:
    record = Record(REVISION)
    for number in range(100):
        record = recovery.after_death(record, death(), now_s=number * recovery.PERIOD_S, jitter=0.5)
    assert len(record.deaths) == 1
    assert not record.is_given_up


@pytest.mark.parametrize("max_attempts", [1, 3, 7])
def test_an_agent_that_no_task_survives_is_given_up_when_so_many_tasks_are_through(max_attempts: int) -> None:
    record, now_s, deadly = Record(REVISION), 0.0, death("at first work", max_attempts=max_attempts)
    for _ in range(recovery.INTENSITY * min(max_attempts, recovery.MOST_AT_WORK)):
        assert not record.is_given_up
        record = recovery.after_death(record, deadly, now_s=now_s, jitter=0.999)
        assert record.start_not_before_s - now_s <= recovery.CAP_AT_WORK_S
        now_s = record.start_not_before_s
    assert record.is_given_up


def test_a_first_success_of_any_replica_proves_the_revision_and_clears_its_record() -> None:
    record = recovery.after_death(Record(REVISION), death("at first work"), now_s=1.0, jitter=0.5)
    record = recovery.after_success(record, REVISION)
    assert (record.is_proven, record.deaths) == (True, ())
    record = recovery.after_death(record, death("at first work"), now_s=2.0, jitter=0.5)
    assert (record.deaths, record.start_not_before_s, record.restarts) == ((), 2.0, 2)


def test_who_was_killed_before_it_did_anything_is_replaced_soon_and_its_proven_revision_is_not_blamed() -> None:
    record, now_s = recovery.after_success(Record(REVISION), REVISION), 0.0
    for _ in range(2 * recovery.INTENSITY):
        record = recovery.after_death(record, death(ended="killed"), now_s=now_s, jitter=0.999)
        assert 0 < record.start_not_before_s - now_s <= recovery.BASE_S
        now_s = record.start_not_before_s
    assert record.deaths == ()


def test_what_another_revision_does_changes_nothing_but_the_number_of_restarts() -> None:
    before = recovery.after_death(Record(REVISION), death(), now_s=1.0, jitter=0.5)
    assert recovery.after_success(before, REVISION - 1) == before
    after = recovery.after_death(before, death(revision=REVISION - 1), now_s=1.0, jitter=0.5)
    assert (after.deaths, after.start_not_before_s) == (before.deaths, before.start_not_before_s)
    assert after.restarts == before.restarts + 1


def test_a_new_revision_has_to_prove_itself_and_one_that_is_judged_anew_has_done_so() -> None:
    proven = recovery.after_success(Record(REVISION), REVISION)
    died = recovery.after_death(proven, death(), now_s=1.0, jitter=0.5)
    assert recovery.judged_anew(died, REVISION) == Record(REVISION, is_proven=True)
    assert recovery.judged_anew(died, REVISION + 1) == Record(REVISION + 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*{row[0] for row in _rows()}]),
            st.sampled_from(["by itself", "killed"]),
            st.integers(1, 100),
            st.floats(0, 10),
            st.floats(0, 1, exclude_max=True),
        )
    )
)
def test_who_was_killed_at_work_or_died_after_good_work_waits_for_nothing_new_and_nobody_waits_for_long(
    deaths: list[tuple[str, str, int, float, float]],
) -> None:
    record, now_s = Record(REVISION), 0.0
    for replica, ended, max_attempts, later_s, jitter in deaths:
        now_s += later_s
        one = death(replica, ended=ended, max_attempts=max_attempts)
        before, record = record, recovery.after_death(record, one, now_s=now_s, jitter=jitter)
        assert 0 <= record.start_not_before_s - now_s <= recovery.CAP_S
        if "later" in replica or ("work" in replica and ended == "killed"):
            assert record.start_not_before_s == max(now_s, before.start_not_before_s)
            assert record.is_given_up == before.is_given_up
    assert recovery.after_success(record, REVISION).is_given_up is False


def test_the_examples_hold() -> None:
    assert doctest.testmod(recovery).failed == 0


@pytest.mark.parametrize("max_attempts", [1, 3, 5, 20, 100])
def test_an_agent_that_no_task_survives_is_given_up_however_often_a_task_may_be_tried(max_attempts: int) -> None:
    record, now_s = recovery.Record(1), 0.0
    for _ in range(100):
        death = recovery.Death(
            1, was_ready=True, was_working=True, has_succeeded=False, by_itself=True, max_attempts=max_attempts
        )
        record = recovery.after_death(record, death, now_s=now_s, jitter=0.9)
        now_s = record.start_not_before_s + 1.0
    assert record.is_given_up


def test_a_death_that_does_not_count_shortens_no_backoff() -> None:
    crash = recovery.Death(1, was_ready=False, was_working=False, has_succeeded=False, by_itself=True, max_attempts=3)
    record = recovery.Record(1)
    for _ in range(4):
        record = recovery.after_death(record, crash, now_s=0.0, jitter=0.5)
    before_s = record.start_not_before_s
    killed = recovery.Death(1, was_ready=True, was_working=True, has_succeeded=False, by_itself=False, max_attempts=3)
    assert recovery.after_death(record, killed, now_s=0.1, jitter=0.5).start_not_before_s == before_s
