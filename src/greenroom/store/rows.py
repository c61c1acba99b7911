"""What goes into the store and what comes out of it, as values. Instants and durations are microseconds, byte fields
JSON.
"""

from __future__ import annotations

from typing import Any

import msgspec

from greenroom.core import tasks

# As the partial indexes have it, to the letter: SQLite does not conclude it from a state.
IS_OPEN = "finished_at is null"

# A task's place among those of its tenant and priority, as the index has it, to the letter: its number, or the one
# that it got when its session let it go, behind what waited then. Between two numbers there is room for a million.
RANK = "coalesce(rank, seq * 1048576)"

# Since when a task waits for its first attempt: it was accepted, or may begin.
READY_AT = "case when not_before > created_at then not_before else created_at end"

SessionKey = tuple[str, str, str]  # tenant, agent, name

# As the partial index has it, to the letter; the number is `core.tasks.SUSPECT_KILLS`.
IS_SUSPECT = "kills >= 2"


class NewTask(msgspec.Struct, frozen=True):
    """A task to accept."""

    id: str
    tenant: str
    agent: str
    input: bytes
    submitted_by: str
    run_timeout_us: int
    max_attempts: int
    on_replica_loss: str = "retry"
    retry_backoff_us: int = 1_000_000
    session: str | None = None
    priority: int = 0
    not_before: int | None = None
    parent: str | None = None
    depth: int = 0  # calls above it
    idempotency_key: str | None = None
    fingerprint: bytes | None = None
    metadata: bytes | None = None
    routing: bytes | None = None
    trace: str | None = None  # where it belongs, see `core.traces`
    deadline_at: int | None = None
    timeout_us: int | None = None  # of the whole task, from acceptance or not_before
    cache_key: str | None = None  # its result may be another task's, and another's its
    webhook: str | None = None  # that tells of its end


class Accepted(msgspec.Struct, frozen=True):
    """The answer to a submission: *id* is the stored task's, which is an earlier one if its key was used before."""

    id: str
    is_new: bool
    matches: bool = True  # false: the key was used with another body; nothing was stored
    created_at: int = 0
    deadline_at: int | None = None
    is_answered: bool = False  # from the result cache: it has ended already


class Claim(msgspec.Struct, frozen=True):
    """A claimed attempt, with all that its run needs."""

    id: str
    epoch: int
    tenant: str
    agent: str
    revision: int
    replica: str
    session: str | None
    input: bytes
    metadata: bytes | None
    attempts_charged: int
    max_attempts: int
    on_replica_loss: str
    retry_backoff_us: int
    run_timeout_us: int
    deadline_at: int | None
    claimed_at: int
    submitted_by: str
    depth: int = 0
    kills: int = 0  # replicas that died while it ran
    is_alone: bool = False  # it has a replica for itself
    has_good_state: bool = False  # its session has an older state that is known to be good
    state: bytes | None = None
    state_revision: int | None = None
    is_restored: bool = False  # the state is the last that is known to be good, not the last
    damage: str | None = None  # why what it would run with cannot be read: it is to fail
    wait_us: int | None = None  # of its first attempt: since the task was accepted, or might begin
    trace: str | None = None


class Finish(msgspec.Struct, frozen=True):
    """The end of an attempt, as `core.tasks.settle` decided it."""

    id: str
    epoch: int
    state: str
    reason: str
    replica: str
    refund: int = 0
    kills: int = 0  # 1: its replica died of it, perhaps
    restores: int = 0  # 1: it is to begin with its session's last good state from now on
    due_at: int | None = None
    output: bytes | None = None
    error: bytes | None = None
    session_state: bytes | None = None
    is_restored: bool = False
    revision: int | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    input: bytes | None = None  # the task's, where it is at hand: who waits for its end is shown it


class Event(msgspec.Struct, frozen=True):
    """An event that a running attempt emitted."""

    task: str
    epoch: int
    type: str
    data: bytes


class Call(msgspec.Struct, frozen=True):
    """A sub-task of a running attempt: the parent's lease and the child to accept."""

    parent: str
    epoch: int
    child: NewTask


class Lease(msgspec.Struct, frozen=True):
    id: str
    epoch: int


class Cancel(msgspec.Struct, frozen=True):
    id: str
    tenant: str


class Renewal(msgspec.Struct, frozen=True):
    owner: str
    ttl_us: int


class Rescue(msgspec.Struct, frozen=True):
    """*not_owner*: also rescue what any other incarnation holds, expired or not (one node, one file: SQLite).

    *spared*: who asks; it renews its own leases, and a jump of its clock must not take its work away.
    """

    not_owner: str | None = None
    spared: str | None = None
    jitter: float = 0.0  # from 0 to below 1


class Tick(msgspec.Struct, frozen=True):
    """Let what is due become claimable, and end what waited too long."""


class Task(msgspec.Struct, frozen=True):
    """A task's row.

    *claimed_at*, *claim_seq* and *replica* are of the attempt that runs, or that ended the task; of earlier attempts
    there are events.
    """

    seq: int
    id: str
    tenant: str
    agent: str
    session: str | None
    state: str
    priority: int
    not_before: int | None
    due_at: int | None
    deadline_at: int | None
    run_timeout_us: int
    epoch: int
    event_seq: int
    attempts_charged: int
    max_attempts: int
    kills: int
    revision: int | None
    replica: str | None
    claimed_at: int | None
    claim_seq: int | None
    parent: str | None
    submitted_by: str
    input: bytes
    output: bytes | None
    error: bytes | None
    reason: str | None
    metadata: bytes | None
    routing: bytes | None
    input_tokens: int
    output_tokens: int
    created_at: int
    started_at: int | None
    finished_at: int | None
    cache_key: str | None = None
    cached_from: str | None = None  # the task whose result it was given
    webhook: str | None = None
    trace: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in tasks.TERMINAL

    @property
    def was_requeued(self) -> bool:
        """Whether there were attempts before the one that the row tells of."""
        return self.epoch > (self.claim_seq is not None)


class StoredEvent(msgspec.Struct, frozen=True):
    seq: int
    epoch: int
    type: str
    at: int
    data: bytes


def moves(task: Task) -> list[StoredEvent]:
    """Return the events that a task's row tells by itself: its acceptance, the last attempt's begin, the end.

    These three every task has, so they cost nothing to store. What an attempt that was not the last did is written as
    events when the task is queued again.
    """
    events = [_move(1, 0, task.created_at, {"state": "queued"})]
    if task.claim_seq is not None and task.claimed_at is not None:
        events.append(_move(task.claim_seq, task.epoch, task.claimed_at, begin(task)))
    if task.has_ended and task.finished_at is not None:
        data: dict[str, Any] = {"state": task.state, "reason": task.reason}
        if task.claim_seq is not None:
            data["replica"] = task.replica
        if task.error is not None:
            data["error"] = msgspec.Raw(task.error)
        if task.cached_from is not None:
            data["cached_from"] = task.cached_from
        events.append(_move(task.event_seq, task.epoch, task.finished_at, data))
    return events


def begin(task: Task) -> dict[str, Any]:
    """Return what the begin of a task's attempt tells."""
    return {
        "state": "running",
        "attempt": task.attempts_charged,
        "replica": task.replica,
        "revision": task.revision,
    }


def _move(seq: int, epoch: int, at: int, data: dict[str, Any]) -> StoredEvent:
    return StoredEvent(seq, epoch, "state", at, msgspec.json.encode(data))
