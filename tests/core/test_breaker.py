"""The circuit breaker: it opens by evidence alone, is tried gently, and closes by success alone."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import breaker, tasks
from greenroom.core.breaker import Breaker, Move, Policy, State, Window

POLICY = Policy(failure_pct=50, min_attempts=20, window_s=30.0, open_s=10.0)
HALF_OPEN = Breaker(State.HALF_OPEN, since_s=100.0, trips=1, allowed=1, reason="it was down")

ENDS = """
# the attempt's end                     speaks against what the agent calls
succeeded                               no
an error that is worth a retry          yes
an error                                nothing
its agent's time is over                yes
its own, shorter time is over           nothing
its replica was lost                    nothing
its replica was drained                 nothing
"""
_ENDS: dict[str, tasks.End] = {
    "succeeded": tasks.Succeeded(),
    "an error that is worth a retry": tasks.AgentFailed("E", "down", retryable=True),
    "an error": tasks.AgentFailed("E", "bad input"),
    "its agent's time is over": tasks.TimedOut(5.0),
    "its own, shorter time is over": tasks.TimedOut(4.0),
    "its replica was lost": tasks.ReplicaGone(tasks.Reason.REPLICA_LOST),
    "its replica was drained": tasks.ReplicaGone(tasks.Reason.DRAINED, charged=False),
}
_MEANS = {"yes": True, "no": False, "nothing": None}


def test_the_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(breaker).failed == 0


@pytest.mark.parametrize("line", [line for line in ENDS.splitlines() if line and not line.startswith("#")])
def test_what_counts(line: str) -> None:
    end, means = line[:40].strip(), line[40:].strip()
    assert breaker.is_failure(_ENDS[end], timeout_s=5.0) is _MEANS[means]


def test_an_end_that_nobody_has_told_of_says_nothing() -> None:
    assert breaker.is_failure(None, timeout_s=5.0) is None


@pytest.mark.parametrize(
    ("ended", "failed", "is_open"),
    [(19, 19, False), (20, 9, False), (20, 10, True), (20, 20, True), (1000, 499, False), (1000, 500, True)],
)
def test_it_opens_when_enough_of_enough_have_failed(ended: int, failed: int, is_open: bool) -> None:
    after = breaker.after_failures(Breaker(), POLICY, (ended, failed), last="E: down", now_s=7.0, jitter=0.0)
    assert (after.state is State.OPEN) == is_open
    if is_open:
        assert (after.since_s, after.until_s, after.trips) == (7.0, 17.0, 1)
        assert after.reason == f"{failed} of {ended} attempts failed within 30 s; the last one: E: down"


def test_a_move_that_the_table_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="a breaker that is closed cannot try"):
        breaker.move(State.CLOSED, Move.TRY)


def _tried(before: Breaker, *failures: bool, slots: int = 8, began_s: float = 101.0) -> Breaker:
    for is_failure in failures:
        before = breaker.after_trial(
            before, POLICY, is_failure=is_failure, began_s=began_s, slots=slots, now_s=102.0, jitter=0.0
        )
    return before


def test_each_success_lets_twice_as_many_be_tried_until_all_may() -> None:
    allowed = [_tried(HALF_OPEN, *[False] * count).allowed for count in range(3)]
    assert allowed == [1, 2, 4]
    assert _tried(HALF_OPEN, *[False] * 3) == Breaker(State.CLOSED, since_s=102.0, trips=1)
    assert _tried(HALF_OPEN, False, slots=1).state is State.CLOSED


def test_a_failure_of_the_first_opens_it_for_twice_as_long() -> None:
    after = _tried(HALF_OPEN, True)
    assert (after.state, after.trips, after.until_s) == (State.OPEN, 2, 122.0)


def test_a_failure_among_successes_is_what_an_agent_may_have() -> None:
    assert _tried(HALF_OPEN, False, False, True) == Breaker(
        State.HALF_OPEN, since_s=100.0, trips=1, allowed=4, tried=3, failed=1, reason="it was down"
    )
    assert _tried(HALF_OPEN, False, False, True, True).state is State.OPEN


@pytest.mark.parametrize("is_failure", [True, False])
def test_what_began_before_it_was_half_open_moves_nothing(is_failure: bool) -> None:
    assert _tried(HALF_OPEN, is_failure, slots=1, began_s=99.0) == HALF_OPEN


def test_half_open_with_nothing_to_do_it_waits() -> None:
    assert breaker.after_time(HALF_OPEN, now_s=1e9) == HALF_OPEN


def test_who_opens_again_soon_after_it_was_closed_waits_for_longer() -> None:
    closed = Breaker(State.CLOSED, since_s=100.0, trips=1)
    soon = breaker.after_failures(closed, POLICY, (20, 20), last="", now_s=129.0, jitter=0.0)
    late = breaker.after_failures(closed, POLICY, (20, 20), last="", now_s=131.0, jitter=0.0)
    assert (soon.until_s - 129.0, late.until_s - 131.0) == (20.0, 10.0)


def test_by_hand_it_is_closed_and_what_was_is_forgotten() -> None:
    assert breaker.released(HALF_OPEN, now_s=5.0) == Breaker(State.CLOSED, since_s=5.0)
    assert breaker.released(Breaker(State.OPEN, trips=9), now_s=5.0) == Breaker(State.CLOSED, since_s=5.0)


def test_those_that_run_from_before_take_nobodys_place() -> None:
    assert breaker.limit(HALF_OPEN, None, before=7) == 8
    assert breaker.limit(HALF_OPEN, 3, before=7) == 3


def test_of_an_error_its_type_is_shown_and_never_its_text() -> None:
    """Alerts are read by every tenant."""
    assert breaker.told(tasks.AgentFailed("ConnectError", "no answer about alice@example.com")) == "ConnectError"
    assert breaker.told(tasks.TimedOut(300.0)) == "it did not end within 300 s"


# Properties

POLICIES = st.builds(
    Policy,
    failure_pct=st.integers(1, 100),
    min_attempts=st.integers(1, 5),
    window_s=st.floats(1, 100),
    open_s=st.one_of(st.floats(0.1, 1), st.floats(0.1, 3600)),
)
STEPS = st.lists(
    st.sampled_from(("failure", "success", "old failure", "old success", "its time passes", "a moment passes")),
    min_size=10,
    max_size=80,
)


@given(policy=POLICIES, steps=STEPS, slots=st.integers(1, 20), jitter=st.floats(0, 1, exclude_max=True))
def test_it_moves_by_the_table_and_for_a_reason(policy: Policy, steps: list[str], slots: int, jitter: float) -> None:
    """It opens only when enough have failed, closes only by a success, and is never open for longer than it may be."""
    now_s, known, window = 1000.0, Breaker(), Window(policy.window_s)
    for step in steps:
        before, is_failure, is_old = known, step.endswith("failure"), step.startswith("old")
        if step.endswith("passes"):
            now_s = max(now_s, known.until_s) if step == "its time passes" else now_s + 0.01
            known = breaker.after_time(known, now_s=now_s)
            is_due = before.state is State.OPEN and now_s >= before.until_s
            assert (known.state is State.HALF_OPEN) if is_due else (known == before)
        else:
            window.note(is_failure=is_failure, now_s=now_s)
            ended, failed = window.counts(now_s)
            began_s = known.since_s - 1 if is_old else now_s
            if known.state is State.CLOSED and is_failure:
                known = breaker.after_failures(known, policy, (ended, failed), last="", now_s=now_s, jitter=jitter)
            else:
                known = breaker.after_trial(
                    known, policy, is_failure=is_failure, began_s=began_s, slots=slots, now_s=now_s, jitter=jitter
                )
            if before.state is State.CLOSED and known.state is State.OPEN:
                assert ended >= policy.min_attempts
                assert failed * 100 >= policy.failure_pct * ended
            if before.state is State.OPEN or (before.state is State.HALF_OPEN and is_old):
                assert known == before
            if known.state is State.CLOSED and before.state is not State.CLOSED:
                assert not is_failure
        if known.state is not before.state:
            moves = breaker.TRANSITIONS.items()
            assert any(after is known.state for (state, _), after in moves if state is before.state)
        if known.state is State.OPEN:
            assert 0 < known.until_s - known.since_s <= max(breaker.MOST_OPEN_S, policy.open_s) + 1e-6
        if known.state is State.HALF_OPEN:
            assert 1 <= known.allowed < max(2, slots)


@given(
    policy=POLICIES,
    trips=st.integers(1, 10_000),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_it_is_open_for_longer_each_time_up_to_ten_minutes(policy: Policy, trips: int, jitter: float) -> None:
    took_s = breaker.open_s(policy, trips, jitter=jitter)
    assert 0.8 * policy.open_s <= took_s <= max(breaker.MOST_OPEN_S, policy.open_s)
    assert breaker.open_s(policy, trips + 1, jitter=jitter) >= took_s


@given(
    st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=100),
    st.floats(1, 20),
)
def test_a_window_counts_all_that_is_in_it_and_forgets_what_is_older(
    attempts: list[tuple[float, bool]], window_s: float
) -> None:
    window, now_s, noted = Window(window_s), 1e6, list[tuple[float, bool]]()
    for delay_s, is_failure in attempts:
        now_s += delay_s
        window.note(is_failure=is_failure, now_s=now_s)
        noted.append((now_s, is_failure))
        ended, failed = window.counts(now_s)
        within = [each for each in noted if each[0] > now_s - window_s * 0.9 + 0.001]
        around = [each for each in noted if each[0] > now_s - window_s - 0.001]
        assert len(within) <= ended <= len(around)
        assert sum(each[1] for each in within) <= failed <= sum(each[1] for each in around)
