"""JSON from strangers: one verdict for every body, input and result, the same on every store.

Refused beside what is no JSON at all: duplicate keys, NaN and infinities, integers outside 64 bits, NUL and lone
surrogates in strings, nesting deeper than `MAX_DEPTH`, more than `MAX_KEYS` keys. Never falls back to a laxer parser
(LangGraph CVE-2025-64439). The common case costs one pass of the C scanner; the suspicious ones a walk.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from greenroom import errors

MAX_DEPTH = 64
MAX_KEYS = 10_000
MAX_INT = 2**63 - 1

# A body is first looked at by its classes of bytes, a pass of a nanosecond a byte: 0 for a digit, e for an e.
_CLASSES = bytes(48 if byte in b"0123456789" else 101 if byte in b"eE" else 32 for byte in range(256))
_TOO_LONG = b"0" * 41  # arithmetic on huge literals is quadratic
_LONG_INT = b"0" * 19  # may be more than 64 bits
# A string, or what begins like one and never ends: always a match, so that no byte is looked at twice.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_HUGE, _TINY = b"0e000", b"0e 000"  # exponents of three digits: with no more than 40 before it, none else is infinite
_NO_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def loads(body: bytes, *, max_keys: int = MAX_KEYS) -> Any:
    """Parse *body*; raises `errors.JsonRefused` with the reason, and the position where the parser knows it."""
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        _check_depth(body)
    classes = body.translate(_CLASSES)
    if _TOO_LONG in classes and _TOO_LONG in _STRING.sub(b'""', body).translate(_CLASSES):
        raise errors.JsonRefused("cannot read JSON: a number has more than 40 digits")
    if body.count(b":") > max_keys and _has_more_keys(body, max_keys):  # before they are made, which takes long
        raise errors.JsonRefused(f"cannot read JSON: more than {max_keys} keys")
    try:
        value = _decoded(body.decode())
    except UnicodeDecodeError as error:
        raise errors.JsonRefused(f"cannot read JSON: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise errors.JsonRefused(f"cannot read JSON: {error.msg} at character {error.pos}") from None
    if b"\\u" in body or _LONG_INT in classes or _HUGE in classes or _TINY in classes:
        _check_values(value)
    return value


def dumps(value: Any) -> bytes:
    """Encode *value* compactly; raises `errors.JsonRefused` for what `loads` would not read (NaN, cycles, bytes …).

    How many keys are too many, its reader decides.
    """
    try:
        encoded = _ENCODER.encode(value).encode()
        loads(encoded, max_keys=len(encoded))
    except errors.JsonRefused as error:
        raise errors.JsonRefused(str(error).replace("read", "write", 1)) from None
    except UnicodeEncodeError:
        raise errors.JsonRefused("cannot write JSON: a string holds a lone surrogate") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise errors.JsonRefused(f"cannot write JSON: {error}") from None
    return encoded


def is_valid(body: bytes) -> bool:
    """Tell whether *body* is JSON that every reader takes; cheaper than `loads`, blind to duplicate keys."""
    try:
        msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _decoded(text: str) -> Any:
    """Decode *text* by the scanner alone: `decode` looks for spaces before and behind it, which are seldom there."""
    try:
        value, end = _SCAN(text, 0)
    except StopIteration:  # it begins with a space, or with what is no JSON
        return _DECODER.decode(text)
    return value if end == len(text) or not text[end:].strip(" \t\n\r") else _DECODER.decode(text)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise errors.JsonRefused(f"cannot read JSON: the key {twice[:64]!r} stands twice in one object")
    return members


def _refuse_constant(name: str) -> None:
    raise errors.JsonRefused(f"cannot read JSON: {name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
_SCAN = _DECODER.scan_once  # type: ignore[attr-defined] # the scanner in C, or json's own
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _check_depth(body: bytes) -> None:
    if b"\\" not in body:  # nothing is escaped: strings can be told without their letters
        body = body.translate(None, _NO_STRUCTURE)
    brackets = _STRING.sub(b"", body).translate(_ONE_KIND, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):  # each turn takes the innermost ones away
        before, brackets = brackets, brackets.replace(b"[]", b"")
        if len(brackets) == len(before):
            is_too_deep = brackets.count(b"[") > MAX_DEPTH  # what never ends is left: no JSON, of whatever depth
            break
    else:
        is_too_deep = bool(brackets)
    if is_too_deep:
        raise errors.JsonRefused(f"cannot read JSON: nested deeper than {MAX_DEPTH}")


def _has_more_keys(body: bytes, max_keys: int) -> bool:
    if b"\\" not in body and body.count(b'":') > max_keys:  # nothing is escaped: each of these ends a key
        return True
    return _STRING.sub(b"", body).count(b":") > max_keys


def _check_values(root: Any) -> None:
    stack = [root]
    while stack:
        value = stack.pop()
        match value:
            case str():
                _check_string(value)
            case bool() | None:
                pass
            case int():
                if not -MAX_INT - 1 <= value <= MAX_INT:
                    raise errors.JsonRefused("cannot read JSON: an integer does not fit 64 bits")
            case float():
                if value in (float("inf"), float("-inf")):
                    raise errors.JsonRefused("cannot read JSON: a number is out of range")
            case list():
                stack.extend(value)
            case dict():
                for key in value:
                    _check_string(key)
                stack.extend(value.values())


def _check_string(text: str) -> None:
    if "\x00" in text:
        raise errors.JsonRefused("cannot read JSON: a string holds NUL")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise errors.JsonRefused("cannot read JSON: a string holds a lone surrogate") from None
