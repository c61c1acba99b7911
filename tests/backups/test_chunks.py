"""How rows become chunks, and what becomes of them when rows change."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom import errors
from greenroom.backups import chunks

_values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=200)
)


def cut(rows: list[Any]) -> list[bytes]:
    cutter = chunks.Cutter([0])
    parts = [cutter.add(row) for row in rows]
    return [part for part in (*parts, cutter.end()) if part is not None]


def row(number: int, size: int = 2000) -> tuple[int, bytes]:
    return number, number.to_bytes(4, "big") * (size // 4)


@given(rows=st.lists(st.lists(_values, min_size=2, max_size=2)))
def test_rows_come_back_as_they_were(rows: list[list[Any]]) -> None:
    assert [row for chunk in cut(rows) for row in chunks.rows_of(chunk)] == rows


def test_chunks_have_about_the_size_that_is_aimed_at() -> None:
    sizes = [len(chunk) for chunk in cut([row(number) for number in range(20_000)])]
    assert chunks.TARGET_BYTES / 2 < sum(sizes) / len(sizes) < chunks.TARGET_BYTES * 2
    assert max(sizes) <= chunks.MOST_BYTES + 2100


def test_a_row_that_changes_comes_or_goes_changes_the_chunks_around_it_alone() -> None:
    rows = [row(number) for number in range(10_000)]
    before = set(cut(rows))
    changed = [*rows[:5000], (5000, b"changed"), *rows[5001:]]
    gone = rows[:5000] + rows[5001:]
    more = [*rows, row(10_000)]
    for after in (changed, gone, more):
        assert len(set(cut(after)) - before) <= 2
    assert len(before) > 20


def test_a_long_row_and_no_row_are_chunks_too() -> None:
    long = (1, b"x" * (2 * chunks.MOST_BYTES))
    assert [chunks.rows_of(chunk) for chunk in cut([long])] == [[list(long)]]
    assert cut([]) == []


def test_the_hash_is_of_the_rows_wherever_they_were_cut() -> None:
    small, large = chunks.Cutter([0]), chunks.Cutter([1])
    for number in range(2000):
        small.add(row(number))
        large.add(row(number))
    assert small.sha256 == large.sha256
    small.add(row(1))
    assert small.sha256 != large.sha256


def test_special_numbers_are_kept() -> None:
    (chunk,) = cut([(math.inf, -0.0, math.nan)])
    infinite, zero, nan = chunks.rows_of(chunk)[0]
    assert (infinite, math.copysign(1, zero), math.isnan(nan)) == (math.inf, -1, True)


def test_what_is_no_chunk_is_refused() -> None:
    with pytest.raises(errors.BackupInvalid):
        chunks.rows_of(b"\xc1")
