"""Error budgets: what counts against them, how fast they burn, and when that is worth an alert."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import history, slo
from greenroom.core.slo import DAY_S, HOUR_S, MINUTE_S, Goal, Past, Policy, Severity, Tally

HOUR_US, MINUTE_US = HOUR_S * 1_000_000, MINUTE_S * 1_000_000
NOW_US = 40 * 24 * HOUR_US + 30 * MINUTE_US  # in the middle of an hour
SUCCESS, LATENCY = Goal(99.0), Goal(95.0, latency_s=8.0)
MONTH = Policy((SUCCESS,))
COUNTS = st.fixed_dictionaries({}, optional={state: st.integers(0, 50) for state in ("succeeded", "failed", "expired")})


def _counts(good: int = 0, bad: int = 0, *, expired: int = 0, cancelled: int = 0) -> history.Counts:
    states = {"succeeded": good, "failed": bad, "expired": expired, "cancelled": cancelled}
    return history.Counts(tasks={state: count for state, count in states.items() if count})


def _past(**minutes_ago: history.Counts) -> Past:
    """A past with buckets that began so long ago: ``m5`` is five minutes, in the minutes and in the hours."""
    past = Past(MONTH)
    for step_s in history.KEPT_S:
        records = [
            (history.begin_us(NOW_US - int(name[1:]) * MINUTE_US, step_s), history.encode(counts))
            for name, counts in minutes_ago.items()
        ]
        past.put(step_s, history.rolled(records, step_s), now_us=NOW_US)
    return past


def _alert(past: Past) -> slo.Burn | None:
    (state,) = past.states(NOW_US)
    return state.alert


def test_what_failed_or_expired_is_bad_and_what_was_cancelled_says_nothing() -> None:
    assert slo.tally(_counts(90, 7, expired=3, cancelled=100), SUCCESS) == Tally(100, 10)
    assert slo.tally(_counts(cancelled=5), SUCCESS) == slo.NOTHING


def test_a_late_success_is_bad_for_the_latency_as_are_failures_however_quick() -> None:
    counts = _counts(90, 10)
    for took_s in (1.0, 7.9, 8.0, 60.0):
        counts.response.add(took_s)
    assert slo.tally(counts, LATENCY) == Tally(100, 10 + 90 / 4)
    assert slo.tally(counts, SUCCESS) == Tally(100, 10)
    assert slo.tally(_counts(90, 10), LATENCY) == Tally(100, 10), "of unknown times none is late"


def test_a_latency_counts_as_the_next_bound_of_the_history() -> None:
    goal = Goal(95.0, latency_s=5.0)
    assert goal.measured_s == pytest.approx(5.657, abs=0.001)
    counts = _counts(2)
    counts.response.add(5.5)
    counts.response.add(5.7)
    assert slo.tally(counts, goal) == Tally(2, 1)


@given(st.lists(COUNTS, max_size=8), st.floats(50, 99.9))
def test_a_whole_is_the_sum_of_its_parts_and_a_budget_lies_where_it_may(
    parts: list[dict[str, int]], pct: float
) -> None:
    goal, whole = Goal(pct), history.Counts()
    for part in parts:
        whole.merge(history.Counts(tasks=dict(part)))
    summed = slo.summed(slo.tally(history.Counts(tasks=part), goal) for part in parts)
    assert summed == slo.tally(whole, goal)
    assert slo.budget_left(summed, goal) <= 1.0
    assert (slo.budget_left(summed, goal) == 1.0) == (summed.bad == 0)
    assert slo.burn_rate(summed, goal) <= 1 / goal.budget + 1e-9


def test_the_windows_are_those_of_the_workbook_and_scale_with_the_budgets() -> None:
    assert [(tier.rate, tier.long_s, tier.short_s, tier.severity) for tier in slo.tiers(30 * DAY_S)] == [
        (14.4, HOUR_S, 300, Severity.PAGE),
        (6.0, 6 * HOUR_S, 1800, Severity.PAGE),
        (1.0, 3 * DAY_S, 6 * HOUR_S, Severity.TICKET),
    ]
    for tier, share in zip(slo.tiers(15 * DAY_S), (0.02, 0.05, 0.1), strict=True):
        assert tier.rate * tier.long_s / (15 * DAY_S) == pytest.approx(share)
    assert [(tier.long_s, tier.short_s) for tier in slo.tiers(HOUR_S)] == [(300, 60), (300, 60), (360, 60)]


@pytest.mark.parametrize(
    ("past", "alerts"),
    [
        (_past(), None),
        (_past(m0=_counts(100)), None),
        (_past(m0=_counts(85, 15)), "fast"),
        (_past(m0=_counts(0, expired=20)), "fast"),
        (_past(m50=_counts(60, 40)), "slow"),  # it is over since half an hour
        (_past(m20=_counts(60, 40)), "steady"),  # the last five minutes are well
        (_past(m0=_counts(92, 8)), "steady"),
        (_past(m40=_counts(1000), m0=_counts(10, 10)), None),  # bad now, and little of the budget
        (_past(m0=_counts(98, 2)), "slow"),
        (_past(m0=_counts(100, 1)), None),  # less than 1 % missed it
        (_past(m0=_counts(18, 1)), None),  # fewer than min_tasks
        (_past(m0=_counts(19, 1)), None),  # one alone is an accident
        (_past(m0=_counts(0, 0, cancelled=99)), None),
        (_past(m4000=_counts(0, 99), m0=_counts(99)), None),  # three days remember it, the last six hours are well
        (_past(m4000=_counts(0, 99), m300=_counts(0, 99)), "slow"),
        (_past(m4000=_counts(0, 99), m400=_counts(0, 99)), None),
    ],
)
def test_an_alert_needs_both_windows_and_enough_tasks(past: Past, alerts: str | None) -> None:
    alert = _alert(past)
    assert (None if alert is None else alert.tier.name) == alerts


@given(st.dictionaries(st.integers(0, 400), st.tuples(st.integers(0, 40), st.integers(0, 5)), max_size=10))
def test_no_failure_no_alert_and_one_more_now_never_silences(seen: dict[int, tuple[int, int]]) -> None:
    well = _past(**{f"m{at}": _counts(good) for at, (good, _) in seen.items()})
    assert _alert(well) is None
    buckets = {f"m{at}": _counts(good, bad) for at, (good, bad) in seen.items()}
    before = _alert(_past(**buckets))
    now = buckets.get("m0", _counts())
    worse = _alert(_past(**{**buckets, "m0": _counts(now.tasks.get("succeeded", 0), now.tasks.get("failed", 0) + 1)}))
    assert before is None or worse is not None


def test_a_reason_says_the_numbers_the_windows_and_what_to_do() -> None:
    alert = _alert(_past(m0=_counts(80, 20)))
    assert alert is not None
    assert alert.told("research") == (
        "research: 20 of 100 tasks of the last 1 h missed its goal (99 % of the tasks succeed), which spends the error "
        "budget 20.0 times faster than it lasts, also in the last 5 min; see greenroom health research, and greenroom "
        "tasks ls --agent research --state failed"
    )
    late = slo.Burn(slo.tiers(30 * DAY_S)[0], LATENCY, Tally(100, 90), Tally(10, 9))
    assert "(95 % of the tasks succeed within 8 s)" in late.told("a")
    assert late.told("a").endswith("greenroom history a")


def test_the_budget_is_of_the_whole_window_and_what_is_older_is_forgotten() -> None:
    past = _past(m0=_counts(150), m30000=_counts(46, 4), m50000=_counts(0, 999))
    (state,) = past.states(NOW_US)
    assert state.seen == Tally(200, 4)
    assert state.budget_left == pytest.approx(-1.0)
    assert len(past.hours) == 2
    past.put(HOUR_S, {}, now_us=NOW_US + 15 * 24 * HOUR_US)
    assert len(past.hours) == 1


def test_what_is_read_again_takes_the_place_of_what_was_there_and_an_outage_leaves_no_gap() -> None:
    past = _past(m0=_counts(5))
    past.put(MINUTE_S, {NOW_US: _counts(7)}, now_us=NOW_US)
    assert past.minutes == {NOW_US: (Tally(7, 0),)}
    assert past.to_read(MINUTE_S, NOW_US) == history.begin_us(NOW_US - 6 * HOUR_US, MINUTE_S)
    past.read_us = NOW_US
    assert past.to_read(MINUTE_S, NOW_US + MINUTE_US) == NOW_US - 10 * MINUTE_US
    assert past.to_read(MINUTE_S, NOW_US + 3 * HOUR_US) == NOW_US - 10 * MINUTE_US, "since it was read, not since now"
    assert past.to_read(MINUTE_S, NOW_US - HOUR_US) == NOW_US - HOUR_US - 10 * MINUTE_US, "the clock went back"


def test_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(slo).failed == doctest.testmod(history).failed == 0
