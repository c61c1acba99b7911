"""What routes take and give, as msgspec structs: decoding is the validation, and OpenAPI is drawn from them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from greenroom import errors, strict_json
from greenroom.api import mistakes
from greenroom.core import alerts, permissions, sessions, webhooks
from greenroom.sdk import models

MAX_BATCH = 1_000
MAX_WAIT_S = 300.0

# Mistakes are told by these titles; what is a number, by its bounds.
Name = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}(?!\n)$",  # JSON Schema knows no \Z
        title="a name of at most 63 of a-z, 0-9, _ and -, beginning with a letter or digit",
    ),
]
SessionId = Annotated[
    str,
    Meta(
        pattern=f"^{sessions.NAME_PATTERN}(?!\\n)$",
        title="a name of at most 128 of A-Z, a-z, 0-9, _, ., :, @ and -, beginning with a letter or digit",
    ),
]
WebhookId = Annotated[
    str,
    Meta(pattern=r"^wh_[0-9a-f]{16}(?!\n)$", title="the id of a webhook (wh_…), which POST /v1/webhooks gives"),
]
EventType = Annotated[
    str,
    Meta(
        pattern=rf"^(?:{'|'.join(webhooks.EVENTS)})(?!\n)$".replace(".", r"\."),
        title=f"one of {', '.join(webhooks.EVENTS)}",
    ),
]
EventTypes = Annotated[
    tuple[EventType, ...],
    Meta(max_length=20, title=f"a list of at most 20 of {', '.join(webhooks.EVENTS)}"),
]
Description = Annotated[str, Meta(max_length=200)]
Instant = Annotated[datetime, Meta(tz=True, title="an instant with a time zone, for example 2030-01-01T00:00:00Z")]
Object = Annotated[dict[str, Any], Meta(title="an object")]


class Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A task to run. Without ``agent`` it is routed by its text. Without ``cache`` no kept result answers it."""

    input: Any
    agent: Name | None = None
    session: SessionId | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    timeout_s: Annotated[float, Meta(gt=0, le=604_800)] | None = None
    not_before: Instant | None = None
    metadata: Object | None = None
    webhook: WebhookId | None = None
    idempotency_key: Annotated[str, Meta(min_length=1, max_length=255, title="1 to 255 characters")] | None = None
    cache: bool = True


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tasks to run, each as in a single submission; each has its own ``idempotency_key``."""

    tasks: Annotated[list[Any], Meta(min_length=1, max_length=MAX_BATCH, title=f"a list of 1 to {MAX_BATCH} tasks")]


class BatchResult(msgspec.Struct, frozen=True):
    """What became of each task of a batch, in order: the task as it was accepted, or the problem."""

    items: list[dict[str, Any]]


class Scale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many replicas an agent should have."""

    replicas: Annotated[int, Meta(ge=0, le=1000)]  # 0 only where something wakes it


class Rollback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The revision that is to serve again; without one it is the one before."""

    to: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None


class Promotion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The stage, counted from 1, that is to be left; without one it is the one that the rollout is in."""

    stage: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None


class KeyRotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rotation of the encryption's keys; *data_keys*: those that what is stored is encrypted with, too."""

    data_keys: bool = True


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key to create; its text is in the answer, once. *scopes* narrow its role: ``task:submit on agent:research``."""

    name: Annotated[str, Meta(min_length=1, max_length=100, title="1 to 100 characters")]
    role: str = "user"
    scopes: (
        Annotated[
            tuple[Annotated[str, Meta(min_length=1, max_length=200, title="1 to 200 characters")], ...],
            Meta(
                min_length=1, max_length=permissions.MAX_SCOPES, title=f"a list of 1 to {permissions.MAX_SCOPES} scopes"
            ),
        ]
        | None
    ) = None
    tenant: Name | None = None
    expires_in_s: Annotated[float, Meta(gt=0, le=10 * 365 * 86_400)] | None = None


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the ends of tasks are to be told; its secret is in the answer, once.

    Without *events* all ends are told; with an empty list only those of tasks that name it.
    """

    url: Annotated[str, Meta(min_length=1, max_length=2000, title="a URL of https://…")]
    events: EventTypes = webhooks.EVENTS
    description: Description = ""
    include_output: bool = False


class WebhookChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a webhook is to be; what is not given stays."""

    enabled: bool | None = None
    events: EventTypes | None = None
    description: Description | None = None
    include_output: bool | None = None


AlertPattern = Annotated[str, Meta(min_length=1, max_length=200, title="1 to 200 characters, in which * is any text")]


class NewSilence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of alerts that match all that is given nobody is told for *for_s*. *alert* is an id; ``*`` is any text."""

    for_s: Annotated[float, Meta(gt=0, le=alerts.MAX_SILENCE_S, title="a number of seconds")]
    alert: AlertPattern | None = None
    kind: AlertPattern | None = None
    agent: AlertPattern | None = None
    severity: Literal["warning", "critical"] | None = None
    comment: Annotated[str, Meta(max_length=500, title="at most 500 characters")] = ""


class AuditErasure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose entries are to lose what may be personal: an actor as the audit log has it; of one tenant, or of all."""

    actor: Annotated[str, Meta(min_length=1, max_length=500, title="1 to 500 characters")]
    tenant: Annotated[str, Meta(min_length=1, max_length=200, title="1 to 200 characters")] | None = None


class Unlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is to be let in again, as the security report has it."""

    subject: Annotated[str, Meta(min_length=1, max_length=600, title="1 to 600 characters")]


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The node that answers: *state* is starting, ready, draining, or failed for the *reason*."""

    id: str
    state: str
    reason: str | None
    started_at: models.Instant
    store: str
    isolation: str
    tracing: str


class RolloutStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout on its way."""

    id: int
    state: str
    to_revision: int
    weight_pct: int


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """An agent, with how many tasks it has and had, by their state; *rollout* is null where none is on its way."""

    name: str
    state: str
    reason: str
    grade: str
    grade_reason: str
    revision: int
    replicas: models.ReplicaCount
    tasks: dict[str, int]
    rollout: RolloutStatus | None
    breaker: models.BreakerState


class ReplicasStatus(msgspec.Struct, frozen=True, kw_only=True):
    """All replicas that live; *limit* is cluster.max_replicas."""

    total: int
    by_state: dict[str, int]
    memory_mb: float
    limit: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The whole system: its *grade* is the worst of the node's and its agents'. *alerts* counts those that fire, by
    severity, *advice* what the optimizer has open.

    *alert_delivery* says who is told of alerts.
    """

    environment: str
    grade: str
    grade_reason: str
    node: NodeStatus
    agents: list[AgentStatus]
    replicas: ReplicasStatus
    resources: models.Resources
    tasks: dict[str, int]
    alerts: dict[str, int]
    alert_delivery: str = ""
    advice: int
    backups: models.Backups
    encryption: str


Body = TypeVar("Body", bound=msgspec.Struct)


def read(body: bytes, schema: type[Body]) -> Body:
    """Decode strict JSON of *schema*; raises `errors.JsonRefused` (400) or `errors.BodyInvalid` (422)."""
    return convert(strict_json.loads(body), schema)


def convert(value: Any, schema: type[Body]) -> Body:
    try:
        converted = msgspec.convert(value, schema, strict=True)
    except msgspec.ValidationError:
        raise errors.BodyInvalid(f"cannot take the body: {mistakes.told(value, schema)}") from None
    if isinstance(converted, Submission) and converted.not_before is not None:
        _check_instant(converted.not_before)
    return converted


def _check_instant(not_before: datetime) -> None:
    if not 1970 <= not_before.year < 9000:  # what is added to it must have a date, too
        raise errors.BodyInvalid("cannot take the body: not_before is no instant from the years 1970 to 8999")
