"""The keys of the result cache: equal for what no agent can tell apart, different for all else."""

from __future__ import annotations

import json
import random
from typing import Any

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from greenroom.core import caching

LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
VALUES = st.recursive(
    LEAVES | TEXT, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)


def _shuffled(value: Any, chance: random.Random) -> Any:
    if isinstance(value, list):
        return [_shuffled(each, chance) for each in value]
    if isinstance(value, dict):
        members = [(name, _shuffled(each, chance)) for name, each in value.items()]
        chance.shuffle(members)
        return dict(members)
    return value


@hypothesis.given(value=VALUES, chance=st.randoms(use_true_random=False), is_ascii=st.booleans())
def test_how_a_value_is_written_does_not_count(value: Any, chance: random.Random, is_ascii: bool) -> None:
    other = json.dumps(_shuffled(value, chance), indent=1, ensure_ascii=is_ascii).encode()
    assert caching.key(1, msgspec.json.encode(value)) == caching.key(1, other)


@hypothesis.given(one=VALUES, other=VALUES)
def test_what_an_agent_can_tell_apart_has_another_key(one: Any, other: Any) -> None:
    is_same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    keys = {caching.key(1, msgspec.json.encode(value)) for value in (one, other)}
    assert len(keys) == (1 if is_same else 2)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (b'{"a":1,"b":2}', b'{ "b": 2, "a": 1 }', True),
        (b"1e2", b"100.0", True),
        (b'"\\u00e9"', '"é"'.encode(), True),
        (b"1", b"1.0", False),
        (b"1", b"true", False),
        (b"1", b'"1"', False),
        (b"0.0", b"-0.0", False),
        (b"[1,2]", b"[2,1]", False),
        (b'"\\u00e9"', b'"e\\u0301"', False),
        (b"null", b"{}", False),
    ],
)
def test_numbers_texts_and_lists_keep_what_they_are(one: bytes, other: bytes, is_same: bool) -> None:
    assert (caching.key(1, one) == caching.key(1, other)) is is_same


def test_revisions_have_keys_of_their_own_and_a_result_has_its_makers() -> None:
    asked = caching.key(3, b"{}")
    assert asked != caching.key(4, b"{}")
    assert caching.made_by(asked, 4) == caching.key(4, b"{}")
    assert caching.made_by(asked, 3) == caching.made_by(asked, None) == asked


@pytest.mark.parametrize(
    ("header", "may"),
    [
        (None, True),
        ("", True),
        ("max-age=0", True),
        ("no-cache", False),
        ("No-Store", False),
        ("max-age=0, no-cache", False),
        ("private,no-store=x", False),
    ],
)
def test_a_request_says_whether_the_cache_may_answer_it(header: str | None, may: bool) -> None:
    assert caching.may_answer(header) is may


@hypothesis.given(st.integers(1, 1_000_000))
def test_a_cache_is_never_over_its_bound_by_more_than_a_tenth(max_entries: int) -> None:
    assert 1 <= caching.trims_after(max_entries) <= max(1, max_entries / 10)
