"""The trace that a caller is in goes along with what it submits."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import pytest
from opentelemetry import trace

from greenroom import errors
from greenroom.engine import protocol, task_context
from greenroom.sdk import calls, models
from greenroom.sdk import context as sdk_context

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_SUBMISSION = models.Submission(input="x")


def _headers(traceparent: str | None = None) -> Mapping[str, str]:
    one = calls.submit(_SUBMISSION, "key", traceparent=traceparent).headers
    assert calls.submit_many([_SUBMISSION], "key", traceparent=traceparent).headers == one
    return {name: value for name, value in one.items() if name != "Idempotency-Key"}


def _current(state: str = "") -> trace.Span:
    found = trace.TraceState.from_header([state]) if state else None
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    return trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, False, flags, found))


def test_opentelemetrys_current_span_is_the_parent() -> None:
    own = f"00-{0xABC:032x}-{0xDEF:016x}-01"
    with trace.use_span(_current()):
        assert _headers() == {"traceparent": own}
    with trace.use_span(_current("a=b")):
        assert _headers() == {"traceparent": own, "tracestate": "a=b"}
        assert _headers(GIVEN) == {"traceparent": GIVEN}  # what is said goes before
    assert _headers() == {}


def test_without_opentelemetry_there_is_none_but_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert _headers() == {}
    assert _headers(GIVEN) == {"traceparent": GIVEN}


def test_an_agent_that_is_a_caller_goes_on_with_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    invoke = protocol.Invoke("t1", 1, b"1", 1, 60.0, trace=GIVEN)
    context = task_context.TaskContext(invoke, "tested", lambda _: None)
    token = sdk_context._current.set(context)
    try:
        assert _headers() == {"traceparent": GIVEN}
    finally:
        sdk_context._current.reset(token)


@pytest.mark.parametrize("given", ["", "x", f"{GIVEN}\r\nX-Evil: 1", GIVEN.upper(), f"ff{GIVEN[2:]}"])
def test_what_is_no_traceparent_is_refused_before_it_is_sent(given: str) -> None:
    with pytest.raises(errors.BodyInvalid, match="traceparent is none as W3C has it"):
        _headers(given)
