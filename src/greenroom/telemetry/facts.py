"""What is told, and who hears it. One `Telemetry` for each node: several nodes may live in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Self, get_args

import msgspec

from greenroom.core import rollouts, tasks


class TaskAccepted(msgspec.Struct, frozen=True):
    agent: str
    count: int = 1
    principal: str = ""


class CacheAsked(msgspec.Struct, frozen=True):
    """Tasks of an agent that caches were accepted, outside of sessions.

    *result* is ``hit`` (answered at once), ``joined`` (it waits for the same input's first task) or ``miss``.
    """

    agent: str
    result: str
    count: int = 1


class AttemptEnded(msgspec.Struct, frozen=True, gc=False):
    """*state* is the task's afterwards; *duration_s* the attempt's. *end* is None where it was cancelled.

    Each attempt tells one of these to many. Never logged: *output*, JSON, and the text of *end* are its caller's.
    *tokens* are input and output; *wait_us* is how long the task had waited, where it was its first attempt. *attempt*
    is its number among those that are charged, *trace* the task's context.
    """

    agent: str
    state: str
    reason: str
    duration_s: float
    replica: str
    end: tasks.End | None = None
    session: str | None = None
    task: str = ""
    epoch: int = 0
    tokens: int = 0
    output: bytes | None = None
    revision: int = 0
    wait_us: int | None = None
    input_tokens: int = 0
    tenant: str = ""
    attempt: int = 0
    trace: str | None = None


class AttemptBegan(msgspec.Struct, frozen=True, gc=False):
    task: str
    epoch: int
    agent: str
    revision: int


class SpansTold(msgspec.Struct, frozen=True):
    """A replica tells of spans (`telemetry.spans.Told`) of an attempt of a task with this *trace*."""

    trace: str
    task: str
    replica: str
    spans: Sequence[Any]


class TracingBegan(msgspec.Struct, frozen=True):
    """Traces go to *endpoint*, of those that begin here the part *sample_ratio*."""

    endpoint: str
    sample_ratio: float


class TracingIdle(msgspec.Struct, frozen=True):
    """Tracing is on, and nothing is traced."""

    reason: str
    advice: str


class SpansLost(msgspec.Struct, frozen=True):
    """The collector does not take spans. Said once; how many were dropped, the metrics tell."""

    reason: str


class SpansTaken(msgspec.Struct, frozen=True):
    """It takes them again."""

    dropped: int


class ReplicaReady(msgspec.Struct, frozen=True):
    """*is_cold*: its agent had none that was ready; *is_restart*: it takes a dead one's place."""

    agent: str
    replica: str
    start_s: float
    is_cold: bool = False
    is_restart: bool = False


class ReplicaExited(msgspec.Struct, frozen=True):
    agent: str
    replica: str
    reason: str
    detail: str = ""


class ReplicaRecycled(msgspec.Struct, frozen=True):
    """Another is to take its place, though nothing has failed."""

    agent: str
    replica: str
    reason: str


class AgentsIsolated(msgspec.Struct, frozen=True):
    """How far agents are kept from the node, its machine and each other."""

    tier: str
    how: str


class AgentsNotIsolated(msgspec.Struct, frozen=True):
    """Nothing keeps them from what the node's user may do."""

    tier: str
    how: str


class AgentBlocked(msgspec.Struct, frozen=True):
    """An agent has run into a wall of its room."""

    agent: str
    replica: str
    what: str


class EnvelopeHeld(msgspec.Struct, frozen=True):
    """The limits of all replicas together, each with what holds it."""

    cpu: str
    memory: str


class EnvelopeWeak(msgspec.Struct, frozen=True):
    """A limit is not held, or not quite."""

    warning: str


class EnvelopeMeasured(msgspec.Struct, frozen=True):
    """What all replicas use together, by agent CPU seconds since the last look and memory; *pct* of each limit."""

    cpu_s: dict[str, float]
    memory_mb: dict[str, float]
    pct: dict[str, float]


class AdviceChanged(msgspec.Struct, frozen=True):
    """What the optimizer advises is open, applied, withdrawn, or measured, with the *outcome*; *open* are there now."""

    rule: str
    agent: str
    state: str
    what: str
    outcome: str
    open: int


class ReplicaGraded(msgspec.Struct, frozen=True):
    """Its grade has changed; a replica that has just become ready is ``unknown`` without being said to be."""

    agent: str
    replica: str
    grade: str
    reason: str


class AgentGraded(msgspec.Struct, frozen=True):
    """What its grade would be by its tasks alone has changed: ``unknown``, if too few have ended."""

    agent: str
    grade: str
    reason: str


class ProbeAnswered(msgspec.Struct, frozen=True):
    agent: str
    round_trip_s: float


class ReplicaSaid(msgspec.Struct, frozen=True):
    """A line that a replica's process wrote and that is no task's for certain; *severity* is of a record of Python's
    `logging`, *by* the name of its logger.
    """

    agent: str
    replica: str
    stream: str
    line: str
    severity: str = ""
    by: str = ""


class TaskSaid(msgspec.Struct, frozen=True, gc=False):
    """A log event of a running attempt. Never logged: *data*, JSON, is its caller's."""

    agent: str
    replica: str
    task: str
    epoch: int
    tenant: str
    data: bytes


class AgentFailing(msgspec.Struct, frozen=True):
    agent: str
    reason: str


class AgentScaled(msgspec.Struct, frozen=True):
    """It is to have *replicas* instead of *before*, by *rule*; *by* says who decided."""

    agent: str
    before: int
    replicas: int
    rule: str
    reason: str
    by: str


class ScalingDecided(msgspec.Struct, frozen=True):
    """A decision about an agent's number of replicas was stored; it may be the same number."""

    agent: str
    replicas: int
    rule: str


class AgentRolledBack(msgspec.Struct, frozen=True):
    """*revision* did not work, *to* serves again."""

    agent: str
    revision: int
    to: int
    reason: str


class BreakerMoved(msgspec.Struct, frozen=True):
    """An agent's circuit breaker has come to *state*."""

    agent: str
    state: str
    reason: str = ""


class ReplicaEjected(msgspec.Struct, frozen=True):
    """It fails where its peers do not: another takes its place."""

    agent: str
    replica: str
    reason: str


class RolloutMoved(msgspec.Struct, frozen=True):
    """It has come to *stage* (from 1), with *weight_pct* of the traffic for *revision*, or to its end."""

    agent: str
    rollout: int
    phase: str
    revision: int
    stage: int
    weight_pct: int
    reason: str = ""

    @classmethod
    def to(cls, state: rollouts.Rollout, *, agent: str, rollout: int) -> Self:
        return cls(
            agent,
            rollout,
            state.phase,
            revision=state.to_revision,
            stage=state.stage + 1,
            weight_pct=state.weight_pct,
            reason=state.reason,
        )


class AlertChanged(msgspec.Struct, frozen=True):
    """It fires, with *severity*, or is resolved."""

    alert: str
    state: str
    severity: str = ""
    reason: str = ""


class AgentDropped(msgspec.Struct, frozen=True):
    """It has left the manifest."""

    agent: str
    reason: str


class RequestCrashed(msgspec.Struct, frozen=True):
    """A request ended as it should not: a bug of Greenroom's own. *request_id* is what its caller was given.

    *trace_id* is of the trace that it is recorded in, where it is in one.
    """

    request_id: str
    method: str
    path: str
    error: str
    traceback: str
    trace_id: str | None = None


class ServiceCrashed(msgspec.Struct, frozen=True):
    """A loop of the node raised what it should not: a bug of Greenroom's own."""

    service: str
    error: str


class StoreTrouble(msgspec.Struct, frozen=True):
    where: str
    error: str


class StoreRecovered(msgspec.Struct, frozen=True):
    """The trouble that was said of *where* is over."""

    where: str


class BackupMade(msgspec.Struct, frozen=True):
    """*stored_bytes* is what restoring it reads, *new_bytes* what it added to the backups before it."""

    backup: str
    duration_s: float
    stored_bytes: int
    new_bytes: int


class BackupFailed(msgspec.Struct, frozen=True):
    error: str


class BackupsNotDeleted(msgspec.Struct, frozen=True):
    """A backup was made, and the old ones that may go could not be deleted."""

    error: str


class NewestBackup(msgspec.Struct, frozen=True):
    """The newest backup there is: one that was made now, or by an earlier life of the node."""

    created_at: datetime


class BackupKeyMade(msgspec.Struct, frozen=True):
    """The first backup is being made. Without a copy of *key_file* on another machine no backup can be restored."""

    key_file: str
    advice: str = "copy this file to another machine: without it no backup can be restored"


class PolicyChanged(msgspec.Struct, frozen=True):
    """The policy file has changed, and its roles are these now."""

    roles: str


class PolicyRefused(msgspec.Struct, frozen=True):
    """The policy file has changed and is wrong: the roles stay what they were."""

    error: str


class IssuerChanged(msgspec.Struct, frozen=True):
    """The keys of an issuer of tokens cannot be fetched (``unreachable``), or can again (``ok``)."""

    issuer: str
    state: str
    reason: str = ""


class RateLimited(msgspec.Struct, frozen=True):
    """A request was answered 429: *limit* is ``source``, ``principal``, ``tenant`` or ``credentials``."""

    limit: str
    name: str


class CredentialsGuessed(msgspec.Struct, frozen=True):
    """As many credentials were rejected in a minute as may be: *by* is ``source`` or ``key``, *name* its address or id.

    Said once a minute of each.
    """

    by: str
    name: str


class CertificateChanged(msgspec.Struct, frozen=True):
    """The node's certificate: *state* is ``loaded``, ``refused`` (the one before serves on) or ``expiring``."""

    state: str
    file: str
    detail: str = ""


class UrlRefused(msgspec.Struct, frozen=True):
    """A request to *host* was not made, or will not be: it would not have gone to a public address."""

    principal: str
    tenant: str
    host: str


class WebhookTried(msgspec.Struct, frozen=True):
    """A delivery was sent, or was not; *state* is what that has made of it: pending, delivered or failed."""

    webhook: str
    state: str


class WebhookDisabled(msgspec.Struct, frozen=True):
    webhook: str
    reason: str


class NotificationTried(msgspec.Struct, frozen=True):
    """A receiver of alerts, of this *type*, was told something, or was not: *outcome* is taken, retried or given_up."""

    type: str
    outcome: str


class ReceiverChanged(msgspec.Struct, frozen=True):
    """A receiver of alerts takes none any more, or again: *state* is failing or taking."""

    receiver: str
    state: str
    reason: str = ""


class AlertsUndelivered(msgspec.Struct, frozen=True):
    """Nobody is told of alerts, although the settings look as if somebody were."""

    reason: str


class CredentialRejected(msgspec.Struct, frozen=True):
    """A request came without a credential that is accepted. *key_id* as it was presented, if any; *why* is ``unknown``,
    ``throttled`` (there were too many before it) or ``forged`` (a token that somebody has made up).
    """

    source: str
    key_id: str = ""
    why: str = "unknown"


class RequestRefused(msgspec.Struct, frozen=True):
    """Somebody who is known was answered *status*, an error of type *code*, at *path*: 403, 404 or 429."""

    principal: str
    tenant: str
    source: str
    status: int
    code: str
    method: str
    path: str


class RequestForged(msgspec.Struct, frozen=True):
    """A request that no honest client makes: *what*. *principal* is "" where nobody is known."""

    source: str
    what: str
    principal: str = ""


class IntrusionFound(msgspec.Struct, frozen=True):
    """A rule of intrusion detection has found something about *subject*; *done* says what it did."""

    rule: str
    subject: str
    reason: str
    done: str


class AuditTrouble(msgspec.Struct, frozen=True):
    """The audit log is not what was written, or its export does not take it."""

    where: str
    error: str


class AuditRecovered(msgspec.Struct, frozen=True):
    """The trouble that was said of *where* is over."""

    where: str


class EncryptionChanged(msgspec.Struct, frozen=True):
    """How the store is encrypted now: *mode* is the vault's, *key* the id of its key-encryption key."""

    mode: str
    key: str
    detail: str = ""


class EncryptionLeft(msgspec.Struct, frozen=True):
    """The store was encrypted, with the key *key*, and is not any more: what comes is stored as it is."""

    key: str
    advice: str = "set security.encryption_at_rest; what was encrypted is still read, with that key alone"


class EncryptionKeyMade(msgspec.Struct, frozen=True):
    """The store's first key was made. Without a copy of *key_file* on another machine all may be lost with this one."""

    key_file: str
    advice: str = "copy this file to another machine, apart from the backups: without it nothing stored can be read"


class ValueDamaged(msgspec.Struct, frozen=True):
    """Something stored does not open where it is: it was changed, moved, or put there by somebody else."""

    what: str


class NodeChanged(msgspec.Struct, frozen=True):
    """The node is ready, drains or has stopped."""

    node: str
    state: str
    detail: str = ""


Fact = (
    TaskAccepted
    | CacheAsked
    | AttemptEnded
    | AttemptBegan
    | SpansTold
    | TracingBegan
    | TracingIdle
    | SpansLost
    | SpansTaken
    | ReplicaReady
    | ReplicaExited
    | ReplicaRecycled
    | AgentsIsolated
    | AgentsNotIsolated
    | AgentBlocked
    | EnvelopeHeld
    | EnvelopeWeak
    | EnvelopeMeasured
    | AdviceChanged
    | ReplicaGraded
    | AgentGraded
    | ProbeAnswered
    | ReplicaSaid
    | TaskSaid
    | AgentFailing
    | AgentDropped
    | AgentScaled
    | ScalingDecided
    | AgentRolledBack
    | BreakerMoved
    | ReplicaEjected
    | RolloutMoved
    | AlertChanged
    | RequestCrashed
    | ServiceCrashed
    | StoreTrouble
    | StoreRecovered
    | BackupMade
    | BackupFailed
    | BackupsNotDeleted
    | NewestBackup
    | BackupKeyMade
    | PolicyChanged
    | PolicyRefused
    | IssuerChanged
    | RateLimited
    | CredentialsGuessed
    | RequestRefused
    | CertificateChanged
    | UrlRefused
    | WebhookTried
    | NotificationTried
    | ReceiverChanged
    | AlertsUndelivered
    | WebhookDisabled
    | CredentialRejected
    | RequestForged
    | IntrusionFound
    | AuditTrouble
    | AuditRecovered
    | EncryptionChanged
    | EncryptionKeyMade
    | EncryptionLeft
    | ValueDamaged
    | NodeChanged
)
FACTS: tuple[type[Fact], ...] = get_args(Fact)


class Telemetry:
    def __init__(self) -> None:
        self._subscribers: dict[type[Fact], list[Callable[[Any], None]]] = {kind: [] for kind in FACTS}

    def subscribe(self, subscriber: Callable[[Any], None], *kinds: type[Fact]) -> None:
        """Call *subscriber* with every fact of *kinds*, of every kind if none is named."""
        for kind in kinds or FACTS:
            self._subscribers[kind].append(subscriber)

    def unsubscribe(self, subscriber: Callable[[Any], None], kind: type[Fact]) -> None:
        self._subscribers[kind].remove(subscriber)

    def is_heard(self, kind: type[Fact]) -> bool:
        """Whether anybody subscribes to *kind*: what each task would say is not made for nobody."""
        return bool(self._subscribers[kind])

    def emit(self, fact: Fact) -> None:
        for subscriber in self._subscribers[type(fact)]:
            subscriber(fact)
