"""A node of canned answers, for the tests of the client and of the command: real HTTP, no engine."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.server import ServerState

AT = "2026-01-02T03:04:05.678901Z"
LATER = "2026-01-02T03:04:07.178901Z"
TASK_ID = "01936f2e4b7c7d0aa1b2c3d4e5f60718"
SLOTS = [{"agent": "research", "score": 0.91, "reason": "summarise"}, {"agent": "writing", "score": 0.12}]

Answer = Response | Exception


def task(state: str = "succeeded", **fields: Any) -> dict[str, Any]:
    """A task as the API shows it, with a field that this client does not know."""
    return {
        "id": TASK_ID,
        "agent": "research",
        "revision": 3,
        "state": state,
        "input": "Summarise the news",
        "output": "All is well." if state == "succeeded" else None,
        "error": {"type": "ValueError", "message": "no sources", "retryable": False} if state == "failed" else None,
        "attempt": 1,
        "attempts": [{"epoch": 1, "attempt": 1, "replica": "r1", "revision": 3, "started_at": AT, "ended_at": LATER}],
        "usage": {"input_tokens": 12, "output_tokens": 34},
        "created_at": AT,
        "started_at": AT,
        "finished_at": LATER if state in ("succeeded", "failed") else None,
        "mood": "of a newer node",
        **fields,
    }


def agent(name: str = "research", **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "description": "Finds and summarises sources from everywhere, at length and with great care",
        "state": "ready",
        "revision": 3,
        "replicas": {"desired": 2, "ready": 2},
        "queued": 0,
        "running": 1,
        "adapter": "an AutoGen agent",
        **fields,
    }


def rollout(state: str = "progressing", **fields: Any) -> dict[str, Any]:
    """A canary from revision 3 to 4 in its second stage of four, or where it ended."""
    return {
        "id": 7,
        "agent": "research",
        "strategy": "canary",
        "from_revision": 3,
        "to_revision": 4,
        "state": state,
        "stage": 2,
        "stages": [
            {"weight_pct": weight_pct, "replicas": replicas, "old_replicas": 4, "hold_s": 60.0}
            for weight_pct, replicas in ((5, 1), (25, 1), (50, 2), (100, 4))
        ],
        "weight_pct": 25,
        "ready": 1,
        "is_proven": True,
        "held_s": 12.3,
        "evidence": [
            {"revision": 3, "weight_pct": 95, "tasks": 500, "errors": 2},
            {"revision": 4, "weight_pct": 5, "tasks": 25},
            {"revision": 3, "weight_pct": 75, "tasks": 120},
            {"revision": 4, "weight_pct": 25, "tasks": 40, "slow": 1},
        ],
        "begun_by": "owner",
        "created_at": AT,
        "ended_at": None if state in ("progressing", "paused") else LATER,
        **fields,
    }


def plan(action: str = "begin", **fields: Any) -> dict[str, Any]:
    """A plan to move an agent from revision 3 to 4, or to let it be."""
    return {
        "agent": "research",
        "action": action,
        "from_revision": 3,
        "to_revision": 4 if action == "begin" else 3,
        "strategy": "rolling",
        "digest": "d" * 64,
        "changes": [{"key": "timeout_s", "before": 300.0, "after": 60.0}],
        "files": {"changed": ["agents.py"], "added": [f"tool_{number}.py" for number in range(9)]},
        "stages": [
            {"weight_pct": 50, "replicas": 1, "old_replicas": 2},
            {"weight_pct": 100, "replicas": 2, "old_replicas": 1},
        ],
        "surge": 1,
        "replicas": 2,
        **fields,
    }


def problem(status: int, code: str, detail: str, **fields: Any) -> Response:
    body = {"type": f"greenroom:{code}", "title": code, "status": status, "detail": detail, **fields}
    headers = {"Retry-After": "0"} if status in (429, 503) else None
    return JSONResponse(body, status, headers=headers, media_type="application/problem+json")


def event(seq: int, type: str, data: Any) -> bytes:
    body = json.dumps({"seq": seq, "type": type, "at": AT, "data": data}, ensure_ascii=False)
    return f"id: {seq}\nevent: {type}\ndata: {body}\n\n".encode()


def route_of(request: Request) -> str:
    """``METHOD /path``, and after it ``?dry_run`` where nothing is to be done."""
    dry_run = "?dry_run" if "dry_run" in request.query_params else ""
    return f"{request.method} {request.url.path}{dry_run}"


class FakeNode:
    """Answers each route (`route_of`) with what was put there, in turn, the last one for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[Request, bytes]] = []
        self.streams: list[list[bytes | Exception] | Response] = []
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        self.app = Starlette(routes=[Route("/{path:path}", self._answer, methods=methods)])

    def put(self, route: str, *answers: Any) -> None:
        self.answers[route] = [
            answer if isinstance(answer, Response | Exception) else JSONResponse(answer) for answer in answers
        ]

    def stream(self, *chunks: bytes | Exception) -> None:
        """Add a connection to a task's events, or to ``/v1/logs/stream``: what it sends before it closes or breaks."""
        self.streams.append(list(chunks))

    @property
    def last(self) -> Request:
        return self.requests[-1][0]

    @property
    def last_body(self) -> Any:
        return json.loads(self.requests[-1][1])

    def asked(self, route: str) -> list[Request]:
        return [request for request, _ in self.requests if route_of(request) == route]

    async def _answer(self, request: Request) -> Response:
        self.requests.append((request, await request.body()))
        if request.url.path.endswith(("/events", "/logs/stream")):
            stream = self.streams.pop(0)
            if isinstance(stream, Response):
                return stream
            return StreamingResponse(self._chunks(stream), media_type="text/event-stream")
        answers = self.answers.get(route_of(request))
        if answers is None:
            return problem(404, "not-found", f"cannot find {request.url.path}: there is no such thing")
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _chunks(self, chunks: list[bytes | Exception]) -> AsyncIterator[bytes]:
        for chunk in chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve on a free port of loopback; the URL."""
        config = uvicorn.Config(self.app, log_level="critical", ws="none", lifespan="off")
        config.load()
        loop, stop = asyncio.new_event_loop(), asyncio.Event()
        # asyncio does not hold back small writes of a socket that says that it is TCP: 40 ms for each answer.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        thread = threading.Thread(target=_serve, args=(loop, config, sock, stop), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(10)


def _serve(loop: asyncio.AbstractEventLoop, config: uvicorn.Config, sock: socket.socket, stop: asyncio.Event) -> None:
    """Serve until *stop*: uvicorn's own server looks at the clock, which takes it 0.2 s to end."""
    state, protocol = ServerState(), cast("Any", config.http_protocol_class)

    def connection() -> asyncio.Protocol:
        made: asyncio.Protocol = protocol(config=config, server_state=state, app_state={}, _loop=loop)
        return made

    async def serve() -> None:
        async with await loop.create_server(connection, sock=sock) as server:
            await stop.wait()
            server.close()
            for each in list(state.connections):
                each.transport.abort()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(serve())
