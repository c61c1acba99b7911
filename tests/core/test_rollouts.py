"""The rollout machine: what each strategy does, and what holds whatever happens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from msgspec.structs import replace

from greenroom.core import analysis, rollouts, strategies
from greenroom.core.rollouts import Death, Phase, Proof, Rollout, Seen
from greenroom.core.strategies import Stage, Strategy

KINDS = ("rolling", "blue-green", "canary")


def begun(kind: str = "rolling", *, desired: int = 4, deadline_s: float = 120.0, **wanted: Any) -> Rollout:
    return Rollout(
        from_revision=1,
        to_revision=2,
        stages=strategies.stages(Strategy(kind=kind, **wanted), desired),
        progress_deadline_s=deadline_s,
        evidence=(analysis.Stage(weight_pct=0),),
    )


def proven(ready: int, desired: int = 4) -> Seen:
    return Seen(desired, ready, Proof.PASSED)


def with_good_tasks(rollout: Rollout, count: int = 200) -> Rollout:
    """Have *count* tasks ended well on each revision, at the weight that the rollout has."""
    tally = analysis.Tally()
    for _ in range(count):
        sample = analysis.Sample(is_error=False, is_refusal=False, duration_s=0.1, tokens=0)
        tally = analysis.counted(tally, sample, analysis.Limits())
    return rollouts.with_tallies(rollout, {1: tally, 2: tally})


def run(rollout: Rollout, seen: Seen, *, steps: int = 200, elapsed_s: float = 0.0) -> list[Rollout]:
    """Step until only something else can move it; return each state that was another than the one before."""
    states = [rollout]
    for _ in range(steps):
        after, next_s = rollouts.step(with_good_tasks(states[-1]), seen, elapsed_s)
        if after.is_retired or next_s is None:
            return [*states, after]
        states.append(after)
        elapsed_s = next_s
    raise AssertionError("it never comes to rest")


def moves(states: list[Rollout]) -> list[tuple[int, int, str]]:
    """Return stage, weight and phase wherever one of them changes."""
    found: list[tuple[int, int, str]] = []
    for state in states:
        if (move := (state.stage, state.weight_pct, state.phase.value)) not in found[-1:]:
            found.append(move)
    return found


# --- strategies


def test_blue_green_brings_everything_up_before_it_switches_in_one_move() -> None:
    assert moves(run(begun("blue-green"), proven(4))) == [
        (0, 0, "progressing"),
        (1, 0, "progressing"),
        (1, 100, "progressing"),
        (1, 100, "complete"),
    ]


def test_rolling_moves_traffic_as_its_batches_are_proven() -> None:
    weights = [weight_pct for stage, weight_pct, _ in moves(run(begun("rolling"), proven(4))) if weight_pct]
    assert weights == [25, 25, 50, 50, 75, 75, 100, 100]


def test_a_canary_takes_more_and_more_of_the_traffic() -> None:
    weights = {state.weight_pct for state in run(begun("canary", desired=10), proven(10, desired=10))}
    assert weights == {0, 10, 25, 50, 100}


@pytest.mark.parametrize(
    ("desired", "surge", "unavailable", "expected"),
    [
        (1, 1, 0, [(1, 1)]),
        (4, 1, 0, [(1, 4), (2, 3), (3, 2), (4, 1)]),
        (4, 2, 0, [(2, 4), (4, 2)]),
        (4, 0, 1, [(1, 3), (2, 2), (3, 1), (4, 1)]),  # the last of the old ones stays: it is always served
        (10, 3, 2, [(5, 8), (10, 3)]),
        (3, 10, 0, [(3, 3)]),
        (1, 0, 1, [(1, 1)]),
    ],
)
def test_batches_keep_to_surge_and_unavailable_bounds(
    desired: int, surge: int, unavailable: int, expected: list[tuple[int, int]]
) -> None:
    stages = strategies.stages(Strategy(kind="rolling", surge=surge, unavailable=unavailable), desired)
    found = [
        (strategies.replicas(stage.capacity_pct, desired), strategies.replicas(stage.old_pct, desired))
        for stage in stages
    ]
    assert found == expected
    assert stages[-1].weight_pct == 100


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 300))
def test_every_batch_is_within_its_bounds(desired: int, surge: int, unavailable: int) -> None:
    stages = strategies.stages(Strategy(kind="rolling", surge=surge, unavailable=unavailable), desired)
    moved = 0
    for stage in stages:
        new, old = strategies.replicas(stage.capacity_pct, desired), strategies.replicas(stage.old_pct, desired)
        assert moved < new <= desired
        assert old >= 1
        assert old + moved >= min(desired, desired - unavailable)  # what serves while the new ones come
        assert old + new <= max(desired + (surge or 1 - bool(unavailable)), new + 1)
        moved = new
    assert moved == desired
    weights = [stage.weight_pct for stage in stages]
    assert weights == sorted(weights)
    assert weights[-1] == 100


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="no strategy is called 'purple'"):
        strategies.stages(Strategy(kind="purple"), 1)


def test_surge_is_the_most_that_stands_beside_what_there_should_be() -> None:
    assert [strategies.surge(begun(kind, desired=10).stages, 10) for kind in KINDS] == [1, 10, 10]


# --- proof and time


def test_nothing_is_promoted_while_its_checks_are_not_through() -> None:
    state = begun("blue-green")
    after, next_s = rollouts.step(state, Seen(4, 4), 10)
    assert (after.weight_pct, after.is_proven, next_s) == (0, False, 110)


def test_what_is_not_ready_by_the_deadline_is_rolled_back_and_says_why() -> None:
    state, _ = rollouts.step(begun(), Seen(4, 0), 119.9)
    assert state.is_open
    state, _ = rollouts.step(state, Seen(4, 0), 0.1)
    assert (state.phase, state.weight_pct) == (Phase.ROLLED_BACK, 0)
    assert state.reason == "no progress within 120 s (progress_deadline_s): 0 of 1 replicas were ready"


def test_a_check_that_never_ends_is_no_progress_either() -> None:
    state, _ = rollouts.step(begun(), Seen(4, 1), 120)
    assert state.reason == "no progress within 120 s (progress_deadline_s): its checks were not through"


def test_a_replica_lost_late_in_a_long_hold_does_not_roll_back() -> None:
    state = begun("canary", hold_s=7200)
    state, _ = rollouts.step(state, proven(1), 100)
    state, _ = rollouts.step(state, proven(1), 7000)
    state, next_s = rollouts.step(state, Seen(4, 0), 10)
    assert (state.phase, state.weight_pct, next_s) == (Phase.PROGRESSING, 10, 110)


def test_a_stage_is_held_for_its_hold() -> None:
    state, _ = rollouts.step(begun(hold_s=300), proven(4), 0)
    state, next_s = rollouts.step(state, proven(4), 299)
    assert (state.stage, next_s) == (0, 1)
    state, _ = rollouts.step(state, proven(4), 1)
    assert state.stage == 1


def test_what_is_proven_needs_no_proof_again_after_a_restart_of_its_node() -> None:
    state, _ = rollouts.step(begun(hold_s=300), proven(4), 0)
    state, _ = rollouts.step(state, Seen(4, 0), 5)
    state, next_s = rollouts.step(state, Seen(4, 4), 10)
    assert next_s == 290


def test_a_canary_without_tasks_is_rolled_back_after_its_hold_and_the_deadline() -> None:
    state, _ = rollouts.step(begun("canary"), proven(4), 0)
    state, next_s = rollouts.step(state, proven(4), 1)
    assert (state.is_open, next_s) == (True, 119)
    state, _ = rollouts.step(state, proven(4), 119)
    assert (state.phase, state.reason) == (
        Phase.ROLLED_BACK,
        "no evidence: no task has run on it within 120 s (hold_s, and progress_deadline_s after it)",
    )


def test_what_is_left_is_what_a_step_says_while_the_capacity_is_there() -> None:
    waiting, waiting_s = rollouts.step(begun("canary", hold_s=60), Seen(4, 0), 20)
    assert rollouts.left_s(waiting) == waiting_s == 100
    watched, _ = rollouts.step(waiting, proven(1), 0)
    watched, watched_s = rollouts.step(watched, proven(1), 40)
    assert rollouts.left_s(watched) == watched_s == 20
    untried, untried_s = rollouts.step(watched, proven(1), 50)
    assert rollouts.left_s(untried) == untried_s == 90
    assert rollouts.left_s(with_good_tasks(untried, 1)) is None
    assert rollouts.left_s(rollouts.pause(watched)) is None
    assert rollouts.left_s(rollouts.abort(watched, "")) is None


def test_a_canary_whose_tasks_take_longer_than_its_deadline_waits_for_them() -> None:
    state, _ = rollouts.step(begun("canary"), proven(4), 0)
    running = rollouts.with_tallies(state, {2: analysis.Tally(running=1)})
    after, next_s = rollouts.step(running, proven(4), 1e6)
    assert (after.is_open, next_s) == (True, None)


def test_a_quiet_time_after_good_stages_rolls_no_canary_back() -> None:
    state, _ = rollouts.step(begun("canary"), proven(4), 0)
    for _ in range(3):
        state, _ = rollouts.step(with_good_tasks(state) if not state.stage else state, proven(4), 0)
    assert (state.stage, state.is_proven) == (1, True)
    after, _ = rollouts.step(state, proven(4), 1e6)
    assert after.is_open


def test_counting_alone_is_no_move() -> None:
    state, _ = rollouts.step(begun("canary"), proven(4), 0)
    before, _ = rollouts.step(with_good_tasks(state, 3), proven(4), 1)
    after, _ = rollouts.step(with_good_tasks(state, 5), proven(4), 1)
    assert before.reason != after.reason
    assert not rollouts.has_moved(before, after)
    assert rollouts.has_moved(before, rollouts.pause(after))


def test_a_canary_with_too_few_tasks_holds_for_as_long_as_it_takes() -> None:
    state, _ = rollouts.step(begun("canary"), proven(4), 0)
    state, next_s = rollouts.step(with_good_tasks(state, 3), proven(4), 100_000)
    assert (state.phase, state.stage, next_s) == (Phase.PROGRESSING, 0, None)
    assert state.reason


@pytest.mark.parametrize("kind", KINDS)
def test_a_sleeping_agent_has_one_replica_of_each_revision_while_it_moves(kind: str) -> None:
    moving = begun(kind, desired=1)
    assert rollouts.capacity(moving, 0) == {1: 1, 2: 1}
    assert rollouts.beside(moving, 0) == 2
    done = replace(moving, phase=Phase.COMPLETE, weight_pct=100)
    assert rollouts.capacity(done, 0) == {2: 0}
    assert rollouts.beside(done, 0) == 0
    first = rollouts.first(1, has_checks=True)
    assert (rollouts.capacity(first, 0), rollouts.beside(first, 0)) == ({1: 1}, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_undoes_it_at_every_stage(kind: str) -> None:
    for state in run(begun(kind), proven(4)):
        if state.is_open:
            after, _ = rollouts.step(state, Seen(4, 4, Proof.PASSED, "it broke"), 0)
            assert (after.phase, after.weight_pct, after.reason) == (Phase.ROLLED_BACK, 0, "it broke")
            assert (after.serving, rollouts.capacity(after, 4)) == (1, {1: 4})


def test_errors_on_the_new_revision_undo_it() -> None:
    state, _ = rollouts.step(begun("canary"), proven(4), 0)
    bad = analysis.Tally()
    for _ in range(30):
        sample = analysis.Sample(is_error=True, is_refusal=False, duration_s=0.1, tokens=0)
        bad = analysis.counted(bad, sample, analysis.Limits())
    tallies = {1: with_good_tasks(state).evidence[-1].serving, 2: bad}
    state, _ = rollouts.step(rollouts.with_tallies(state, tallies), proven(4), 1)
    assert state.phase is Phase.ROLLED_BACK
    assert "30" in state.reason


def test_deaths_from_outside_doom_nobody_and_a_refusal_does_at_once() -> None:
    assert rollouts.doom([Death("killed", "by SIGKILL")] * 10) is None
    assert rollouts.doom([Death("crashed", "exit code 1")] * 2) is None
    assert rollouts.doom([Death("killed", ""), Death("refused", "cannot import")]) == "cannot import"
    told = "3 of its replicas have died; the last one: exit code 1"
    assert rollouts.doom([Death("crashed", "exit code 1")] * 3) == told
    assert rollouts.doom([Death("crashed", "exit code 1")] * 3, [Death("oom", "")] * 3) is None


# --- the first revision


def test_a_first_revision_without_checks_gets_tasks_as_soon_as_it_is_there() -> None:
    state = rollouts.first(1, has_checks=False)
    assert (state.serving, state.shares, rollouts.capacity(state, 2)) == (1, {1: 100}, {1: 2})
    assert run(state, proven(2, desired=2))[-1].phase is Phase.COMPLETE


def test_a_first_revision_whose_checks_fail_never_gets_a_task() -> None:
    state = rollouts.first(1, has_checks=True)
    assert state.shares == {1: 0}
    state, _ = rollouts.step(state, Seen(1, 1, failure="its check failed"), 0)
    assert (state.phase, state.serving, state.shares) == (Phase.FAILED, 1, {1: 0})


# --- what is asked for


@pytest.mark.parametrize("kind", KINDS)
def test_abort_is_idempotent_at_every_stage_and_does_nothing_after_the_end(kind: str) -> None:
    for state in run(begun(kind), proven(4)):
        aborted = rollouts.abort(state, "somebody")
        assert rollouts.abort(aborted, "again") == aborted
        assert aborted.phase is (Phase.ABORTED if state.is_open else state.phase)


def test_nobody_promotes_what_has_not_proven_itself() -> None:
    with pytest.raises(rollouts.Refused, match="has not proven itself"):
        rollouts.promote(begun())


def test_a_manual_rollout_waits_for_promotion_before_each_stage() -> None:
    states = run(begun("blue-green", needs_promotion=True), proven(4))
    assert (states[-1].phase, states[-1].reason) == (Phase.PAUSED, "it waits for promotion")
    promoted = rollouts.promote(states[-1])
    assert run(promoted, proven(4))[-1].phase is Phase.COMPLETE
    assert rollouts.resume(states[-1]) == promoted


def test_who_was_paused_in_a_stage_that_waits_for_promotion_goes_on_waiting_for_evidence() -> None:
    state, _ = rollouts.step(begun("canary", needs_promotion=True), proven(4), 0)
    state, _ = rollouts.step(with_good_tasks(state, 3), proven(4), 100)
    resumed = rollouts.resume(rollouts.pause(state))
    assert (resumed.phase, resumed.stage) == (Phase.PROGRESSING, 0)


def test_a_person_who_ends_a_first_rollout_aborts_it_and_it_serves_on() -> None:
    state = rollouts.abort(rollouts.first(1, has_checks=False), "ann undid it")
    assert (state.phase, state.serving, state.shares) == (Phase.ABORTED, 1, {1: 100})


def test_a_paused_rollout_stays_where_it_is_but_fails_all_the_same() -> None:
    state = rollouts.pause(begun())
    assert rollouts.pause(state) == state
    assert rollouts.step(state, proven(4), 1e6) == (state, None)
    after, _ = rollouts.step(state, Seen(4, 4, failure="it broke"), 0)
    assert after.phase is Phase.ROLLED_BACK
    assert rollouts.resume(state).phase is Phase.PROGRESSING


@pytest.mark.parametrize("ask", [rollouts.pause, rollouts.resume, rollouts.promote])
def test_an_ended_rollout_can_only_be_looked_at(ask: Any) -> None:
    with pytest.raises(rollouts.Refused, match="it is aborted already"):
        ask(rollouts.abort(begun(), "somebody"))


def test_another_deployment_ends_what_is_on_its_way_and_lets_go_what_is_left_behind() -> None:
    superseded = rollouts.supersede(begun(), "revision 3 was deployed")
    assert (superseded.phase, superseded.serving, superseded.standing) == (Phase.SUPERSEDED, 1, frozenset({1}))
    complete = run(begun(), proven(4))
    done = next(state for state in complete if state.phase is Phase.COMPLETE)
    assert (done.standing, rollouts.supersede(done, "").standing) == (frozenset({1, 2}), frozenset({2}))


def test_the_old_revision_stands_until_the_delay_is_over() -> None:
    done = next(state for state in run(begun("blue-green"), proven(4)) if state.phase is Phase.COMPLETE)
    assert rollouts.capacity(done, 4) == {2: 4, 1: 4}
    waiting, next_s = rollouts.step(done, Seen(4, 4), 4)
    assert (waiting.is_retired, next_s) == (False, 1)
    gone, _ = rollouts.step(waiting, Seen(4, 4), 1)
    assert (gone.is_retired, rollouts.capacity(gone, 4)) == (True, {2: 4})


# --- whatever happens


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 12),  # ready
        st.sampled_from([Proof.PENDING, Proof.PASSED, Proof.PASSED]),
        st.sampled_from([None, None, None, None, "it broke"]),
        st.floats(0, 200),
        st.sampled_from(["", "", "", "promote", "pause", "resume", "abort"]),
        st.booleans(),  # tasks have ended on it
    ),
    max_size=40,
)


def _asked(state: Rollout, verb: str) -> Rollout:
    try:
        match verb:
            case "promote":
                return rollouts.promote(state)
            case "pause":
                return rollouts.pause(state)
            case "resume":
                return rollouts.resume(state)
            case "abort":
                return rollouts.abort(state, "somebody")
    except rollouts.Refused:
        pass
    return state


@hypothesis_settings(max_examples=500)
@given(st.sampled_from(KINDS), st.integers(1, 12), st.booleans(), st.sampled_from([0.0, 60.0]), EVENTS)
def test_whatever_happens_the_agent_stays_served(
    kind: str, desired: int, gate: bool, hold_s: float, events: list[tuple[int, Proof, str | None, float, str, bool]]
) -> None:
    state = begun(kind, desired=desired, needs_promotion=gate, hold_s=hold_s)
    has_been_proven: set[int] = set()
    for ready, proof, failure, elapsed_s, verb, has_tasks in events:
        before = _asked(state, verb)
        if has_tasks:
            before = with_good_tasks(before)
        seen = Seen(desired, ready, proof, failure)
        state, next_s = rollouts.step(before, seen, elapsed_s)
        if state.is_open and state.weight_pct > before.weight_pct:
            wanted = strategies.replicas(state.stages[state.stage].capacity_pct, desired)
            assert ready >= wanted
            assert proof is Proof.PASSED
            has_been_proven.add(state.stage)
        if state.is_open:
            assert state.weight_pct >= before.weight_pct, "only an end takes traffic back"
            assert state.stage <= before.stage + 1
        if before.is_open and failure:
            assert state.phase is Phase.ROLLED_BACK
        if state.phase is Phase.PROGRESSING and next_s is None:
            assert state.stages[state.stage].needs_samples, "it would wait for ever"
        if state.phase is Phase.COMPLETE:
            assert state.weight_pct == 100
        _check_capacity(state, desired)


def _check_capacity(state: Rollout, desired: int) -> None:
    capacity = rollouts.capacity(state, desired)
    assert capacity[state.serving] >= 1
    assert set(capacity) == set(state.standing) | {state.serving}
    assert sum(capacity.values()) >= desired
    assert sum(state.shares.values()) == 100
    assert all(revision in capacity for revision in state.shares)
    has_all = state.stages[state.stage].old_pct == 100 or not state.is_open or state.weight_pct == 100
    if has_all:
        assert capacity[state.serving] == desired


@given(st.sampled_from(KINDS), st.integers(1, 20))
def test_a_good_revision_always_gets_there(kind: str, desired: int) -> None:
    states = run(begun(kind, desired=desired), proven(desired, desired=desired))
    assert (states[-1].phase, states[-1].serving, states[-1].is_retired) == (Phase.COMPLETE, 2, True)


@given(st.sampled_from(KINDS), st.integers(1, 20))
def test_one_that_never_starts_is_rolled_back_at_the_deadline(kind: str, desired: int) -> None:
    state, next_s = rollouts.step(begun(kind, desired=desired), Seen(desired, 0), 0)
    assert next_s == 120
    state, _ = rollouts.step(state, Seen(desired, 0), 120)
    assert (state.phase, state.weight_pct) == (Phase.ROLLED_BACK, 0)


def test_a_stage_that_needs_fewer_replicas_than_one_has_one() -> None:
    state = replace(begun(), stages=(Stage(weight_pct=1, capacity_pct=1), Stage(weight_pct=100, capacity_pct=100)))
    assert rollouts.capacity(state, 3) == {1: 3, 2: 1}
