"""An agent that has set up OpenTelemetry's SDK for itself."""

# ruff: noqa: ARG001

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

_provider = TracerProvider()
trace.set_tracer_provider(_provider)


async def agent(input: Any) -> str:
    with trace.get_tracer("own").start_as_current_span("own step", attributes={"n": 1}):
        pass
    return "own" if trace.get_tracer_provider() is _provider else "taken"
