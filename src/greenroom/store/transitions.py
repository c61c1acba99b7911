"""The statements that move tasks: one for each move of `core.tasks.TRANSITIONS`, each a compare-and-set.

Operations of `store.commits`: ``async (transaction, news, items) -> results``. Who changes whether a session has open
tasks first takes the session's row, so that blocking and unblocking never miss each other. Each move writes its event
in the same transaction; a stale attempt (lower epoch) moves nothing and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from greenroom.core import tasks
from greenroom.store.board import Board, Demand
from greenroom.store.database import Row, Transaction
from greenroom.store.news import News

_encode = msgspec.json.encode


class NewTask(msgspec.Struct, frozen=True):
    """A task to accept. Instants and durations are microseconds; byte fields are JSON."""

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
    deadline_at: int | None = None  # absolute
    timeout_us: int | None = None  # of the whole task, from acceptance or not_before; becomes deadline_at
    parent: str | None = None
    idempotency_key: str | None = None
    fingerprint: bytes | None = None
    metadata: bytes | None = None
    routing: bytes | None = None


class Accepted(msgspec.Struct, frozen=True):
    """The answer to a submission: *id* is the stored task's, which is an earlier one if its key was used before."""

    id: str
    is_new: bool
    matches: bool = True  # false: the key was used with another body; nothing was stored
    created_at: int = 0
    deadline_at: int | None = None


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
    state: bytes | None = None
    state_revision: int | None = None


class Finish(msgspec.Struct, frozen=True):
    """The end of an attempt, as `core.tasks.settle` decided it."""

    id: str
    epoch: int
    state: str
    reason: str
    replica: str
    refund: int = 0
    due_at: int | None = None
    output: bytes | None = None
    error: bytes | None = None
    session_state: bytes | None = None
    revision: int | None = None
    input_tokens: int = 0
    output_tokens: int = 0


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


_INSERT = """
insert into task (id, tenant, agent, session, state, priority, blocked, due_at, not_before, deadline_at, run_timeout_us,
    max_attempts, on_replica_loss, retry_backoff_us, parent, submitted_by, idempotency_key, fingerprint, input,
    metadata, routing, created_at)
values (:id, :tenant, :agent, :session, 'queued', :priority, :blocked, :due_at, :not_before, :deadline_at,
    :run_timeout_us, :max_attempts, :on_replica_loss, :retry_backoff_us, :parent, :submitted_by, :idempotency_key,
    :fingerprint, :input, :metadata, :routing, :created_at)
on conflict (tenant, idempotency_key) where idempotency_key is not null do nothing
returning id"""

_TAKE_SESSION = """
insert into session (tenant, agent, id, created_at, updated_at) values (:tenant, :agent, :session, :now, :now)
on conflict (tenant, agent, id) do update set updated_at = :now"""


async def _take(tx: Transaction, sessions: Iterable[tuple[str, str, str]]) -> None:
    """Take the rows of these sessions (tenant, agent, id): nobody else opens or closes a task of theirs meanwhile.

    In one order for all, so that two nodes seldom wait for each other; where they do, one runs its commit again.
    """
    rows = [{"tenant": tenant, "agent": agent, "session": session} for tenant, agent, session in sorted(sessions)]
    await tx.execute_many(_TAKE_SESSION, [row | {"now": tx.now_us} for row in rows])


_SESSION_IS_OPEN = """
select 1 from task where tenant = :tenant and agent = :agent and session = :session
    and state in ('queued', 'running', 'waiting') limit 1"""

_BY_KEY = "select id, fingerprint, created_at from task where tenant = :tenant and idempotency_key = :idempotency_key"


async def submit(tx: Transaction, news: News, items: Sequence[NewTask]) -> list[Accepted]:
    """Queued: store tasks. A used idempotency key stores nothing and answers with the task that it stands for."""
    rows = [_new_row(item, tx.now_us) for item in items]
    if sessions := {(item.tenant, item.agent, item.session) for item in items if item.session is not None}:
        await _take(tx, sessions)
        return [await _submit_one(tx, news, item, row) for item, row in zip(items, rows, strict=True)]
    stored = {row[0] for row in await tx.fetch_many(_INSERT, rows)}
    return [
        _accepted(news, item, row) if item.id in stored else await _replayed(tx, item)
        for item, row in zip(items, rows, strict=True)
    ]


async def _submit_one(tx: Transaction, news: News, item: NewTask, row: dict[str, Any]) -> Accepted:
    if item.session is not None:
        key = {"tenant": item.tenant, "agent": item.agent, "session": item.session}
        row["blocked"] = bool(await tx.fetch(_SESSION_IS_OPEN, key))
    if await tx.fetch(_INSERT, row):
        return _accepted(news, item, row)
    return await _replayed(tx, item)


def _new_row(item: NewTask, now_us: int) -> dict[str, Any]:
    row = msgspec.structs.asdict(item)
    timeout_us = row.pop("timeout_us")
    start_us = max(now_us, item.not_before or 0)
    row["blocked"] = False
    row["created_at"] = now_us
    row["due_at"] = item.not_before if start_us > now_us else None
    if timeout_us is not None:
        row["deadline_at"] = min(start_us + timeout_us, item.deadline_at or start_us + timeout_us)
    return row


def _accepted(news: News, item: NewTask, row: dict[str, Any]) -> Accepted:
    if row["due_at"] is None:
        news.ready.add(item.agent)
    else:
        news.due(row["due_at"])
    return Accepted(item.id, True, True, row["created_at"], row["deadline_at"])


async def _replayed(tx: Transaction, item: NewTask) -> Accepted:
    key = {"tenant": item.tenant, "idempotency_key": item.idempotency_key}
    ((id, fingerprint, created_at),) = await tx.fetch(_BY_KEY, key)
    return Accepted(id, False, fingerprint == item.fingerprint, created_at)


_CLAIM = """
with ready as materialized (
    select seq from task where agent = :agent and state = 'queued' and due_at is null and not blocked
    order by priority desc, seq limit :slots for update skip locked)
update task set state = 'running', epoch = epoch + 1, event_seq = event_seq + 1,
    attempts_charged = attempts_charged + 1,
    owner = :owner, lease_until = :lease_until, revision = :revision, started_at = coalesce(started_at, :now)
from ready where task.seq = ready.seq
returning task.seq, priority, event_seq, id, epoch, tenant, session, input, metadata, attempts_charged, max_attempts,
    on_replica_loss, retry_backoff_us, run_timeout_us, deadline_at, submitted_by"""

_SESSION_STATE = "select state, revision from session where tenant = :tenant and agent = :agent and id = :session"

_INSERT_EVENT = """
insert into task_event (task, seq, epoch, type, at, data) values (:task, :seq, :epoch, :type, :at, :data)"""


async def claim(
    tx: Transaction, news: News, demand: Demand, *, board: Board, homes: dict[str, str], owner: str, ttl_us: int
) -> list[Claim]:
    """Running: take the oldest ready tasks of the highest priority for the slots of *demand*."""
    params = {
        "agent": demand.agent,
        "slots": demand.slots,
        "owner": owner,
        "lease_until": tx.now_us + ttl_us,
        "revision": demand.revision,
        "now": tx.now_us,
    }
    rows = sorted(await tx.fetch(_CLAIM, params), key=lambda row: (-row[1], row[0]))
    replicas = board.assign(demand, [row[6] for row in rows], homes)
    try:
        return await _start(tx, news, demand, rows, replicas)
    except BaseException:
        for replica in replicas:
            board.vacate(replica)
        raise


async def _start(
    tx: Transaction, news: News, demand: Demand, rows: Sequence[Row], replicas: Sequence[str]
) -> list[Claim]:
    claims, events = [], []
    for row, replica in zip(rows, replicas, strict=True):
        (_, _, seq, id, epoch, tenant, session, *rest) = row
        input_, metadata, charged, max_attempts, on_loss, backoff_us, run_us, deadline_at, submitted_by = rest
        state, state_revision = None, None
        if session is not None:
            key = {"tenant": tenant, "agent": demand.agent, "session": session}
            ((state, state_revision),) = await tx.fetch(_SESSION_STATE, key)
        claims.append(
            Claim(
                id=id,
                epoch=epoch,
                tenant=tenant,
                agent=demand.agent,
                revision=demand.revision,
                replica=replica,
                session=session,
                input=input_,
                metadata=metadata,
                attempts_charged=charged,
                max_attempts=max_attempts,
                on_replica_loss=on_loss,
                retry_backoff_us=backoff_us,
                run_timeout_us=run_us,
                deadline_at=deadline_at,
                claimed_at=tx.now_us,
                submitted_by=submitted_by,
                state=state,
                state_revision=state_revision,
            )
        )
        data = _encode({"state": "running", "attempt": charged, "replica": replica, "revision": demand.revision})
        events.append(_event(id, seq, epoch, tx.now_us, data))
        news.changed.add(id)
    if events:
        await tx.execute_many(_INSERT_EVENT, events)
    return claims


def _event(task: str, seq: int, epoch: int, at: int, data: bytes, type: str = "state") -> dict[str, Any]:
    return {"task": task, "seq": seq, "epoch": epoch, "type": type, "at": at, "data": data}


_FINISH = """
update task set state = :state, output = :output, error = :error, due_at = :due_at, finished_at = :finished_at,
    attempts_charged = attempts_charged - :refund, input_tokens = input_tokens + :input_tokens,
    output_tokens = output_tokens + :output_tokens, owner = null, lease_until = null, event_seq = event_seq + 1
where id = :id and epoch = :epoch and state in ('running', 'waiting')
returning id, event_seq, tenant, agent, session, epoch"""

_SAVE_SESSION = """
update session set state = :state, revision = :revision, tasks = tasks + 1, updated_at = :now
where tenant = :tenant and agent = :agent and id = :session"""


async def finish(tx: Transaction, news: News, items: Sequence[Finish]) -> list[bool]:
    """Succeeded, failed, expired, or queued again: False for an attempt that is fenced, of which nothing is stored."""
    rows = await tx.fetch_many(_FINISH, [_finish_row(item, tx.now_us) for item in items])
    by_attempt = {(row[0], row[5]): row[:5] for row in rows}
    events, is_stored = [], []
    for item in items:
        row = by_attempt.pop((item.id, item.epoch), None)
        is_stored.append(row is not None)
        if row is None:
            continue
        id, seq, tenant, agent, session = row
        data: dict[str, Any] = {"state": item.state, "reason": item.reason, "replica": item.replica}
        if item.error is not None:
            data["error"] = msgspec.Raw(item.error)
        events.append(_event(id, seq, item.epoch, tx.now_us, _encode(data)))
        if session is not None and item.session_state is not None and item.state == "succeeded":
            key = {"tenant": tenant, "agent": agent, "session": session, "now": tx.now_us}
            await tx.execute_many(_SAVE_SESSION, [key | {"state": item.session_state, "revision": item.revision}])
        await _note_end(tx, news, item, row)
    if events:
        await tx.execute_many(_INSERT_EVENT, events)
    return is_stored


def _finish_row(item: Finish, now_us: int) -> dict[str, Any]:
    return {
        "id": item.id,
        "epoch": item.epoch,
        "state": item.state,
        "output": item.output,
        "error": item.error if item.state in tasks.TERMINAL else None,
        "due_at": item.due_at,
        "finished_at": now_us if item.state in tasks.TERMINAL else None,
        "refund": item.refund,
        "input_tokens": item.input_tokens,
        "output_tokens": item.output_tokens,
    }


async def _note_end(tx: Transaction, news: News, item: Finish, row: Row) -> None:
    id, _, tenant, agent, session = row
    news.changed.add(id)
    if item.state in tasks.TERMINAL:
        news.ended.append(id)
        if session is not None:
            await _unblock(tx, news, {(tenant, agent, session)})
        if item.state != "succeeded" or item.epoch > 1:
            await _cancel_children(tx, news, id)
    elif item.due_at is None:
        news.ready.add(agent)
    else:
        news.due(item.due_at)


_UNBLOCK = """
update task set blocked = false where seq = (
    select seq from task where tenant = :tenant and agent = :agent and session = :session
        and state in ('queued', 'running', 'waiting') order by seq limit 1) and blocked"""


async def _unblock(tx: Transaction, news: News, sessions: Iterable[tuple[str, str, str]]) -> None:
    """Let the next task of each session go."""
    sessions = sorted(sessions)
    await _take(tx, sessions)
    for tenant, agent, session in sessions:
        await tx.execute_many(_UNBLOCK, [{"tenant": tenant, "agent": agent, "session": session}])
        news.ready.add(agent)


_APPEND = """
update task set event_seq = event_seq + :count where id = :id and epoch = :epoch and state in ('running', 'waiting')
returning event_seq"""


async def append(tx: Transaction, news: News, items: Sequence[Event]) -> list[bool]:
    """Store what running attempts emitted; False for those of a fenced attempt."""
    by_attempt: dict[tuple[str, int], list[int]] = {}
    for index, item in enumerate(items):
        by_attempt.setdefault((item.task, item.epoch), []).append(index)
    is_stored, rows = [False] * len(items), []
    for (id, epoch), indices in by_attempt.items():
        answer = await tx.fetch(_APPEND, {"id": id, "epoch": epoch, "count": len(indices)})
        if not answer:
            continue
        first = answer[0][0] - len(indices) + 1
        for offset, index in enumerate(indices):
            item, is_stored[index] = items[index], True
            rows.append(_event(id, first + offset, epoch, tx.now_us, item.data, item.type))
        news.changed.add(id)
    if rows:
        await tx.execute_many(_INSERT_EVENT, rows)
    return is_stored


_WAIT = """
update task set state = 'waiting', event_seq = event_seq + 1 where id = :id and epoch = :epoch and state = 'running'
returning event_seq"""
_RESUME = """
update task set state = 'running', event_seq = event_seq + 1 where id = :id and epoch = :epoch and state = 'waiting'
returning event_seq"""
# Locked: from here on nobody ends the parent, and with it the sub-tasks that there are, before this one is stored.
_STILL_LEASED = "select 1 from task where id = :id and epoch = :epoch and state in ('running', 'waiting') for update"


async def call(tx: Transaction, news: News, items: Sequence[Call]) -> list[Accepted | None]:
    """Waiting: store sub-tasks and let their parents wait; None where the parent's attempt is fenced."""
    answers: list[Accepted | None] = []
    for item in items:
        lease = {"id": item.parent, "epoch": item.epoch}
        if not await tx.fetch(_STILL_LEASED, lease):
            answers.append(None)
            continue
        (accepted,) = await submit(tx, news, [item.child])
        answers.append(accepted)
        await _move(tx, news, _WAIT, lease, {"state": "waiting", "for": accepted.id})
    return answers


async def resume(tx: Transaction, news: News, items: Sequence[Lease]) -> list[bool]:
    """Running: the sub-tasks of these waiting tasks have ended; False where the attempt is fenced."""
    answers = []
    for item in items:
        lease = {"id": item.id, "epoch": item.epoch}
        is_moved = await _move(tx, news, _RESUME, lease, {"state": "running"})
        answers.append(is_moved or bool(await tx.fetch(_STILL_LEASED, lease)))  # it may run already
    return answers


async def _move(tx: Transaction, news: News, sql: str, lease: dict[str, Any], data: dict[str, Any]) -> bool:
    rows = await tx.fetch(sql, lease)
    for (seq,) in rows:
        await tx.execute_many(_INSERT_EVENT, [_event(lease["id"], seq, lease["epoch"], tx.now_us, _encode(data))])
        news.changed.add(lease["id"])
    return bool(rows)


class Cancel(msgspec.Struct, frozen=True):
    id: str
    tenant: str


_TREE = """
with recursive tree (id) as (
    select id from task where {root} union select task.id from task join tree on task.parent = tree.id)"""

_CANCEL = """
update task set state = 'cancelled', error = :error, finished_at = :now, owner = null, lease_until = null,
    due_at = null,
    event_seq = event_seq + 1
where id in (select id from tree) and state in ('queued', 'running', 'waiting')
returning id, event_seq, epoch, tenant, agent, session"""

_CANCEL_TREE = _TREE.format(root="id = :id and tenant = :tenant") + _CANCEL
_CANCEL_BELOW = _TREE.format(root="parent = :id") + _CANCEL
_STATE = "select state from task where id = :id and tenant = :tenant for update"


async def cancel(tx: Transaction, news: News, items: Sequence[Cancel]) -> list[str | None]:
    """Cancelled: end tasks and all their sub-tasks for good. Answers the state before (None: no such task)."""
    answers: list[str | None] = []
    for item in items:
        key = {"id": item.id, "tenant": item.tenant}
        rows = await tx.fetch(_STATE, key)
        answers.append(rows[0][0] if rows else None)
        if rows and rows[0][0] not in tasks.TERMINAL:
            error = _encode(tasks.Error("cancelled", "the task was cancelled by its caller"))
            await _cancel_all(tx, news, _CANCEL_TREE, key | {"error": error, "now": tx.now_us})
    return answers


async def _cancel_children(tx: Transaction, news: News, parent: str) -> None:
    error = _encode(tasks.Error("cancelled", f"its parent task {parent} has ended"))
    await _cancel_all(tx, news, _CANCEL_BELOW, {"id": parent, "error": error, "now": tx.now_us})


async def _cancel_all(tx: Transaction, news: News, sql: str, params: dict[str, Any]) -> None:
    # Again until nothing is found: what was cancelled may have called another sub-task just before.
    while await _end_all(tx, news, sql, params, "cancelled"):
        pass


async def _end_all(tx: Transaction, news: News, sql: str, params: dict[str, Any], reason: str) -> list[str]:
    """Run a statement that ends tasks (returning id, event_seq, epoch, tenant, agent, session) and all that follows."""
    rows = await tx.fetch(sql, params)
    state = "expired" if reason == "timeout" else "cancelled"
    data = _encode({"state": state, "reason": reason})
    await tx.execute_many(_INSERT_EVENT, [_event(row[0], row[1], row[2], tx.now_us, data) for row in rows])
    for row in rows:
        news.ended.append(row[0])
        news.stopped.append(row[0])
        news.changed.add(row[0])
    await _unblock(tx, news, {(row[3], row[4], row[5]) for row in rows if row[5] is not None})
    return [row[0] for row in rows]


class Renewal(msgspec.Struct, frozen=True):
    owner: str
    ttl_us: int


_RENEW = """
update task set lease_until = :until where owner = :owner and lease_until is not null returning id, epoch"""


async def renew(tx: Transaction, news: News, items: Sequence[Renewal]) -> list[set[tuple[str, int]]]:
    """Extend every lease of each owner; answers what it still holds: what is missing there is fenced."""
    return [
        {(row[0], row[1]) for row in await tx.fetch(_RENEW, {"owner": item.owner, "until": tx.now_us + item.ttl_us})}
        for item in items
    ]


class Rescue(msgspec.Struct, frozen=True):
    """*not_owner*: also rescue what any other incarnation holds, expired or not (one node, one file: SQLite).

    *spared*: who asks; it renews its own leases, and a jump of its clock must not take its work away.
    """

    not_owner: str | None = None
    spared: str | None = None


MAX_MOVED = 500  # tasks that one rescue, or either half of a tick, moves: what commits together stays short

_RESCUE = """
with lost as materialized (
    select seq from task where lease_until is not null and (lease_until < :now or owner <> :not_owner)
        and (cast(:spared as text) is null or owner <> :spared)
    order by lease_until limit :most for update skip locked)
update task set
    state = case when on_replica_loss = 'fail' or attempts_charged >= max_attempts then 'failed' else 'queued' end,
    error = case when on_replica_loss = 'fail' or attempts_charged >= max_attempts then :error else error end,
    finished_at = case when on_replica_loss = 'fail' or attempts_charged >= max_attempts then :now else finished_at end,
    owner = null, lease_until = null, event_seq = event_seq + 1
from lost where task.seq = lost.seq
returning id, event_seq, tenant, agent, session, epoch, state"""


async def rescue(tx: Transaction, news: News, items: Sequence[Rescue]) -> list[int]:
    """Queued or failed: take back what was leased to nodes that are gone, at most `MAX_MOVED` tasks."""
    error = _encode(tasks.Error("replica_lost", "the node that ran this task was lost", may_have_run=True))
    answers = []
    for item in items:
        params = {
            "now": tx.now_us,
            "error": error,
            "not_owner": item.not_owner,
            "spared": item.spared,
            "most": MAX_MOVED,
        }
        rows = await tx.fetch(_RESCUE, params)
        events = []
        for row in rows:
            finished = Finish(row[0], row[5], row[6], tasks.Reason.FENCED, "")
            events.append(
                _event(row[0], row[1], row[5], tx.now_us, _encode({"state": row[6], "reason": tasks.Reason.FENCED}))
            )
            await _note_end(tx, news, finished, row[:5])
        await tx.execute_many(_INSERT_EVENT, events)
        answers.append(len(rows))
    return answers


class Tick(msgspec.Struct, frozen=True):
    """Let what is due become claimable, and end what waited too long."""


_PROMOTE = """
with due as materialized (
    select seq from task where state = 'queued' and due_at is not null and due_at <= :now
    order by due_at limit :most for update skip locked)
update task set due_at = null from due where task.seq = due.seq returning agent"""
_EXPIRE = """
with late as materialized (
    select seq from task where state = 'queued' and deadline_at is not null and deadline_at <= :now
    order by deadline_at limit :most for update skip locked)
update task set state = 'expired', error = :error, finished_at = :now, due_at = null, event_seq = event_seq + 1
from late where task.seq = late.seq returning id, event_seq, epoch, tenant, agent, session"""
_NEXT_DUE = """
select min(least_us) from (
    select min(due_at) as least_us from task where state = 'queued' and due_at is not null
    union all select min(deadline_at) from task where state = 'queued' and deadline_at is not null) as nearest"""


async def tick(tx: Transaction, news: News, items: Sequence[Tick]) -> list[int | None]:
    """Promote and expire, at most `MAX_MOVED` tasks each.

    Answers the microseconds until the next instant at which this has to be done, 0 if there is more, or None.
    """
    error = _encode(tasks.Error("timeout", "the task's time was over before it could run"))
    params = {"now": tx.now_us, "most": MAX_MOVED}
    news.ready.update(row[0] for row in await tx.fetch(_PROMOTE, params))
    for id in await _end_all(tx, news, _EXPIRE, params | {"error": error}, "timeout"):
        await _cancel_children(tx, news, id)  # of an earlier attempt
    ((next_us,),) = await tx.fetch(_NEXT_DUE, {})
    return [None if next_us is None else max(0, next_us - tx.now_us)] * len(items)


ORDER = (submit, append, call, resume, finish, cancel, renew, rescue, tick)
