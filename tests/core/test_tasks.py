"""The machine of tasks: every state with every move, and what becomes of a task whose attempt ended."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import tasks
from greenroom.core.tasks import Move, Reason, State
from greenroom.testing import state_machines

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

#        claim     call     resume   requeue succeed    fail    cancel     expire   answer
TABLE = """
queued    running   -        -        -      -          -      cancelled  expired  succeeded
running   -         waiting  -        queued succeeded  failed cancelled  expired  -
waiting   -         -        running  queued succeeded  failed cancelled  expired  -
succeeded -         -        -        -      -          -      -          -        -
failed    -         -        -        -      -          -      -          -        -
cancelled -         -        -        -      -          -      -          -        -
expired   -         -        -        -      -          -      -          -        -
"""
EXPECTED = {
    (State(state), by): after
    for state, *afters in map(str.split, TABLE.strip().splitlines())
    for by, after in zip(Move, afters, strict=True)
}

reasons = st.sampled_from([Reason.REPLICA_LOST, Reason.OOM, Reason.DRAINED, Reason.NEIGHBOUR])
ends = st.one_of(
    st.just(tasks.Succeeded()),
    st.builds(tasks.AgentFailed, st.just("ValueError"), st.text(), st.booleans()),
    st.builds(tasks.ReplicaGone, reasons, st.text(), st.booleans()),
    st.builds(tasks.TimedOut, st.floats(0, 1e6)),
)
policies = st.builds(
    tasks.Policy, st.integers(1, 10), st.sampled_from(["retry", "fail"]), st.floats(0, 1e4, allow_nan=False)
)
jitters = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(("state", "by"), list(EXPECTED))
def test_every_state_knows_every_move_or_refuses_it(state: State, by: Move) -> None:
    expected = EXPECTED[state, by]
    if expected == "-":
        with pytest.raises(ValueError, match=f"a {state} task cannot {by}"):
            tasks.move(state, by)
    else:
        assert tasks.move(state, by) == expected


def test_the_table_of_this_test_is_complete() -> None:
    assert len(EXPECTED) == len(State) * len(Move)


def test_states_are_open_or_terminal_and_nothing_leaves_a_terminal_one() -> None:
    assert set(State) == tasks.OPEN | tasks.TERMINAL
    assert not tasks.OPEN & tasks.TERMINAL
    assert {tasks.State.RUNNING, tasks.State.WAITING} < tasks.OPEN
    assert all(state in tasks.OPEN for state, _ in tasks.TRANSITIONS)


@given(end=ends, policy=policies, jitter=jitters, charged=st.integers(1, 10))
def test_every_end_has_a_verdict_that_the_table_allows(
    end: tasks.End, policy: tasks.Policy, jitter: float, charged: int
) -> None:
    verdict = tasks.settle(end, attempts_charged=charged, policy=policy, now=NOON, jitter=jitter)
    assert verdict.state is tasks.move(State.RUNNING, verdict.by)
    assert tasks.move(State.WAITING, verdict.by) is verdict.state
    assert (verdict.error is not None) == (verdict.state in (State.FAILED, State.EXPIRED))
    if verdict.due_at is not None:
        assert verdict.by is Move.REQUEUE
        assert NOON <= verdict.due_at <= NOON + timedelta(seconds=tasks.BACKOFF_CAP_S)


@given(policy=policies, jitter=jitters, charged=st.integers(1, 10))
def test_a_success_is_never_run_again(policy: tasks.Policy, jitter: float, charged: int) -> None:
    verdict = tasks.settle(tasks.Succeeded(), attempts_charged=charged, policy=policy, now=NOON, jitter=jitter)
    assert verdict == tasks.Verdict(Move.SUCCEED, Reason.OK)


@given(ends=st.lists(ends, min_size=40, max_size=40), policy=policies, jitter=jitters)
def test_attempts_are_bounded_by_those_that_were_charged(
    ends: list[tasks.End], policy: tasks.Policy, jitter: float
) -> None:
    charged = 0
    for end in ends:
        charged += 1
        assert charged <= policy.max_attempts
        verdict = tasks.settle(end, attempts_charged=charged, policy=policy, now=NOON, jitter=jitter)
        charged -= verdict.refund
        if verdict.state in tasks.TERMINAL:
            return


@given(end=ends, policy=policies, jitter=jitters, charged=st.integers(1, 10))
def test_an_attempt_is_given_back_only_where_the_task_is_innocent(
    end: tasks.End, policy: tasks.Policy, jitter: float, charged: int
) -> None:
    verdict = tasks.settle(end, attempts_charged=charged, policy=policy, now=NOON, jitter=jitter)
    may_run_again = policy.on_replica_loss != "fail" or (isinstance(end, tasks.ReplicaGone) and not end.ran)
    is_innocent = isinstance(end, tasks.ReplicaGone) and not end.charged and may_run_again
    assert verdict.refund == is_innocent
    if is_innocent:
        assert (verdict.by, verdict.due_at) == (Move.REQUEUE, None)


@given(policy=policies, jitter=jitters, charged=st.integers(1, 10), message=st.text())
def test_an_agents_own_error_is_final_unless_the_agent_says_otherwise(
    policy: tasks.Policy, jitter: float, charged: int, message: str
) -> None:
    end = tasks.AgentFailed("ValueError", message)
    verdict = tasks.settle(end, attempts_charged=charged, policy=policy, now=NOON, jitter=jitter)
    assert (verdict.state, verdict.error) == (State.FAILED, tasks.Error("ValueError", message))


def test_a_lost_replica_is_retried_at_once_and_then_with_growing_pauses() -> None:
    policy = tasks.Policy(max_attempts=5, retry_backoff_s=2.0)
    end = tasks.ReplicaGone(Reason.REPLICA_LOST)
    verdicts = [
        tasks.settle(end, attempts_charged=charged, policy=policy, now=NOON, jitter=0.5) for charged in range(1, 6)
    ]
    assert [verdict.by for verdict in verdicts] == [Move.REQUEUE] * 4 + [Move.FAIL]
    pauses = [(verdict.due_at - NOON).total_seconds() for verdict in verdicts if verdict.due_at is not None]
    assert pauses == [1.0, 2.0, 4.0]
    assert verdicts[0].due_at is None


@pytest.mark.parametrize("policy", [tasks.Policy(on_replica_loss="fail"), tasks.Policy(max_attempts=1)])
def test_a_lost_task_that_is_not_run_again_says_that_it_may_have_run(policy: tasks.Policy) -> None:
    end = tasks.ReplicaGone(Reason.OOM, "512 MB")
    verdict = tasks.settle(end, attempts_charged=1, policy=policy, now=NOON, jitter=0)
    assert verdict.error is not None
    assert (verdict.error.type, verdict.error.may_have_run) == ("replica_lost", True)
    assert "512 MB" in verdict.error.message


@given(retry=st.integers(1, 10_000), base_s=st.floats(0, 1e9), jitter=jitters)
def test_pauses_are_never_longer_than_a_minute(retry: int, base_s: float, jitter: float) -> None:
    assert 0 <= tasks.backoff_s(retry, base_s=base_s, jitter=jitter) <= tasks.BACKOFF_CAP_S


def test_a_bad_enough_jitter_still_pauses_within_the_doubling() -> None:
    assert [tasks.backoff_s(retry, base_s=1.0, jitter=0.999) // 1 for retry in range(1, 9)] == [
        0, 1, 3, 7, 15, 31, 59, 59
    ]  # fmt: skip


def test_the_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(tasks).failed == 0


def test_the_page_of_state_machines_is_drawn_from_the_table() -> None:
    page = Path(__file__).parents[2] / state_machines.PAGE
    assert page.read_text() == state_machines.page(), "run: python -m greenroom.testing.state_machines"
