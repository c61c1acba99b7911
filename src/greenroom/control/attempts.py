"""An attempt in flight, as its dispatcher sees it: a lease, a replica, a slot, a deadline and its bounds."""

from __future__ import annotations

import asyncio

import msgspec

from greenroom import telemetry
from greenroom.core import failures, tasks, traces
from greenroom.engine import protocol
from greenroom.engine.contract import Exit
from greenroom.store.rows import Claim, Finish

MAX_EVENTS = 10_000  # of one attempt; a replica is untrusted
MAX_EVENT_BYTES = 16 * 1024 * 1024
MAX_LOG_BYTES = 1024 * 1024  # of its log lines, those of native code among them
MAX_CALLS = 1_000
MAX_SPANS = 1_000
_TOO_MUCH_LOG = b'{"truncated":true,"line":"(this task has logged too much; the rest is dropped)"}'


class Attempt(msgspec.Struct, eq=False):
    claim: Claim
    started_s: float  # monotonic
    deadline_s: float  # monotonic
    holds_slot: bool = True
    waiting_for: int = 0  # sub-tasks
    calls: set[int] = set()  # ordinals
    kill_at_s: float | None = None  # its end is recorded; when its process has to go if it does not stop by itself
    events_left: int = MAX_EVENTS
    event_bytes_left: int = MAX_EVENT_BYTES
    log_bytes_left: int = MAX_LOG_BYTES
    spans_left: int = MAX_SPANS
    _going_on: asyncio.Lock | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.claim.id, self.claim.epoch

    @property
    def going_on(self) -> asyncio.Lock:
        """Held while one of its ended calls takes the slot again; few attempts need one."""
        if self._going_on is None:
            self._going_on = asyncio.Lock()
        return self._going_on

    @property
    def timeout_s(self) -> float:
        return self.deadline_s - self.started_s

    @property
    def policy(self) -> tasks.Policy:
        claim = self.claim
        return tasks.Policy(claim.max_attempts, claim.on_replica_loss, claim.retry_backoff_us / 1e6)

    def is_waiting(self) -> bool:
        return self.waiting_for > 0

    def invocation(self) -> protocol.Invoke:
        claim = self.claim
        return protocol.Invoke(
            claim.id,
            claim.epoch,
            claim.input,
            claim.attempts_charged,
            self.timeout_s,
            claim.session,
            claim.state,
            claim.state_revision,
            claim.metadata,
            trace=None if claim.trace is None else traces.within(claim.trace, claim.id, claim.epoch),
        )

    def bounded_log(self, data: bytes) -> bytes | None:
        """Count a log line: *data*, for the first that is too much the note that says so, and None from then on."""
        if self.log_bytes_left <= 0:
            return None
        self.log_bytes_left -= len(data)
        return data if self.log_bytes_left > 0 else _TOO_MUCH_LOG

    def may_emit(self, data: bytes) -> bool:
        """Count an event of *data* against the attempt's bounds."""
        self.events_left -= 1
        self.event_bytes_left -= len(data)
        return self.events_left >= 0 and self.event_bytes_left >= 0


def told_spans(attempt: Attempt, message: protocol.Spans) -> telemetry.SpansTold | None:
    """Count the spans that a replica tells of; None where the attempt is not traced, or has told of enough."""
    claim = attempt.claim
    spans = message.spans[: max(0, attempt.spans_left)]
    attempt.spans_left -= len(spans)
    return telemetry.SpansTold(claim.trace, claim.id, claim.replica, spans) if spans and claim.trace else None


def timeout_s(claim: Claim) -> float:
    """Return how long the attempt may take: its agent's bound, or less if the whole task's deadline comes first."""
    run_us = claim.run_timeout_us
    if claim.deadline_at is not None:
        run_us = min(run_us, claim.deadline_at - claim.claimed_at)
    return max(0.0, run_us / 1e6)


def end_of(message: protocol.Ended) -> tasks.End:
    """Translate what the replica said about the end of an attempt."""
    if message.output is not None:
        return tasks.Succeeded()
    return tasks.AgentFailed(message.error_type or "error", message.error_message, message.retryable)


def loss_of(exit: Exit, claim: Claim, *, attempts: int, suspects: int, is_suspect: bool) -> tasks.ReplicaGone:
    """Translate the end of a replica's process for one of its *attempts*.

    *suspects* of them may have caused it. One alone is charged; of several nobody knows which it was, so none is, and
    the store counts the death against each of them until they run alone.
    """
    if exit.reason == "stopped":
        return tasks.ReplicaGone(tasks.Reason.DRAINED, exit.detail, charged=False)
    if not is_suspect or exit.reason == failures.Failure.EVICTED:
        return tasks.ReplicaGone(tasks.Reason.NEIGHBOUR, exit.detail, charged=False)
    reason = tasks.Reason.OOM if exit.reason == "oom" else tasks.Reason.REPLICA_LOST
    # Another suspect may have waited there for its sub-task, and who hangs may have been stopped by somebody.
    is_poison = claim.is_alone and attempts == 1 and exit.is_its_own and exit.reason != "hung"
    if is_poison and claim.has_good_state and not claim.is_restored:  # it may be the state that kills
        return tasks.ReplicaGone(reason, exit.detail or exit.reason, charged=False, restores=True)
    return tasks.ReplicaGone(reason, exit.detail or exit.reason, charged=suspects == 1, is_poison=is_poison)


_NOTHING = protocol.Ended("", 0)


def finish(
    attempt: Attempt,
    verdict: tasks.Verdict,
    *,
    error: bytes | None,
    due_at_us: int | None,
    message: protocol.Ended | None,
    is_kill: bool = False,
    restores: bool = False,
) -> Finish:
    """Build the statement's parameters; results and state only of an attempt that succeeded."""
    claim = attempt.claim
    said, has_result = message or _NOTHING, verdict.by is tasks.Move.SUCCEED
    return Finish(
        id=claim.id,
        epoch=claim.epoch,
        state=verdict.state,
        reason=verdict.reason,
        replica=claim.replica,
        refund=int(verdict.refund),
        kills=int(is_kill),
        restores=int(restores),
        due_at=due_at_us,
        output=said.output if has_result else None,
        error=error,
        session_state=said.state if has_result else None,
        is_restored=claim.is_restored,
        revision=claim.revision,
        input_tokens=said.input_tokens,
        output_tokens=said.output_tokens,
        input=claim.input,
    )


def ended(
    attempt: Attempt, state: str, reason: str, *, end: tasks.End | None, message: protocol.Ended | None, now_s: float
) -> telemetry.AttemptEnded:
    """Return what is told of the end of an attempt; *end* is None where it was cancelled."""
    claim = attempt.claim
    tokens, output = (0, None) if message is None else (message.input_tokens + message.output_tokens, message.output)
    return telemetry.AttemptEnded(
        claim.agent,
        state,
        reason,
        now_s - attempt.started_s,
        claim.replica,
        end,
        claim.session,
        claim.id,
        claim.epoch,
        tokens,
        output,
        claim.revision,
        claim.wait_us,
        0 if message is None else message.input_tokens,
        claim.tenant,
        claim.attempts_charged,
        claim.trace,
    )


def unstorable(finish: Finish, why: Exception) -> Finish:
    """Return the end of an attempt whose own one the store can never take: none of what its replica sent."""
    error = tasks.Error("result_not_storable", f"the store cannot take its result: {why}", may_have_run=True)
    return Finish(
        id=finish.id,
        epoch=finish.epoch,
        state=tasks.State.FAILED,
        reason=tasks.Reason.AGENT_ERROR,
        replica=finish.replica,
        error=msgspec.json.encode(error),
    )
