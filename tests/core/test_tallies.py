"""Many alike things are told as one, with their number."""

from __future__ import annotations

from greenroom.core.tallies import Tally


def test_the_first_is_told_at_once_and_the_others_once_a_minute() -> None:
    tally = Tally("others")
    tally.note("a", "first")
    assert tally.due(0.0) == [("a", 1, "first")]
    for what in ("second", "third"):
        tally.note("a", what)
    assert tally.due(59.0) == []
    assert tally.wait_s(59.0) == 1.0
    assert tally.due(60.0) == [("a", 2, "second")]
    assert tally.due(120.0) == []
    tally.note("a")
    assert tally.wait_s(121.0) == 0.0
    assert tally.due(121.0) == [("a", 1, "")]


def test_ten_thousand_kinds_are_a_few_lines() -> None:
    tally = Tally(-1, most=64)
    told = []
    for number in range(10_000):
        tally.note(number)
        told += tally.due(number / 1000)
    told += tally.due(100.0)
    assert len(told) <= 64 + 2
    assert sum(count for _, count, _ in told) == 10_000
    assert len(tally._counts) <= 65


def test_at_the_end_all_of_it_is_told() -> None:
    tally = Tally("others")
    tally.note("a")
    tally.due(0.0)
    tally.note("a")
    assert tally.due(1.0, all_of_it=True) == [("a", 1, "")]
    assert tally.wait_s(1.0) == 60.0
