"""`Context`: what an agent's code may ask of Greenroom while it runs a task. Standard library only.

`engine.replica` implements the port; agents receive it as their second argument, or find it with `current()` inside
tools that a framework calls.
"""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

SpanKind = Literal["internal", "server", "client", "producer", "consumer"]


class SubTaskFailed(Exception):
    """A sub-task of ``Context.call`` did not succeed; ``type`` is its error's type, or ``cancelled`` or ``expired``."""

    def __init__(self, agent: str, type: str, message: str) -> None:
        super().__init__(f"the call of {agent} failed: {type}: {message}")
        self.agent, self.type, self.message = agent, type, message


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """The task as its agent may see it. *attempt* counts from 1; *epoch* fences and only grows."""

    id: str
    agent: str
    attempt: int
    epoch: int
    session: str | None
    metadata: Mapping[str, Any]


class Span(Protocol):
    """A step of a task in its trace. Values are texts, numbers, booleans, or lists of one of these."""

    def set(self, name: str, value: Any) -> None: ...

    def event(self, name: str, attributes: Mapping[str, Any] | None = None) -> None: ...

    def fail(self, type: str) -> None:
        """Say that the step failed; an exception that leaves it says so by itself."""


class Context(Protocol):
    task: TaskInfo
    state: dict[str, Any]
    """The session's state for agents that keep their own: read it, change it; it is stored with the result.

    A dict of strict JSON, empty at first; to set it to anything else raises TypeError.
    """

    @property
    def session(self) -> str | None: ...

    @property
    def deadline_at(self) -> datetime:
        """When this attempt is ended by force."""

    def remaining_s(self) -> float:
        """Return the seconds left until the deadline, by a clock that never jumps."""

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this task: give it to tools whose outside effects must happen once."""

    def emit(self, event: Any, *, type: str = "message") -> None:
        """Publish *event* (strict JSON) to whoever watches the task; *type*: message, tool, output, progress, log.

        Callable from any thread. Refused with ValueError if it is not JSON or over 256 KiB; the error's ``type`` is
        then ``event_not_json`` or ``event_too_large``.
        """

    async def call(self, agent: str, input: Any, *, timeout_s: float | None = None, session: str | None = None) -> Any:
        """Run a durable sub-task and return its output; while it waits, this task's slot is free.

        The n-th call of a task is recorded: when the task is run again after a lost replica, the same call (same agent
        and input) returns the recorded result. Deadline and cancel of this task go down to it. Raises `SubTaskFailed`.
        """

    def call_blocking(
        self, agent: str, input: Any, *, timeout_s: float | None = None, session: str | None = None
    ) -> Any:
        """`call` for synchronous agents, which run in a thread; raises RuntimeError on the event loop's own thread."""

    @property
    def trace_headers(self) -> dict[str, str]:
        """The W3C headers to send along with a request, so that who answers it joins the trace; {} outside of one."""

    def span(
        self,
        name: str,
        *,
        kind: SpanKind = "internal",
        attributes: Mapping[str, Any] | None = None,
        is_current: bool = True,
    ) -> AbstractContextManager[Span]:
        """Record a step in the task's trace; free where the task is not traced.

        *is_current*: what begins within is below it. False for a step that spans the ``yield`` of a generator.
        """

    async def run(self, agent: object, input: Any) -> Any:
        """Run an agent of any framework that an adapter knows, inside this task: its events and tokens are this task's.

        The instance is the caller's: its state is not stored.
        """


_current: contextvars.ContextVar[Context] = contextvars.ContextVar("greenroom_context")


def current() -> Context:
    """Return the context of the task that runs here; raises LookupError outside of one."""
    return _current.get()
