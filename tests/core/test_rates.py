"""Rates as numbers: nothing here waits."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, strategies

from greenroom.core import rates


def _sent(limit: rates.RateLimit, name: str, now_s: float, count: int) -> int:
    """How many of *count* requests at once are taken."""
    taken = 0
    for _ in range(count):
        is_due = not limit.wait_s(name, now_s)
        assert (not limit.take(name, now_s)) == is_due
        taken += is_due
    return taken


@pytest.mark.parametrize("per_minute", [1, 3, 7, 60, 100, 999, 1_000_000])
def test_the_whole_quota_may_be_spent_at_once_and_not_one_more(per_minute: int) -> None:
    limit = rates.RateLimit(per_minute)
    limit.spend("x", 5.0, per_minute - 1)
    assert limit.standing("x", 5.0)[0] == 1
    assert _sent(limit, "x", 5.0, 3) == 1
    assert limit.standing("x", 5.0)[0] == 0
    assert limit.wait_s("x", 5.0) == pytest.approx(60 / per_minute)
    assert _sent(limit, "y", 5.0, 1) == 1


def test_it_comes_back_evenly() -> None:
    limit = rates.RateLimit(100)
    assert _sent(limit, "x", 0.0, 200) == 100
    assert _sent(limit, "x", 6.0, 200) == 10
    assert limit.standing("x", 6.0) == (0, 60)
    assert limit.standing("x", 67.0) == (100, 0)


def test_whoever_waits_as_long_as_it_is_told_is_taken() -> None:
    limit, now_s = rates.RateLimit(7), 0.0
    for _ in range(100):
        now_s += limit.wait_s("x", now_s)
        assert not limit.take("x", now_s)
    assert now_s == pytest.approx((100 - 7) * 60 / 7)


@given(strategies.lists(strategies.floats(0, 3, allow_nan=False), min_size=1, max_size=400))
def test_no_minute_has_more_than_twice_the_rate_and_no_hour_more_than_the_rate_and_one_minute(
    pauses_s: list[float],
) -> None:
    limit, now_s = rates.RateLimit(30), 0.0
    taken: deque[float] = deque()
    for pause_s in pauses_s:
        now_s += pause_s
        if not limit.take("x", now_s):
            taken.append(now_s)
        assert sum(at_s > now_s - 60 for at_s in taken) <= 60
    assert len(taken) <= 30 + now_s / 60 * 30 + 1


def test_more_than_is_left_is_not_taken_and_what_is_given_back_is_there_again() -> None:
    limit = rates.RateLimit(10, is_shared=True)
    assert limit.take("x", 0.0, 8) == 0.0
    assert limit.take("x", 0.0, 3) == limit.wait_s("x", 0.0, 3) == pytest.approx(6)
    assert limit.take("x", 0.0, 2) == 0.0
    limit.give_back("x", 2)
    assert limit.standing("x", 0.0) == (2, 48)
    assert limit.take_unsettled() == {"x": 8}


def test_the_table_is_bounded_and_who_was_quiet_longest_is_forgotten() -> None:
    limit = rates.RateLimit(10, is_shared=True, most_names=100)
    for number in range(10_000):
        limit.spend("busy", number / 1000)
        limit.spend(f"x{number}", number / 1000)
    assert len(limit) == 100
    assert len(limit.take_unsettled()) == 100
    assert limit.wait_s("busy", 10.0) > 0


def test_what_other_nodes_have_spent_counts_here() -> None:
    one, other = rates.RateLimit(100, is_shared=True), rates.RateLimit(100, is_shared=True)
    assert _sent(one, "x", 0.0, 70) == _sent(other, "x", 50.0, 70) == 70  # their clocks have nothing in common
    debts_s = one.debt_s(one.take_unsettled()["x"]) + other.debt_s(other.take_unsettled()["x"])
    _sent(one, "x", 0.0, 1)  # while the others are told
    one.settle({"x": debts_s}, 0.0)
    other.settle({"x": debts_s}, 50.0)
    assert _sent(one, "x", 0.0, 10) == _sent(other, "x", 50.0, 10) == 0
    assert other.wait_s("x", 50.0) == pytest.approx(41 * 0.6)  # 40 too many are paid off first
    assert one.wait_s("x", 0.0) == pytest.approx(42 * 0.6)
    one.put_back({"x": 2})
    assert one.take_unsettled() == {"x": 3}


def test_rejections_are_counted_in_a_sliding_minute_and_told_once() -> None:
    rejections = rates.Rejections(most_names=100)
    told = [rejections.note("x", second) for second in range(30)]
    assert told == [False] * 29 + [True]
    assert rejections.wait_s("x", 29) == 31
    assert rejections.wait_s("x", 60) == 0
    assert not rejections.note("x", 60)  # it is within a minute of the last
    assert rejections.wait_s("x", 60) == 1
    assert [rejections.note("x", 89 + second) for second in range(30)].count(True) == 1
    for number in range(1000):
        rejections.note(f"y{number}", 200)
    assert len(rejections) == 100
