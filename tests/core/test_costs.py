"""Prices and amounts: what no docstring shows."""

from __future__ import annotations

import doctest

import hypothesis
from hypothesis import strategies as st

from greenroom.core import costs, history
from greenroom.core.costs import Prices

_COUNTS = st.integers(0, 10**12)


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(costs).failed == 0


@hypothesis.given(st.lists(st.tuples(_COUNTS, _COUNTS), max_size=20), st.floats(0, 1000), st.floats(0, 1000))
def test_a_sum_of_costs_is_the_cost_of_the_sum_but_for_half_a_nano_dollar_each(
    uses: list[tuple[int, int]], first: float, second: float
) -> None:
    prices = Prices(costs.nano_usd(first), costs.nano_usd(second), 7)
    each = [prices.of(input_tokens=used, output_tokens=made, tasks=1) for used, made in uses]
    used, made = (sum(column) for column in zip(*uses, strict=True)) if uses else (0, 0)
    assert abs(sum(each) - prices.of(input_tokens=used, output_tokens=made, tasks=len(uses))) <= len(uses)


def test_what_has_no_price_adds_nothing_and_is_no_zero() -> None:
    unknown, free, paid = history.Counts(), history.Counts(cost=0), history.Counts(cost=5, input_tokens=2)
    costs_so_far = []
    for counts in (history.Counts(), free, paid, history.Counts()):
        unknown.merge(counts)
        costs_so_far.append(unknown.cost)
    assert costs_so_far == [None, 0, 5, 5]
    assert unknown.input_tokens == 2


def test_a_bucket_that_was_written_before_there_were_prices_is_read() -> None:
    before = history.decode(b'{"tokens":7}')
    assert (before.tokens, before.input_tokens, before.cost) == (7, 0, None)
