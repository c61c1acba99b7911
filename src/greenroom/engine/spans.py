"""The spans of one attempt, made where its agent runs and told to the node, which exports them.

A replica reaches no collector and holds no credentials: what it says goes over its one socket, in bounded pieces.
`engine.task_context` makes a `Recorder` for an attempt whose task is in a trace, and for no other.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from greenroom.engine import otel, protocol
from greenroom.sdk import context as sdk_context

MAX_SPANS = 1_000  # of an attempt; what is over is counted on the agent's span
MAX_SPAN_CHARACTERS = 32 * 1024  # in the values of a span and its events
MAX_TEXT = 8192  # of a value
MAX_ITEMS = 64  # of a value that is a list
MAX_NAME = 256
FLUSH_EVERY_S = 1.0  # what has ended is told though its attempt may never
KINDS = ("internal", "server", "client", "producer", "consumer")  # their numbers are OpenTelemetry's
_SAMPLED = 1

_current: contextvars.ContextVar[Open] = contextvars.ContextVar("greenroom_span")


class Open:
    """A span that has not ended; safe from any thread, like all of `Recorder`."""

    __slots__ = (
        "_characters_left",
        "attributes",
        "error",
        "events",
        "kind",
        "name",
        "parent_id",
        "scope",
        "span_id",
        "start_ns",
    )

    def __init__(self, name: str, kind: int, parent_id: str, scope: str = "greenroom") -> None:
        self.span_id, self.parent_id = os.urandom(8).hex(), parent_id
        self.name, self.kind, self.scope = _text(name, MAX_NAME), kind, _text(scope, MAX_NAME)
        self.start_ns = time.time_ns()
        self.attributes: dict[str, Any] = {}
        self.events: list[tuple[str, int, dict[str, Any]]] = []
        self.error: str | None = None
        self._characters_left = MAX_SPAN_CHARACTERS

    def set(self, name: str, value: Any) -> None:
        """Keep an attribute; what is no value of OpenTelemetry, or too much, is dropped."""
        self._keep(self.attributes, name, value)

    def event(self, name: str, attributes: Mapping[str, Any] | None = None, at_ns: int | None = None) -> None:
        if len(self.events) < protocol.MAX_SPAN_EVENTS and self._characters_left > 0:
            kept: dict[str, Any] = {}
            for key, value in (attributes or {}).items():
                self._keep(kept, key, value)
            name = _text(name, MAX_NAME)
            self._characters_left -= len(name)
            self.events.append((name, time.time_ns() if at_ns is None else at_ns, kept))

    def fail(self, type: str) -> None:
        self.error = _text(type, MAX_NAME)
        self.set("error.type", self.error)

    def _keep(self, kept: dict[str, Any], name: object, value: object) -> None:
        if not isinstance(name, str) or (len(kept) >= protocol.MAX_SPAN_ATTRIBUTES and name not in kept):
            return
        clean = _clean(value)
        size = sum(map(_length, clean)) if isinstance(clean, list) else _length(clean)
        if clean is not None and size <= self._characters_left:
            self._characters_left -= size + len(name)
            kept[_text(name, MAX_NAME)] = clean


class _Unrecorded:
    """What stands for a span where none is made."""

    def set(self, name: str, value: Any) -> None:
        pass

    def event(self, name: str, attributes: Mapping[str, Any] | None = None) -> None:
        pass

    def fail(self, type: str) -> None:
        pass


_NOTHING = _Unrecorded()
UNRECORDED = contextlib.nullcontext(_NOTHING)


class Recorder:
    """Makes the spans of an attempt whose own, the node's, is the one that *trace* names."""

    def __init__(self, task: str, epoch: int, trace: str, send: Callable[[protocol.ToNode], None]) -> None:
        self._task, self._epoch, self._send = task, epoch, send
        parent, _, self.state = trace.partition(" ")
        _, self.trace_id, self._attempt_id, flags = parent.split("-")
        self.flags = int(flags, 16)
        self._root: Open | None = None
        self._ended: list[protocol.Span] = []
        self._lock = threading.Lock()
        self._left, self._dropped, self._is_closed = MAX_SPANS - 1, 0, False  # one is kept for the agent's own
        self._flush_at_s = time.monotonic() + FLUSH_EVERY_S

    @property
    def is_sampled(self) -> bool:
        return bool(self.flags & _SAMPLED)

    def headers(self) -> dict[str, str]:
        """Return the headers that carry the context of what runs here."""
        headers = {"traceparent": f"00-{self.trace_id}-{self.parent_id()}-{self.flags:02x}"}
        return {**headers, "tracestate": self.state} if self.state else headers

    def parent_id(self) -> str:
        """Return the span that one that begins here is within."""
        joined = otel.current(self.trace_id)
        if joined is not None:
            return joined
        opened = _current.get(None)
        return self._attempt_id if opened is None else opened.span_id

    @contextlib.contextmanager
    def run(self, name: str, attributes: Mapping[str, Any]) -> Iterator[sdk_context.Span]:
        """Be within the agent's own span; where nothing is sampled, within the caller's context alone."""
        if not self.is_sampled:
            with otel.within(self, self._attempt_id):
                yield _NOTHING
            return
        with self.span(name, "internal", attributes) as span:
            self._root = span if isinstance(span, Open) else None
            try:
                yield span
            finally:
                if self._dropped:
                    span.set("greenroom.spans_dropped", self._dropped)

    @contextlib.contextmanager
    def span(
        self, name: str, kind: str, attributes: Mapping[str, Any], *, is_current: bool = True
    ) -> Iterator[sdk_context.Span]:
        """Record what happens within; *is_current*: what begins there is below it."""
        opened = self.open(name, KINDS.index(kind), self.parent_id())
        for key, value in attributes.items():
            opened.set(key, value)
        with self._inside(opened) if is_current else contextlib.nullcontext():
            try:
                yield opened
            except BaseException as error:
                if opened.error is None:
                    opened.fail(getattr(error, "type", None) or type(error).__name__)
                raise
            finally:
                self.end(opened)

    @contextlib.contextmanager
    def _inside(self, opened: Open) -> Iterator[None]:
        token = _current.set(opened)
        try:
            with otel.within(self, opened.span_id):
                yield
        finally:
            with contextlib.suppress(ValueError):  # left in another context than it was entered in
                _current.reset(token)

    def open(self, name: str, kind: int, parent_id: str, scope: str = "greenroom") -> Open:
        return Open(name, kind, parent_id, scope)

    def note(self, event: str) -> None:
        """Note on the agent's span that something was said."""
        if self._root is not None:
            self._root.event(event)

    def end(self, opened: Open, end_ns: int | None = None) -> None:
        end_ns = time.time_ns() if end_ns is None else end_ns
        with self._lock:
            if self._left <= 0 and opened is not self._root:
                self._dropped += 1
                return
            self._left -= 1
            self._ended.append(
                protocol.Span(
                    opened.span_id,
                    opened.parent_id,
                    opened.name,
                    opened.kind,
                    opened.start_ns,
                    end_ns,
                    dict(opened.attributes),
                    list(opened.events),
                    opened.error,
                    opened.scope,
                )
            )
            if len(self._ended) >= protocol.MAX_SPANS or time.monotonic() >= self._flush_at_s:
                self._flush()

    def close(self) -> None:
        """Tell of what has ended; of what ends later nothing is said."""
        with self._lock:
            self._flush()
            self._is_closed = True

    def _flush(self) -> None:
        ended, self._ended = self._ended, []
        self._flush_at_s = time.monotonic() + FLUSH_EVERY_S
        if ended and not self._is_closed and self.is_sampled:
            self._send(protocol.Spans(self._task, self._epoch, ended))


def _text(given: object, most: int) -> str:
    # A frame takes neither subclasses nor lone surrogates.
    return str.__str__(given)[:most].encode("utf-8", "replace").decode() if isinstance(given, str) else ""


def _clean(value: object) -> Any:
    """Return *value* as a frame and OpenTelemetry take it; None where they do not."""
    if isinstance(value, str):
        return _text(value, MAX_TEXT)
    if isinstance(value, bool | float):
        return value if type(value) is bool else float(value)
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else str(value)[:MAX_NAME] if value.bit_length() < 1024 else None
    if isinstance(value, list | tuple):
        return [item for item in map(_clean, value[:MAX_ITEMS]) if item is not None and not isinstance(item, list)]
    return None


def _length(value: object) -> int:
    return len(value) if isinstance(value, str) else 8
