"""Whether an output has the properties that are expected of it, and how it is said that it has not."""

from __future__ import annotations

import doctest
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import examples
from greenroom.core.examples import mismatch


def _of(output: Any, duration_s: float = 0.0, **expected: Any) -> str | None:
    return mismatch(json.dumps(output).encode(), duration_s, **expected)


def test_without_expectations_every_output_will_do() -> None:
    assert _of(None) is None
    assert _of({"content": "hello"}, 1e6, equals=msgspec.UNSET) is None


@pytest.mark.parametrize(
    ("output", "expected", "is_same"),
    [
        (None, None, True),
        (None, False, False),
        (0, None, False),
        (1, 1.0, True),
        (1.0, 1, True),
        (1, True, False),
        (True, 1, False),
        (True, 1.0, False),
        (True, True, True),
        (0, False, False),
        (2**53 + 1, float(2**53), False),
        ("1", 1, False),
        ("é", "é", True),
        ([], {}, False),
        ([1, [2.0]], [1.0, [2]], True),
        ([1], [True], False),
        ([1, 2], [2, 1], False),
        ([1], [1, 2], False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": None}, {}, False),
        ({"a": {"b": [0]}}, {"a": {"b": [False]}}, False),
    ],
)
def test_values_are_compared_as_json_has_them(output: Any, expected: Any, is_same: bool) -> None:
    assert (_of(output, equals=expected) is None) == is_same


TEXTS = """
# the output is                         "Ada"    its whole text
"Hello Ada"                             yes      Hello Ada
{"content": "Hello Ada"}                yes      Hello Ada
{"output": "Hello Ada"}                 yes      Hello Ada
{"text": "Hello Ada"}                   yes      Hello Ada
{"reply": "Hello Ada"}                  yes      {"reply":"Hello Ada"}
{"content": {"text": "Hello Ada"}}      yes      {"content":{"text":"Hello Ada"}}
["Hello", "Ada"]                        yes      ["Hello","Ada"]
"Hello"                                 no       Hello
{"content": "Hello"}                    no       Hello
null                                    no       null
12                                      no       12
"""


@pytest.mark.parametrize("line", [line for line in TEXTS.strip().splitlines() if not line.startswith("#")])
def test_the_text_of_an_output_is_what_it_says(line: str) -> None:
    output, says_it, whole = line[:40].strip(), line[40:49].strip(), line[49:].strip()
    has = mismatch(output.encode(), 0, contains=("Ada",)) is None
    assert has == (says_it == "yes")
    assert (mismatch(output.encode(), 0, not_contains=("Ada",)) is None) != has
    assert whole in examples.searched(output.encode())


def test_a_text_in_an_object_is_read_without_its_escapes() -> None:
    assert _of({"content": 'say\n"hello"'}, contains=('say\n"hello"',)) is None


def test_every_phrase_has_to_be_there_and_none_of_the_others() -> None:
    assert _of("one two", contains=("one", "two"), not_contains=("three", "four")) is None
    assert _of("one two", contains=("one", "three")) == 'the output does not contain "three": "one two"'
    assert _of("one two", not_contains=("three", "two")) == 'the output contains "two": "one two"'


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"equals": {"a": 1}}, 'the output is not {"a":1}: {"content":"Rain"}'),
        ({"contains": ("Sun",)}, 'the output does not contain "Sun": {"content":"Rain"}'),
        ({"not_contains": ("Rain",)}, 'the output contains "Rain": {"content":"Rain"}'),
        ({"within_s": 2.0}, "it took 2.500 s, expected at most 2 s"),
    ],
)
def test_the_reason_is_one_line_with_what_came_instead(expected: dict[str, Any], message: str) -> None:
    assert _of({"content": "Rain"}, 2.5, **expected) == message


def test_the_last_moment_is_in_time() -> None:
    assert _of("x", 2.0, within_s=2.0) is None


def test_a_long_output_is_cut_and_a_strange_one_is_made_readable() -> None:
    message = _of("x" * 10_000, contains=("y",))
    assert message is not None
    assert message.endswith('"' + "x" * 199 + "…")
    message = _of("a\x9b31m\u2028b", equals="\x85")
    assert message == r'the output is not "\x85": "a\x9b31m\u2028b"'


def test_phrases_are_looked_for_to_the_end_and_patterns_in_the_beginning() -> None:
    text = "x" * examples.SEARCHED_CHARACTERS + "end"
    assert _of(text, contains=("end",)) is None
    assert _of(text, not_contains=("end",)) is not None
    assert examples.searched(json.dumps(text).encode()) == [text[:-3]]


def test_a_pattern_that_was_not_found_is_told_with_the_output() -> None:
    output = b'{"content":"Rain"}'
    told = r'the output does not match "^\\d": {"content":"Rain"}'
    assert examples.unmatched(r"^\d", output, is_known=True) == told
    assert "could not be searched in time" in examples.unmatched("(a+)+$", output, is_known=False)


@pytest.mark.parametrize("output", [b"", b"{", b"NaN", b'"\xff"', b'"\\ud800"', b"[" * 10_000, b"9" * 5000])
def test_an_output_that_is_no_json_is_refused_in_a_line(output: bytes) -> None:
    message = mismatch(output, 0)
    assert message is not None
    assert message.startswith("the output is refused: cannot read JSON")


TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=300)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXT | st.sampled_from(examples.TEXT_KEYS), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(output=JSON, other=JSON, phrase=TEXT)
def test_whatever_it_is_there_is_an_answer_in_a_line(output: Any, other: Any, phrase: str) -> None:
    assert _of(output, equals=output) is None
    for expected in ({"equals": other}, {"contains": (phrase,)}, {"not_contains": (phrase,)}):
        message = _of(output, **expected)
        if message is not None:
            assert len(message.splitlines()) == 1
            assert message.isprintable()
            message.encode()
    assert (_of(output, contains=(phrase,)) is None) != (_of(output, not_contains=(phrase,)) is None)


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(examples).attempted > 0
    assert doctest.testmod(examples).failed == 0
