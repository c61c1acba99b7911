"""The `Context` that agent code gets: one for each attempt, a view of it that is safe from any thread.

`engine.running` makes it and closes it; what agent code asks for becomes frames, sent by ``send``.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import reprlib
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

from greenroom import errors, strict_json
from greenroom.adapters import contract, registry
from greenroom.engine import protocol, said, spans, values
from greenroom.sdk import context as sdk_context

MAX_EVENT_BYTES = 256 * 1024
MAX_EVENTS = 10_000
MAX_EVENTS_BYTES = 16 * 1024 * 1024  # of one attempt, so that a flood does not fill the node's memory
MAX_INPUT_BYTES = 8 * 1024 * 1024
_AGENT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}")
_TRUNCATED = b'{"truncated":true,"line":"(too many events; the rest of this task\'s are dropped)"}'


class TaskContext:
    """`sdk.context.Context`, and what `engine.running` needs of the attempt's threads, tasks and tokens."""

    __slots__ = (
        "__weakref__",
        "_bytes_left",
        "_calls",
        "_closed",
        "_deadline_s",
        "_events_left",
        "_is_check",
        "_loop_thread",
        "_ordinals",
        "_send",
        "_state",
        "recorder",
        "task",
        "tasks",
        "threads",
        "usage",
    )

    def __init__(self, invoke: protocol.Invoke, agent: str, send: Callable[[protocol.ToNode], None]) -> None:
        self.task = sdk_context.TaskInfo(
            id=invoke.task,
            agent=agent,
            attempt=invoke.attempt,
            epoch=invoke.epoch,
            session=invoke.session,
            metadata={} if invoke.metadata is None else values.read(invoke.metadata),
        )
        self._state: dict[str, Any] = {}
        self.usage = contract.NO_USAGE  # of the agents that `run` ran
        self.threads: set[Future[Any]] = set()
        self.tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._send = send
        self._deadline_s = time.monotonic() + invoke.remaining_s
        self._loop_thread = threading.get_ident()
        self._ordinals = itertools.count()
        self._calls: dict[int, tuple[str, Future[Any], spans.Open | None]] = {}
        self._events_left, self._bytes_left = MAX_EVENTS, MAX_EVENTS_BYTES
        self._is_check = invoke.is_check
        self._closed = False
        self.recorder: spans.Recorder | None = None  # of a task that is in a trace
        if invoke.trace is not None:
            self.recorder = spans.Recorder(invoke.task, invoke.epoch, invoke.trace, send)

    @property
    def state(self) -> dict[str, Any]:
        return self._state

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        given: object = state
        if not isinstance(given, dict):  # else the session's next task could not load it
            raise TypeError(f"context.state takes a dict ({{}} empties it); got {reprlib.repr(given)}")
        self._state = given

    @property
    def session(self) -> str | None:
        return self.task.session

    @property
    def deadline_at(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.remaining_s())

    def remaining_s(self) -> float:
        return self._deadline_s - time.monotonic()

    @property
    def idempotency_key(self) -> str:
        return self.task.id

    @property
    def trace_headers(self) -> dict[str, str]:
        return {} if self.recorder is None else self.recorder.headers()

    def span(
        self,
        name: str,
        *,
        kind: sdk_context.SpanKind = "internal",
        attributes: Mapping[str, Any] | None = None,
        is_current: bool = True,
    ) -> AbstractContextManager[sdk_context.Span]:
        if self.recorder is None or not self.recorder.is_sampled or self._closed:
            return spans.UNRECORDED
        return self.recorder.span(name, kind, attributes or {}, is_current=is_current)

    def emit(self, event: Any, *, type: str = "message") -> None:
        self._publish(_event_type(type), values.encode(event, "event", limit_bytes=MAX_EVENT_BYTES))
        if self.recorder is not None and type != "output":  # which streams, word by word
            self.recorder.note(f"greenroom.{type}")

    async def call(self, agent: str, input: Any, *, timeout_s: float | None = None, session: str | None = None) -> Any:
        # Wrapped here and not where it is made: the caller's loop may be one of its own, in a thread.
        return await asyncio.wrap_future(self._begin_call(agent, input, timeout_s, session))

    def call_blocking(
        self, agent: str, input: Any, *, timeout_s: float | None = None, session: str | None = None
    ) -> Any:
        if threading.get_ident() == self._loop_thread:
            raise RuntimeError("cannot call_blocking on the event loop: it would stop; use `await context.call(...)`")
        return self._begin_call(agent, input, timeout_s, session).result()

    async def run(self, agent: object, input: Any) -> Any:
        adapter = registry.find(agent)
        if adapter is None:
            raise errors.AgentInvalid(
                f"cannot run a {type(agent).__name__}: no adapter knows it; wrap it in a function"
            )
        instance = adapter.open(agent)
        try:
            return await instance.run(input, self)
        finally:
            self.usage += instance.usage

    # --- for engine.running

    def publish_line(self, line: said.Line) -> None:
        """Publish a line that the task printed or logged; `output.TaskLog` has bounded it."""
        self._send_event("log", strict_json.dumps(said.event(line)))

    def call_ended(self, message: protocol.CallEnded) -> None:
        agent, future, span = self._calls.pop(message.ordinal, (None, None, None))
        self._end_call(span, message.error_type)
        if agent is None or future is None or not future.set_running_or_notify_cancel():
            return
        if message.error_type is not None:
            future.set_exception(sdk_context.SubTaskFailed(agent, message.error_type, message.error_message))
        else:
            future.set_result(None if message.output is None else values.read(message.output))

    def abandon_calls(self) -> None:
        """Cancel what waits for sub-tasks: it frees a thread that stands in `call_blocking`."""
        for _, future, span in list(self._calls.values()):
            self._end_call(span, "cancelled")
            future.cancel()
        self._calls.clear()

    def close(self) -> None:
        """Nothing of this attempt is sent from now on."""
        self._closed = True
        self.abandon_calls()
        if self.recorder is not None:
            self.recorder.close()

    def _begin_call(self, agent: str, input: Any, timeout_s: float | None, session: str | None) -> Future[Any]:
        # Here and not on the node, which takes a frame that does not fit for a broken replica.
        agent, session, timeout_s = _agent_name(agent), _session_id(session), _timeout_s(timeout_s)
        if self._closed:
            raise RuntimeError(f"cannot call {agent}: the task has ended")
        if self._is_check:
            raise RuntimeError(
                f"cannot call {agent}: this is a check and no user's task, and durable sub-tasks cannot be made in a"
                " check; check the agents one by one, or a task of this one that makes no calls"
            )
        encoded = values.encode(input, "input", limit_bytes=MAX_INPUT_BYTES)
        ordinal = next(self._ordinals)
        future: Future[Any] = Future()
        span = self._open_call(agent)
        self._calls[ordinal] = (agent, future, span)
        self._send(
            protocol.Called(
                self.task.id,
                self.task.epoch,
                ordinal,
                agent,
                encoded,
                timeout_s=timeout_s,
                session=session,
                span_id=None if span is None else span.span_id,
            )
        )
        return future

    def _open_call(self, agent: str) -> spans.Open | None:
        if self.recorder is None or not self.recorder.is_sampled:
            return None
        span = self.recorder.open(f"call {agent}", spans.KINDS.index("producer"), self.recorder.parent_id())
        span.set("gen_ai.agent.name", agent)
        return span

    def _end_call(self, span: spans.Open | None, error_type: str | None) -> None:
        if span is not None and self.recorder is not None:
            if error_type is not None:
                span.fail(error_type)
            self.recorder.end(span)

    def _publish(self, type: str, data: bytes) -> None:
        if self._events_left <= 0:
            return
        self._events_left -= 1
        self._bytes_left -= len(data)
        if self._events_left == 0 or self._bytes_left < 0:
            self._events_left = 0
            self._send_event("log", _TRUNCATED)
        else:
            self._send_event(type, data)

    def _send_event(self, type: str, data: bytes) -> None:
        if not self._closed and not self._is_check:
            self._send(protocol.Emitted(self.task.id, self.task.epoch, type, data))


def _event_type(given: object) -> str:
    if isinstance(given, str) and given in protocol.EVENT_TYPES:
        return str.__str__(given)
    known = ", ".join(sorted(protocol.EVENT_TYPES))
    raise ValueError(f"cannot emit: type {reprlib.repr(given)} is none of {known}")


def _agent_name(given: object) -> str:
    takes = "a name of at most 63 of a-z, 0-9, _ and -, the first a letter or digit"
    return _text("agent", given, _AGENT_NAME, takes)


def _session_id(given: object) -> str | None:
    takes = "at most 128 letters, digits and _.:@-, the first a letter or digit"
    return None if given is None else _text("session", given, _SESSION_ID, takes)


def _timeout_s(given: object) -> float | None:
    if given is None:
        return None
    takes = f"a number of seconds > 0 and at most {protocol.MAX_TIMEOUT_S}"
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TypeError(_misfit("timeout_s", given, takes))
    if not 0 < given <= protocol.MAX_TIMEOUT_S:  # NaN, too
        raise ValueError(_misfit("timeout_s", given, takes))
    return float(given)


def _text(argument: str, given: object, pattern: re.Pattern[str], takes: str) -> str:
    if not isinstance(given, str):
        raise TypeError(_misfit(argument, given, takes))
    if not pattern.fullmatch(given):
        raise ValueError(_misfit(argument, given, takes))
    return str.__str__(given)  # a frame takes no subclass


def _misfit(argument: str, given: object, takes: str) -> str:
    return f"cannot call: {argument} takes {takes}; got {reprlib.repr(given)}"
