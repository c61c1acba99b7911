"""What frameworks of others hand over, made fit for a frame."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.adapters import contract
from greenroom.engine import failures


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        (3, 3),
        (3.0, 3),
        (True, 1),
        (None, 0),
        ("many", 0),
        (-1, 0),
        (float("nan"), 0),
        (float("inf"), 0),
        (10**30, 10**15),
    ],
)
def test_a_count_of_tokens_is_a_whole_number_whatever_a_client_says(given: Any, tokens: int) -> None:
    usage = contract.Usage(given, given) + contract.Usage(1, 0)
    assert type(usage.input_tokens) is int
    assert (usage.input_tokens, usage.output_tokens) == (min(tokens + 1, contract.MAX_TOKENS), tokens)


def test_a_failure_is_told_in_texts_whatever_an_adapter_gives() -> None:
    given: Any = ("rate_limit", ["slow", "down"], "yes")
    failure = contract.Failure(given[0], given[1], retryable=given[2])
    told = failures.describe(failure, frozenset())
    assert (told.type, told.message, told.retryable) == ("rate_limit", "['slow', 'down']", False)
