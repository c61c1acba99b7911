"""The node's tracing: whether there is any, where it goes, and how it stands.

On without an endpoint, or without the extra that exports, it traces nothing and says so: production has it on, whether
there is a collector or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from greenroom import __version__, redaction, settings, telemetry
from greenroom import clock as clocks
from greenroom.telemetry import otlp, tracing

PRODUCTION_RATIO = 0.01
_ON = "on, and nothing is traced"
_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")  # read by the exporter itself


class NodeTracing:
    def __init__(
        self,
        found: settings.Settings,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        metrics: telemetry.Metrics,
        *,
        node: str,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._facts, self._trouble = facts, ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._exporter: otlp.Exporter | None = None
        self.requests: tracing.Tracing | None = None  # of nobody, where nothing is traced
        self._is_on, chosen = found.cluster.tracing, found.tracing
        self._why_idle = _why_idle(found, environ) if self._is_on else None
        if not self._is_on or self._why_idle is not None:
            return
        self._endpoint = _shown(chosen.endpoint or otlp.endpoint_of(environ) or "")
        self._ratio = ratio_of(found)
        self._exporter = otlp.Exporter(
            endpoint=_with_path(chosen.endpoint),
            headers=_headers(chosen.headers_env, environ),
            version=__version__,
            node=node,
            lost=lambda why: self._tell(telemetry.SpansLost(why)),
            taken=lambda: self._tell(telemetry.SpansTaken(self._dropped())),
            timeout_s=chosen.timeout_s,
        )
        metrics.count_spans(self._counts)
        self.requests = tracing.Tracing(clock, self._exporter.put, ratio=self._ratio, content=chosen.content)
        self.requests.listen(facts)

    def begin(self) -> None:
        """Export from now on; on the event loop that facts are told on."""
        self._loop = asyncio.get_running_loop()
        if self._why_idle is not None:
            self._facts.emit(telemetry.TracingIdle(*self._why_idle))
        elif self._exporter is not None:
            self._exporter.start()
            self._facts.emit(telemetry.TracingBegan(self._endpoint, self._ratio))

    async def end(self) -> None:
        if self._exporter is not None:
            await asyncio.to_thread(self._exporter.close)

    def state(self) -> str:
        """Say how it stands, in words for people."""
        if not self._is_on:
            return "off"
        if self._why_idle is not None:
            return f"{_ON}: {self._why_idle[0]}"
        told = f"on, {self._ratio:.4g} of the traces that begin here, to {self._endpoint}"
        return f"{told}; spans are being dropped: {self._trouble}" if self._trouble else told

    def _tell(self, fact: telemetry.SpansLost | telemetry.SpansTaken) -> None:
        """From the exporter's thread, or by whoever puts a span."""
        self._trouble = fact.reason if isinstance(fact, telemetry.SpansLost) else ""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._facts.emit, fact)

    def _dropped(self) -> int:
        return 0 if self._exporter is None else self._exporter.dropped

    def _counts(self) -> Mapping[str, int]:
        exporter = self._exporter
        return {} if exporter is None else {"exported": exporter.exported, "dropped": exporter.dropped}


def ratio_of(found: settings.Settings) -> float:
    """Return which part of the traces that begin here is recorded."""
    if found.tracing.sample_ratio is not None:
        return found.tracing.sample_ratio
    return PRODUCTION_RATIO if found.environment == settings.Environment.PRODUCTION else 1.0


def _why_idle(found: settings.Settings, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Return why nothing is traced though tracing is on, and what to do; None where it is."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return "OTEL_SDK_DISABLED is true", "unset it"
    if found.tracing.endpoint is None and otlp.endpoint_of(environ) is None:
        return "no collector is named", "set tracing.endpoint or OTEL_EXPORTER_OTLP_ENDPOINT"
    if not otlp.is_installed():
        return "the extra that exports is not installed", "pip install 'greenroom[tracing]'"
    return None


def _with_path(endpoint: str | None) -> str | None:
    """Complete what names a collector alone, as the standard variable for all signals does."""
    if endpoint is None or urlsplit(endpoint).path.strip("/"):
        return endpoint
    return f"{endpoint.rstrip('/')}/v1/traces"


def _headers(variable: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Read headers as OTEL_EXPORTER_OTLP_HEADERS has them: ``name=value,name=value``, values quoted as in URLs."""
    named = _pairs(environ.get(variable or "", ""))
    standard = [value for name in _HEADERS for value in _pairs(environ.get(name, "")).values()]
    redaction.register(*named.values(), *standard)
    return named


def _pairs(text: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in text.split(",") if "=" in pair)
    return {name.strip().lower(): unquote(value.strip()) for name, _, value in pairs if name.strip()}


def _shown(endpoint: str) -> str:
    """Return what of an endpoint is no secret."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
