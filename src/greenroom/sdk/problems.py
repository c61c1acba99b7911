"""A node's refusal as the error it means: RFC 9457 documents to `greenroom.errors`, by code, else by status.

Where the node is to blame, the request id is a note of the error (`add_note`).
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec
from msgspec import structs

from greenroom import errors
from greenroom.sdk import models

_BY_CODE = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.GreenroomError)
}
# What stands between client and node says it without a code: proxies, load balancers.
_BY_STATUS: dict[int, type[errors.GreenroomError]] = {
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    413: errors.BodyTooLarge,
    429: errors.Overloaded,
    502: errors.NodeUnreachable,
    503: errors.NodeUnreachable,
    504: errors.NodeUnreachable,
}


def read(status: int, content: bytes) -> models.Problem:
    """The problem in *content*, or what can be said from *status* alone."""
    try:
        return msgspec.json.decode(content, type=models.Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return models.Problem(title=_phrase(status), status=status)


def to_error(problem: models.Problem, *, status: int, retry_after_s: float | None = None) -> errors.GreenroomError:
    """The error to raise for *problem*, which came with *status*."""
    kind = _BY_CODE.get(problem.code) or _BY_STATUS.get(status, errors.GreenroomError)
    error = kind(problem.detail or problem.title or f"the node answered {status} {_phrase(status)}")
    if isinstance(error, errors.Overloaded | errors.StoreUnavailable) and retry_after_s is not None:
        error.retry_after_s = retry_after_s
    if isinstance(error, errors.Unauthenticated):
        error.add_note("a key comes from GREENROOM_KEY, or on the node's machine from local.key in its data directory")
    if isinstance(error, errors.NoRoute):
        error.candidates = tuple(errors.Candidate(*structs.astuple(score)) for score in problem.candidates)
    if problem.request_id and status >= 500:
        error.add_note(f"request id: {problem.request_id}")
    return error


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
