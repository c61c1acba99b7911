"""Errors on the wire: RFC 9457 problem documents with a stable ``type`` and the request's id."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from starlette.responses import Response

from greenroom import errors, redaction

MEDIA_TYPE = "application/problem+json"


def problem(error: errors.GreenroomError, request_id: str, *, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the document: the class that has the error's code says the title, the error's message is the detail."""
    document = {
        "type": error.code,
        "title": _title(type(error)),
        "status": error.status,
        "detail": redaction.text(str(error)),
        "request_id": request_id,
    }
    return document | (extra or {}) | getattr(error, "extra", {})


def _title(kind: type[errors.GreenroomError]) -> str:
    # What is derived from it only carries more: its docstring is for programmers.
    declaring = next(each for each in kind.__mro__ if "code" in vars(each))
    return (declaring.__doc__ or kind.code).strip()


def response(error: errors.GreenroomError, request_id: str, *, lines: bytes = b"") -> Response:
    """Return the answer to a refused request; *lines* are headers that it has beside."""
    headers: dict[str, str] = {"cache-control": "no-store"} | getattr(error, "headers", {})
    if isinstance(error, (errors.Overloaded, errors.StoreUnavailable)):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, errors.Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    body = msgspec.json.encode(problem(error, request_id))
    answer = Response(body, status_code=error.status, media_type=MEDIA_TYPE, headers=headers)
    answer.raw_headers += fields(lines)
    return answer


def fields(lines: bytes) -> list[tuple[bytes, bytes]]:
    """Return headers that are lines as pairs."""
    pairs = (line.partition(b": ") for line in lines.splitlines())
    return [(name, value) for name, _, value in pairs]
