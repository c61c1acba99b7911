"""What becomes of an alert as its condition holds, does not, or cannot be told; and who is silenced."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from greenroom.core import alerts
from greenroom.core.alerts import NOTHING, Condition, Known, Move, Silence, State

SECOND_US = 1_000_000
HOLDS, CLEAR, UNKNOWN = Condition.HOLDS, Condition.CLEAR, Condition.UNKNOWN


def lived(seen: list[tuple[int, Condition]], *, for_s: float = 60, keep_s: float = 300) -> list[str]:
    """The states after each look, of which there is one at each of these seconds."""
    known, states = NOTHING, list[str]()
    for at_s, condition in seen:
        known = alerts.after(known, condition, for_s=for_s, keep_s=keep_s, now_us=at_s * SECOND_US)
        states.append(str(known.state))
    return states


def test_it_fires_after_it_has_held_for_long_enough() -> None:
    assert lived([(0, HOLDS), (59, HOLDS), (60, HOLDS)]) == ["pending", "pending", "firing"]
    assert lived([(0, HOLDS)], for_s=0) == ["firing"]


def test_what_is_pending_ends_with_the_first_look_that_finds_it_clear() -> None:
    assert lived([(0, HOLDS), (30, CLEAR), (31, HOLDS), (90, HOLDS), (91, HOLDS)]) == [
        *("pending", "resolved", "pending", "pending", "firing")
    ]


def test_a_value_that_goes_to_and_fro_is_one_alert() -> None:
    flapping = [(0, HOLDS), *((at_s, CLEAR if at_s % 2 else HOLDS) for at_s in range(60, 1000))]
    assert set(lived(flapping)[1:]) == {"firing"}
    assert lived([(0, HOLDS), (1, CLEAR), (300, CLEAR), (301, CLEAR)], for_s=0) == ["firing"] * 3 + ["resolved"]


def test_what_is_unknown_changes_nothing_and_the_time_goes_on() -> None:
    assert lived([(0, HOLDS), (59, UNKNOWN), (99, UNKNOWN), (100, HOLDS)]) == ["pending"] * 3 + ["firing"]
    assert lived([(0, HOLDS), (1, UNKNOWN), (9_999, UNKNOWN)], for_s=0) == ["firing"] * 3
    assert lived([(0, HOLDS), (1, CLEAR), (9_999, UNKNOWN), (10_000, CLEAR)], for_s=0)[2:] == ["firing", "resolved"]


def test_a_clock_that_went_back_makes_nothing_wait_for_the_time_between() -> None:
    assert lived([(9_000, HOLDS), (10, HOLDS), (70, HOLDS)]) == ["pending", "pending", "firing"]
    assert lived([(9_000, HOLDS), (9_001, CLEAR), (10, CLEAR), (310, CLEAR)], for_s=0)[2:] == ["firing", "resolved"]


KNOWN = st.builds(Known, st.sampled_from(State), st.integers(0, 100), st.none() | st.integers(0, 100))


@given(KNOWN, st.sampled_from(Condition), st.integers(0, 200), st.floats(0, 1e-4), st.floats(0, 1e-4))
def test_each_change_is_a_move_of_the_table(
    known: Known, condition: Condition, now_us: int, for_s: float, keep_s: float
) -> None:
    then = alerts.after(known, condition, for_s=for_s, keep_s=keep_s, now_us=now_us)
    moves = {after for (before, _), after in alerts.TRANSITIONS.items() if before is known.state}
    assert then.state is known.state or then.state in moves
    assert then.state is not State.ACKNOWLEDGED or known.state is State.ACKNOWLEDGED  # people do that
    if condition is UNKNOWN:
        assert then == known
    if condition is HOLDS:
        assert then.state is not State.RESOLVED
    if condition is CLEAR:
        assert then.state is known.state or then.state is State.RESOLVED


class Life(RuleBasedStateMachine):
    """An alert beside what was seen of it: when its condition began to hold, and when it ceased."""

    for_s, keep_s = 30, 50

    @initialize()
    def begin(self) -> None:
        self.known, self.at_s = NOTHING, 0
        self.held_since: int | None = None  # in every look since then that told anything
        self.clear_since: int | None = 0
        self.was = State.RESOLVED

    @rule(condition=st.sampled_from(Condition), waited_s=st.integers(1, 40))
    def look(self, condition: Condition, waited_s: int) -> None:
        self.at_s += waited_s
        self.was = self.known.state
        now_us = self.at_s * SECOND_US
        self.known = alerts.after(self.known, condition, for_s=self.for_s, keep_s=self.keep_s, now_us=now_us)
        if condition is HOLDS:
            self.held_since = self.at_s if self.held_since is None else self.held_since
            self.clear_since = None
        elif condition is CLEAR:
            self.clear_since = self.at_s if self.clear_since is None else self.clear_since
            self.held_since = None

    @precondition(lambda self: self.known.state is State.FIRING)
    @rule()
    def acknowledge(self) -> None:
        state = alerts.TRANSITIONS[State.FIRING, Move.ACKNOWLEDGE]
        self.was, self.known = self.known.state, msgspec.structs.replace(self.known, state=state)

    @rule()
    def restart(self) -> None:
        """What is in the store is taken up; for how long it was quiet is not."""
        self.was, self.known = self.known.state, Known(self.known.state, self.known.since_us)
        if self.known.state in alerts.ACTIVE:
            self.clear_since = None

    @invariant()
    def fires_neither_early_nor_late(self) -> None:
        known = getattr(self, "known", NOTHING)
        if known.state is State.PENDING:
            assert self.held_since is not None
        if known.state is State.FIRING and self.was in (State.PENDING, State.RESOLVED):
            assert self.held_since is not None
            assert self.at_s - self.held_since >= self.for_s
        if known.state is State.RESOLVED and self.was in alerts.ACTIVE:
            assert self.clear_since is not None
            assert self.at_s - self.clear_since >= self.keep_s
        if self.was in alerts.ACTIVE and known.state in alerts.OPEN:
            assert known.state in alerts.ACTIVE  # and so no acknowledgement is lost before the end


TestLife = pytest.mark.slow(Life.TestCase)
TestLife.settings = settings(max_examples=60, stateful_step_count=30)


class Labels(msgspec.Struct, frozen=True):
    id: str = "rule:slow_tasks:research"
    kind: str = "slow_tasks"
    agent: str | None = "research"
    severity: str = "warning"


def silence(**patterns: str | None) -> Silence:
    given: dict[str, str | None] = dict.fromkeys(("alert", "kind", "agent", "severity"))
    return Silence("sil_1", **given | patterns, comment="", created_by="ann", created_at=0, until_at=100)


@pytest.mark.parametrize(
    ("patterns", "is_covered"),
    [
        ({"kind": "slow_tasks"}, True),
        ({"kind": "slow_*", "agent": "re*rch", "severity": "warning", "alert": "rule:*"}, True),
        ({"kind": "slow_tasks", "agent": "other"}, False),
        ({"severity": "critical"}, False),
        ({"kind": "slow"}, False),
    ],
)
def test_a_silence_covers_what_matches_all_that_it_names(patterns: dict[str, str | None], is_covered: bool) -> None:
    assert silence(**patterns).covers(Labels(), now_us=99) is is_covered
    assert not silence(**patterns).covers(Labels(), now_us=100)  # it is over


def test_a_silence_of_agents_covers_no_alert_of_none() -> None:
    system = Labels(agent=None)
    assert not silence(agent="*").covers(system, now_us=0)
    assert silence(kind="slow_tasks").covers(system, now_us=0)


NAMES = st.text("ab*", max_size=4)
LABELS = st.builds(Labels, NAMES, NAMES, st.none() | NAMES, NAMES)
PATTERNS = st.fixed_dictionaries({}, optional=dict.fromkeys(("alert", "kind", "agent", "severity"), st.none() | NAMES))


@given(LABELS, PATTERNS, PATTERNS)
def test_each_matcher_more_covers_less(
    labels: Labels, some: dict[str, str | None], more: dict[str, str | None]
) -> None:
    both = more | {name: pattern for name, pattern in some.items() if pattern is not None}
    if silence(**both).covers(labels, now_us=0):
        assert silence(**some).covers(labels, now_us=0)


@given(LABELS, st.lists(PATTERNS, max_size=3), st.integers(0, 200))
def test_silenced_is_who_any_silence_covers(labels: Labels, given: list[dict[str, str | None]], now_us: int) -> None:
    silences = [msgspec.structs.replace(silence(**each), id=str(place)) for place, each in enumerate(given)]
    found = alerts.silenced_by(labels, silences, now_us=now_us)
    assert found == [each.id for each in silences if each.covers(labels, now_us=now_us)]
    assert not found or now_us < 100
