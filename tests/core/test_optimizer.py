"""Advice: what each rule looks for, that nothing flaps, and that what was done is measured honestly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from greenroom.core import measurements, optimizer, optimizer_rules
from greenroom.core.measurements import Agent, Measurements, Replica, Spread
from greenroom.core.optimizer import Found, Key, Measured, Opened, Phase, Rule, Standing, Withdrawn

EVERY_S = optimizer.LOOK_EVERY_S


def _spread(mean: float) -> Spread:
    return Spread(mean, mean, 2 * mean, 100)


def _agent(**given: object) -> Agent:
    """Two replicas of two slots that work and are quick."""
    usual = Agent(
        name="a", replicas=2, slots=4, busy=2, busy_pct=50.0, concurrency=2, min_replicas=2, max_replicas=10,
        attempts=100, error_pct=0.0, response_s=_spread(1.0), wait_s=_spread(0.1), run_s=_spread(0.9), cpu=1.0,
        memory_mb=200.0,
    )  # fmt: skip
    return replace(usual, **given)


def _seen(*agents: Agent, **given: object) -> Measurements:
    usual = Measurements(window_s=300.0, target_response_s=5.0, max_queued=1000, agents=agents or (_agent(),))
    return replace(usual, **given)


def _rules(seen: Measurements, easing: float = 1.0) -> dict[str, Found]:
    return {found.rule: found for rule in optimizer_rules.RULES for found in rule.find(seen, easing)}


SLOW = _agent(response_s=_spread(8.0), wait_s=_spread(4.0), run_s=_spread(4.0), busy_pct=90.0)
WAITING = replace(SLOW, busy_pct=100.0, cpu=0.1)
FAT = (
    Replica(id="a-1", agent="a", memory_mb=300, cpu=1.5, slots=2),
    Replica(id="a-2", agent="a", memory_mb=100, cpu=0.2, slots=2),
)
BUSY = (replace(FAT[0], cpu=0.9), replace(FAT[1], cpu=0.8))
HOT = {"cpu_pct": 95.0, "replicas": BUSY}


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (_seen(), set()),
        (_seen(SLOW), {"more-replicas"}),
        (_seen(replace(SLOW, busy_pct=60.0)), set()),  # what they wait for is no slot
        (_seen(replace(SLOW, was_limited=True)), set()),
        (_seen(replace(WAITING, was_limited=True)), set()),
        (_seen(replace(SLOW, max_running=4)), set()),
        (_seen(replace(WAITING, max_running=4)), set()),
        (_seen(replace(SLOW, max_running=5)), {"more-replicas"}),
        (_seen(replace(SLOW, wait_s=_spread(0.1), run_s=_spread(1.0))), set()),  # a session's line
        (_seen(SLOW, cpu_pct=95.0), {"cpu-hungry"}),  # more replicas do not cool a CPU
        (_seen(WAITING), {"more-concurrency"}),
        (_seen(replace(SLOW, wait_s=_spread(0.1))), {"slow-agent"}),
        (_seen(replace(SLOW, response_s=None)), set()),  # no data is no verdict
        (_seen(replace(SLOW, wait_s=None)), {"slow-agent"}),
        (_seen(memory_pct=80.0, replicas=FAT), set()),
        (_seen(memory_pct=81.0, replicas=FAT), {"memory-fattest"}),
        (_seen(memory_pct=81.0, replicas=FAT, spares=2), {"memory-fattest", "memory-spares"}),
        (_seen(memory_pct=81.0, replicas=FAT, cache_entries=9), {"memory-fattest", "memory-cache"}),
        (_seen(memory_pct=None, replicas=FAT, spares=2), set()),
        (_seen(cpu_pct=90.0, replicas=FAT), set()),
        (_seen(**HOT), {"cpu-hungry"}),
        (_seen(**{**HOT, "replicas": FAT}), {"cpu-hungry", "cpu-uneven"}),
        (_seen(**HOT, queued=81), {"cpu-hungry", "cpu-admission"}),
        (_seen(**HOT, queued=80), {"cpu-hungry"}),
        (_seen(**HOT, queued=1000), {"cpu-hungry"}),  # it is full as it is
        (_seen(_agent(cold_starts=5, start_s=0.3), is_autoscaled=True), {"cold-starts"}),
        (_seen(_agent(cold_starts=5, start_s=0.3)), set()),
        (_seen(_agent(cold_starts=4, start_s=0.3), is_autoscaled=True), set()),
        (_seen(_agent(cold_starts=5, start_s=0.3, min_replicas=10), is_autoscaled=True), set()),
        (_seen(_agent(cache_hits=1, cache_misses=299)), {"useless-cache"}),
        (_seen(_agent(cache_hits=3, cache_misses=297)), set()),
        (_seen(_agent(cache_hits=0, cache_misses=199)), set()),
        (_seen(_agent(idle_s=3600.0)), {"idle"}),
        (_seen(_agent(idle_s=3599.0)), set()),
        (_seen(_agent(idle_s=3600.0, replicas=1, min_replicas=1)), set()),  # nothing would wake it
        (_seen(_agent(idle_s=3600.0, replicas=1, min_replicas=1), is_autoscaled=True), {"idle"}),
        (_seen(_agent(error_pct=11.0)), {"errors"}),
        (_seen(_agent(error_pct=50.0, attempts=19)), set()),
    ],
)  # fmt: skip
def test_each_rule_finds_what_it_looks_for_and_nothing_else(seen: Measurements, expected: set[str]) -> None:
    assert set(_rules(seen)) == expected
    assert set(_rules(seen, optimizer.EASED)) >= expected


def test_what_is_advised_says_how_and_how_much() -> None:
    found = _rules(_seen(SLOW))["more-replicas"]
    assert found.what == "have 3 replicas instead of 2: greenroom scale a 3"
    assert found.act == optimizer.Scale("a", 3, 2)
    assert found.wanted == pytest.approx(found.before - 4 / 3)
    # Where the autoscaler decides, it is told what to go by; where there may be no more, that is said.
    found = _rules(_seen(SLOW, is_autoscaled=True))["more-replicas"]
    assert (found.act, "target_queue_per_replica" in found.what) == (None, True)
    found = _rules(_seen(replace(SLOW, max_replicas=2)))["more-replicas"]
    assert (found.act, "raise agents.a.scaling.max_replicas" in found.what) == (None, True)
    assert "it waits for others" in _rules(_seen(WAITING))["more-concurrency"].why
    assert _rules(_seen(memory_pct=81.0, replicas=FAT))["memory-fattest"].act == optimizer.Restart("a-1", "a")
    fat = tuple(replace(each, successor_mb=95.0) for each in FAT)
    assert _rules(_seen(memory_pct=81.0, replicas=fat))["memory-fattest"].act is None  # no room for its successor
    fat = tuple(replace(each, successor_mb=298.0) for each in FAT)
    found = _rules(_seen(memory_pct=81.0, replicas=fat))["memory-fattest"]
    assert (found.act, "raise cluster.memory_mb" in found.what) == (None, True)  # a fresh one would hold as much
    assert _rules(_seen(**HOT, queued=200))["cpu-admission"].act == optimizer.LimitAdmission(20.0)
    assert _rules(_seen(_agent(idle_s=3600.0)))["idle"].act == optimizer.Scale("a", 1, 2)


@given(
    replicas=st.integers(1, 100),
    most=st.integers(1, 100),
    mean_s=st.floats(0.1, 1e4),
    part=st.floats(0, 1),
    is_autoscaled=st.booleans(),
)
def test_more_replicas_are_at_most_twice_as_many_and_never_too_many(
    replicas: int, most: int, mean_s: float, part: float, is_autoscaled: bool
) -> None:
    agent = _agent(
        replicas=replicas, max_replicas=most, response_s=_spread(mean_s), wait_s=_spread(mean_s * part), cpu=100.0
    )
    found = _rules(_seen(agent, is_autoscaled=is_autoscaled)).get("more-replicas")
    if found is not None and found.act is not None:
        assert isinstance(found.act, optimizer.Scale)
        assert replicas < found.act.replicas <= min(2 * replicas, most)
        assert not is_autoscaled
        assert found.wanted is not None
        assert found.wanted < found.before


# --- opening, withdrawing, measuring

KEY: Key = ("memory", "")


def _found(act: optimizer.Act | None = None) -> Found:
    return Found("memory", None, "what", "why", "expected", "memory_pct", 90.0, 50.0, act)


def _looked(
    levels: Sequence[float], *, act: optimizer.Act | None = None, applies: bool = False
) -> list[optimizer.Move]:
    """What becomes of a rule that opens over 80, look by look; what is open is done at once if it *applies*."""
    rule = Rule(
        "memory", "", "", "", lambda seen, easing: iter([_found()] if (seen.memory_pct or 0) > 80 * easing else [])
    )
    memory: dict[Key, Standing] = {}
    moves: list[optimizer.Move] = []
    for place, level in enumerate(levels):
        now_s = place * EVERY_S
        found, memory = optimizer.advise(_seen(memory_pct=level), memory, now_s, rules=[rule])
        moves += found
        if applies and act is not None and KEY in memory and memory[KEY].phase is Phase.OPEN:
            memory = optimizer.applied(memory, KEY, _found(act), now_s)
    return moves


def test_what_lasts_is_opened_once_and_withdrawn_when_it_has_been_gone_for_a_while() -> None:
    assert _looked([90, 90]) == []
    assert _looked([90, 90, 90, 90, 90]) == [Opened(_found())]
    assert _looked([90, 90, 10, 90, 90]) == []
    assert _looked([90] * 3 + [70] * 100) == [Opened(_found())]  # not far enough below
    assert _looked([90] * 3 + [10] * 6) == [Opened(_found())]
    assert _looked([90] * 3 + [10] * 7) == [Opened(_found()), Withdrawn(KEY, 10)]
    assert _looked([90] * 3 + [10] * 6 + [90] + [10] * 6) == [Opened(_found())]


def test_what_has_ended_is_let_rest() -> None:
    ended, rest = [90.0] * 3 + [10.0] * 7, int(optimizer.QUIET_S / EVERY_S)
    assert _looked(ended + [90] * rest) == [Opened(_found()), Withdrawn(KEY, 10)]
    assert _looked(ended + [90] * (rest + 4)) == [Opened(_found()), Withdrawn(KEY, 10), Opened(_found())]


@given(st.lists(st.tuples(st.sampled_from([10.0, 70.0, 79.0, 81.0, 90.0]), st.integers(1, 40)), max_size=40))
def test_advice_never_flaps(runs: list[tuple[float, int]]) -> None:
    levels = [level for level, count in runs for _ in range(count)]
    moves = _looked(levels)
    kinds = [type(move) for move in moves]
    assert kinds == [Opened, Withdrawn] * (len(kinds) // 2) + [Opened] * (len(kinds) % 2)
    least_s = optimizer.QUIET_S + optimizer.OPEN_AFTER_S + optimizer.WITHDRAW_AFTER_S
    assert len(kinds) <= 2 * (len(levels) * EVERY_S / least_s + 1)


@pytest.mark.parametrize(
    ("after", "outcome"), [(40.0, "better by 56 %"), (88.0, "no effect"), (100.0, "worse by 11 %")]
)
def test_what_was_done_is_measured_when_it_has_settled(after: float, outcome: str) -> None:
    looks = 3 + int(optimizer.SETTLE_S / EVERY_S)
    act = optimizer.Restart("a-1", "a")
    assert _looked([90] * 3 + [after] * (looks - 4), act=act, applies=True) == [Opened(_found())]
    moves = _looked([90] * 3 + [after] * (looks - 3), act=act, applies=True)
    assert moves == [Opened(_found()), Measured(KEY, after, outcome)]


def test_a_bound_on_admission_lasts_as_long_as_its_condition_and_is_taken_back() -> None:
    act = optimizer.LimitAdmission(10.0)
    assert _looked([90] * 1000, act=act, applies=True) == [Opened(_found())]
    moves = _looked([90] * 100 + [10] * 7, act=act, applies=True)
    assert moves == [Opened(_found()), Measured(KEY, 10, "better by 89 %", is_undone=True)]


def test_nothing_is_measured_of_what_nothing_happened_to() -> None:
    assert optimizer.value(_seen(_agent(response_s=None)), "response_s", "a") is None
    assert optimizer.value(_seen(), "response_s", "gone") is None
    assert optimizer.value(_seen(), "a word of a stranger's", "a") is None
    assert optimizer.value(_seen(), "replicas", "a") == 2.0


def test_one_thing_at_a_time_is_done_about_an_agent() -> None:
    act = optimizer.Scale("a", 3)
    found = Found("r", "a", "", "", "", "", 0.0, act=act)
    memory = optimizer.applied({("r", "a"): Standing(Phase.OPEN, 0.0)}, ("r", "a"), found, 5.0)
    assert not optimizer.may_apply(memory, optimizer.Restart("a-1", "a"))
    assert optimizer.may_apply(memory, optimizer.Scale("b", 3))
    assert optimizer.may_apply(memory, optimizer.TrimCache())
    assert not optimizer.may_apply(
        {("x", ""): Standing(Phase.APPLIED, 0.0, act=optimizer.TrimCache())}, optimizer.LowerSpares()
    )
    assert optimizer.may_apply({("r", "a"): Standing(Phase.QUIET, 0.0)}, act)


def test_few_samples_say_nothing() -> None:
    assert measurements.spread([1.0] * (measurements.MIN_SAMPLES - 1)) is None
    found = measurements.spread([1.0] * 95 + [9.0] * 5, count=1000)
    assert found is not None
    assert (found.p50, found.p95, found.count) == (1.0, 1.0, 1000)


def test_the_page_of_the_optimizer_has_each_rule_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "optimizer.md").read_text()
    for rule in optimizer_rules.RULES:
        assert f"| `{rule.name}` | {rule.condition} | {rule.action} | {rule.gain} |" in page


def test_no_more_replicas_are_advised_than_max_running_has_slots_for() -> None:
    found = _rules(_seen(replace(SLOW, replicas=4, slots=8, max_running=10, cpu=3.0)))["more-replicas"]
    assert found.act == optimizer.Scale("a", 5, 4)


@pytest.mark.parametrize(("after", "undo"), [(20.0, "; undo it: greenroom scale a 2"), (1.0, "")])
def test_what_has_made_it_worse_says_how_to_undo_it(after: float, undo: str) -> None:
    found = _rules(_seen(SLOW))["more-replicas"]
    memory = optimizer.applied({}, found.key, found, 0.0)
    seen = _seen(_agent(response_s=_spread(after)))
    (move,), _ = optimizer.advise(seen, memory, optimizer.SETTLE_S, rules=optimizer_rules.RULES)
    assert isinstance(move, Measured)
    assert move.outcome == optimizer.outcome(8.0, after) + undo
