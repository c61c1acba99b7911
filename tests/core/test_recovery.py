"""The ladder of recovery: what each death of a replica leads to, and when it has led nowhere."""

from __future__ import annotations

import doctest
import math
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import recovery
from greenroom.core.recovery import Death, Record, Rung

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
alone at work    unproven          by itself   0
alone at work    proven            by itself   0
"""


def death(
    replica: str = "idle",
    *,
    ended: str = "by itself",
    revision: int = REVISION,
    max_attempts: int = 4,
    ready_s: float = 1.0,
    started_s: float = math.inf,
) -> Death:
    return Death(
        revision=revision,
        started_s=started_s,
        ready_s=None if replica == "starting" else ready_s,
        was_working="work" in replica,
        has_succeeded="later" in replica,
        by_itself=ended == "by itself",
        max_attempts=max_attempts,
        for_suspects=replica == "alone at work",
        what="it broke",
    )


def _rows() -> list[list[str]]:
    lines = [line for line in WEIGHTS.strip().splitlines() if not line.startswith("#")]
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


@pytest.mark.parametrize(("replica", "revision", "ended", "weighs"), _rows())
def test_a_death_weighs(replica: str, revision: str, ended: str, weighs: str) -> None:
    record = Record(REVISION, is_proven=revision == "proven")
    assert recovery.weight(record, death(replica, ended=ended)) == Fraction(weighs)


def test_the_ladder_is_climbed_rung_by_rung_with_growing_pauses_and_ends_in_quarantine() -> None:
    record, now_s, rungs, pauses_s, interpreters = Record(REVISION), 0.0, [], [], []
    for _ in range(recovery.INTENSITY):
        assert not record.is_given_up
        record = recovery.after_death(record, death("starting"), now_s=now_s, jitter=0.999)
        rungs.append(record.rung)
        pauses_s.append(round(record.start_not_before_s - now_s, 2))
        interpreters.append(record.interpreter)
        now_s = record.start_not_before_s
    assert rungs == [Rung.RESTART, Rung.RESTART, Rung.REPLACE, Rung.MIGRATE, Rung.QUARANTINE]
    assert pauses_s == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert interpreters == [0, 0, 1, 2, 2]
    assert record.is_halted


def test_who_has_never_settled_goes_back_to_the_proven_revision_before_it_is_quarantined() -> None:
    record = Record(REVISION, generation=3, fallback=REVISION - 2)
    for number in range(recovery.INTENSITY):
        assert not record.is_halted
        record = recovery.after_death(record, death("starting"), now_s=float(number), jitter=0.5)
    assert (record.rung, record.is_halted, record.is_given_up) == (Rung.ROLL_BACK, True, False)
    back = recovery.judged_anew(record, REVISION - 2, generation=4, fallback=None)
    assert (back.undone, back.rung, back.fallback, back.is_halted) == (REVISION, None, None, False)
    told = recovery.alarm(back, "agent", now_s=10.0)
    assert told == recovery.Alarm(
        "rolled-back", "warning", f"revision 7 of agent was rolled back to {REVISION - 2}: it broke"
    )
    fixed = recovery.judged_anew(back, REVISION + 1, generation=5, fallback=REVISION - 2)
    assert recovery.alarm(fixed, "agent", now_s=10.0) is None


def test_the_revision_that_serves_until_the_new_one_has_proved_itself_becomes_a_way_back_when_it_succeeds() -> None:
    record = recovery.after_success(Record(REVISION), REVISION - 1, started_s=0.0)
    assert (record.fallback, record.is_proven) == (REVISION - 1, False)
    settled = recovery.after_success(record, REVISION, started_s=1.0)
    assert recovery.after_success(settled, REVISION - 1, started_s=0.0).fallback is None


def test_a_new_revision_that_gets_ready_and_dies_of_every_task_is_rolled_back_soon() -> None:
    record = recovery.after_settling(Record(REVISION, fallback=REVISION - 1))
    for number in range(recovery.INTENSITY):
        assert not record.is_halted
        record = recovery.after_death(record, death("at first work"), now_s=float(number), jitter=0.5)
    assert record.rung is Rung.ROLL_BACK


def test_who_has_proved_itself_is_not_rolled_back() -> None:
    record = recovery.after_success(Record(REVISION, fallback=REVISION - 1), REVISION, started_s=0.0)
    for number in range(recovery.INTENSITY):
        record = recovery.after_death(record, death(), now_s=float(number), jitter=0.5)
    assert record.is_given_up


def test_a_replica_that_stood_for_the_period_has_shown_that_it_works() -> None:
    record = Record(REVISION)
    for number in range(100):
        one = death(ready_s=recovery.PERIOD_S)
        record = recovery.after_death(record, one, now_s=number * recovery.RECURRING_PERIOD_S, jitter=0.5)
    assert (record.deaths, record.rung) == (1, Rung.RESTART)


def test_the_death_of_an_old_replica_that_stood_long_ends_no_quarantine_and_no_climb() -> None:
    record = Record(REVISION)
    for number in range(recovery.INTENSITY):
        record = recovery.after_death(record, death("starting"), now_s=100.0 + number, jitter=0.5)
        old = death("idle later", ended="killed", ready_s=1000.0, started_s=1.0)
        after = recovery.after_death(record, old, now_s=100.5 + number, jitter=0.5)
        assert (after.rung, after.deaths, after.spent) == (record.rung, record.deaths, record.spent)
    assert record.is_given_up


def test_a_slow_crash_loop_ends_as_well() -> None:
    record = Record(REVISION)
    for number in range(recovery.INTENSITY):
        record = recovery.after_death(record, death("starting"), now_s=number * 600.0, jitter=0.5)
    assert record.is_given_up


def test_whose_deaths_recur_within_the_hour_gets_a_fresh_interpreter_instead_of_a_restart_and_an_alert() -> None:
    record, now_s = Record(REVISION), 0.0
    for number in range(recovery.RECURRING):
        assert recovery.alarm(record, "agent", now_s=now_s) is None
        now_s = number * 600.0
        record = recovery.after_death(record, death(ready_s=300.0), now_s=now_s, jitter=0.5)
    assert (record.rung, record.deaths, record.interpreter) == (Rung.REPLACE, 1, 1)
    told = recovery.alarm(record, "agent", now_s=now_s)
    assert told is not None
    assert (told.severity, "3 times" in told.reason) == ("warning", True)
    assert recovery.alarm(record, "agent", now_s=recovery.RECURRING_PERIOD_S + 0.1) is None
    later = recovery.after_death(record, death(ready_s=3600.0), now_s=now_s + 3600.0, jitter=0.5)
    assert later.rung is Rung.RESTART


def test_what_kills_many_at_once_counts_once() -> None:
    record = Record(REVISION)
    for number in range(20):
        record = recovery.after_death(record, death("starting", started_s=0.0), now_s=1.0 + number, jitter=0.5)
    assert (record.deaths, record.restarts, record.rung) == (1, 20, Rung.RESTART)


def test_while_the_ladder_is_climbed_one_replica_has_to_get_ready_before_others_are_started() -> None:
    assert not recovery.is_tried_out(Record(REVISION), [])
    record = recovery.after_death(Record(REVISION), death("starting"), now_s=5.0, jitter=0.5)
    assert recovery.is_tried_out(record, [1.0])
    assert not recovery.is_tried_out(record, [1.0, 6.0])


def test_a_quarantine_is_told_once_and_lasts_until_somebody_judges_anew() -> None:
    record = Record(REVISION)
    for number in range(recovery.INTENSITY + 3):
        record = recovery.after_death(record, death("starting"), now_s=float(number), jitter=0.5)
    told = recovery.alarm(record, "agent", now_s=1e9)
    assert told is not None
    assert told.severity == "critical"
    assert recovery.judged_anew(record, REVISION, generation=2, fallback=None).rung is None


def test_after_an_orderly_stop_a_quarantined_agent_has_one_more_try() -> None:
    record = Record(REVISION)
    assert recovery.on_probation(record) is record
    for number in range(recovery.INTENSITY):
        record = recovery.after_death(record, death("starting"), now_s=float(number), jitter=0.5)
    tried = recovery.on_probation(record)
    assert not tried.is_halted
    assert recovery.alarm(tried, "agent", now_s=1e9) == recovery.alarm(record, "agent", now_s=1e9)
    again = recovery.after_death(tried, death("at first work", max_attempts=3), now_s=99.0, jitter=0.5)
    assert again.is_given_up
    worked = recovery.after_success(tried, REVISION, started_s=99.0)
    assert (worked.rung, worked.spent) == (None, 0)


@pytest.mark.parametrize("max_attempts", [1, 3, 7])
def test_an_agent_that_no_task_survives_is_given_up_when_so_many_tasks_are_through(max_attempts: int) -> None:
    record, now_s, deadly = Record(REVISION), 0.0, death("at first work", max_attempts=max_attempts)
    for _ in range(recovery.INTENSITY * min(max_attempts, recovery.MOST_AT_WORK)):
        assert not record.is_given_up
        record = recovery.after_death(record, deadly, now_s=now_s, jitter=0.999)
        assert record.start_not_before_s - now_s <= recovery.CAP_AT_WORK_S
        now_s = record.start_not_before_s
    assert record.is_given_up


def test_a_success_of_one_that_was_started_after_the_last_death_clears_the_record() -> None:
    record = recovery.after_death(Record(REVISION), death("at first work"), now_s=1.0, jitter=0.5)
    record = recovery.after_success(record, REVISION, started_s=1.5)
    assert (record.is_proven, record.deaths, record.rung) == (True, 0, None)
    record = recovery.after_death(record, death("at first work"), now_s=2.0, jitter=0.5)
    assert (record.deaths, record.start_not_before_s, record.restarts) == (0, 2.0, 2)


def test_the_work_of_an_older_replica_does_not_excuse_those_that_cannot_start() -> None:
    record = Record(REVISION)
    for number in range(recovery.INTENSITY):
        record = recovery.after_death(record, death("starting"), now_s=10.0 + number, jitter=0.5)
        before = record
        record = recovery.after_success(record, REVISION, started_s=1.0)
        assert (record.deaths, record.start_not_before_s) == (before.deaths, before.start_not_before_s)
    assert (record.is_proven, record.is_given_up) == (True, True)


def test_who_was_killed_before_it_did_anything_is_replaced_soon_and_its_proven_revision_is_not_blamed() -> None:
    record, now_s = recovery.after_success(Record(REVISION), REVISION, started_s=0.0), 0.0
    for _ in range(2 * recovery.INTENSITY):
        record = recovery.after_death(record, death(ended="killed"), now_s=now_s, jitter=0.999)
        assert 0 < record.start_not_before_s - now_s <= recovery.BASE_S
        now_s = record.start_not_before_s
    assert (record.deaths, record.rung) == (0, None)


def test_what_another_revision_does_changes_nothing_but_the_number_of_restarts() -> None:
    before = recovery.after_death(Record(REVISION), death(), now_s=1.0, jitter=0.5)
    assert recovery.after_success(before, REVISION + 1, started_s=2.0) == before
    after = recovery.after_death(before, death(revision=REVISION - 1), now_s=1.0, jitter=0.5)
    assert after == msgspec.structs.replace(before, restarts=before.restarts + 1)


def test_a_new_revision_has_to_prove_itself_and_one_that_is_judged_anew_has_done_so() -> None:
    proven = recovery.after_success(Record(REVISION), REVISION, started_s=0.0)
    died = recovery.after_death(proven, death(), now_s=1.0, jitter=0.5)
    assert recovery.judged_anew(died, REVISION, generation=2, fallback=3) == Record(REVISION, 2, is_proven=True)
    after = Record(REVISION + 1, 2, fallback=REVISION)
    assert recovery.judged_anew(died, REVISION + 1, generation=2, fallback=None) == after


_DEATHS = st.lists(
    st.tuples(
        st.sampled_from([*{row[0] for row in _rows()}]),
        st.sampled_from(["by itself", "killed"]),
        st.integers(1, 100),
        st.floats(0, 10),
        st.floats(0, 1, exclude_max=True),
    )
)


@given(_DEATHS)
def test_who_was_killed_at_work_or_died_after_good_work_waits_for_nothing_new_and_nobody_waits_for_long(
    deaths: list[tuple[str, str, int, float, float]],
) -> None:
    record, now_s = Record(REVISION), 0.0
    for replica, ended, max_attempts, later_s, jitter in deaths:
        now_s += later_s
        one = death(replica, ended=ended, max_attempts=max_attempts)
        before, record = record, recovery.after_death(record, one, now_s=now_s, jitter=jitter)
        assert now_s <= record.start_not_before_s <= now_s + recovery.CAP_S  # as it is summed: a difference is rounded
        if ("later" in replica or "work" in replica) and ended == "killed":
            assert record.start_not_before_s == max(now_s, before.start_not_before_s)
            assert record.is_given_up == before.is_given_up
    assert recovery.after_success(record, REVISION, started_s=now_s + 1).is_given_up is False


@given(_DEATHS, st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_record_that_was_stored_and_read_by_another_node_decides_the_same(
    deaths: list[tuple[str, str, int, float, float]], stored_at_s: float, read_at_s: float
) -> None:
    record, now_s = Record(REVISION), 0.0
    for replica, ended, max_attempts, later_s, jitter in deaths:
        now_s += later_s
        record = recovery.after_death(
            record, death(replica, ended=ended, max_attempts=max_attempts), now_s=now_s, jitter=jitter
        )
    text = msgspec.json.encode(recovery.moved(record, -stored_at_s))
    read = recovery.moved(msgspec.json.decode(text, type=Record), read_at_s)
    by_s = read_at_s - stored_at_s
    assert msgspec.structs.replace(
        read, recent_s=(), last_death_s=None, start_not_before_s=0, moved_at_s=None
    ) == msgspec.structs.replace(record, recent_s=(), last_death_s=None, start_not_before_s=0, moved_at_s=None)
    assert read.start_not_before_s == pytest.approx(record.start_not_before_s + by_s, abs=1e-3)
    assert read.recent_s == pytest.approx([at_s + by_s for at_s in record.recent_s], abs=1e-3)


def test_the_examples_hold() -> None:
    assert doctest.testmod(recovery).failed == 0


@pytest.mark.parametrize("max_attempts", [1, 3, 5, 20, 100])
def test_an_agent_that_no_task_survives_is_given_up_however_often_a_task_may_be_tried(max_attempts: int) -> None:
    record, now_s = Record(REVISION), 0.0
    for _ in range(100):
        record = recovery.after_death(
            record, death("at first work", max_attempts=max_attempts), now_s=now_s, jitter=0.9
        )
        now_s = record.start_not_before_s + 1.0
    assert record.is_given_up


def test_a_death_that_does_not_count_shortens_no_backoff() -> None:
    record = Record(REVISION)
    for _ in range(4):
        record = recovery.after_death(record, death("starting"), now_s=0.0, jitter=0.5)
    before_s = record.start_not_before_s
    killed = death("at first work", ended="killed")
    assert recovery.after_death(record, killed, now_s=0.1, jitter=0.5).start_not_before_s == before_s
