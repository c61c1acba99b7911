"""Sends spans to a collector by OTLP over HTTP, from a thread of its own: the only module that knows OpenTelemetry.

Whoever puts a span never waits. What a collector that is down, slow or confused does not take is dropped, counted, and
said once until it takes spans again. Needs the extra ``tracing``; variables ``OTEL_EXPORTER_OTLP_*`` hold, too.
"""

from __future__ import annotations

import collections
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from greenroom.telemetry.spans import KINDS, Span

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

MAX_WAITING = 8192  # spans
MAX_WAITING_SIZE = 16 * 1024 * 1024  # characters in them
BATCH, EVERY_S = 512, 1.0
TIMEOUT_S = 10.0  # of one batch with its retries
CLOSE_WITHIN_S = 2.0
MAX_ANSWER_BYTES = 64 * 1024
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def is_installed() -> bool:
    """Whether the extra ``tracing`` is there."""
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http.trace_exporter") is not None
    except ModuleNotFoundError:
        return False


def endpoint_of(environ: Mapping[str, str]) -> str | None:
    """Return what the standard variables name."""
    return next((environ[name] for name in _ENDPOINTS if environ.get(name)), None)


class Exporter:
    """*lost* is called with why, by whoever puts or from the thread, *taken* from the thread when it is over; once each
    time, and neither may block.
    """

    def __init__(
        self,
        *,
        endpoint: str | None,
        headers: Mapping[str, str],
        version: str,
        node: str,
        lost: Callable[[str], None],
        taken: Callable[[], None],
        timeout_s: float | None = None,
    ) -> None:
        self.exported = 0
        self._refused, self._failed = 0, 0  # apart: each is counted by one thread
        self._refused_before = 0  # the last batch that was taken
        self._waiting: collections.deque[tuple[Callable[[], Span], int]] = collections.deque()
        self._size = 0
        self._lost, self._taken, self._is_losing = lost, taken, False
        self._version, self._why = version, ""
        self._resource = _resource(version, node)
        self._exporter = self._make(endpoint, headers, timeout_s)
        self._wakeup, self._is_closing = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)

    @property
    def dropped(self) -> int:
        return self._refused + self._failed

    def start(self) -> None:
        self._thread.start()

    def put(self, make: Callable[[], Span], size: int) -> None:
        """Take what makes a span of about *size* characters; it is called in the thread."""
        if len(self._waiting) >= MAX_WAITING or self._size + size > MAX_WAITING_SIZE:
            self._refused += 1
            self._note_loss("more spans were made than the collector takes")  # the thread may hang in an answer
            return
        self._size += size
        self._waiting.append((make, size))
        if len(self._waiting) == BATCH:
            self._wakeup.set()

    def close(self) -> None:
        """Send what waits, for as long as a node that stops may wait for it; blocks."""
        self._is_closing = True
        self._wakeup.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_WITHIN_S)
        self._exporter.shutdown()  # a retry that waits ends; a request that hangs is left to the thread

    def _make(self, endpoint: str | None, headers: Mapping[str, str], timeout_s: float | None) -> Any:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter

        # It would say every failure; the last is kept to be said once.
        logger = logging.getLogger(trace_exporter.__name__)
        logger.propagate = False
        logger.handlers = [_Overheard(self._overhear)]
        default_s = None if "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT" in os.environ else TIMEOUT_S
        return trace_exporter.OTLPSpanExporter(
            endpoint=endpoint,
            headers=dict(headers) or None,
            timeout=default_s if timeout_s is None else timeout_s,
            session=_session(),
        )

    def _overhear(self, message: str) -> None:
        self._why = message[:300]

    def _run(self) -> None:
        while True:
            self._wakeup.wait(EVERY_S)
            self._wakeup.clear()
            while self._waiting:
                self._send([self._take() for _ in range(min(BATCH, len(self._waiting)))])
            if self._is_closing:
                return

    def _take(self) -> Callable[[], Span]:
        make, size = self._waiting.popleft()
        self._size -= size
        return make

    def _send(self, waiting: Sequence[Callable[[], Span]]) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        spans = [span for make in waiting if (span := self._made(make)) is not None]
        self._why = "the collector did not take them"
        try:
            is_sent = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001 - a collector's answer may do what it likes to the client
            is_sent, self._why = False, f"{type(error).__name__}: {error}"[:300]
        if is_sent:
            self.exported += len(spans)
            if self._is_losing and self._refused == self._refused_before:
                self._is_losing = False
                self._taken()
            self._refused_before = self._refused
        else:
            self._failed += len(spans)
            self._note_loss(self._why)

    def _made(self, make: Callable[[], Span]) -> ReadableSpan | None:
        try:
            return self._as_theirs(make())
        except Exception as error:  # noqa: BLE001 - what a stranger has put into one is not to cost the others
            self._failed += 1
            self._note_loss(f"a span could not be made: {type(error).__name__}")
            return None

    def _note_loss(self, why: str) -> None:
        if not self._is_losing:
            self._is_losing = True
            self._lost(why)

    def _as_theirs(self, span: Span) -> ReadableSpan:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        context = span.context
        state = trace.TraceState.from_header([context.state]) if context.state else None

        def at(span_id: str) -> trace.SpanContext:
            flags = trace.TraceFlags(context.flags)
            return trace.SpanContext(
                int(context.trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=flags, trace_state=state
            )

        code = trace.StatusCode.UNSET if span.error is None else trace.StatusCode.ERROR
        is_ours = span.scope == "greenroom"
        return ReadableSpan(
            span.name,
            context=at(context.span_id),
            parent=None if span.parent_id is None else at(span.parent_id),
            resource=self._resource,
            attributes=span.attributes,
            events=[Event(event.name, event.attributes, event.at_ns) for event in span.events],
            kind=trace.SpanKind(KINDS.index(span.kind)),
            status=trace.Status(code, span.error),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=InstrumentationScope(span.scope, self._version if is_ours else None),
        )


class _Overheard(logging.Handler):
    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__()
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage())


def _resource(version: str, node: str) -> Any:
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    usual = {"service.name": "greenroom", "service.version": version, "service.instance.id": node}
    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before.
    return Resource.create(usual).merge(OTELResourceDetector().detect())


def _session() -> Any:
    """Return a session that reads no more of an answer than one that makes sense could have."""
    import requests

    class Bounded(requests.Session):
        def request(self, *given: Any, **named: Any) -> requests.Response:
            response = super().request(*given, **{**named, "stream": True})
            response._content = response.raw.read(MAX_ANSWER_BYTES) or b""  # noqa: SLF001 - as `iter_content` would
            response.close()
            return response

    return Bounded()
