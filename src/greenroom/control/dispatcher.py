"""The dispatcher: gives claimed tasks to replicas and writes what becomes of them, fenced by the lease's epoch.

The store claims (in its commits, for the slots on the board) and delivers here; replicas answer here; every end is one
`store.tasks.finish`. Between the two lives an `Attempt`. An attempt whose end is recorded already (deadline, cancel)
keeps its slot until the replica says so or its process is killed.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from datetime import timedelta

import msgspec

from greenroom import clock as clocks
from greenroom import errors, strict_json, telemetry
from greenroom.control import attempts, calls
from greenroom.control.attempts import Attempt
from greenroom.core import failures, tasks
from greenroom.core.permissions import HOME
from greenroom.engine import protocol, said
from greenroom.engine.contract import Engine, Exit
from greenroom.store.news import News
from greenroom.store.rows import Claim, Event, Finish
from greenroom.store.store import Store

GRACE_S = 2.0  # from the signal to stop to the end of the process
RENEW_EVERY_S = 5.0
POLL_EVERY_S = 1.0  # wakeups are hints; this is the guarantee
WATCH_EVERY_S = 0.25  # deadlines, while something runs
_ENDS = "the end of an attempt"


class Dispatcher:
    name = "dispatcher"

    def __init__(
        self,
        store: Store,
        engine: Engine,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store, self._engine, self._clock, self._facts, self._jitter = store, engine, clock, facts, jitter
        self.wakeup = asyncio.Event()
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._by_replica: dict[str, set[Attempt]] = defaultdict(set)
        self._tenants: dict[str, str] = {}  # by replica, whose tasks have run there; "": several tenants'
        self._resuming: dict[str, deque[tuple[asyncio.Future[None], str]]] = defaultdict(deque)  # ... of whose tasks
        self._killed: set[str] = set()  # replicas that this dispatcher had to kill
        self._writing: set[tuple[str, int]] = set()  # attempts whose end is on its way into the store
        self._unsent: list[Finish] = []  # ends of this turn of the loop
        self._unwritten: list[Finish] = []  # ends that the store could not take yet
        self._is_weather = False  # it took none of the last ones
        self._calls = calls.Calls(store, engine, clock, free=self._free, occupy=self._occupy)
        self._renew_at_s = self._poll_at_s = 0.0
        store.claims.claimed = self._start_all
        store.hub.subscribe(self._hear)
        engine.subscribe(self)

    async def step(self) -> float:
        """Enforce deadlines, renew leases, write again what the store refused, and look for work nobody announced."""
        now_s = self._clock.monotonic_s()
        self._enforce_deadlines(now_s)
        unwritten, self._unwritten = self._unwritten, []
        for finish in unwritten:
            self._write(finish)
        if now_s >= self._renew_at_s:
            await self._renew()
            self._renew_at_s = now_s + RENEW_EVERY_S
        if now_s >= self._poll_at_s:
            self._store.board.mark_all()
            self._store.commits.nudge()
            self._poll_at_s = now_s + POLL_EVERY_S
        return WATCH_EVERY_S if self._attempts or self._unwritten else POLL_EVERY_S

    async def close(self) -> None:
        await self._calls.close()

    # --- attempts begin

    def _start_all(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self._start(claim)
        self._resume_all()

    def _start(self, claim: Claim) -> None:
        now_s = self._clock.monotonic_s()
        attempt = Attempt(claim, now_s, now_s + attempts.timeout_s(claim))
        self._attempts[attempt.key] = attempt
        self._by_replica[claim.replica].add(attempt)
        if self._tenants.setdefault(claim.replica, claim.tenant) != claim.tenant:
            self._tenants[claim.replica] = ""
        if self._facts.is_heard(telemetry.AttemptBegan):
            self._facts.emit(telemetry.AttemptBegan(claim.id, claim.epoch, claim.agent, claim.revision))
        if claim.damage is not None:
            self._forget(attempt)
            self._settle(attempt, tasks.AgentFailed("store_damaged", claim.damage), None)
            return
        try:
            is_sent = self._engine.invoke(claim.replica, attempt.invocation())
        except ValueError as error:  # it does not fit a frame: no replica can ever take it
            self._forget(attempt)
            self._settle(attempt, tasks.AgentFailed("input_too_large", str(error)), None)
            return
        if not is_sent:
            self._store.board.drain(claim.replica)
            self._lose(
                attempt, tasks.ReplicaGone(tasks.Reason.DRAINED, "the replica was gone", charged=False, ran=False)
            )
        elif claim.is_restored:
            line = f"it runs with the session's last good state, of revision {claim.state_revision}"
            self._emit(attempt, _logged(attempt, said.Line("greenroom", line)))
        if len(self._attempts) == 1:  # from now on deadlines are watched; for those that follow they are already
            self.wakeup.set()

    # --- what replicas say (engine.contract.Listener)

    def on_ready(self, replica: str, ready: protocol.Ready) -> None:
        """The host opens the board for it."""

    def on_log(self, replica: str, line: said.Line) -> None:
        """A line of native code belongs to the task that runs, where only one does: it may be left from one before it,
        but not from another tenant's.
        """
        running = self._by_replica.get(replica, ())
        if len(running) == 1 and self._tenants.get(replica):
            (attempt,) = running
            self._append(attempt, _logged(attempt, line))

    def on_message(self, replica: str, message: protocol.OfAttempt) -> None:
        attempt = self._attempts.get((message.task, message.epoch))
        if attempt is None or attempt.claim.replica != replica:
            return  # of an attempt that is not, or no longer, this replica's
        match message:
            case protocol.Ended():
                self._end(attempt, message)
            case protocol.Emitted():
                self._emit(attempt, message)
            case protocol.Spans():
                if (told := attempts.told_spans(attempt, message)) is not None:
                    self._facts.emit(told)
            case protocol.Called():
                if attempt.kill_at_s is None:
                    self._calls.begin(attempt, message)

    def on_alive(self, replica: str, number: int) -> None:
        """Progress is the checks' business."""

    def on_exit(self, replica: str, exit: Exit) -> None:
        running = list(self._by_replica.get(replica, ()))
        # Who is killed for the others' sake has not died of its tasks.
        suspects = () if exit.reason == failures.Failure.EVICTED else self._suspects(replica, running)
        for attempt in running:
            is_suspect = attempt in suspects
            end = attempts.loss_of(
                exit, attempt.claim, attempts=len(running), suspects=len(suspects), is_suspect=is_suspect
            )
            self._lose(attempt, end, is_kill=is_suspect and exit.reason != "stopped")
        for waiting, _ in self._resuming.pop(replica, ()):
            waiting.cancel()
        self._by_replica.pop(replica, None)
        self._tenants.pop(replica, None)

    def _suspects(self, replica: str, running: Sequence[Attempt]) -> Sequence[Attempt]:
        """Return who may have caused the death of *replica*: none of them where this dispatcher had to kill it."""
        if replica in self._killed:
            self._killed.discard(replica)
            return ()
        return [attempt for attempt in running if attempt.holds_slot] or running

    def whose(self, replica: str) -> tuple[str, Claim | None]:
        """Return the tenant whose tasks alone have run there, and the attempt that alone runs there.

        HOME where none has run; "" where those of several tenants have: whose a line is nobody knows.
        """
        running = self._by_replica.get(replica, ())
        return self._tenants.get(replica, HOME), next(iter(running)).claim if len(running) == 1 else None

    def _emit(self, attempt: Attempt, message: protocol.Emitted) -> None:
        data = self._append(attempt, message)
        if data is not None and message.type == "log" and self._facts.is_heard(telemetry.TaskSaid):
            claim = attempt.claim
            told = telemetry.TaskSaid(claim.agent, claim.replica, claim.id, claim.epoch, claim.tenant, data)
            self._facts.emit(told)

    def _append(self, attempt: Attempt, message: protocol.Emitted) -> bytes | None:
        """Have an event stored; return its data, or None where it is not one, or one too many."""
        data = attempt.bounded_log(message.data) if message.type == "log" else message.data
        if data is None or attempt.kill_at_s is not None or not attempt.may_emit(data):
            return None
        if message.type not in protocol.EVENT_TYPES or not strict_json.is_valid(data):
            return None
        _ignore_weather(self._store.tasks.append(Event(message.task, message.epoch, message.type, data)))
        return data

    def _end(self, attempt: Attempt, message: protocol.Ended) -> None:
        if message.cancelled and attempt.kill_at_s is None:
            return  # its replica is being stopped: its exit, which says why, is what ends the attempt
        if message.output is not None and not strict_json.is_valid(message.output):
            message = msgspec.structs.replace(
                message, output=None, error_type="result_not_json", error_message="the result is not strict JSON"
            )
        self._forget(attempt)
        if attempt.kill_at_s is None:
            self._settle(attempt, attempts.end_of(message), message)

    def _lose(self, attempt: Attempt, end: tasks.ReplicaGone, *, is_kill: bool = False) -> None:
        self._forget(attempt)
        if attempt.kill_at_s is None:
            self._settle(attempt, end, None, is_kill=is_kill)

    # --- attempts end

    def _forget(self, attempt: Attempt) -> None:
        replica = attempt.claim.replica
        self._attempts.pop(attempt.key, None)
        self._by_replica[replica].discard(attempt)
        self._calls.end(attempt)
        if attempt.holds_slot:
            self._free(attempt)
        self._store.board.leave(replica)

    def _settle(
        self, attempt: Attempt, end: tasks.End, message: protocol.Ended | None, *, is_kill: bool = False
    ) -> None:
        now, now_s = self._clock.now(), self._clock.monotonic_s()
        verdict = tasks.settle(
            end,
            attempts_charged=attempt.claim.attempts_charged,
            policy=attempt.policy,
            now=now,
            jitter=self._jitter(),
        )
        # The delay is this node's; the instant is by the database's clock, which claimed_at was read from.
        due_at_us = None
        if verdict.due_at is not None:
            elapsed_us = int((now_s - attempt.started_s) * 1e6)
            due_at_us = attempt.claim.claimed_at + elapsed_us + (verdict.due_at - now) // timedelta(microseconds=1)
        error = None if verdict.error is None else msgspec.json.encode(verdict.error)
        self._write(
            attempts.finish(
                attempt,
                verdict,
                error=error,
                due_at_us=due_at_us,
                message=message,
                is_kill=is_kill,
                restores=isinstance(end, tasks.ReplicaGone) and end.restores,
            )
        )
        told = attempts.ended(attempt, verdict.state, verdict.reason, end=end, message=message, now_s=now_s)
        self._facts.emit(told)

    def _write(self, finish: Finish) -> None:
        """Write the end of an attempt, together with those of this turn of the loop."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._write_ends)
        self._unsent.append(finish)
        self._writing.add((finish.id, finish.epoch))

    def _write_ends(self) -> None:
        ends, self._unsent = self._unsent, []

        def written(future: asyncio.Future[list[bool | Exception]]) -> None:
            for finish, answer in zip(ends, future.result(), strict=True):
                self._writing.discard((finish.id, finish.epoch))
                if isinstance(answer, errors.StoreUnavailable):
                    self._unwritten.append(finish)
                    self._note_weather(str(answer))
                elif isinstance(answer, Exception):
                    self._unwritten.append(attempts.unstorable(finish, answer))
                    self._facts.emit(telemetry.StoreTrouble(_ENDS, str(answer)))
                elif self._is_weather:
                    self._note_weather(None)

        self._store.tasks.finish_all(ends).add_done_callback(written)

    def _note_weather(self, trouble: str | None) -> None:
        """Say once that the store takes no ends, and once that it does again: thousands of them may wait."""
        if (trouble is not None) == self._is_weather:
            return
        self._is_weather = trouble is not None
        self._facts.emit(telemetry.StoreRecovered(_ENDS) if trouble is None else telemetry.StoreTrouble(_ENDS, trouble))

    def _stop(self, attempt: Attempt, now_s: float) -> None:
        """Stop an attempt whose end is recorded: ask, and kill its process after the grace."""
        if attempt.kill_at_s is None:
            attempt.kill_at_s = now_s + GRACE_S
            self._engine.invoke(attempt.claim.replica, protocol.Cancel(*attempt.key, GRACE_S))
            self.wakeup.set()

    def _enforce_deadlines(self, now_s: float) -> None:
        for attempt in list(self._attempts.values()):
            if attempt.kill_at_s is not None:
                if now_s >= attempt.kill_at_s:
                    self._killed.add(attempt.claim.replica)
                    self._engine.kill(attempt.claim.replica, "killed", "a task did not stop when asked to")
            elif now_s >= attempt.deadline_s:
                self._settle(attempt, tasks.TimedOut(attempt.timeout_s), None)
                self._stop(attempt, now_s)

    def _hear(self, news: News) -> None:
        """Stop what was cancelled or expired while it ran here."""
        if news.stopped and self._attempts:
            stopped = set(news.stopped)
            for attempt in list(self._attempts.values()):
                if attempt.claim.id in stopped and attempt.kill_at_s is None:  # else its end has been told
                    now_s = self._clock.monotonic_s()
                    state, reason = tasks.State.CANCELLED, tasks.Reason.CANCELLED
                    self._facts.emit(attempts.ended(attempt, state, reason, end=None, message=None, now_s=now_s))
                    self._stop(attempt, now_s)

    async def _renew(self) -> None:
        before = set(self._attempts)
        claims = self._store.claims
        held = await self._store.tasks.renew(claims.owner, ttl_us=claims.lease_ttl_us)
        for key in before - held:
            attempt = self._attempts.get(key)
            if attempt is not None:  # fenced: another node may run it already
                self._stop(attempt, self._clock.monotonic_s())
        # As they are now: what began or ended meanwhile is known as well.
        unwritten = {(finish.id, finish.epoch) for finish in self._unwritten}
        for id, epoch in held - before - self._attempts.keys() - self._writing - unwritten:
            # Claimed by a commit whose answer was lost: nobody has run it.
            self._write(Finish(id, epoch, tasks.State.QUEUED, tasks.Reason.FENCED, "", refund=1))

    # --- slots

    def _free(self, attempt: Attempt) -> None:
        """Give up the attempt's slot: to one that waits to resume on this replica, else to the board."""
        attempt.holds_slot = False
        claim = attempt.claim
        self._store.board.release(claim.replica, claim.tenant)
        self._resume_next(claim.replica)
        if self._store.board.limit_of(claim.agent) is not None:  # there may be room for one that waits elsewhere
            self._resume_all()
        self._store.commits.nudge()

    def _resume_all(self) -> None:
        for replica in [replica for replica, waiting in self._resuming.items() if waiting]:
            self._resume_next(replica)

    def _resume_next(self, replica: str) -> None:
        waiting = self._resuming[replica]
        while waiting and waiting[0][0].done():
            waiting.popleft()
        if waiting and self._store.board.try_occupy(replica, waiting[0][1]):
            waiting.popleft()[0].set_result(None)

    async def _occupy(self, attempt: Attempt) -> None:
        """Wait for a slot on the attempt's replica; ahead of new claims."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        claim = attempt.claim
        self._resuming[claim.replica].append((turn, claim.tenant))
        self._resume_next(claim.replica)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it got its slot just as it ended
                self._store.board.release(claim.replica, claim.tenant)
            raise
        attempt.holds_slot = True


def _logged(attempt: Attempt, line: said.Line) -> protocol.Emitted:
    return protocol.Emitted(*attempt.key, "log", strict_json.dumps(said.event(line)))


def _ignore_weather(future: asyncio.Future[bool]) -> None:
    """An event that the store cannot take is lost with a trace in the log of the store's trouble, the task goes on."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
