"""Trace context as W3C has it, who is sampled, and the ids of spans. Called by `telemetry.tracing`, `control`, `api`.

A task carries its context as one text: a ``traceparent`` and, after a space, the ``tracestate`` that came with it. No
text: nothing of the task is traced, and nothing more is asked. Ids of spans are made of what they are about, so that
whoever runs the next attempt, on whichever node, knows the spans before it without asking.
"""

from __future__ import annotations

import hashlib
import re

import msgspec

SAMPLED, RANDOM = 1, 2  # bits of the flags
MAX_STATE = 512  # characters; more is dropped, as the specification lets us
MAX_MEMBERS = 32
_RATIO_BITS = 56  # of a trace id, from its right: what the specification wants to be random

# Whoever speaks a later version than 00 may add fields behind a dash.
_PARENT = re.compile(r"[ \t]*([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[^\r\n]*)?[ \t]*")
_KEY = r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
_MEMBER = re.compile(rf"({_KEY})=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e])")


class Context(msgspec.Struct, frozen=True):
    """Where in which trace something happens."""

    trace_id: str
    span_id: str
    flags: int = 0
    state: str = ""

    @property
    def is_sampled(self) -> bool:
        return bool(self.flags & SAMPLED)

    def at(self, span_id: str) -> Context:
        """Return the context of another span of the same trace."""
        return Context(self.trace_id, span_id, self.flags, self.state)

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    def text(self) -> str:
        """Return what `read` reads."""
        return f"{self.traceparent} {self.state}" if self.state else self.traceparent


def parse(traceparent: str, tracestate: str = "") -> Context | None:
    """Read what a stranger sent; None where it is malformed, which is to be as if nothing had been sent.

    A malformed ``tracestate`` is dropped alone.
    """
    match = _PARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None) or not (int(trace_id, 16) and int(span_id, 16)):
        return None
    return Context(trace_id, span_id, int(flags, 16) & (SAMPLED | RANDOM), _state(tracestate))


def _state(given: str) -> str:
    if not given or len(given) > MAX_STATE:
        return ""
    members = {}
    for part in given.split(","):
        if not (part := part.strip(" \t")):
            continue  # empty members are allowed
        match = _MEMBER.fullmatch(part)
        if match is None or match[1] in members:
            return ""
        members[match[1]] = part
    return "" if len(members) > MAX_MEMBERS else ",".join(members.values())


def read(text: str) -> Context:
    """Read what `Context.text` wrote."""
    parent, _, state = text.partition(" ")
    _, trace_id, span_id, flags = parent.split("-")
    return Context(trace_id, span_id, int(flags, 16), state)


def is_recorded(text: str) -> bool:
    """Whether anybody records the trace of this context."""
    return bool(int(text[53:55], 16) & SAMPLED)


def trace_id_of(text: str) -> str | None:
    """Return the id of the trace that a task with this context is in; None where nobody records it."""
    return read(text).trace_id if is_recorded(text) else None


def threshold(ratio: float) -> int:
    """Return what `is_sampled` compares with, for one trace in 1 / *ratio*."""
    return round(ratio * (1 << _RATIO_BITS))


def is_sampled(trace_id: str, below: int) -> bool:
    """Decide about a trace that begins here, the same wherever it is asked."""
    return int(trace_id[-_RATIO_BITS // 4 :], 16) < below


def attempt_span(task: str, epoch: int) -> str:
    """Return the id of an attempt's span."""
    return _span(f"{task}:{epoch}")


def wait_span(task: str) -> str:
    """Return the id of the span of a task's wait for its first attempt."""
    return _span(f"{task}:wait")


def _span(of: str) -> str:
    return hashlib.blake2b(of.encode(), digest_size=8).hexdigest()


def within(text: str, task: str, epoch: int) -> str:
    """Return the context that an attempt hands on, of its task's."""
    return below(text, task, epoch, None)


def below(text: str, task: str, epoch: int, span_id: str | None) -> str:
    """Return the context of a sub-task: of the call's span, or of the attempt's where the call has none."""
    context = read(text)
    return context.at(span_id or attempt_span(task, epoch)).text() if context.is_sampled else text
