"""What a node answers, as values: frozen, typed, and tolerant of what they do not know.

Fields that a newer node adds are ignored, states stay text, and only what every node has always said is
required: old clients live with new nodes. Instants are aware. Decoded by `calls`, handed out by the clients, and what a
node's OpenAPI document is drawn from.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta

from greenroom.core import tasks

Item = TypeVar("Item")
Instant = Annotated[datetime, Meta(tz=True)]


class Page(msgspec.Struct, Generic[Item], frozen=True, kw_only=True):
    """Part of a list; *next_cursor* asks for what follows and is None at the end."""

    items: list[Item]
    next_cursor: str | None = None


class Submission(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task to be. Without *agent* it is routed by its text; *not_before* is an aware instant.

    *webhook* is the id of one that is to be told of its end, whatever else it is told of.
    *idempotency_key* is for batches: a single submission gives its own beside. Without *cache* its agent runs, even if
    it keeps results and has one of the same input.
    """

    input: Any
    agent: str | None = None
    session: str | None = None
    priority: int = 0
    timeout_s: float | None = None
    not_before: datetime | None = None
    metadata: dict[str, Any] | None = None
    idempotency_key: str | None = None
    cache: bool = True
    webhook: str | None = None


class TaskError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task did not succeed; *may_have_run* warns of the outside effects of a lost replica."""

    type: str
    message: str = ""
    retryable: bool = False
    may_have_run: bool = False


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of a task."""

    epoch: int
    attempt: int = 1
    replica: str | None = None
    revision: int | None = None
    started_at: Instant | None = None
    ended_at: Instant | None = None
    reason: str | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of the models that the agent called, and what they cost by the prices that its manifest gives now; None:
    it gives none.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How well an agent fits a request, and why."""

    agent: str
    score: float
    reason: str = ""


class Routing(msgspec.Struct, frozen=True, kw_only=True):
    """Whom the router chose for a task that named no agent; the scores are best first."""

    agent: str
    scores: tuple[Score, ...] = ()


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One durable unit of work, as it was when it was asked for.

    *cached_from* is the task whose result it was given, where it did not run itself. *trace_id* is there where it is
    traced, *trace_url* where the node knows where people see it.
    """

    id: str
    state: str
    agent: str = ""
    revision: int | None = None
    input: Any = None
    output: Any = None
    error: TaskError | None = None
    session: str | None = None
    priority: int = 0
    attempt: int = 0
    max_attempts: int = 0
    attempts: tuple[Attempt, ...] = ()
    usage: Usage = Usage()
    created_at: Instant | None = None
    not_before: Instant | None = None
    started_at: Instant | None = None
    finished_at: Instant | None = None
    deadline_at: Instant | None = None
    metadata: dict[str, Any] | None = None
    parent: str | None = None
    routing: Routing | None = None
    cached_from: str | None = None
    trace_id: str | None = None
    trace_url: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the state is final."""
        return self.state in tasks.TERMINAL

    @property
    def succeeded(self) -> bool:
        return self.state == tasks.State.SUCCEEDED


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to a task. *type*: state, output, message, tool, log or progress; *seq* only grows."""

    seq: int
    type: str
    at: Instant | None = None
    data: Any = None

    @property
    def ends(self) -> bool:
        """Whether it is the last: the task has reached a final state."""
        return self.type == "state" and isinstance(self.data, dict) and self.data.get("state") in tasks.TERMINAL


class ReplicaCount(msgspec.Struct, frozen=True, kw_only=True):
    desired: int = 0
    ready: int = 0


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable, numbered snapshot of an agent. *digest* is of its code, *proven_at* its first success with a task.

    *retired_at* is since when it has neither replicas nor sessions; None: it stands.
    """

    agent: str
    number: int
    digest: str = ""
    created_at: Instant | None = None
    proven_at: Instant | None = None
    retired_at: Instant | None = None


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """*weight_pct* of the traffic goes to the new revision when its *replicas* are ready and proven.

    *old_replicas* are those of the revision before meanwhile; *hold_s* is how long the stage is watched.
    """

    weight_pct: int
    replicas: int
    old_replicas: int
    hold_s: float = 0.0


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks that ended on a revision while it had *weight_pct* of the traffic, and those that were bad in some way."""

    revision: int
    weight_pct: int
    tasks: int = 0
    errors: int = 0
    slow: int = 0
    refused: int = 0
    costly: int = 0


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout was from *at* on, and why; *stage* counts from 1."""

    state: str
    stage: int = 0
    weight_pct: int = 0
    reason: str = ""
    at: Instant | None = None


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """The move of an agent from one revision to another; *from_revision* None: there was none before.

    *state* is progressing, paused, complete, rolled_back, aborted, superseded or failed; *reason* says why it waits, or
    why it ended so. *stage* counts from 1; *ready* are replicas of the new revision, *old_ready* of the one before;
    *awaits_promotion*: its stage has done all but be promoted. *due_at* is when time alone moves it on: the end of a
    watch, or of its patience; None where only something else can. *moments* are its latest hundred, oldest first.
    """

    id: int
    agent: str
    strategy: str
    to_revision: int
    state: str
    from_revision: int | None = None
    stage: int = 0
    stages: tuple[Stage, ...] = ()
    weight_pct: int = 0
    ready: int = 0
    old_ready: int = 0
    reason: str = ""
    is_proven: bool = False
    awaits_promotion: bool = False
    held_s: float | None = None
    waited_s: float = 0.0
    evidence: tuple[Tally, ...] = ()
    begun_by: str = ""
    created_at: Instant | None = None
    updated_at: Instant | None = None
    ended_at: Instant | None = None
    due_at: Instant | None = None
    moments: tuple[Moment, ...] = ()

    @property
    def is_open(self) -> bool:
        return self.state in ("progressing", "paused")

    @property
    def is_at_rest(self) -> bool:
        """Whether it has ended, or waits for a person."""
        return self.state != "progressing"

    @property
    def has_failed(self) -> bool:
        """Whether it has ended, and not by giving everything to its revision."""
        return not self.is_open and self.state != "complete"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A setting that a deployment changes."""

    key: str
    before: Any = None
    after: Any = None


class SessionsTried(msgspec.Struct, frozen=True, kw_only=True):
    """How the states of stored sessions were taken over on trial; *failures* maps sessions to what was wrong."""

    stored: int = 0
    tried: int = 0
    failed: int = 0
    failures: dict[str, str] = {}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a deployment would do. *action*: begin (a rollout), join (it is on its way), stay (it serves already).

    *files* are those of the code that differ: added, changed, removed. *refusal* says why it would be refused, *error*
    why its revision cannot run, *sessions* how stored ones were taken over: the latter two where they were tried.
    *ends_rollout* is the one on its way that would be undone.
    """

    agent: str
    action: str
    to_revision: int
    is_new_revision: bool = True
    from_revision: int | None = None
    strategy: str = ""
    digest: str = ""
    changes: tuple[Change, ...] = ()
    files: dict[str, tuple[str, ...]] = {}
    stages: tuple[Stage, ...] = ()
    surge: int = 0
    replicas: int = 0
    ends_rollout: int | None = None
    refusal: str | None = None
    error: str | None = None
    sessions: SessionsTried | None = None


class Code(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's code, as a node has it."""

    digest: str
    files: int = 0
    bytes: int = 0


class BreakerState(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an agent's tasks are run: *state* is closed (they are), open (they wait, *until* then) or half_open (some
    are tried); off where its manifest says so. *reason* is why it opened.
    """

    state: str = "closed"
    reason: str | None = None
    until: Instant | None = None


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """What tasks are submitted to. *adapter* is what its factory was taken for, *reason* why it failed.

    *grade* is healthy, degraded, unhealthy or unknown, for *grade_reason*. *rollout* is the last one.
    """

    name: str
    description: str = ""
    state: str = ""
    reason: str | None = None
    grade: str | None = None
    grade_reason: str | None = None
    revision: int | None = None
    replicas: ReplicaCount = ReplicaCount()
    queued: int = 0
    running: int = 0
    waiting: int = 0
    concurrency: int = 1
    sessions: bool = False
    skills: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    adapter: str | None = None
    spec: dict[str, Any] | None = None
    generation: int = 0
    updated_at: Instant | None = None
    rollout: Rollout | None = None
    breaker: BreakerState = BreakerState()


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One running instance of a revision; *busy* counts the tasks in its *slots*, *reason* is that of its *grade*."""

    id: str
    agent: str
    state: str
    revision: int | None = None
    node: str | None = None
    pid: int | None = None
    grade: str | None = None
    reason: str | None = None
    busy: int = 0
    slots: int = 0
    memory_mb: float | None = None
    started_at: Instant | None = None
    restarts: int = 0


class ScalingDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided about an agent's number of replicas. Where both numbers are the same, *rule* is what held it.

    *reason* is the sentence for people, *inputs* what it was decided by, *by* ``autoscaler`` or a person.
    """

    from_replicas: int
    to_replicas: int
    rule: str = ""
    reason: str = ""
    inputs: dict[str, float] = {}
    by: str = ""
    at: Instant | None = None


class AgentScaling(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent is scaled: its bounds and targets, what it has and does now, and what was decided, latest first.

    *beside* its *replicas* are those that a rollout needs for now.
    """

    agent: str
    is_automatic: bool = False
    min_replicas: int = 1
    max_replicas: int = 1
    target_queue_per_replica: float = 5.0
    target_busy_pct: int = 80
    replicas: int = 0
    beside: int = 0
    draining: int = 0
    ready: int = 0
    slots: int = 0
    busy: int = 0
    waiting: int = 0
    latest: ScalingDecision | None = None
    items: tuple[ScalingDecision, ...] = ()
    next_cursor: str | None = None


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Ten seconds of an agent, from *at* on: tasks that came to wait, attempts that ended and their mean *run_s*, the
    most that waited, the mean of *busy* slots, the ready *replicas*, and how long those that were started took.
    """

    at: Instant | None = None
    arrivals: int = 0
    ends: int = 0
    run_s: float | None = None
    waiting: int = 0
    busy: float = 0.0
    replicas: int = 0
    start_s: float | None = None


class Durations(msgspec.Struct, frozen=True, kw_only=True):
    """*count* durations in seconds. The mean is exact, the quantiles are within 10 %."""

    count: int = 0
    mean_s: float = 0.0
    p50_s: float = 0.0
    p95_s: float = 0.0


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica or a task said, or what befell it. *seq* only grows; *at* is when the node heard it.

    *source* is ``stdout``, ``stderr``, ``event`` (a log event that the agent emitted) or ``greenroom`` (the node);
    *epoch* is the attempt's, as in `Attempt`. What was printed has level ``info`` and no *logger*.
    *trace_id* is of its task's trace, where that is recorded and the task is still stored.
    """

    seq: int
    at: Instant | None = None
    level: str = "info"
    agent: str = ""
    replica: str | None = None
    task: str | None = None
    epoch: int | None = None
    source: str = ""
    logger: str | None = None
    text: str = ""
    trace_id: str | None = None


class HistoryBucket(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an agent's attempts in *step_s* from *at* on: *states* counts them by what their task was then,
    *reasons* by why they ended. *tasks* counts tasks by the state they ended in, also those that were never tried.

    *errors* are those of *judged* that speak against the agent: who was cancelled, or whose replica was drained, says
    nothing. *run* is of all attempts; *wait*, for a slot, and *response*, from acceptance to the end, are of the last
    ten tasks of each five seconds. None where there were none. *cost_usd* is what it cost by the prices of then; None
    where its manifest gave none.
    """

    at: Instant | None = None
    step_s: int = 60
    attempts: int = 0
    judged: int = 0
    errors: int = 0
    retries: int = 0
    tokens: int = 0
    input_tokens: int = 0
    cost_usd: float | None = None
    tasks: dict[str, int] = {}
    states: dict[str, int] = {}
    reasons: dict[str, int] = {}
    run: Durations | None = None
    wait: Durations | None = None
    response: Durations | None = None


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """How a replica failed. *action* was taken; *recovered_by* is the replica that became ready in its place."""

    agent: str
    replica: str
    kind: str
    reason: str = ""
    action: str = ""
    revision: int | None = None
    node: str | None = None
    at: Instant | None = None
    recovered_at: Instant | None = None
    recovered_by: str | None = None


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """What people have to look after. *state* is pending (it holds, but not for long enough yet), firing, acknowledged
    or resolved, *severity* warning or critical. Where there is a silence in *silenced_by*, nobody is told.
    """

    id: str
    kind: str
    state: str
    severity: str = ""
    reason: str = ""
    agent: str | None = None
    count: int = 1
    first_at: Instant | None = None
    last_at: Instant | None = None
    acknowledged_at: Instant | None = None
    acknowledged_by: str | None = None
    resolved_at: Instant | None = None
    silenced_by: list[str] = []


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """Of alerts that match all of *alert* (an id), *kind*, *agent* and *severity* nobody is told until then; null is
    any.
    """

    id: str
    alert: str | None = None
    kind: str | None = None
    agent: str | None = None
    severity: str | None = None
    comment: str = ""
    created_by: str = ""
    created_at: Instant
    until: Instant


class AlertRule(msgspec.Struct, frozen=True, kw_only=True):
    """When a signal is an alert: over *above* or under *below* for *for_s*, and until it is not for *keep_s*."""

    name: str
    signal: str
    agents: list[str] = []
    except_agents: list[str] = []
    above: float | None = None
    below: float | None = None
    window_s: float | None = None
    min_volume: int = 1
    for_s: float = 0.0
    keep_s: float = 0.0
    severity: str = ""
    enabled: bool = True


class Receiver(msgspec.Struct, frozen=True, kw_only=True):
    """Who is told of alerts. *state* is taking, failing, untried, or off; *status* and *error* are of the last try."""

    name: str
    type: str
    state: str
    waiting: int = 0
    failures: int = 0
    status: int | None = None
    error: str | None = None
    tried_at: Instant | None = None
    told_at: Instant | None = None
    failing_since: Instant | None = None


class ReceiverTest(msgspec.Struct, frozen=True, kw_only=True):
    """What a receiver answered to a test alert; *error*, where it gave no answer."""

    receiver: str
    is_taken: bool
    status: int | None = None
    error: str | None = None


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """What all replicas of the node may use together, and do. *used* null: it was not measured yet.

    *enforced* is cgroup v1, cgroup v2, affinity, measured or off.
    """

    limit: float | None = None
    enforced: str = "off"
    used: float | None = None
    pct: float | None = None


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """The envelope: CPUs, and megabytes of memory; *warnings* tell where a limit is not held, or not quite."""

    cpu: Resource = Resource()
    memory_mb: Resource = Resource()
    warnings: tuple[str, ...] = ()


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What the optimizer advises. *state* is open, applied, withdrawn or measured; *agent* None: it is about the node.

    *metric* should become less: it was *before*, would be *wanted* if all went well, and is *after*; *outcome* says how
    much that is.
    """

    id: int
    rule: str
    state: str
    agent: str | None = None
    what: str = ""
    why: str = ""
    expected: str = ""
    metric: str = ""
    before: float = 0.0
    wanted: float | None = None
    after: float | None = None
    outcome: str = ""
    opened_at: Instant | None = None
    applied_at: Instant | None = None
    ended_at: Instant | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks that share state; *state* is there where one session was asked for.

    *revision* has written the state, and *pinned_revision* gets its next tasks, unless that is retired.
    """

    id: str
    agent: str
    revision: int | None = None
    pinned_revision: int | None = None
    tasks: int = 0
    created_at: Instant | None = None
    updated_at: Instant | None = None
    state_bytes: int = 0
    state: Any = None


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A credential. *key* is the secret itself: it is there once, in the answer to its creation.

    *scopes* narrow its *role*; None: all that the role may do. *last_used_at* is true to a minute. *rights* is all that
    it may do, where one key is shown.
    """

    id: str
    name: str = ""
    role: str = ""
    tenant: str = ""
    scopes: tuple[str, ...] | None = None
    created_by: str | None = None
    created_at: Instant | None = None
    expires_at: Instant | None = None
    last_used_at: Instant | None = None
    revoked_at: Instant | None = None
    key: str | None = None
    rights: tuple[str, ...] | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether something may be done, and which grant or which lack decides it."""

    allowed: bool
    action: str = ""
    resource: str | None = None
    reason: str = ""


class Shutdown(msgspec.Struct, frozen=True, kw_only=True):
    """*node* drains and stops."""

    node: str
    state: str = "draining"


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """A link that logs a browser in: the node's address and *path*, good once, for *valid_s*."""

    path: str
    valid_s: float = 0.0


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """Where the ends of tasks are told: those of *events*, and those of tasks that name it.

    *state* is enabled, or disabled for the *reason*; *failing_since*: nothing was taken since. Until *old_secret_until*
    the secret before signs, too. *secret* is there once, when it was made.
    """

    id: str
    url: str
    events: tuple[str, ...] = ()
    description: str = ""
    include_output: bool = False
    state: str = "enabled"
    reason: str = ""
    failing_since: Instant | None = None
    old_secret_until: Instant | None = None
    created_at: Instant | None = None
    secret: str | None = None


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """What a webhook was told, or is to be; *id* is the ``webhook-id`` of every try.

    *state* is pending, delivered or failed; *status* what the last try was answered, *error* why it was not.
    """

    id: str
    type: str
    task: str | None = None
    state: str = "pending"
    attempts: int = 0
    status: int | None = None
    error: str | None = None
    created_at: Instant | None = None
    next_at: Instant | None = None
    ended_at: Instant | None = None


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """A backup of the whole store. *stored_bytes* is what restoring it reads, *new_bytes* what it added to the others.

    *greenroom* is the release that made it, *problem* why it cannot be read.
    """

    id: str
    created_at: Instant
    greenroom: str = ""
    rows: int = 0
    stored_bytes: int = 0
    new_bytes: int = 0
    problem: str | None = None


class Backups(msgspec.Struct, frozen=True, kw_only=True):
    """How backups go at a node. *to* is the place; *every_s* None: they are made only when somebody asks.

    *error* is why the last one was not made; *age_s* is *last*'s.
    """

    to: str = ""
    every_s: float | None = None
    is_running: bool = False
    last: Backup | None = None
    age_s: float | None = None
    error: str | None = None


class TenantKeys(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's data keys: how many only open, and how many messages the one that seals has sealed at most."""

    tenant: str
    retired: int = 0
    messages: int = 0


class Resealing(msgspec.Struct, frozen=True, kw_only=True):
    """How far what is stored has been encrypted anew: rows *seen* of *rows*, and values *resealed* since the start.

    *unreadable* values do not open, and are left as they are.
    """

    seen: int = 0
    rows: int = 0
    resealed: int = 0
    unreadable: int = 0
    is_done: bool = True


class Encryption(msgspec.Struct, frozen=True, kw_only=True):
    """How the store is encrypted. *mode*: off, sealing (some of what was there before is not yet), sealed (all of it
    is, and what is not is refused) or left (switched off again).

    *key* is the id of the key that wraps the data keys; *managed*: by a key management service.
    """

    mode: str = "off"
    key: str = ""
    managed: bool = False
    progress: Resealing = Resealing()
    tenants: tuple[TenantKeys, ...] = ()


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal (RFC 9457). *type* is the code, or a URI that ends in it; *candidates* come with no-route."""

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    detail: str = ""
    request_id: str | None = None
    candidates: tuple[Score, ...] = ()

    @property
    def code(self) -> str:
        """What `errors` calls it."""
        return self.type.rstrip("/").replace("#", "/").replace(":", "/").rpartition("/")[2]
