"""The spans that a node makes: of requests, of waits in the queue, of attempts; and those that its replicas tell of.

A task is sampled where it is accepted, or its caller's trace is; one that is not has no context, and everything here
stops at that. What is noted on the event loop is a promise of a span; `telemetry.otlp`, which exports them, has them
made in its own thread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from greenroom import clock as clocks
from greenroom import random_bits
from greenroom.core import tasks, traces
from greenroom.telemetry import facts
from greenroom.telemetry.spans import Attributes, Screen, Span, size_of

OWN_SIZE = 500  # characters of a span of the node's own, about
Put = Callable[[Callable[[], Span], int], None]


class Request(msgspec.Struct, frozen=True):
    """A request that is in a trace. *context* goes into the tasks that it submits; *span_id*: it has a span there."""

    context: traces.Context
    span_id: str | None = None
    parent_id: str | None = None


class Requests(Protocol):
    """What the API needs to know of tracing."""

    def begin(self, headers: Mapping[bytes, bytes]) -> Request | None:
        """Return what a request with *headers* is in; None: in no trace at all."""

    def answered(self, request: Request, method: str, route: str, *, status: int, duration_s: float) -> None: ...


class Tracing:
    """*put* takes what makes a span, and its size in characters; it must not block."""

    def __init__(self, clock: clocks.Clock, put: Put, *, ratio: float, content: bool) -> None:
        self._clock, self._put = clock, put
        self._below = traces.threshold(ratio)
        self._screen = Screen(content=content)

    def listen(self, told: facts.Telemetry) -> None:
        told.subscribe(self._on_end, facts.AttemptEnded)
        told.subscribe(self._on_spans, facts.SpansTold)

    def begin(self, headers: Mapping[bytes, bytes]) -> Request | None:
        given = headers.get(b"traceparent")
        if given is not None:
            state = headers.get(b"tracestate", b"")
            caller = traces.parse(given.decode("latin-1"), state.decode("latin-1"))
            if caller is not None:
                if not caller.is_sampled:
                    return Request(caller)
                span_id = random_bits.token_hex(8)
                return Request(caller.at(span_id), span_id, caller.span_id)
        trace_id = random_bits.token_hex(16)
        if not traces.is_sampled(trace_id, self._below):
            return None
        span_id = random_bits.token_hex(8)
        return Request(traces.Context(trace_id, span_id, traces.SAMPLED), span_id)

    def answered(self, request: Request, method: str, route: str, *, status: int, duration_s: float) -> None:
        if request.span_id is not None:
            end_ns = self._now_ns()
            start_ns = end_ns - int(duration_s * 1e9)
            self._put(functools.partial(_of_request, request, method, route, status, start_ns, end_ns), OWN_SIZE)

    def _on_end(self, ended: facts.AttemptEnded) -> None:
        if ended.trace is not None and traces.is_recorded(ended.trace):
            now_ns = self._now_ns()
            if ended.wait_us:
                self._put(functools.partial(_of_wait, ended, now_ns, ended.wait_us), OWN_SIZE)
            self._put(functools.partial(_of_attempt, ended, now_ns), OWN_SIZE)

    def _on_spans(self, told: facts.SpansTold) -> None:
        if traces.is_recorded(told.trace):
            task = traces.read(told.trace)
            extra: Attributes = {"greenroom.task.id": told.task, "greenroom.replica": told.replica}
            for span in told.spans:
                self._put(functools.partial(self._screen.span, span, task, extra=extra), size_of(span))

    def _now_ns(self) -> int:
        return int(self._clock.now().timestamp() * 1e6) * 1000


def _of_request(request: Request, method: str, route: str, status: int, start_ns: int, end_ns: int) -> Span:
    assert request.span_id is not None
    attributes: dict[str, str | int] = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status,
    }
    error = str(status) if status >= 500 else None  # what a caller does wrong is no server's error
    if error is not None:
        attributes["error.type"] = error
    name = f"{method} {route}"
    return Span(request.context, request.parent_id, name, "server", start_ns, end_ns, attributes, error=error)


def _of_attempt(ended: facts.AttemptEnded, end_ns: int) -> Span:
    task = traces.read(ended.trace or "")
    attributes = _attempt(ended)
    error = None if ended.state in _UNBLAMED else _error_of(ended)
    if error is not None:
        attributes["error.type"] = error
    own = task.at(traces.attempt_span(ended.task, ended.epoch))
    start_ns, name = _start_ns(ended, end_ns), f"attempt {ended.agent}"
    return Span(own, task.span_id, name, "consumer", start_ns, end_ns, attributes, error=error)


def _of_wait(ended: facts.AttemptEnded, end_ns: int, wait_us: int) -> Span:
    task = traces.read(ended.trace or "")
    own = task.at(traces.wait_span(ended.task))
    attributes = {"greenroom.task.id": ended.task, "gen_ai.agent.name": ended.agent}
    start_ns = _start_ns(ended, end_ns)
    name = f"wait {ended.agent}"
    return Span(own, task.span_id, name, "internal", start_ns - wait_us * 1000, start_ns, attributes)


def _start_ns(ended: facts.AttemptEnded, end_ns: int) -> int:
    return end_ns - int(ended.duration_s * 1e9)


_UNBLAMED = (tasks.State.SUCCEEDED, tasks.State.CANCELLED)


def _error_of(ended: facts.AttemptEnded) -> str:
    """Return the type of what the attempt ended with: its message is its caller's alone."""
    end = ended.end
    return end.type[:128] if isinstance(end, tasks.AgentFailed) else ended.reason


def _attempt(ended: facts.AttemptEnded) -> dict[str, str | int]:
    found: dict[str, str | int] = {
        "gen_ai.agent.name": ended.agent,
        "greenroom.task.id": ended.task,
        "greenroom.attempt": ended.attempt,
        "greenroom.epoch": ended.epoch,
        "greenroom.outcome": ended.state,
        "greenroom.reason": ended.reason,
        "greenroom.revision": ended.revision,
        "greenroom.replica": ended.replica,
    }
    if ended.session is not None:
        found["gen_ai.conversation.id"] = ended.session
    return found
