"""The ASGI application: authenticate, authorise, bound, route, answer. In this order, for every path but `routes.OPEN`.

One class on the main path, because each hop there costs every task. Paths are matched on ``scope["path"]`` as the
server decoded it, never on a URL that a Host header could shape.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import msgspec
from starlette.responses import Response

from greenroom import errors, random_bits, telemetry
from greenroom.api import connections, login, openapi, problems, refused
from greenroom.api.dashboard import pages
from greenroom.api.request import Answer, Call, Stream
from greenroom.api.routes import PROBES, ROUTES, Route
from greenroom.api.services import Services
from greenroom.core import networks, sessions
from greenroom.core.permissions import HOME, Principal
from greenroom.store import acting

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

EVERY = (*ROUTES, openapi.ROUTE, *pages.ROUTES)
MAX_TRACEBACK = 16_384  # characters
UNREADABLE = (UnicodeDecodeError, msgspec.DecodeError, OverflowError)
_ROUTE = "greenroom.route"  # in the scope: where its answers are counted
_TRACE = "greenroom.trace"  # ... the route itself and its trace, of what is in one
_ID = f"({sessions.NAME_PATTERN})"
_CHARSET = re.compile(rb"\bcharset=\"?utf-?8\"?(?=\s*(?:;|$))")
_encode = msgspec.json.Encoder().encode
_JSON, _JSON_HEADERS = "application/json", b"cache-control: no-store\r\ncontent-type: application/json\r\n"


class App:
    def __init__(self, services: Services) -> None:
        self._services, self._now_s = services, services.clock.monotonic_s
        self._plain: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], tuple[str, ...], dict[str, Route]]] = []
        counted = [(route.method, route.path) for route in EVERY]
        counted += [("GET", login.PATH), ("POST", login.PATH)]
        self._requests = {route: services.metrics.requests(*route) for route in counted}
        self._unrouted = services.metrics.requests("", "")
        self._is_counting, self._tracing = services.settings.cluster.metrics, services.tracing
        by_path: dict[str, dict[str, Route]] = {}
        for route in EVERY:
            by_path.setdefault(route.path, {})[route.method] = route
        for path, methods in by_path.items():
            names = tuple(re.findall(r"\{(\w+)\}", path))
            if names:
                pattern = re.compile(re.sub(r"\{\w+\}", lambda _: _ID, path))
                self._patterns.append((pattern, names, methods))
            else:
                self._plain[path] = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Taken out: it leads back to the scope, and each request would be left to the garbage collector.
        whole: connections.Whole | None = scope.get("extensions", {}).pop(connections.WHOLE, None)
        if scope["path"] in PROBES:
            await self._probe(scope, receive, send)
            return
        request_id, services = random_bits.token_hex(8), self._services
        begun_s, status = self._now_s(), 200
        principal: Principal | None = None
        acting.actor.set(None)  # inside a program one task may make many requests
        headers, source = dict(scope["headers"]), services.sources.of(scope.get("client"), scope["headers"])
        try:
            services.limits.admit(source)
            answer: Answer | Stream
            is_tls = scope.get("scheme") == "https"
            if scope["path"] == login.PATH:
                acting.actor.set(acting.Actor("nobody", HOME, source, request_id))  # until the login has begun
                scope[_ROUTE] = self._requests.get((scope["method"], login.PATH))
                answer = await self._log_in(scope, receive, whole, headers, source=source, is_tls=is_tls)
            else:
                principal = await services.auth.authenticate(
                    headers, source=source, method=scope["method"], is_tls=is_tls
                )
                if whole is not None:
                    whole.know_caller()
                acting.actor.set(acting.Actor(principal.id, principal.tenant, source, request_id))
                self._admit(principal, source)
                answer = await self._answer(scope, headers, receive, whole, request_id, principal)
            body = b""
            if isinstance(answer, Answer):
                body, status = _encoded(answer), answer.status
        # An error has no other name here: this frame is in its traceback, and both would be left to the collector.
        except errors.GreenroomError as error:
            told = self._refusal(scope, error, principal, source=source)
            self._count(scope, told.status, begun_s)
            lines = services.limits.headers(principal)
            refusal = login.refusal(told, request_id, headers, lines) or problems.response(
                told, request_id, lines=lines
            )
            del told  # as above
            await refusal(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - what no caller is to see, and the log is to hold
            fault = self._fault(scope, error, request_id)  # another error than the one that it tells of
            self._count(scope, fault.status, begun_s)
            await problems.response(fault, request_id, lines=services.limits.headers(principal))(scope, receive, send)
        else:
            self._count(scope, status, begun_s)
            limits = services.limits.headers(principal)
            if isinstance(answer, Answer):
                await _send_answer(answer, body, whole, send, limits)
            else:
                await _send_stream(answer, receive, send, limits)

    def _count(self, scope: Scope, status: int, begun_s: float) -> None:
        """Count an answer, where it is made: how fast it is read is the caller's."""
        if self._tracing is not None and (traced := scope.get(_TRACE)) is not None:
            route, request = traced
            duration_s = self._now_s() - begun_s
            self._tracing.answered(request, route.method, route.path, status=status, duration_s=duration_s)
        if not self._is_counting:
            return
        seen = scope.get(_ROUTE) or self._unrouted
        seen.add(status, self._now_s() - begun_s)

    def _refusal(
        self, scope: Scope, error: errors.GreenroomError, principal: Principal | None, *, source: str
    ) -> errors.GreenroomError:
        """Tell that a request is refused, and return by what: a source that is locked waits."""
        services = self._services
        if isinstance(error, errors.Unauthenticated):
            try:
                services.measures.check(f"source:{networks.limited_as(source)}", services.clock.monotonic_s())
            except errors.Overloaded as locked:
                return locked
        refused.tell(services.facts, scope, error, principal=principal, source=source)
        return error

    def _fault(self, scope: Scope, error: Exception, request_id: str) -> errors.GreenroomError:
        """Tell what went wrong, once and in the log alone; return what its caller is told."""
        told = f"{type(error).__name__}: {error}"
        if isinstance(error, UNREADABLE):  # callers' own are refused where they are read: this was stored
            self._services.facts.emit(telemetry.StoreTrouble("api", f"{scope['path']}: {told}"))
            return errors.StoreDamaged("cannot read this from the store: it is damaged; the node's log says more")
        trace = "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]
        path, method = scope["path"][: refused.MAX_PATH], scope["method"][:16]
        traced = scope.get(_TRACE)
        trace_id = traced[1].context.trace_id if traced is not None and traced[1].context.is_sampled else None
        self._services.facts.emit(telemetry.RequestCrashed(request_id, method, path, told, trace, trace_id))
        return Crashed("cannot answer this: Greenroom has a bug; the node's log says more by the request's id")

    def _admit(self, principal: Principal, source: str) -> None:
        """Raise where somebody who is known is not to be let in now."""
        services = self._services
        if services.watch is not None:
            services.watch(principal.id, source)
        if services.measures.is_any:
            services.measures.check(f"principal:{principal.id}", services.clock.monotonic_s())
        services.limits.spend(principal)

    async def _answer(
        self,
        scope: Scope,
        headers: dict[bytes, bytes],
        receive: Receive,
        whole: connections.Whole | None,
        request_id: str,
        principal: Principal,
    ) -> Answer | Stream:
        services = self._services
        route, path_params = self._match(scope["path"], scope["method"])
        scope[_ROUTE] = self._requests[route.method, route.path]
        if not principal.rights.allows(route.action):
            raise errors.Forbidden(f"cannot {route.method} {route.path}: {principal.rights.why(route.action)}")
        if route.method != "GET" and (refusal := services.refusal) is not None:
            raise refusal
        trace = None
        if self._tracing is not None and route.submits and (request := self._tracing.begin(headers)) is not None:
            scope[_TRACE], trace = (route, request), request.context.text()
        if route.body is not None:
            _check_type(route, headers)
        bound = "max_code_bytes" if route.body is bytes else "max_body_bytes"
        body = await _body(whole, headers, receive, most=getattr(services.settings.server, bound), bound=bound)
        return await route.endpoint(
            Call(request_id, principal, services, scope, headers, path_params, body, receive, trace)
        )

    def _match(self, path: str, method: str) -> tuple[Route, dict[str, str]]:
        methods, path_params = self._plain.get(path), {}
        if methods is None:
            for pattern, names, candidates in self._patterns:
                if (match := pattern.fullmatch(path)) is not None:
                    methods, path_params = candidates, dict(zip(names, match.groups(), strict=True))
                    break
        if methods is None:
            raise errors.NotFound(f"cannot find {path[:100]!r}; the routes are in /openapi.json")
        route = methods.get(method)
        if route is None:
            raise MethodNotAllowed(f"cannot {method[:16]} {path[:100]}", allowed=methods)
        return route, path_params

    async def _log_in(
        self,
        scope: Scope,
        receive: Receive,
        whole: connections.Whole | None,
        headers: dict[bytes, bytes],
        *,
        source: str,
        is_tls: bool,
    ) -> Answer:
        """Answer strangers with a page that is the same for all, and take what it sends."""
        if scope["method"] in ("GET", "HEAD"):
            return login.LOGIN_PAGE
        services = self._services
        if scope["method"] != "POST":
            raise services.limits.reject(source, None)
        try:
            body = await _body(whole, headers, receive, most=login.MAX_BYTES, bound="")
        except errors.BodyTooLarge:
            body = b""  # it is not what the page sends, and no more is said of it
        return await login.exchange(services, headers, body, source=source, is_tls=is_tls)

    async def _probe(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Whether the process is to be left alone, and whether it takes work; nothing else is said to strangers."""
        services = self._services
        if scope["path"] == "/healthz":
            is_up = services.failure is None  # only a new process helps
        else:
            is_up = services.is_ready() and services.refusal is None
        status = (200 if is_up else 503) if scope["method"] in ("GET", "HEAD") else 405
        body = b'{"status":"ok"}' if status == 200 else b'{"status":"no"}'
        await Response(body, status_code=status, media_type="application/json")(scope, receive, send)


class MethodNotAllowed(errors.GreenroomError):
    """This path does not take this method."""

    code = "method-not-allowed"
    status = 405

    def __init__(self, message: str, *, allowed: Iterable[str]) -> None:
        self.headers = {"allow": ", ".join(sorted(allowed))}
        super().__init__(f"{message}: it takes {self.headers['allow']}")


class Crashed(errors.GreenroomError):
    """Greenroom has a bug here."""

    code = "internal-error"
    status = 500


class UnsupportedMediaType(errors.GreenroomError):
    """The body is not declared as what this route takes."""

    code = "unsupported-media-type"
    status = 415


def _check_type(route: Route, headers: dict[bytes, bytes]) -> None:
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaType("cannot read the body: send it without Content-Encoding, as it is")
    content_type = headers.get(b"content-type", b"").lower()
    if content_type == route.media_type:
        return
    media_type, _, parameters = content_type.partition(b";")
    if media_type.strip() == route.media_type and _CHARSET.sub(b"", parameters).find(b"charset") < 0:
        return
    is_empty = headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers
    if not (route.body_is_optional and is_empty):
        raise UnsupportedMediaType(f"cannot read the body: send it with Content-Type: {route.media_type.decode()}")


async def _body(
    whole: connections.Whole | None, headers: dict[bytes, bytes], receive: Receive, *, most: int, bound: str
) -> bytes:
    """Return the body, of at most *most* bytes; *bound* is the setting that says so."""
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length[:20]) > most:
        raise _too_large(most, bound)
    body = None if whole is None else whole.take_body()
    if body is None:
        body = await _pieces(receive, most=most, bound=bound)
    if len(body) > most:
        raise _too_large(most, bound)
    return body


async def _pieces(receive: Receive, *, most: int, bound: str) -> bytes:
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise errors.JsonRefused("cannot read the body: the client went away")
        piece = bytes(message.get("body", b""))
        pieces.append(piece)
        size += len(piece)
        if size > most:  # before the rest of it has come
            raise _too_large(most, bound)
        if not message.get("more_body"):
            return b"".join(pieces)


def _too_large(most: int, bound: str) -> errors.BodyTooLarge:
    return errors.BodyTooLarge(f"cannot take a body of more than {most} bytes (server.{bound})")


def _encoded(answer: Answer) -> bytes:
    document = answer.document
    return b"" if document is None else document if isinstance(document, bytes) else _encode(document)


async def _send_answer(answer: Answer, body: bytes, whole: connections.Whole | None, send: Send, limits: bytes) -> None:
    is_json = body and answer.media_type == _JSON
    if (
        is_json
        and not answer.headers
        and whole is not None
        and whole.answer(answer.status, _JSON_HEADERS + limits, body)
    ):
        return
    headers = [(b"content-length", b"%d" % len(body)), *answer.headers]
    if all(name != b"cache-control" for name, _ in answer.headers):
        headers.append((b"cache-control", b"no-store"))
    headers += problems.fields(limits)
    if body:
        headers.append((b"content-type", answer.media_type.encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_stream(stream: Stream, receive: Receive, send: Send, limits: bytes) -> None:
    from starlette.responses import StreamingResponse

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    response = StreamingResponse(stream.events, media_type="text/event-stream", headers=headers)
    response.raw_headers += problems.fields(limits)
    await response({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
