"""Recorded example tasks: whether an output has the properties that are expected of it. Pure.

Asked about the outputs of a new revision, before it gets traffic. The settings of an example (`settings.Example`) are
given as plain parameters, and have been checked. A pattern is searched for elsewhere, where it can be ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from greenroom import errors, strict_json

SHOWN_CHARACTERS: Final = 200
SEARCHED_CHARACTERS: Final = 64 * 1024
TEXT_KEYS: Final = ("content", "output", "text")  # where agents put what they say


def mismatch(
    output: bytes,
    duration_s: float,
    *,
    equals: Any = msgspec.UNSET,
    contains: tuple[str, ...] = (),
    not_contains: tuple[str, ...] = (),
    within_s: float | None = None,
) -> str | None:
    """Return why *output*, which is JSON, is not as expected, in one line; None: it is.

    *equals* compares JSON values: 1 is 1.0, but not true, and null is a value. The output's text, in which phrases are
    looked for, is that of a JSON string, or else its compact JSON and, of an object, the strings at `TEXT_KEYS`.

    >>> mismatch(b'{"content": "Rain in Paris"}', 0.2, contains=("Paris",))
    >>> mismatch(b'{"content": "Rain in Paris"}', 0.2, contains=("Paris", "Rome"))
    'the output does not contain "Rome": {"content":"Rain in Paris"}'
    """
    try:
        value = strict_json.loads(output, max_keys=len(output))
    except errors.JsonRefused as error:
        return _shown(f"the output is refused: {error}")
    whole = _compact(value)
    texts = list(_texts(value, whole))
    got = _shown(whole)
    if equals is not msgspec.UNSET and not _is_same(value, equals):
        return f"the output is not {_shown(_compact(equals))}: {got}"
    for phrase in contains:
        if not any(phrase in text for text in texts):
            return f"the output does not contain {_shown(_compact(phrase))}: {got}"
    for phrase in not_contains:
        if any(phrase in text for text in texts):
            return f"the output contains {_shown(_compact(phrase))}: {got}"
    if within_s is not None and duration_s > within_s:
        return f"it took {duration_s:.3f} s, expected at most {within_s:g} s"
    return None


def searched(output: bytes) -> list[str]:
    """Return the texts of *output*, which `mismatch` has found to be as expected, that a pattern is searched for in."""
    value = strict_json.loads(output, max_keys=len(output))
    return [text[:SEARCHED_CHARACTERS] for text in _texts(value, _compact(value))]


def unmatched(pattern: str, output: bytes, *, is_known: bool) -> str:
    """Say that *pattern* was not found in *output*, or, if that is not *known*, that it took too long."""
    how = "does not match" if is_known else "could not be searched in time for"
    return f"the output {how} {_shown(_compact(pattern))}: {_shown(output.decode())}"


def _texts(value: Any, whole: str) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        return
    yield whole
    if isinstance(value, dict):
        yield from (value[key] for key in TEXT_KEYS if isinstance(value.get(key), str))


def _is_same(value: Any, expected: Any) -> bool:
    # Goes no deeper than what is expected, and that has been checked.
    match value, expected:
        case (bool(), _) | (_, bool()):
            return value is expected
        case list(), list() | tuple():
            return len(value) == len(expected) and all(map(_is_same, value, expected))
        case dict(), dict():
            return value.keys() == expected.keys() and all(_is_same(value[key], expected[key]) for key in value)
        case _:
            return bool(value == expected)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _shown(text: str) -> str:
    """*text* on one line: cut, and with what is not printable escaped."""
    cut = text[:SHOWN_CHARACTERS] + ("…" if len(text) > SHOWN_CHARACTERS else "")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in cut)
