"""Agents whose libraries trace, well and badly."""

# ruff: noqa: ARG001, ASYNC240 - agents need not use what they are given

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from opentelemetry import trace

from greenroom.sdk.context import Context

SECRET = "sk-live0123456789abcdef0123"
_tracer = trace.get_tracer("agents.library")


class Shaky(Exception):
    retryable = True


async def headers(input: Any, context: Context) -> dict[str, Any]:
    """What is handed on: by us, and by an instrumented client."""
    current = trace.get_current_span().get_span_context()
    return {"ours": context.trace_headers, "theirs": f"{current.trace_id:032x}-{current.span_id:016x}"}


def library(input: Any, context: Context) -> str:
    """Steps of ours and of a library, in a thread."""
    with (
        context.span("look up", attributes={"rows": 3}) as ours,
        _tracer.start_as_current_span("query", kind=trace.SpanKind.CLIENT, attributes={"db.system": "x"}) as theirs,
    ):
        theirs.add_event("retried", {"times": 2})
        ours.event("found")
    try:
        with _tracer.start_as_current_span("broken"):
            raise ValueError(input)
    except ValueError:
        return "done"


async def hostile(input: Any, context: Context) -> str:
    """Everything that a span should not be."""
    with _tracer.start_as_current_span("x" * 10_000) as span:
        span.set_attribute("key", SECRET)
        span.set_attribute("url.full", f"https://host/path?token={SECRET}")
        span.set_attribute("gen_ai.input.messages", "what was said")
        span.set_attribute("http.request.header.authorization", "Bearer abc")
        span.set_attribute("huge", "y" * 1_000_000)
        span.set_attribute("escape", "\x1b[2J\ud800\x00")
        span.set_attribute("number", 2**70)
        span.set_attribute("list", [1, "a", None])
        span.set_attribute("object", object())  # type: ignore[arg-type]
        span.set_attribute("k" * 500, 1)
        for number in range(500):
            span.set_attribute(f"a{number}", number)
            span.add_event("e", {"message": "what was said", "n": number})
    for number in range(2_000):
        with _tracer.start_as_current_span(f"flood {number}"):
            pass
    return "done"


async def shaky(input: Any, context: Context) -> int:
    if context.task.attempt < 3:
        raise Shaky("not yet")
    return context.task.attempt


async def dying(input: str, context: Context) -> int:
    """Dies where the file is not there yet."""
    if not Path(input).exists():
        Path(input).touch()
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGKILL)
    return context.task.attempt


async def top(input: Any, context: Context) -> Any:
    with context.span("ask"):
        return await context.call("below", input)


async def below(input: Any) -> Any:
    return input
