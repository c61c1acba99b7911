"""An OTLP collector for tests: real HTTP on loopback that decodes what it is sent, and misbehaves when told to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

DEADLINE_S = 20.0


@dataclass
class Span:
    name: str
    trace_id: str
    id: str
    parent: str  # "": none
    kind: int
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    failed: bool
    scope: str
    resource: dict[str, Any]
    took_s: float
    start_ns: int
    state: str


class Collector:
    """*mode*: well, hangs, 500, nonsense (200 with a body that is none), endless (200 whose body never ends)."""

    def __init__(self) -> None:
        self.mode = "well"
        self.spans: list[Span] = []
        self.headers: list[dict[str, str]] = []
        self.asked = threading.Event()
        self.going = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with contextlib.suppress(ConnectionError):
                    collector._answer(self, body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        mode = self.mode
        if mode == "well":
            self.spans += _decoded(body)
        self.asked.set()
        if mode == "hangs":
            self.going.wait(DEADLINE_S)
            return
        handler.send_response(500 if mode == "500" else 200)
        answer = {"nonsense": b"\x00\xff<html>", "500": b"no"}.get(mode, b"")
        if mode != "endless":
            handler.send_header("content-length", str(len(answer)))
        handler.end_headers()
        handler.wfile.write(answer)
        while mode == "endless" and not self.going.is_set():
            handler.wfile.write(b"x" * 65_536)

    def named(self, name: str) -> Span:
        (found,) = self.all(name)
        return found

    def all(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def path(self, span: Span) -> list[str]:
        """The names from the root to *span*; "?" where a parent is not there."""
        by_id = {each.id: each for each in self.spans if each.trace_id == span.trace_id}
        names = [span.name]
        while span.parent:
            if span.parent not in by_id:
                return ["?", *names]
            span = by_id[span.parent]
            names.insert(0, span.name)
        return names


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector._server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield collector
    finally:
        collector.going.set()
        collector._server.shutdown()
        collector._server.server_close()
        thread.join()


def _decoded(body: bytes) -> Iterator[Span]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.kind,
                    _attributes(span.attributes),
                    [(event.name, _attributes(event.attributes)) for event in span.events],
                    span.status.code == 2,
                    scope.scope.name,
                    _attributes(resource.resource.attributes),
                    (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                    span.start_time_unix_nano,
                    span.trace_state,
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)
