"""Every error that Greenroom raises on purpose.

The docstring is what the error means, for people, on one line and without markup: it is the title of the API's problem.
``code`` is that problem's stable type, ``status`` its HTTP status.
Messages say *cannot X: why*, name the id, and end with what to do next. Everything may import this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple


class GreenroomError(Exception):
    """Something that Greenroom refuses or cannot do."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500


class SettingsInvalid(GreenroomError):
    """The settings are not valid; every mistake is listed with its key."""

    code = "settings-invalid"
    status = 422


class NotFound(GreenroomError):
    """There is no such thing, or it belongs to another tenant."""

    code = "not-found"
    status = 404


class Conflict(GreenroomError):
    """The thing is not in a state that allows this."""

    code = "conflict"
    status = 409


class IdempotencyMismatch(GreenroomError):
    """This Idempotency-Key was used before with another body."""

    code = "idempotency-mismatch"
    status = 422


class Candidate(NamedTuple):
    """An agent that a request might be for: how well it fits, from 0 to 1, and why."""

    agent: str
    score: float
    reason: str = ""


class NoRoute(GreenroomError):
    """No agent fits the request well enough; name one, or describe the agents better."""

    code = "no-route"
    status = 422

    def __init__(self, message: str, *, candidates: Sequence[Candidate] = ()) -> None:
        super().__init__(message)
        self.candidates = tuple(candidates)  # best first

    @property
    def extra(self) -> dict[str, Any]:
        """What the problem document has beside the usual."""
        return {"candidates": [candidate._asdict() for candidate in self.candidates]}


class JsonRefused(GreenroomError):
    """The bytes are not strict JSON within the limits."""

    code = "malformed-json"
    status = 400


class BodyInvalid(GreenroomError):
    """What was sent can be read, but is not what this route takes."""

    code = "invalid-body"
    status = 422


class QueryMalformed(GreenroomError):
    """The query of the URL cannot be read."""

    code = "malformed-query"
    status = 400


class QueryInvalid(GreenroomError):
    """A parameter of the URL's query is not what this route takes."""

    code = "invalid-query"
    status = 422


class BodyTooLarge(GreenroomError):
    """The body is larger than the server takes."""

    code = "body-too-large"
    status = 413


class Unauthenticated(GreenroomError):
    """No valid credential came with the request."""

    code = "unauthenticated"
    status = 401


class Forbidden(GreenroomError):
    """The credential is valid but does not allow this."""

    code = "forbidden"
    status = 403


class Overloaded(GreenroomError):
    """A limit is reached; try again later."""

    code = "overloaded"
    status = 429

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    """Too many requests were sent in too short a time; go on after Retry-After."""

    code = "rate-limited"


class BudgetSpent(Overloaded):
    """The agent has spent its budget of the day; Retry-After says when the next one begins."""

    code = "budget-spent"


class StoreUnavailable(GreenroomError):
    """The store cannot be reached or cannot write; what was not acknowledged may or may not be stored."""

    code = "store-unavailable"
    status = 503
    retry_after_s: float = 1.0


class NodeFailed(GreenroomError):
    """The node's own loops have ended after an error; it runs nothing more until it is started again."""

    code = "node-failed"
    status = 503


class StoreInUse(GreenroomError):
    """Another node has this store open."""

    code = "store-in-use"


class StoreDamaged(GreenroomError):
    """The store's file is damaged or is not Greenroom's."""

    code = "store-damaged"
    status = 503


class StoreOfAnotherRelease(GreenroomError):
    """The store is whole, and of a release that this one cannot go on with."""

    code = "store-of-another-release"
    status = 503


class AuditBroken(GreenroomError):
    """The audit log is not what was written, or cannot be checked."""

    code = "audit-broken"
    status = 503


class BackupInvalid(GreenroomError):
    """The backup cannot be read: the key is another one, or it is damaged, or of a newer release."""

    code = "backup-invalid"
    status = 409


class BackupFailed(GreenroomError):
    """No backup was made, or it cannot be reached where it is kept."""

    code = "backup-failed"
    status = 503


class AgentInvalid(GreenroomError):
    """The agent cannot be built: its factory cannot be imported, raises, or returns what no adapter knows."""

    code = "agent-invalid"
    status = 422


class WebhookRefused(GreenroomError):
    """The message is not what it claims to be, or not of now."""

    code = "webhook-refused"
    status = 400


class WebhookRepeated(WebhookRefused):
    """The message was taken before; answer 2xx, or it comes again."""

    code = "webhook-repeated"


class StartRefused(GreenroomError):
    """A node, an engine or a local model cannot start here."""

    code = "start-refused"


class NodeUnreachable(GreenroomError):
    """The client cannot reach a node."""

    code = "node-unreachable"


class TaskFailed(GreenroomError):
    """The task that was waited for did not succeed."""

    code = "task-failed"


class TaskPending(GreenroomError):
    """The task that was waited for has not ended in time; it goes on."""

    code = "task-pending"
