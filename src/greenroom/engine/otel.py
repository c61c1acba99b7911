"""Joins OpenTelemetry in the agent's environment with our spans: what an agent's libraries trace is part of its task.

Nothing is imported for it: only where the agent's code has imported ``opentelemetry`` there is something to join. Then
what runs has our span as its current one, so that instrumented clients hand the context on; and spans that are made of
it are told to the node. Where the agent has set up a tracer provider of its own, that one goes on as it was, and we
hear of its spans, too; else we are the provider.
"""

# ruff: noqa: FBT001, FBT002, FBT003, ARG002 - the signatures are OpenTelemetry's

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from greenroom.sdk import context as sdk_context


class Opened(Protocol):
    """`spans.Open`."""

    name: str
    start_ns: int
    error: str | None

    @property
    def span_id(self) -> str: ...
    def set(self, name: str, value: Any) -> None: ...
    def event(self, name: str, attributes: Mapping[str, Any] | None = None, at_ns: int | None = None) -> None: ...
    def fail(self, type: str) -> None: ...


class Recorder(Protocol):
    """`spans.Recorder`."""

    trace_id: str
    flags: int
    state: str

    @property
    def is_sampled(self) -> bool: ...
    def open(self, name: str, kind: int, parent_id: str, scope: str = "") -> Any: ...
    def end(self, opened: Any, end_ns: int | None = None) -> None: ...


_joined: list[object] = []  # providers that we are, or that we hear


def current(trace_id: str) -> str | None:
    """Return the id of OpenTelemetry's current span, where it is one of this trace."""
    api = _api()
    if api is None:
        return None
    context = api.get_current_span().get_span_context()
    return f"{context.span_id:016x}" if context.is_valid and f"{context.trace_id:032x}" == trace_id else None


@contextlib.contextmanager
def within(recorder: Recorder, span_id: str) -> Iterator[None]:
    """Have OpenTelemetry take *span_id* for the current span."""
    api = _api()
    if api is None:
        yield
        return
    _join(api)
    state = api.TraceState.from_header([recorder.state]) if recorder.state else None
    context = api.SpanContext(
        int(recorder.trace_id, 16),
        int(span_id, 16),
        is_remote=False,
        trace_flags=api.TraceFlags(recorder.flags),
        trace_state=state,
    )
    with api.use_span(api.NonRecordingSpan(context), record_exception=False, set_status_on_exception=False):
        yield


def _api() -> Any:
    api = sys.modules.get("opentelemetry.trace")
    # While it is being imported, it is there and not yet whole.
    return api if hasattr(api, "use_span") else None


def _join(api: Any) -> None:
    provider = api.get_tracer_provider()
    if any(provider is known for known in _joined):
        return
    sdk = sys.modules.get("opentelemetry.sdk.trace")
    if isinstance(provider, api.ProxyTracerProvider):  # nobody has set one
        provider = _provider(api)
        api.set_tracer_provider(provider)
    elif sdk is not None and isinstance(provider, sdk.TracerProvider):
        provider.add_span_processor(_processor(sdk))
    _joined.append(provider)


def _recorder() -> Any:
    """Return the recorder of the attempt that runs here."""
    return getattr(sdk_context._current.get(None), "recorder", None)  # noqa: SLF001 - the runtime's end of `current()`


def _processor(sdk: Any) -> object:
    class Heard(sdk.SpanProcessor):  # type: ignore[misc]
        """Tells of what an agent's own provider records."""

        def on_end(self, span: Any) -> None:
            recorder, context, parent = _recorder(), span.get_span_context(), span.parent
            if recorder is None or parent is None or f"{context.trace_id:032x}" != recorder.trace_id:
                return
            opened = recorder.open(
                span.name, span.kind.value, f"{parent.span_id:016x}", scope=_scope(span.instrumentation_scope)
            )
            opened.span_id, opened.start_ns = f"{context.span_id:016x}", span.start_time
            _set_all(opened, span.attributes)
            for event in span.events:
                opened.event(event.name, event.attributes, event.timestamp)
            if not span.status.is_ok:
                _fail(opened, span.attributes)
            recorder.end(opened, span.end_time)

    return Heard()


def _scope(scope: Any) -> str:
    return getattr(scope, "name", None) or "opentelemetry"


def _set_all(opened: Opened, attributes: Mapping[str, Any] | None) -> None:
    for key, value in (attributes or {}).items():
        opened.set(key, value)


def _fail(opened: Opened, attributes: Mapping[str, Any] | None) -> None:
    """Say that it failed; with what, its attributes may say. Its description is what was said, and is not kept."""
    type = (attributes or {}).get("error.type")
    opened.fail(type if isinstance(type, str) else opened.error or "error")


def _provider(api: Any) -> object:
    """Return a tracer provider of OpenTelemetry's API, which is there where its SDK may not be."""

    class Span(api.Span):  # type: ignore[misc]
        def __init__(self, opened: Any, context: Any, recorder: Any) -> None:
            self._opened, self._context, self._recorder = opened, context, recorder
            self._has_ended = False

        def get_span_context(self) -> Any:
            return self._context

        def is_recording(self) -> bool:
            return not self._has_ended

        def set_attribute(self, key: str, value: Any) -> None:
            self._opened.set(key, value)

        def set_attributes(self, attributes: Mapping[str, Any]) -> None:
            _set_all(self._opened, attributes)

        def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
            self._opened.event(name, attributes, timestamp)

        def add_link(self, context: Any, attributes: Any = None) -> None:
            """Links are not told."""

        def update_name(self, name: str) -> None:
            self._opened.name = name[:256]

        def set_status(self, status: Any, description: str | None = None) -> None:
            code = getattr(status, "status_code", status)
            if code is api.StatusCode.ERROR:
                _fail(self._opened, self._opened.attributes)

        def record_exception(
            self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
        ) -> None:
            self._opened.error = type(exception).__name__
            told = {"exception.type": type(exception).__qualname__, "exception.message": str(exception)}
            self._opened.event("exception", {**told, "exception.escaped": escaped, **(attributes or {})}, timestamp)

        def end(self, end_time: int | None = None) -> None:
            if not self._has_ended:
                self._has_ended = True
                self._recorder.end(self._opened, end_time)

    class Tracer(api.Tracer):  # type: ignore[misc]
        def __init__(self, scope: str) -> None:
            self._scope = scope

        def start_span(
            self,
            name: str,
            context: Any = None,
            kind: Any = api.SpanKind.INTERNAL,
            attributes: Any = None,
            links: Sequence[Any] | None = None,
            start_time: int | None = None,
            record_exception: bool = True,
            set_status_on_exception: bool = True,
        ) -> Any:
            parent = api.get_current_span(context).get_span_context()
            recorder = _recorder()
            is_ours = recorder is not None and recorder.is_sampled and f"{parent.trace_id:032x}" == recorder.trace_id
            if not is_ours:
                return api.NonRecordingSpan(parent)
            opened = recorder.open(name, kind.value, f"{parent.span_id:016x}", scope=self._scope)
            opened.start_ns = time.time_ns() if start_time is None else start_time
            _set_all(opened, attributes)
            own = api.SpanContext(
                parent.trace_id, int(opened.span_id, 16), False, parent.trace_flags, parent.trace_state
            )
            return Span(opened, own, recorder)

        @contextlib.contextmanager
        def start_as_current_span(
            self, name: str, *given: Any, end_on_exit: bool = True, **named: Any
        ) -> Iterator[Any]:
            span = self.start_span(name, *given, **named)
            with api.use_span(
                span,
                end_on_exit=end_on_exit,
                record_exception=named.get("record_exception", True),
                set_status_on_exception=named.get("set_status_on_exception", True),
            ):
                yield span

    class Provider(api.TracerProvider):  # type: ignore[misc]
        def get_tracer(self, instrumenting_module_name: str, *_given: Any, **_named: Any) -> Any:
            return Tracer(str(instrumenting_module_name) or "opentelemetry")

    return Provider()
