"""The trace that a caller is in, as headers for its requests. OpenTelemetry is asked only where the caller uses it."""

from __future__ import annotations

import sys

from greenroom import errors
from greenroom.core import traces
from greenroom.sdk import context as sdk_context


def headers(traceparent: str | None = None) -> dict[str, str]:
    """Return the headers of *traceparent*, or of what runs here; {} outside of a trace."""
    if traceparent is not None:
        if traces.parse(traceparent) is None:
            raise errors.BodyInvalid(
                "cannot submit: traceparent is none as W3C has it; for example"
                " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            )
        return {"traceparent": traceparent.strip()}
    api = sys.modules.get("opentelemetry.trace")
    if api is not None and hasattr(api, "get_current_span"):  # else it is being imported
        current = api.get_current_span().get_span_context()
        if current.is_valid:
            own = f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags & 3:02x}"
            state = current.trace_state.to_header()
            return {"traceparent": own, "tracestate": state} if state else {"traceparent": own}
    running = sdk_context._current.get(None)  # noqa: SLF001 - inside an agent
    return {} if running is None else running.trace_headers
