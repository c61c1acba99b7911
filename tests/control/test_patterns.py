"""Patterns of other people are searched for where they can be ended."""

from __future__ import annotations

import pytest

from greenroom.control import patterns


async def test_a_pattern_is_found_in_one_of_the_texts_or_in_none() -> None:
    assert await patterns.is_found("^Par", ["Rain", "Paris"])
    assert await patterns.is_found("^ar", ["Rain", "Paris"]) is False


async def test_a_pattern_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SEARCH_S", 0.5)
    assert await patterns.is_found("(a+)+$", ["a" * 100 + "!"]) is None
