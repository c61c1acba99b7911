"""Sub-tasks: ``Context.call`` of the attempts in flight.

The n-th call of a task is stored under its parent and ordinal: an attempt that is run again gets the recorded results
again, unless its agent now asks for something else, which is then a new sub-task of this attempt alone. While an
attempt waits its slot is free, so agents with one slot each may call one another in a chain; to go on it takes a slot
again, ahead of new claims.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from greenroom import clock as clocks
from greenroom import errors, strict_json
from greenroom.control.attempts import MAX_CALLS, Attempt
from greenroom.core import sessions, traces
from greenroom.engine import protocol
from greenroom.engine.contract import Engine
from greenroom.store import submissions
from greenroom.store.directory import Entry
from greenroom.store.rows import Accepted, Call, Lease, NewTask, Task
from greenroom.store.store import Store

T = TypeVar("T")
MAX_DEPTH = 50  # calls below one another
POLL_EVERY_S, LONGEST_POLL_S = 1.0, 10.0  # wakeups are hints; a sub-task that takes long is looked at less often


class Calls:
    def __init__(
        self,
        store: Store,
        engine: Engine,
        clock: clocks.Clock,
        *,
        free: Callable[[Attempt], None],
        occupy: Callable[[Attempt], Awaitable[None]],
    ) -> None:
        self._store, self._engine, self._clock, self._free, self._occupy = store, engine, clock, free, occupy
        self._running: dict[Attempt, set[asyncio.Task[None]]] = {}

    def begin(self, attempt: Attempt, message: protocol.Called) -> None:
        if message.ordinal in attempt.calls or len(attempt.calls) >= MAX_CALLS:
            refusal = f"cannot call {message.agent[:64]}: a task may make {MAX_CALLS} calls, each once"
            self._answer(attempt, message, error_type="too_many_calls", error_message=refusal)
            return
        attempt.calls.add(message.ordinal)
        call = asyncio.create_task(self._call(attempt, message), name=f"call-{attempt.claim.id}-{message.ordinal}")
        self._running.setdefault(attempt, set()).add(call)
        call.add_done_callback(lambda done: self._done(attempt, message, done))

    def end(self, attempt: Attempt) -> None:
        """The attempt is over: wait for none of its calls any more."""
        for call in self._running.pop(attempt, ()):
            call.cancel()

    async def close(self) -> None:
        calls = [call for running in self._running.values() for call in running]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def _done(self, attempt: Attempt, message: protocol.Called, call: asyncio.Task[None]) -> None:
        if attempt in self._running:
            self._running[attempt].discard(call)
        error = None if call.cancelled() else call.exception()
        if error is not None:
            code = error.code if isinstance(error, errors.GreenroomError) else "error"
            self._answer(attempt, message, error_type=code, error_message=str(error))

    async def _call(self, attempt: Attempt, message: protocol.Called) -> None:
        child = self._child(attempt, message)
        accepted = await self._through_weather(lambda: self._submit(attempt, child))
        if accepted is None:
            return  # fenced: the attempt is being stopped
        attempt.waiting_for += 1
        if attempt.holds_slot and attempt.waiting_for == 1:
            self._free(attempt)
        try:
            ended = await self._through_weather(lambda: self._end_of(accepted.id, attempt.claim.tenant))
        finally:
            attempt.waiting_for -= 1
        if not await self._go_on(attempt):
            return
        self._answer_with(attempt, message, ended)

    async def _go_on(self, attempt: Attempt) -> bool:
        """Take the attempt's slot again, unless it waits for another sub-task still; False if it is fenced."""
        async with attempt.going_on:
            if attempt.is_waiting() or attempt.holds_slot:
                return True
            await self._occupy(attempt)
            if attempt.is_waiting():  # it called again meanwhile
                self._free(attempt)
                return True
            return await self._through_weather(lambda: self._store.tasks.resume(Lease(*attempt.key)))

    async def _through_weather(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the store until it answers; the attempt's deadline ends this, and asking twice does no harm."""
        delay_s = 0.1
        while True:
            try:
                return await ask()
            except errors.StoreUnavailable:
                await self._clock.sleep(delay_s)
                delay_s = min(2.0, delay_s * 2)

    def _child(self, attempt: Attempt, message: protocol.Called) -> NewTask:
        claim = attempt.claim
        _check(message)
        if claim.depth >= MAX_DEPTH:
            raise errors.Conflict(f"cannot call {message.agent}: this task is {claim.depth} calls deep; does it end?")
        entry = self._store.directory.get(message.agent)
        if not strict_json.is_valid(message.input):
            raise errors.JsonRefused(f"cannot call {message.agent}: its input is not strict JSON")
        if message.session is not None and (message.agent, message.session) == (claim.agent, claim.session):
            raise errors.Conflict(
                f"cannot call {message.agent}: session {message.session} is held by the caller itself"
            )
        return submissions.new_task(
            message.agent,
            entry.spec,
            now=self._clock.now(),
            tenant=claim.tenant,
            input=message.input,
            submitted_by=claim.submitted_by,
            session=message.session,
            timeout_s=message.timeout_s,
            deadline_us=claim.claimed_at + int(attempt.timeout_s * 1e6),
            parent=claim.id,
            depth=claim.depth + 1,
            idempotency_key=f"call:{claim.id}:{message.ordinal}",
            fingerprint=submissions.fingerprint(message.agent.encode(), message.input),
            cache_key=None if message.session is not None else self._cache_key(entry, message.input),
            trace=None if claim.trace is None else traces.below(claim.trace, claim.id, claim.epoch, message.span_id),
        )

    def _cache_key(self, entry: Entry, input: bytes) -> str | None:
        return self._store.results.key(entry.agent.name, entry.agent.revision, input)

    async def _submit(self, attempt: Attempt, child: NewTask) -> Accepted | None:
        accepted = await self._store.tasks.call(Call(*attempt.key, child))
        if accepted is None or accepted.matches:
            return accepted
        other_key = f"{child.idempotency_key}:{attempt.claim.epoch}"
        return await self._store.tasks.call(
            Call(
                *attempt.key,
                msgspec.structs.replace(child, id=submissions.task_id(self._clock.now()), idempotency_key=other_key),
            )
        )

    async def _end_of(self, id: str, tenant: str) -> Task:
        poll_s = POLL_EVERY_S
        while True:
            with self._store.hub.end_of(id) as end:
                task = await self._store.tasks.get(id, tenant=tenant)
                if task.has_ended:
                    return task
                await end.within(poll_s)
            poll_s = min(2 * poll_s, LONGEST_POLL_S)

    def _answer_with(self, attempt: Attempt, message: protocol.Called, ended: Task) -> None:
        if ended.state == "succeeded":
            self._answer(attempt, message, output=ended.output)
            return
        error = msgspec.json.decode(ended.error or b"{}")
        self._answer(
            attempt, message, error_type=error.get("type", ended.state), error_message=error.get("message", "")
        )

    def _answer(
        self,
        attempt: Attempt,
        message: protocol.Called,
        *,
        output: bytes | None = None,
        error_type: str | None = None,
        error_message: str = "",
    ) -> None:
        answer = protocol.CallEnded(*attempt.key, message.ordinal, output, error_type, error_message)
        self._engine.invoke(attempt.claim.replica, answer)


def _check(message: protocol.Called) -> None:
    """Hold what a replica asks for to the rules that callers of the API keep; a replica is untrusted."""
    cannot, most_s = f"cannot call {message.agent[:64]}", protocol.MAX_TIMEOUT_S
    if message.session is not None and not sessions.is_name(message.session):
        raise errors.BodyInvalid(f"{cannot}: a session's name is {sessions.NAME_IN_WORDS}")
    if message.timeout_s is not None and not 0 < message.timeout_s <= most_s:
        raise errors.BodyInvalid(f"{cannot}: timeout_s is over 0 and at most {most_s}")
