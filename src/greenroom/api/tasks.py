"""The task routes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from greenroom import errors, settings, strict_json, telemetry
from greenroom.api import access, problems, schemas, views
from greenroom.api.request import Answer, Call, Stream
from greenroom.core import caching, routing, tasks
from greenroom.core.permissions import Action
from greenroom.store import submissions, vault
from greenroom.store.directory import Entry
from greenroom.store.rows import Accepted, NewTask, Task

_encode = msgspec.json.encode
HEARTBEAT_S = 15.0
EVENT_POLL_S = 1.0  # wakeups are hints
MAX_CANDIDATES = 10
CANCEL_GRACE_S = 5.0  # who waits cancels; only where nobody does any more, the deadline ends the task


class Key(NamedTuple):
    """An idempotency key as its caller gave it and as it is stored, and what its body is known by."""

    given: str
    text: str
    fingerprint: bytes


async def submit(call: Call) -> Answer:
    """Accept a task; with ``?wait=SECONDS`` answer 200 when it ended in time.

    With ``&or_cancel=true`` it is cancelled when that time is over, or as soon as its caller closes the connection.
    """
    wait_s, or_cancel = call.seconds("wait", most=schemas.MAX_WAIT_S), call.flag("or_cancel")
    submission = schemas.read(call.body, schemas.Submission)
    if or_cancel:
        submission = _bounded(submission, wait_s)
    key = _key(_header_key(call) or submission.idempotency_key, call.body)
    try:
        task = await _new_task(call, submission, key)
        if wait_s:
            access.require(call, Action.TASK_READ, task.agent)
        if or_cancel:
            access.require(call, Action.TASK_CANCEL, task.agent)
        await call.services.backlog.admit(call.principal.tenant)
    except errors.GreenroomError:
        # What stood in the way may not have been there when the key was used first.
        if (recorded := await _recorded(call, [key] if key is not None else [])) is None:
            raise
        return await _wait(call, recorded.id, wait_s)
    if or_cancel:
        accepted = await _accept(call, task)
        # One that was there already has another caller, who may wait for it still.
        return await (_wait_or_cancel if accepted.is_new else _wait)(call, accepted.id, wait_s)
    if not wait_s:
        accepted = await _accept(call, task)
        is_open = accepted.is_new and not accepted.is_answered
        return (
            Answer(views.new_task(task, accepted, call.services.trace_url), 202)
            if is_open
            else await _wait(call, accepted.id, 0)
        )
    with call.store.hub.end_of(task.id) as end:  # before it is stored: its end must not slip by
        accepted = await _accept(call, task)
        if accepted.is_new and not accepted.is_answered:
            first_s = min(wait_s, EVENT_POLL_S)  # it may end on another node, of which nobody here hears
            ended = await end.within(first_s)
            if ended is not None:
                return await _task_answer(call, ended)
            wait_s -= first_s
    return await _wait(call, accepted.id, wait_s)


async def _accept(call: Call, task: NewTask) -> Accepted:
    accepted = await call.store.tasks.submit(task)
    _check(task, accepted)
    if accepted.is_new:
        call.services.facts.emit(telemetry.TaskAccepted(task.agent, 1, call.principal.id))
    return accepted


async def submit_batch(call: Call) -> Answer:
    """Accept many tasks; the answer has a task or a problem for each, in order."""
    batch = schemas.convert(strict_json.loads(call.body, max_keys=100_000), schemas.Batch)
    call.services.limits.spend(call.principal, len(batch.tasks) - 1)  # the request itself is one
    header = _header_key(call)
    fingerprint = b"" if header is None else submissions.fingerprint(call.body)
    keys = [] if header is None else [Key(header, f"batch:{header}:{n}", fingerprint) for n in range(len(batch.tasks))]
    recorded = await _recorded(call, keys)  # another body is refused as a whole
    prepared = [await _prepare(call, item, keys[index] if keys else None) for index, item in enumerate(batch.tasks)]
    if recorded is None:
        await call.services.backlog.admit(call.principal.tenant, len(batch.tasks))
    results = iter(await call.store.tasks.submit_all([item for item in prepared if isinstance(item, NewTask)]))
    items, accepted = [], Counter[str]()
    for item in prepared:
        result = next(results) if isinstance(item, NewTask) else item
        items.append(await _item(call, item, result))
        if isinstance(item, NewTask) and isinstance(result, Accepted) and result.is_new:
            accepted[item.agent] += 1
    for agent, count in accepted.items():
        call.services.facts.emit(telemetry.TaskAccepted(agent, count, call.principal.id))
    return Answer({"items": items}, status=202)


async def _prepare(call: Call, value: Any, key: Key | None) -> NewTask | Task | errors.GreenroomError:
    """Return the task to store, the one that its key stands for, or what is wrong with it."""
    try:
        submission = schemas.convert(value, schemas.Submission)
        if submission.idempotency_key is not None:
            key = _key(submission.idempotency_key, _encode(value))
        try:
            return await _new_task(call, submission, key)
        except errors.GreenroomError as error:
            return await _recorded(call, [key] if key is not None else []) or error
    except errors.GreenroomError as error:
        return error


async def _item(call: Call, item: NewTask | Task | errors.GreenroomError, result: Any) -> dict[str, Any]:
    try:
        if isinstance(item, Task):
            return await _document(call, item)
        if isinstance(result, BaseException):
            raise result
        assert isinstance(item, NewTask)
        _check(item, result)
        if result.is_new and not result.is_answered:
            return views.new_task(item, result, call.services.trace_url)
        return await _document(call, await call.store.tasks.get(result.id, tenant=call.principal.tenant))
    except errors.GreenroomError as error:
        return problems.problem(error, call.id)


def _header_key(call: Call) -> str | None:
    header = call.header("idempotency-key")
    if header is not None and not 1 <= len(header) <= 255:
        raise errors.BodyInvalid("cannot take the Idempotency-Key: it needs 1 to 255 characters")
    return header


def _key(text: str | None, body: bytes) -> Key | None:
    return None if text is None else Key(text, f"key:{text}", submissions.fingerprint(body))


async def _recorded(call: Call, keys: Sequence[Key]) -> Task | None:
    """Return a task that one of *keys*, all of one body, stands for already; None if they are new.

    Raises `errors.IdempotencyMismatch` if it had another body.
    """
    if not keys:
        return None
    found = await call.store.tasks.of_keys(
        [key.text for key in keys], tenant=call.principal.tenant, fingerprint=keys[0].fingerprint
    )
    if found is None:
        return None
    task, is_same = found
    if not is_same:
        raise _mismatch(keys[0].given, task.id)
    rights = call.principal.rights
    is_theirs = any(rights.on_agent(action, task.agent) for action in (Action.TASK_SUBMIT, Action.TASK_READ))
    return task if is_theirs else None


def _mismatch(key: str, task: str) -> errors.IdempotencyMismatch:
    return errors.IdempotencyMismatch(
        f"cannot accept the task: the key {key!r} stands for task {task}, which had another body"
    )


async def _new_task(call: Call, submission: schemas.Submission, key: Key | None) -> NewTask:
    chosen: bytes | None = None
    name = submission.agent
    if name is None:
        choice = await _route(call, submission.input)
        name = choice.agent
        scores = [candidate._asdict() for candidate in _candidates(choice.scores)]
        chosen = _encode({"agent": name, "scores": scores})
    entry = access.find_agent(call, name, Action.TASK_SUBMIT)
    call.services.budgets.check(name)
    if submission.webhook is not None:
        await _check_webhook(call, submission.webhook)
    task_input = _encode(submission.input)
    return submissions.new_task(
        name,
        entry.spec,
        now=call.services.clock.now(),
        tenant=call.principal.tenant,
        input=task_input,
        submitted_by=call.principal.id,
        session=submission.session,
        priority=submission.priority,
        timeout_s=submission.timeout_s,
        not_before=submission.not_before,
        idempotency_key=None if key is None else key.text,
        fingerprint=None if key is None else key.fingerprint,
        metadata=None if submission.metadata is None else _encode(submission.metadata),
        routing=chosen,
        cache_key=_cache_key(call, submission, entry, task_input) if call.store.results.is_on else None,
        webhook=submission.webhook,
        trace=call.trace,
    )


async def _check_webhook(call: Call, id: str) -> None:
    endpoint = await call.store.webhooks.get(id, tenant=call.principal.tenant)
    if endpoint.state != "enabled":
        raise errors.Conflict(f"cannot accept the task: its webhook {id} is disabled ({endpoint.reason})")


def _cache_key(call: Call, submission: schemas.Submission, entry: Entry, task_input: bytes) -> str | None:
    """Return what is known to the result cache; None for a task that has to run."""
    is_asked = submission.cache and caching.may_answer(call.header("cache-control"))
    if not is_asked or submission.session is not None or submission.not_before is not None:
        return None
    return call.store.results.key(entry.agent.name, entry.agent.revision, task_input)


async def _route(call: Call, value: Any) -> routing.Choice:
    index, text, similarity = _index(call), text_of(value), call.services.similarity
    if similarity is None:
        answer = routing.choose(index, text)
    else:  # a model takes milliseconds
        answer = await asyncio.to_thread(routing.choose, index, text, similarity=similarity)
    if isinstance(answer, routing.NoRoute):
        raise errors.NoRoute(answer.message, candidates=_candidates(answer.scores))
    return answer


def _index(call: Call) -> routing.Index:
    """Return what a request of this caller's may be routed to."""
    rights, directory = call.principal.rights, call.store.directory
    if rights.on_all(Action.TASK_SUBMIT):
        return directory.index
    return directory.index_of(
        frozenset(name for name in directory.entries if rights.on_agent(Action.TASK_SUBMIT, name))
    )


def _candidates(scores: tuple[routing.Score, ...]) -> list[errors.Candidate]:
    return [
        errors.Candidate(score.agent, round(score.score, 3), "; ".join(score.reasons))
        for score in scores[:MAX_CANDIDATES]
    ]


TEXT_KEYS = ("task", "input", "message", "prompt", "content", "text", "query", "request")


def text_of(value: Any) -> str:
    """Return what a request says: the text itself, or that of the usual keys, or its JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        for key in TEXT_KEYS:
            if isinstance(value.get(key), str):
                return str(value[key])
    return _encode(value).decode()


def _check(task: NewTask, accepted: Accepted) -> None:
    if not accepted.matches:
        _, _, given = (task.idempotency_key or "").partition(":")
        raise _mismatch(given, accepted.id)


async def _task_answer(call: Call, row: Task) -> Answer:
    return Answer(await _document(call, row), status=200 if row.has_ended else 202)


async def _document(call: Call, row: Task) -> dict[str, Any]:
    if not call.principal.rights.on_agent(Action.TASK_READ, row.agent):
        # Who may only submit is told how it stands, of what they have sent, but not what came of it.
        row = msgspec.structs.replace(row, output=None, error=None, routing=None)
    moves = await call.store.tasks.state_events(row) if row.was_requeued else ()
    entry = call.store.directory.entries.get(row.agent)
    return views.task(
        row, moves, call.services.trace_url, prices=None if entry is None else settings.prices(entry.spec)
    )


async def _wait(call: Call, id: str, wait_s: float) -> Answer:
    """Answer with the task, 200 as soon as it has ended, 202 after *wait_s*."""
    deadline_s = call.services.clock.monotonic_s() + wait_s
    while True:
        with call.store.hub.end_of(id) as end:
            row = await call.store.tasks.get(id, tenant=call.principal.tenant)
            remaining_s = deadline_s - call.services.clock.monotonic_s()
            if row.has_ended or remaining_s <= 0:
                return await _task_answer(call, row)
            await end.within(min(remaining_s, EVENT_POLL_S))
        call.require_live()


def _bounded(submission: schemas.Submission, wait_s: float) -> schemas.Submission:
    """Give a task that nobody waits for after *wait_s* a deadline: a node that has died meanwhile cancels nothing."""
    if not wait_s:
        raise errors.QueryInvalid("cannot take ?or_cancel=true without ?wait=SECONDS: say how long you wait")
    timeout_s = wait_s + CANCEL_GRACE_S
    if submission.timeout_s is not None:
        timeout_s = min(timeout_s, submission.timeout_s)
    return msgspec.structs.replace(submission, timeout_s=timeout_s)


async def _wait_or_cancel(call: Call, id: str, wait_s: float) -> Answer:
    """Answer with the task when it has ended; cancel it when *wait_s* is over, or its caller has gone."""
    leaving = asyncio.create_task(call.gone())
    waiting = asyncio.create_task(_wait(call, id, wait_s))
    try:
        await asyncio.wait((leaving, waiting), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done() and (answer := waiting.result()).status == 200:
            return answer
    finally:
        leaving.cancel()
        waiting.cancel()
    with contextlib.suppress(errors.Conflict):  # it has ended just now
        await call.store.tasks.cancel(id, tenant=call.principal.tenant)
    return await _wait(call, id, 0)


async def show(call: Call) -> Answer:
    """Show a task with its attempts; ``?wait=SECONDS`` waits for its end."""
    wait_s = call.seconds("wait", most=schemas.MAX_WAIT_S)
    row = await _task(call, Action.TASK_READ)
    if wait_s and not row.has_ended:
        return await _wait(call, row.id, wait_s)
    return await _task_answer(call, row) if wait_s else Answer(await _document(call, row))


async def _task(call: Call, action: Action) -> Task:
    """Return the task that the path names, on which *action* is to be done."""
    id = call.path("id")
    row = await call.store.tasks.get(id, tenant=call.principal.tenant)
    access.check_object(
        call, row.agent, read=Action.TASK_READ, action=action, missing=f"cannot find the task {id[:64]}"
    )
    return row


async def list_tasks(call: Call) -> Answer:
    """List tasks, newest first; ``?agent= &state= &session= &parent= &limit= &cursor=``.

    One that was tampered with in the store has an error of type ``store_damaged``, and neither input nor output.
    """
    limit = call.number("limit", default=50, least=1, most=200)
    state = call.query("state")
    if state is not None and state not in set(tasks.State):
        raise errors.QueryInvalid(f"cannot filter by state {state!r}: one of {', '.join(tasks.State)}")
    rows = await call.store.tasks.list(
        tenant=call.principal.tenant,
        agent=call.query("agent"),
        state=state,
        session=call.query("session"),
        parent=call.query("parent"),
        before_seq=call.number("cursor", default=0, most=2**62) or None,
        limit=limit,
        agents=call.principal.rights.agents(Action.TASK_READ),
    )
    cursor = str(rows[-1].seq) if len(rows) == limit else None
    return Answer({"items": [await _listed(call, row) for row in rows], "next_cursor": cursor})


async def _listed(call: Call, row: Task) -> dict[str, Any]:
    """Return the document of a task; where an event of it does not open, one that says so."""
    try:
        return await _document(call, row)
    except errors.StoreDamaged as error:
        return views.task(vault.without_payload(row, error), ())


async def cancel(call: Call) -> Answer:
    """Cancel a task and its sub-tasks, for good."""
    row = await _task(call, Action.TASK_CANCEL)
    await call.store.tasks.cancel(row.id, tenant=row.tenant)
    row = await call.store.tasks.get(row.id, tenant=row.tenant)
    return Answer(await _document(call, row), status=202)


async def retry(call: Call) -> Answer:
    """Submit an ended task again, as a new one: terminal states are final."""
    row = await _task(call, Action.TASK_SUBMIT)
    if row.state not in tasks.TERMINAL:
        raise errors.Conflict(f"cannot retry {row.id}: it is {row.state}; cancel it first")
    call.services.budgets.check(row.agent)
    await call.services.backlog.admit(call.principal.tenant)
    metadata = msgspec.json.decode(row.metadata) if row.metadata is not None else {}
    task = submissions.new_task(
        row.agent,
        call.store.directory.get(row.agent).spec,
        now=call.services.clock.now(),
        tenant=row.tenant,
        input=row.input,
        submitted_by=call.principal.id,
        session=row.session,
        priority=row.priority,
        timeout_s=_timeout_s(row),
        metadata=_encode(metadata | {"retry_of": row.id}),
        webhook=row.webhook,
        trace=call.trace,
    )
    accepted = await call.store.tasks.submit(task)
    call.services.facts.emit(telemetry.TaskAccepted(task.agent, 1, call.principal.id))
    return Answer(views.new_task(task, accepted, call.services.trace_url), status=202)


def _timeout_s(row: Task) -> float | None:
    """Return the whole task's timeout as its caller asked for it; a sub-task's deadline was its parent's."""
    if row.deadline_at is None or row.parent is not None:
        return None
    return (row.deadline_at - max(row.created_at, row.not_before or 0)) / 1e6


async def events(call: Call) -> Stream | Answer:
    """Stream a task's events (SSE) until it has ended; resumable by ``Last-Event-ID`` or ``?after=``."""
    row = await _task(call, Action.TASK_READ)
    after = call.number("after", default=0, most=2**31 - 1)
    last_id = call.header("last-event-id") or ""
    if last_id.isascii() and last_id.isdigit() and len(last_id) < 10:
        after = int(last_id)
        if row.has_ended and after >= row.event_seq:
            return Answer(None, 204)  # tells a browser's EventSource not to come again
    return Stream(_events(call, row, after))


async def latest_events(call: Call, *, limit: int) -> list[dict[str, Any]]:
    """Return the last events of a task, oldest first; where the stream goes on is behind the last of them."""
    row = await _task(call, Action.TASK_READ)
    found = await call.store.tasks.events(row, after=max(0, row.event_seq - limit), limit=limit)
    return [views.event(event) for event in found]


async def _events(call: Call, row: Task, after: int) -> AsyncIterator[bytes]:
    clock, stopping = call.services.clock, call.services.stopping
    wakeup = call.store.hub.watch(row.id)
    quiet_since_s = clock.monotonic_s()
    try:
        while not stopping.is_set() and call.is_live:
            wakeup.clear()
            row = await call.store.tasks.get(row.id, tenant=row.tenant)
            batch = await call.store.tasks.events(row, after=after)
            for event in batch:
                yield _sse(views.event(event))
                after = event.seq
            if row.has_ended and after >= row.event_seq:
                return
            if batch:
                quiet_since_s = clock.monotonic_s()
                continue
            if clock.monotonic_s() - quiet_since_s > HEARTBEAT_S:
                yield b": still here\n\n"
                quiet_since_s = clock.monotonic_s()
            await clock.sleep(EVENT_POLL_S, wakeup)
    finally:
        call.store.hub.unwatch(row.id, wakeup)


def _sse(document: dict[str, Any]) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (document["seq"], document["type"].encode(), _encode(document))
