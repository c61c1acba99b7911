"""Signals are read from the history, and rules say when they are too much or too little."""

from __future__ import annotations

import pytest

from greenroom.core.alerts import Condition
from greenroom.core.history import Counts
from greenroom.core.signals import OF_HISTORY, WORDS, Reading, Rule, Signal, read


def seen(*, ok: int = 0, failed: int = 0, run_s: float = 1.0) -> Counts:
    counts = Counts(tokens=7)
    if ok:
        counts.end("succeeded", "ok", ok)
    if failed:
        counts.end("queued", "agent_error", failed)
    for _ in range(ok + failed):
        counts.run.add(run_s)
    return counts


def test_signals_of_the_history_say_what_they_are_and_of_how_many() -> None:
    counts = seen(ok=1, failed=3, run_s=2.0)
    assert read(Signal.FAILURE_PCT, counts) == Reading(75.0, 4)
    assert read(Signal.RUN_MEAN_S, counts) == Reading(2.0, 4)
    assert read(Signal.RUN_P95_S, counts).value == pytest.approx(2.0, rel=0.1)
    assert read(Signal.ATTEMPTS, counts) == Reading(4)
    assert read(Signal.RETRIES, counts) == Reading(3)
    assert read(Signal.TOKENS, counts) == Reading(7)
    assert read(Signal.WAIT_P95_S, counts) == Reading(0.0, 0)


@pytest.mark.parametrize("signal", sorted(OF_HISTORY))
def test_nothing_is_no_division_by_zero(signal: Signal) -> None:
    assert read(signal, Counts()).value == 0.0


def test_who_was_cancelled_speaks_for_nobody() -> None:
    counts = seen(ok=1)
    counts.end("cancelled", "cancelled", 9)
    assert read(Signal.FAILURE_PCT, counts) == Reading(0.0, 1)


FAILING = Rule("failure_rate", Signal.FAILURE_PCT, above=50.0, min_volume=10)


@pytest.mark.parametrize(
    ("reading", "condition"),
    [
        (None, Condition.UNKNOWN),
        (Reading(100.0, 9), Condition.CLEAR),
        (Reading(50.0, 10), Condition.CLEAR),
        (Reading(50.1, 10), Condition.HOLDS),
    ],
)
def test_a_rule_holds_over_its_bound_where_there_is_enough(reading: Reading | None, condition: Condition) -> None:
    assert FAILING.condition(reading) is condition


def test_a_rule_holds_under_its_bound() -> None:
    rule = Rule("few", Signal.REPLICAS, below=2.0)
    assert [rule.condition(Reading(value)) for value in (1.0, 2.0)] == [Condition.HOLDS, Condition.CLEAR]


def test_a_rule_is_about_the_agents_that_it_names_but_for_some() -> None:
    rule = Rule("slow", Signal.RUN_P95_S, agents=("crew-*", "hello"), except_agents=("crew-2",))
    assert [name for name in ("crew-1", "crew-2", "hello", "other") if rule.is_about(name)] == ["crew-1", "hello"]


def test_a_reason_says_what_how_much_of_whom_and_beyond_what() -> None:
    assert FAILING.reason("research", Reading(75.04, 12)) == (
        "the percentage of attempts that fail of research is 75.04 over 300 s (12 seen), over 50"
    )
    low = Rule("disk_free", Signal.DISK_FREE_PCT, below=10.0)
    assert low.reason(None, Reading(4.5)) == (
        "the percentage of the data directory's disk that is free is 4.5, under 10"
    )


def test_each_signal_has_words() -> None:
    assert WORDS.keys() == set(Signal)
