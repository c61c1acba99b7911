"""Buckets: added in any order they are the same, and what is read from them is off by no more than is said."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import history
from greenroom.core.history import BOUNDS_S, ERROR_PCT, Counts, Histogram

DURATIONS_S = st.floats(2**-12, 7 * 86_400)
PARTS = st.lists(
    st.tuples(
        st.sampled_from(["succeeded", "failed", "queued"]), st.sampled_from(["ok", "agent_error"]), st.integers(1, 9)
    ),
    max_size=5,
)


def _seen(durations_s: list[float]) -> Histogram:
    seen = Histogram()
    for duration_s in durations_s:
        seen.add(duration_s)
    return seen


@given(st.lists(DURATIONS_S, min_size=1, max_size=300))
def test_a_quantile_is_off_by_no_more_than_is_said(durations_s: list[float]) -> None:
    spread = _seen(durations_s).spread()
    assert spread is not None
    ordered = sorted(durations_s)
    for read_s, share in ((spread.p50, 0.5), (spread.p95, 0.95)):
        real_s = ordered[math.ceil(share * len(ordered)) - 1]
        assert abs(read_s - real_s) <= real_s * ERROR_PCT / 100
    assert math.isclose(spread.mean, sum(durations_s) / len(durations_s))
    assert spread.count == len(durations_s)


@given(st.lists(DURATIONS_S, max_size=50), st.lists(DURATIONS_S, max_size=50))
def test_what_was_merged_is_as_if_it_had_been_counted_in_one(one: list[float], other: list[float]) -> None:
    merged = _seen(one)
    merged.merge(_seen(other))
    both = _seen([*one, *other])
    assert merged.bins == both.bins
    assert math.isclose(merged.sum_s, both.sum_s)


def test_what_lies_outside_of_the_bounds_is_counted() -> None:
    assert Histogram().spread() is None
    spread = _seen([0.0, 1e-9]).spread()
    assert spread is not None
    assert (spread.p50, spread.count) == (0.0, 2)
    late = _seen([1e9]).spread()
    assert late is not None
    assert late.p95 == BOUNDS_S[-1]


@given(st.lists(st.tuples(st.integers(0, 10**12), PARTS), max_size=8))
def test_the_order_in_which_parts_come_changes_nothing(parts: list[tuple[int, list[tuple[str, str, int]]]]) -> None:
    def counts(ends: list[tuple[str, str, int]]) -> Counts:
        made = Counts(tokens=len(ends))
        for state, reason, count in ends:
            made.end(state, reason, count)
            made.run.add(count / 8)
        return made

    records = [(at_us, history.encode(counts(ends))) for at_us, ends in parts]
    found, back = history.rolled(records, history.MINUTE_S), history.rolled(records[::-1], history.MINUTE_S)
    assert found == back
    assert list(found) == sorted(found)
    minutes = [(at_us, history.encode(each)) for at_us, each in found.items()]
    assert history.rolled(minutes, history.HOUR_S) == history.rolled(records, history.HOUR_S)


def test_who_was_stopped_speaks_against_nobody() -> None:
    counts = Counts()
    for state, reason, count in (
        ("succeeded", "ok", 5),
        ("failed", "agent_error", 2),
        ("queued", "agent_error", 1),
        ("queued", "drained", 3),
        ("cancelled", "cancelled", 4),
    ):
        counts.end(state, reason, count)
    assert (counts.attempts, counts.errors, counts.judged, counts.retries) == (15, 3, 8, 4)
    assert counts.reasons == {"ok": 5, "agent_error": 3, "drained": 3, "cancelled": 4}
    assert counts.states == {"succeeded": 5, "failed": 2, "queued": 4, "cancelled": 4}


def test_a_record_is_read_as_it_was_and_can_be_counted_on() -> None:
    counts = Counts(tokens=7)
    counts.end("succeeded", "ok")
    counts.run.add(1.5)
    again = history.decode(history.encode(counts))
    assert again == counts
    again.merge(counts)
    assert (again.attempts, again.tokens) == (2, 14)


def test_every_shown_step_is_made_of_whole_kept_ones() -> None:
    for step_s in history.STEPS_S:
        assert step_s % history.source_s(step_s) == 0
        assert history.source_s(step_s) in history.KEPT_S
    assert all(low < high for low, high in itertools.pairwise(BOUNDS_S))
