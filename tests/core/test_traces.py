"""Trace context, against OpenTelemetry's own reader of it."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry import trace as api
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from greenroom.core import traces

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ZEROS = "0" * 32


def _theirs(traceparent: str, tracestate: str = "") -> api.SpanContext:
    carrier = {"traceparent": traceparent, "tracestate": tracestate}
    return api.get_current_span(TraceContextTextMapPropagator().extract(carrier)).get_span_context()


_hex = st.text("0123456789abcdef", max_size=34) | st.text("0123456789abcdefABCDEFg -", max_size=34)
_alike = st.builds(
    lambda version, trace, span, flags, more: f"{version}-{trace}-{span}-{flags}{more}",
    st.sampled_from(["00", "01", "cc", "ff", "0", "0x"]),
    st.text("0123456789abcdef", min_size=32, max_size=32) | st.just(ZEROS) | _hex,
    st.text("0123456789abcdef", min_size=16, max_size=16) | st.just("0" * 16) | _hex,
    st.sampled_from(["00", "01", "03", "ff", "1", "zz"]),
    st.sampled_from(["", "-", "-more", " ", ".what"]),
)


@given(_alike | st.text(max_size=80))
@example(PARENT)
@example(f" {PARENT}\t")
@example(f"{PARENT}-more")
@example(f"cc{PARENT[2:]}-more")
@example(f"cc{PARENT[2:]}.more")
@example(f"ff{PARENT[2:]}")
@example(f"00-{ZEROS}{PARENT[35:]}")
@example(f"{PARENT[:36]}{ZEROS[:16]}-01")
@example(PARENT.upper())
def test_what_is_a_traceparent_is_what_opentelemetry_takes_for_one(given: str) -> None:
    ours, theirs = traces.parse(given), _theirs(given)
    assert (ours is not None) == theirs.is_valid
    if ours is not None:
        assert (int(ours.trace_id, 16), int(ours.span_id, 16)) == (theirs.trace_id, theirs.span_id)
        assert ours.is_sampled == theirs.trace_flags.sampled


@settings(max_examples=20)
@given(st.lists(st.from_regex(r"[a-z][a-z0-9_*/-]{0,10}(@[a-z]{1,5})?=[ -+.-<>-~]{0,10}[!-+.-<>-~]", fullmatch=True)))
def test_a_tracestate_is_handed_on_as_it_came_or_not_at_all(members: list[str]) -> None:
    given = ",".join(members)
    found = traces.parse(PARENT, given)
    assert found is not None
    if found.state:
        assert found.state == given
        assert dict(api.TraceState.from_header([given])) == dict(_theirs(PARENT, given).trace_state)


@pytest.mark.parametrize(
    "state", ["a", "a=b,a=c", "A=b", "a=b=c", "a=\u00e9", "a=b\r\nevil: 1", "a=" + "x" * 257, "a=b," * 200]
)
def test_a_malformed_tracestate_is_dropped_and_its_traceparent_kept(state: str) -> None:
    found = traces.parse(PARENT, state)
    assert found is not None
    assert found.text() == PARENT


@settings(max_examples=20)
@given(st.from_regex(r"[0-9a-f]{32}", fullmatch=True), st.booleans(), st.sampled_from(["", "a=b,c@d=e f"]))
def test_a_stored_context_is_read_as_it_was(trace_id: str, sampled: bool, state: str) -> None:
    context = traces.Context(trace_id, "b7ad6b7169203331", int(sampled), state)
    assert traces.read(context.text()) == context
    assert traces.trace_id_of(context.text()) == (trace_id if sampled else None)


@given(st.from_regex(r"[0-9a-f]{32}", fullmatch=True), st.floats(0, 1), st.floats(0, 1))
def test_who_is_sampled_at_a_ratio_is_at_every_higher_one(trace_id: str, one: float, other: float) -> None:
    low, high = sorted((traces.threshold(one), traces.threshold(other)))
    assert not traces.is_sampled(trace_id, low) or traces.is_sampled(trace_id, high)
    assert traces.is_sampled(trace_id, traces.threshold(1.0))
    assert not traces.is_sampled(trace_id, traces.threshold(0.0))


def test_an_attempt_hands_its_own_span_on_and_an_unsampled_trace_its_callers() -> None:
    within = traces.read(traces.within(f"{PARENT} a=b", "t1", 2))
    assert (within.trace_id, within.span_id, within.state) == (PARENT[3:35], traces.attempt_span("t1", 2), "a=b")
    unsampled = PARENT[:-2] + "00"
    assert traces.within(unsampled, "t1", 2) == unsampled
    assert traces.attempt_span("t1", 1) != traces.attempt_span("t1", 2)
