"""Tasks: the states, the one table of moves between them, and what each end of an attempt means.

`TRANSITIONS` is the whole machine; docs/state-machines.md is drawn from it. `settle` decides what becomes of a task
whose attempt ended. The store applies both with compare-and-set on the epoch; the database enforces that terminal
states are absorbing.
"""

from __future__ import annotations

import enum
from datetime import datetime, timedelta
from typing import assert_never

import msgspec


class State(enum.StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"  # for a sub-task; its slot is free
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Move(enum.StrEnum):
    CLAIM = "claim"  # a dispatcher takes it: epoch + 1, one more attempt charged
    CALL = "call"  # it asks for a sub-task
    RESUME = "resume"  # the sub-task ended and a slot is free
    REQUEUE = "requeue"  # the attempt ended and another is due
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"
    ANSWER = "answer"  # another task had the same input, and its result is kept: no attempt is made


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})
OPEN = frozenset(State) - TERMINAL

SUSPECT_KILLS = 2  # replicas that died under a task before it has to run alone, in a replica of its own

TRANSITIONS: dict[tuple[State, Move], State] = {
    (State.QUEUED, Move.CLAIM): State.RUNNING,
    (State.QUEUED, Move.CANCEL): State.CANCELLED,
    (State.QUEUED, Move.EXPIRE): State.EXPIRED,
    (State.QUEUED, Move.ANSWER): State.SUCCEEDED,
    (State.RUNNING, Move.CALL): State.WAITING,
    (State.RUNNING, Move.REQUEUE): State.QUEUED,
    (State.RUNNING, Move.SUCCEED): State.SUCCEEDED,
    (State.RUNNING, Move.FAIL): State.FAILED,
    (State.RUNNING, Move.CANCEL): State.CANCELLED,
    (State.RUNNING, Move.EXPIRE): State.EXPIRED,
    (State.WAITING, Move.RESUME): State.RUNNING,
    (State.WAITING, Move.REQUEUE): State.QUEUED,
    (State.WAITING, Move.SUCCEED): State.SUCCEEDED,  # it did not await its call
    (State.WAITING, Move.FAIL): State.FAILED,
    (State.WAITING, Move.CANCEL): State.CANCELLED,
    (State.WAITING, Move.EXPIRE): State.EXPIRED,
}


def move(state: State, by: Move) -> State:
    """Return the state after *by*; raises ValueError naming both if the table has no such move."""
    try:
        return TRANSITIONS[state, by]
    except KeyError:
        raise ValueError(f"a {state} task cannot {by}") from None


class Reason(enum.StrEnum):
    """Why an attempt ended, or a task without one."""

    OK = "ok"
    AGENT_ERROR = "agent_error"
    REPLICA_LOST = "replica_lost"
    OOM = "oom"
    TIMEOUT = "timeout"
    DRAINED = "drained"
    NEIGHBOUR = "neighbour"  # it shared a process that had to be killed for another task's sake
    CANCELLED = "cancelled"
    CACHED = "cached"  # another task's result answered it
    FENCED = "fenced"  # its lease had expired: the node that held it was gone or frozen


class Succeeded(msgspec.Struct, frozen=True):
    """The agent answered."""


class AgentFailed(msgspec.Struct, frozen=True):
    """The agent raised; *retryable* only if the agent says so."""

    type: str
    message: str
    retryable: bool = False


class ReplicaGone(msgspec.Struct, frozen=True):
    """The replica ended under the task.

    *charged* is false where the task is innocent (drain, neighbour) or only one of several that may have caused it,
    *ran* where it never reached the replica. *is_poison*: after others it has killed the one that it had for itself.
    *restores*: it shall run there once more, with its session's last good state.
    """

    reason: Reason
    detail: str = ""
    charged: bool = True
    ran: bool = True
    is_poison: bool = False
    restores: bool = False


class TimedOut(msgspec.Struct, frozen=True):
    """The attempt's deadline passed."""

    timeout_s: float


End = Succeeded | AgentFailed | ReplicaGone | TimedOut


class Policy(msgspec.Struct, frozen=True):
    """What a task was accepted with. *retry_backoff_s* is the delay before the second retry; it doubles."""

    max_attempts: int = 3
    on_replica_loss: str = "retry"
    retry_backoff_s: float = 1.0


class Error(msgspec.Struct, frozen=True):
    """A failed task's error, as the API shows it; *type* is stable, *may_have_run* warns of outside effects."""

    type: str
    message: str
    retryable: bool = False
    may_have_run: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """What becomes of the task: the move, its reason, the attempt refunded or not, and when it is due again."""

    by: Move
    reason: Reason
    error: Error | None = None
    refund: bool = False
    due_at: datetime | None = None

    @property
    def state(self) -> State:
        return move(State.RUNNING, self.by)


BACKOFF_CAP_S = 60.0


def backoff_s(retry: int, *, base_s: float, jitter: float) -> float:
    """Return the delay before the *retry*-th retry (from 1): full jitter over a doubling, capped at a minute.

    *jitter* is uniform in [0, 1). Source: AWS Architecture Blog, "Exponential Backoff And Jitter" (full jitter).
    """
    return min(BACKOFF_CAP_S, base_s * 2.0 ** min(retry - 1, 16)) * jitter


def settle(end: End, *, attempts_charged: int, policy: Policy, now: datetime, jitter: float) -> Verdict:
    """Decide what becomes of a task whose attempt came to *end*; *attempts_charged* includes that attempt.

    A drain or a neighbour's death gives the attempt back and queues the task at once. A lost replica is retried at once
    the first time and later with backoff; a task that is poison for replicas is not; an agent's own error is retried
    only where the agent says so.
    """
    match end:
        case Succeeded():
            return Verdict(Move.SUCCEED, Reason.OK)
        case TimedOut(timeout_s):
            what = f"the task did not end within {timeout_s:g} s; its replica's work was stopped"
            error = Error("timeout", what, may_have_run=True)
            return Verdict(Move.EXPIRE, Reason.TIMEOUT, error)
        case AgentFailed(type, message, retryable):
            if retryable and attempts_charged < policy.max_attempts:
                delay_s = backoff_s(attempts_charged, base_s=policy.retry_backoff_s, jitter=jitter)
                return Verdict(Move.REQUEUE, Reason.AGENT_ERROR, due_at=now + timedelta(seconds=delay_s))
            return Verdict(Move.FAIL, Reason.AGENT_ERROR, Error(type, message, retryable))
        case ReplicaGone(reason, _, charged=False, ran=ran) if not ran or policy.on_replica_loss != "fail":
            return Verdict(Move.REQUEUE, reason, refund=True)
        case ReplicaGone():
            return _settle_loss(end, attempts_charged, policy, now, jitter)
        case _:
            assert_never(end)


def _settle_loss(end: ReplicaGone, attempts_charged: int, policy: Policy, now: datetime, jitter: float) -> Verdict:
    reason = end.reason
    what = f"the replica was lost while it ran this task ({end.detail or reason})"
    if policy.on_replica_loss == "fail":
        error = Error("replica_lost", f"{what}; on_replica_loss is 'fail', so it is not run again", may_have_run=True)
        return Verdict(Move.FAIL, reason, error)
    if end.is_poison:
        what = f"every replica that ran this task died, the last one while it ran nothing else ({end.detail or reason})"
        return Verdict(Move.FAIL, reason, Error("poison", f"{what}; it is not run again", may_have_run=True))
    if attempts_charged >= policy.max_attempts:
        error = Error("replica_lost", f"{what}; {attempts_charged} attempts were made", may_have_run=True)
        return Verdict(Move.FAIL, reason, error)
    if attempts_charged == 1:
        return Verdict(Move.REQUEUE, reason)  # the first retry is immediate
    delay_s = backoff_s(attempts_charged - 1, base_s=policy.retry_backoff_s, jitter=jitter)
    return Verdict(Move.REQUEUE, reason, due_at=now + timedelta(seconds=delay_s))
