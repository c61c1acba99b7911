"""How many replicas, why, and in what words: tables, and what holds under any load."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom.core import scaling, windows
from greenroom.core.scaling import Caps, Decision, Memory, Policy, Rule, Sample

TEN = Policy(max_replicas=10)


class Course:
    """An agent under one policy, looked at again and again; its number is what was decided last."""

    def __init__(self, policy: Policy = TEN, *, replicas: int = 1, at_s: float = 0.0) -> None:
        self.policy, self.replicas, self.at_s = policy, replicas, at_s
        self.memory = Memory.empty(policy)
        self.decisions: list[tuple[float, Decision]] = []

    def look(self, waiting: int = 0, busy: int = 0, *, caps: Caps | None = None, ready: int | None = None) -> Decision:
        sample = Sample(self.at_s, waiting, busy, self.replicas if ready is None else ready)
        self.memory = scaling.observe(self.policy, self.memory, sample)
        decision, self.memory = scaling.decide(self.policy, self.memory, sample, self.replicas, caps)
        self.replicas = decision.replicas
        self.decisions.append((self.at_s, decision))
        self.at_s += 1.0
        return decision

    def looks(self, times: int, waiting: int = 0, busy: int = 0) -> Decision:
        return [self.look(waiting, busy) for _ in range(times)][-1]

    def set_to(self, replicas: int) -> None:
        self.memory = scaling.noted(self.memory, self.at_s, before=self.replicas, replicas=replicas)
        self.replicas = replicas

    @property
    def turns_at_s(self) -> list[float]:
        """When the direction changed; bursts, waking and what people set are exempt."""
        found, direction = [], 0
        for at_s, decision in self.decisions:
            if not decision.has_changed:
                continue
            now = 1 if decision.replicas > decision.before else -1
            if direction == -now and decision.rule not in scaling.EXEMPT:
                found.append(at_s)
            direction = now
        return found


def test_a_burst_is_answered_at_once_and_said_in_a_sentence() -> None:
    decision = Course().look(200, 1)
    assert (decision.replicas, decision.rule) == (10, Rule.BURST)
    assert decision.sentence == (
        "from 1 to 10: 200 tasks wait for 1 ready replica, the target is 5 each, so 40 are wanted; max_replicas is 10"
    )


def test_a_queue_that_is_no_burst_goes_by_the_mean() -> None:
    course = Course()
    course.looks(6)
    rising = [course.look(7, 1).replicas for _ in range(6)]
    assert rising[0] == 1
    assert rising[-1] == 2
    assert course.decisions[-1][1].rule in (Rule.QUEUE, Rule.ENOUGH)


def test_busy_slots_ask_for_more_before_anything_waits() -> None:
    course = Course(Policy(slots=4, max_replicas=10))
    assert course.looks(10, 0, 4).replicas == 2
    assert any(decision.rule is Rule.BUSY for _, decision in course.decisions)


def test_less_comes_only_after_all_of_the_window_and_by_half() -> None:
    course = Course(replicas=10)
    assert course.looks(60).rule is Rule.STABILISING
    steps = [course.looks(5).replicas for _ in range(5)]
    assert steps == [5, 3, 2, 1, 1]


def test_one_peak_in_the_window_keeps_what_it_asked_for() -> None:
    course = Course(replicas=1)
    course.look(50, 1)
    assert course.replicas == 10
    assert course.looks(59).replicas == 10
    course.looks(60)
    assert course.replicas < 10


def test_it_does_not_turn_twice_in_a_window() -> None:
    course = Course(replicas=4)
    course.looks(61)
    assert course.replicas == 2
    course.looks(61, 0, 2)  # 2.5 are asked for: a turn, and the first one
    assert course.replicas == 3
    while course.replicas == 3:
        course.look()  # the second, a window later and more
    assert course.replicas == 2
    held = course.looks(8, 0, 2)
    assert (held.replicas, held.rule) == (2, Rule.TURNED)


def test_a_burst_may_turn_at_once() -> None:
    course = Course(replicas=4)
    course.looks(61)
    assert course.look(200, 2).replicas == 10


def test_the_last_replica_goes_after_idle_s_and_the_first_task_wakes_it() -> None:
    course = Course(Policy(min_replicas=0, max_replicas=10, idle_s=30))
    assert course.looks(30).replicas == 1
    asleep = course.look()
    assert (asleep.replicas, asleep.rule) == (0, Rule.SLEEP)
    assert course.looks(10).rule is Rule.ENOUGH
    woken = course.look(1)
    assert (woken.replicas, woken.rule) == (1, Rule.WAKE)
    assert "asleep" in woken.sentence


def test_what_runs_keeps_an_agent_awake() -> None:
    course = Course(Policy(min_replicas=0, idle_s=30))
    assert course.looks(200, 0, 1).replicas >= 1


@pytest.mark.parametrize(
    ("caps", "rule"),
    [
        (Caps(failing="its replicas die"), Rule.FAILING),
        (Caps(breaker="its circuit is open"), Rule.BREAKER),
        (Caps(cpu="7.5 of 8 CPUs are used"), Rule.CPU),
        (Caps(room_by_memory=0, memory="no room"), Rule.MEMORY),
        (Caps(surge=2), Rule.SURGE),
        (Caps(allotment=2, sharing="b wants 9"), Rule.CLUSTER),
    ],
)
def test_what_forbids_more_is_named(caps: Caps, rule: Rule) -> None:
    decision = Course(replicas=2).look(200, 2, caps=caps)
    assert (decision.replicas, decision.rule) == (2, rule)
    assert decision.sentence.startswith("stays at 2: ")


def test_memory_gives_as_much_as_there_is() -> None:
    decision = Course(replicas=2).look(200, 2, caps=Caps(room_by_memory=3, memory="room for 3"))
    assert (decision.replicas, decision.rule) == (5, Rule.BURST)
    assert decision.sentence.endswith("room for 3")


def test_where_memory_is_over_its_limit_one_goes_whatever_is_asked_for() -> None:
    course = Course(replicas=4)
    caps = Caps(room_by_memory=-1, memory="all replicas use 101 of 100 MB")
    decision = course.look(200, 4, caps=caps)
    assert (decision.replicas, decision.rule) == (3, Rule.MEMORY)
    assert course.look(200, 4, caps=caps).rule is Rule.COOLDOWN
    least = Course(Policy(min_replicas=4), replicas=4)
    assert least.look(0, 4, caps=caps).replicas == 4


def test_max_running_bounds_by_slots() -> None:
    course = Course(Policy(slots=2, max_running=7, max_replicas=10))
    assert course.look(200, 2).replicas == 4


def test_bounds_that_a_deployment_changes_hold_at_once() -> None:
    course = Course(replicas=8)
    course.policy = Policy(max_replicas=3)
    decision = course.look()
    assert (decision.replicas, decision.rule) == (3, Rule.MAX)
    course.policy = Policy(min_replicas=5)
    decision = course.look()
    assert (decision.replicas, decision.rule) == (5, Rule.MIN)


def test_min_replicas_ends_a_step_down_and_does_not_hurry_it() -> None:
    course = Course(Policy(min_replicas=3), replicas=10)
    assert course.looks(60).replicas == 10
    assert course.looks(30).replicas == 3


def test_min_replicas_does_not_wait_for_what_holds_the_rest() -> None:
    course = Course(replicas=2)
    course.set_to(1)
    assert course.looks(8, 6, 1).rule is Rule.SET
    course.policy = Policy(min_replicas=3)
    decision = course.look(6, 1)
    assert (decision.replicas, decision.rule) == (3, Rule.MIN)


def test_what_is_left_over_goes_to_whose_turn_it_is() -> None:
    wants = {"a": (0, 1), "b": (0, 1), "c": (0, 1)}
    assert scaling.share(2, wants) == {"a": 1, "b": 1, "c": 0}
    assert scaling.share(2, wants, turns={"a": 2, "b": 0, "c": 1}) == {"a": 0, "b": 1, "c": 1}


def test_what_somebody_has_set_holds_for_the_window() -> None:
    course = Course(replicas=1)
    course.looks(70)
    course.set_to(6)
    assert course.looks(59).rule is Rule.STABILISING
    assert course.replicas == 6
    course.looks(20)
    assert course.replicas < 6


def test_a_burst_does_not_wait_for_what_was_set() -> None:
    course = Course(replicas=5)
    course.set_to(1)
    course.looks(5, 0, 1)
    assert course.replicas == 1
    assert course.look(100, 1).replicas == 10


def test_a_share_that_others_need_is_given_up() -> None:
    course = Course(replicas=8)
    decision = course.look(60, 8, caps=Caps(allotment=5, sharing="b wants 5, and cluster.max_replicas is 10"))
    assert (decision.replicas, decision.rule) == (5, Rule.CLUSTER)
    assert "b wants 5" in decision.sentence


# --- under any load


def _steps(levels: Sequence[int], at: int) -> float:
    return levels[at // 40 % len(levels)]


def _sine(levels: Sequence[int], at: int) -> float:
    return max(levels) * (1 + math.sin(at * 2 * math.pi / (7 + 10 * len(levels)))) / 2


def _spikes(levels: Sequence[int], at: int) -> float:
    return levels[at % len(levels)] if at % (5 + len(levels)) == 0 else 0


def _noise(levels: Sequence[int], at: int) -> float:
    return levels[at * 61_803 % 101 % len(levels)]


shapes = st.sampled_from([_steps, _sine, _spikes, _noise])
loads = st.lists(st.integers(0, 30), min_size=2, max_size=12)
policies = st.builds(
    Policy,
    min_replicas=st.integers(0, 3),
    max_replicas=st.integers(3, 20),
    slots=st.integers(1, 4),
    target_queue=st.sampled_from([0.5, 1.0, 5.0]),
    stabilisation_s=st.sampled_from([10.0, 30.0, 60.0]),
    cooldown_s=st.sampled_from([0.0, 5.0]),
    idle_s=st.sampled_from([0.0, 5.0, 30.0]),
)


def _run(policy: Policy, shape: Callable[[Sequence[int], int], float], levels: Sequence[int], seconds: int) -> Course:
    """Serve a load in a queue: tasks of a second come as the shape says."""
    course, waiting = Course(policy, replicas=policy.lowest), 0
    for at in range(seconds):
        waiting += round(shape(levels, at))
        busy = min(waiting, course.replicas * policy.slots)
        course.look(waiting - busy, busy)
        waiting -= busy
    return course


@settings(max_examples=60, deadline=None)
@given(policies, shapes, loads)
def test_it_never_flaps(policy: Policy, shape: Callable[[Sequence[int], int], float], levels: list[int]) -> None:
    turns = _run(policy, shape, levels, 300).turns_at_s
    assert all(after - before >= policy.stabilisation_s for before, after in itertools.pairwise(turns))


@settings(max_examples=60, deadline=None)
@given(policies, shapes, loads)
def test_it_stays_within_its_bounds_and_goes_down_by_steps(
    policy: Policy, shape: Callable[[Sequence[int], int], float], levels: list[int]
) -> None:
    course = _run(policy, shape, levels, 200)
    down_at_s = -math.inf
    for at_s, decision in course.decisions:
        assert policy.min_replicas <= decision.replicas <= policy.max_replicas
        if decision.replicas < decision.before:
            assert at_s - down_at_s >= policy.cooldown_s
            assert decision.replicas >= decision.before // 2
            down_at_s = at_s


@settings(max_examples=60, deadline=None)
@given(policies, st.integers(1, 40))
def test_a_steady_load_is_served_by_a_steady_number(policy: Policy, load: int) -> None:
    course = _run(policy, _steps, [load, load], 400)
    last = [decision.replicas for _, decision in course.decisions[-100:]]
    assert len(set(last)) == 1


@given(
    st.integers(0, 60),
    st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.tuples(st.integers(0, 4), st.integers(0, 30))),
)
def test_shares_are_max_min_fair(total: int, given_: dict[str, tuple[int, int]]) -> None:
    wants = {name: (least, max(least, wanted)) for name, (least, wanted) in given_.items()}
    shares = scaling.share(total, wants)
    minimums = sum(least for least, _ in wants.values())
    above = {name: shares[name] - wants[name][0] for name in wants}
    assert sum(shares.values()) == max(minimums, min(total, sum(wanted for _, wanted in wants.values())))
    for name, (least, wanted) in wants.items():
        assert least <= shares[name] <= wanted
        if shares[name] < wanted:  # nobody has more above its minimum, but for what does not come out even
            assert max(above.values()) <= above[name] + 1


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 20)), max_size=80))
def test_the_highest_of_a_window_is_that(looks: list[tuple[float, int]]) -> None:
    at_s, seen = 0.0, []
    highest = windows.Highest(10.0)
    for delay_s, value in looks:
        at_s += delay_s
        seen.append((at_s, value))
        highest = highest.add(at_s, value)
        assert highest.value == max(value for at, value in seen if at > at_s - 10)


def test_a_mean_does_not_count_how_often_somebody_looked() -> None:
    mean = windows.Mean(10.0)
    for at_s, value in ((0.0, 0.0), (1.0, 10.0), (1.1, 10.0), (1.2, 10.0)):
        mean = mean.add(at_s, value)
    assert mean.value == 5.0


def test_a_window_is_bounded_however_long_it_is() -> None:
    mean = windows.Mean(3600.0)
    for second in range(10_000):
        mean = mean.add(float(second), 1.0)
    assert len(mean.buckets) <= windows.BUCKETS + 1


def test_other_windows_begin_anew_and_keep_the_direction() -> None:
    memory = msgspec.structs.replace(Memory.empty(TEN), direction=-1, turned_at_s=3.0, set_at_s=4.0)
    assert memory.resized(TEN) is memory
    other = memory.resized(Policy(stabilisation_s=10.0))
    assert (other.highest.window_s, other.direction, other.turned_at_s, other.set_at_s) == (10.0, -1, 3.0, 4.0)
