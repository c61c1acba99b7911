"""Hostile JSON: refused with a reason or read exactly, never anything else, and never slowly."""

from __future__ import annotations

import contextlib
import gc
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom import errors, strict_json

REFUSED = {
    "empty": b"",
    "blanks": b" \n\t ",
    "a word": b"hello",
    "single quotes": b"{'a': 1}",
    "NaN": b"NaN",
    "nested NaN": b'{"a": [NaN]}',
    "Infinity": b"Infinity",
    "-Infinity": b"-Infinity",
    "1e400": b"1e400",
    "-1e400": b'{"a": -1E+400}',
    "1.5e309": b"[1.5e309]",
    "an endless exponent": b"1e" + b"9" * 30,
    "2**63": b"9223372036854775808",
    "-2**63-1": b"-9223372036854775809",
    "nested 2**64": b'{"a": [18446744073709551616]}',
    "5,000 digits": b"1" * 5_000,
    "5,000 negative digits": b"-" + b"1" * 5_000,
    "5,000 decimals": b"0." + b"1" * 5_000,
    "41 digits": b"[" + b"1" * 41 + b"]",
    "41 zeros": b"0." + b"0" * 41,
    "leading zero": b"01",
    "plus": b"+1",
    "hexadecimal": b"0x10",
    "bare point": b".5",
    "trailing point": b"5.",
    "minus alone": b"-",
    "exponent alone": b"1e",
    "underscores": b"1_000",
    "Arabic digits": "١٢".encode(),
    "depth 65": b"[" * 65 + b"]" * 65,
    "depth 65 of objects": b'{"a":' * 65 + b"1" + b"}" * 65,
    "depth 100,000": b"[" * 100_000,
    "depth 100,000 closed": b"[" * 100_000 + b"]" * 100_000,
    "depth 100,000 of objects": b'{"a":' * 100_000,
    "depth 100,000 behind a string": b'["[",' + b"[" * 100_000,
    "unclosed list": b"[1, 2",
    "unclosed object": b'{"a": 1',
    "unclosed string": b'"abc',
    "unclosed string at a backslash": b'"abc\\',
    "unopened list": b"]",
    "crossed brackets": b"[}",
    "crossed brackets often": b"[}" * 1_000,
    "two values": b"1 2",
    "trailing garbage": b'{"a": 1} x',
    "trailing NUL": b"{}\x00",
    "trailing comma": b"[1,]",
    "trailing comma in an object": b'{"a": 1,}',
    "double comma": b"[1,,2]",
    "missing colon": b'{"a" 1}',
    "missing value": b'{"a":}',
    "key without quotes": b"{a: 1}",
    "numeric key": b"{1: 1}",
    "comment": b"[1] // one",
    "duplicate key": b'{"a": 1, "a": 2}',
    "nested duplicate key": b'[{"x": {"a": 1, "b": 2, "a": 1}}]',
    "duplicate key by escape": b'{"a": 1, "\\u0061": 2}',
    "duplicate empty key": b'{"": 1, "": 2}',
    "NUL escaped": b'"\\u0000"',
    "NUL escaped in a key": b'{"a\\u0000b": 1}',
    "NUL escaped deep": b'[[{"a": ["x", "\\u0000"]}]]',
    "NUL raw": b'"\x00"',
    "control character": b'"\x1f"',
    "newline in a string": b'"a\nb"',
    "tab in a key": b'{"a\tb": 1}',
    "lone high surrogate": b'"\\ud800"',
    "lone low surrogate": b'"\\udc00"',
    "surrogates in the wrong order": b'"\\udc00\\ud800"',
    "lone surrogate in a key": b'{"\\uD834": 1}',
    "half a pair": b'"\\ud834x"',
    "raw surrogate": b'"\xed\xa0\x80"',
    "invalid UTF-8": b'"\xff"',
    "overlong UTF-8": b'"\xc0\xaf"',
    "cut UTF-8": b'"\xe2\x82"',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "BOM": b'\xef\xbb\xbf{"a": 1}',
    "unknown escape": b'"\\x41"',
    "short escape": b'"\\u12"',
    "escaped quote that never ends": b'"\\"',
    "300,000 keys": b"{" + b",".join(b'"%d":1' % number for number in range(300_000)) + b"}",
    "10,001 keys in small objects": b"[" + b",".join([b'{"a":1}'] * 10_001) + b"]",
    "true misspelt": b"True",
    "undefined": b"undefined",
    "no-break space": "\u00a01".encode(),
    "line separator": "\u20281".encode(),
}

ACCEPTED = {
    "2**63-1": (b"9223372036854775807", 2**63 - 1),
    "-2**63": (b"-9223372036854775808", -(2**63)),
    "a small exponent": (b"[1e-400, 1E2]", [0.0, 100.0]),
    "many decimals": (b"0.1234567890123456789012345", 0.12345678901234568),
    "a pair of surrogates": (b'"\\ud834\\udd1e"', "\U0001d11e"),
    "raw emoji": ('"🙂"'.encode(), "🙂"),
    "escapes": (b'"\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9"', '"\\/\b\f\n\r\té'),
    "blanks": (b' \r\n\t{ "a" : [ ] } \n', {"a": []}),
    "scalars": (b"[true, false, null, 0, -0]", [True, False, None, 0, 0]),
    "depth 64": (b"[" * 64 + b"]" * 64, json.loads("[" * 64 + "]" * 64)),
    "brackets in a string": (b'"' + b"[{" * 50_000 + b'"', "[{" * 50_000),
    "brackets in a string with quotes": (b'["' + b'\\"[' * 1_000 + b'"]', ['"[' * 1_000]),
    "brackets in keys": (b'{"' + b"[" * 100 + b'": 1}', {"[" * 100: 1}),
    "digits in a string": (b'"' + b"7" * 5_000 + b'"', "7" * 5_000),
    "digits in a key": (b'{"' + b"7" * 41 + b'": 1}', {"7" * 41: 1}),
    "digits behind an escaped quote": (b'"\\"' + b"7" * 41 + b'"', '"' + "7" * 41),
    "constants in strings": (b'["NaN", "Infinity"]', ["NaN", "Infinity"]),
    "the same key in two objects": (b'[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
    "keys that differ in form only": ('{"é": 1, "e\u0301": 2}'.encode(), {"é": 1, "e\u0301": 2}),
    "10,000 keys": (
        b"{" + b",".join(b'"%d":1' % number for number in range(10_000)) + b"}",
        {str(number): 1 for number in range(10_000)},
    ),
    "colons in a string": (b'"' + b":" * 20_000 + b'"', ":" * 20_000),
    "many flat lists": (b"[" + b",".join([b"[]"] * 1_000) + b"]", [[]] * 1_000),
}

MIB = 1024 * 1024
LIMIT_S = 0.5
SLOW = {
    "opening": b"[" * MIB,
    "opening and closing": b"[" + b"[]," * (MIB // 3) + b"[]]",
    "objects": b"[" + b"{}," * (MIB // 3) + b"{}]",
    "closing": b"]" * MIB,
    "crossed": b"[}" * (MIB // 2),
    "digits": b"1" * MIB,
    "runs of 40 digits": (b"1" * 40 + b",") * (MIB // 41),
    "list of runs of 40 digits": b"[" + b",".join([b"1" * 40] * (MIB // 41)) + b"]",
    "runs of 18 digits": b"[" + b",".join([b"1" * 18] * (MIB // 19)) + b"]",
    "digits in strings": b"[" + b",".join([b'"' + b"1" * 41 + b'"'] * (MIB // 44)) + b"]",
    "exponents": b"[" + b",".join([b"1e1"] * (MIB // 4)) + b"]",
    "quotes": b'"' * MIB,
    "backslashes": b"\\" * MIB,
    "string of backslashes": b'"' + b"\\" * MIB + b'"',
    "string of escaped quotes": b'"' + b'\\"' * (MIB // 2) + b'"',
    "escaped quotes that never end": b"[" * 65 + b'"' + b'\\"' * (MIB // 2),
    "escaped quotes that never end behind digits": b"1" * 41 + b'"' + b'\\"' * (MIB // 2),
    "quotes, each before a lost newline": b"[" * 65 + b'"\\\n' * (MIB // 3),
    "unicode escapes": b'"' + b"\\u00e9" * (MIB // 6) + b'"',
    "surrogates": b'"' + b"\\ud834\\udd1e" * (MIB // 12) + b'"',
    "empty strings": b"[" + b'"",' * (MIB // 3) + b'""]',
    "empty strings and brackets": b"[" + b'["",""],' * (MIB // 8) + b"[]]",
    "equal keys": b"{" + b'"a":1,' * (MIB // 6) + b'"a":1}',
    "different keys": b"{" + b",".join(b'"%d":0' % number for number in range(MIB // 10)) + b"}",
    "blanks": b" " * MIB,
    "minus signs": b"-" * MIB,
    "nested to the limit": b"[" + b",".join([b"[" * 63 + b"]" * 63] * (MIB // 127)) + b"]",
}

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
)
keys = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=20)


@pytest.mark.parametrize("body", REFUSED.values(), ids=list(REFUSED))
def test_what_is_not_strict_json_is_refused_with_a_reason(body: bytes) -> None:
    with pytest.raises(errors.JsonRefused, match=r"cannot read JSON: .") as refused:
        strict_json.loads(body)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(("body", "value"), ACCEPTED.values(), ids=list(ACCEPTED))
def test_what_is_strict_json_is_read_exactly(body: bytes, value: Any) -> None:
    assert strict_json.loads(body) == value
    assert strict_json.is_valid(body)


@pytest.fixture(scope="module")
def small_heap() -> None:
    """The collector does not walk what other tests have left, again and again."""
    gc.collect()
    gc.freeze()


@pytest.mark.usefixtures("small_heap")
@pytest.mark.parametrize("look", [strict_json.loads, strict_json.is_valid])
@pytest.mark.parametrize("body", SLOW.values(), ids=list(SLOW))
def test_a_mebibyte_of_malice_takes_no_time(body: bytes, look: Callable[[bytes], object]) -> None:
    def try_s() -> float:
        start_s = time.process_time()
        with contextlib.suppress(errors.JsonRefused):
            look(body)
        return time.process_time() - start_s

    assert min(try_s() for _ in range(2)) < LIMIT_S


@given(value=values)
def test_what_is_written_is_read_back(value: Any) -> None:
    written = strict_json.dumps(value)
    assert strict_json.loads(written) == value
    assert strict_json.is_valid(written)


@given(body=st.binary() | st.text().map(str.encode) | st.text('[]{}",:\\u0123456789abcdefntr.-+eE \n').map(str.encode))
def test_any_bytes_are_read_as_the_standard_reader_does_or_refused(body: bytes) -> None:
    strict_json.is_valid(body)
    try:
        value = strict_json.loads(body)
    except errors.JsonRefused:
        return
    assert value == json.loads(body)


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no name")

    __repr__ = __str__


def _deep(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


UNWRITABLE: dict[str, Any] = {
    "NaN": float("nan"),
    "nested infinity": {"a": [float("inf")]},
    "bytes": b"bytes",
    "a set": {1},
    "an object": object(),
    "an object without a name": Broken(),
    "a cycle": _cycle(),
    "depth 100,000": _deep(100_000),
    "depth 65": _deep(64),
    "a lone surrogate": "\ud800",
    "a lone surrogate in a key": {"\udfff": 1},
    "NUL": "a\x00b",
    "NUL in a key": {"\x00": 1},
    "2**63": 2**63,
    "a nested long integer": [{"a": -(2**64)}],
    "5,000 digits": 10**5_000,
    "a tuple as a key": {(1, 2): 3},
    "keys that become equal": {1: "a", "1": "b"},
}


@pytest.mark.parametrize("value", UNWRITABLE.values(), ids=list(UNWRITABLE))
def test_what_strict_json_cannot_say_is_not_written(value: Any) -> None:
    with pytest.raises(errors.JsonRefused, match=r"cannot write JSON: ."):
        strict_json.dumps(value)


def test_a_batch_of_many_keys_is_written_for_a_reader_that_takes_them() -> None:
    value = {str(number): "\n" for number in range(20_000)}
    assert strict_json.loads(strict_json.dumps(value), max_keys=20_000) == value


def test_what_is_written_is_compact_and_readable() -> None:
    assert strict_json.dumps({"a": [1, 2.5, None, "é\n"]}) == '{"a":[1,2.5,null,"é\\n"]}'.encode()


@pytest.mark.parametrize("body", [b"[" * 100_000, b'"\xff"', b"", b'{"a":', b"1" * 5_000, b"NaN", b'"\\ud800"'])
def test_the_quick_look_never_breaks(body: bytes) -> None:
    assert strict_json.is_valid(body) in (True, False)


@pytest.mark.parametrize("name", REFUSED)
def test_the_quick_look_differs_from_the_reader_in_known_ways_only(name: str) -> None:
    known = {"duplicate", "keys", "NUL", "depth", "2**", "digits", "decimals", "zeros"}
    if strict_json.is_valid(REFUSED[name]):
        assert any(word in name for word in known)
