"""The statements that move tasks: one for each move of `core.tasks.TRANSITIONS`, each a compare-and-set.

Operations of `store.commits`: ``async (transaction, news, items) -> results``; the move to running is in
`store.claims`. Who changes whether a session has open tasks first takes the session's row, so that blocking and
unblocking never miss each other. A stale attempt (lower epoch) moves nothing and writes nothing. What the rows of tasks
do not tell by themselves (`rows.moves`) is written as events in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from greenroom.core import tasks
from greenroom.store import database, results, rows, sessions, submissions
from greenroom.store.database import Row, Transaction
from greenroom.store.news import KeyedEnd, News
from greenroom.store.rows import (
    Accepted,
    Call,
    Cancel,
    Event,
    Finish,
    Lease,
    Renewal,
    Rescue,
    SessionKey,
    Task,
    Tick,
)
from greenroom.store.vault import is_pause

_encode = msgspec.json.encode

_IS_LEASED = f"state in ('running', 'waiting') and {rows.IS_OPEN}"


_INSERT_EVENT = """
insert into task_event (task, seq, epoch, type, at, data) values (:task, :seq, :epoch, :type, :at, :data)"""


async def _put_events(tx: Transaction, news: News, tenant: str, events: Sequence[dict[str, Any]]) -> None:
    """Store events of the tasks of *tenant*, whose keys are taken."""
    for event in events:
        if not is_pause(event["type"], event["data"]):
            place = (event["task"], str(event["seq"]))
            event["data"] = news.seals.seal(tenant, "task_event", "data", place, event["data"])
    await tx.execute_many(_INSERT_EVENT, events)


def _event(task: str, seq: int, epoch: int, at: int, data: bytes, type: str = "state") -> dict[str, Any]:
    return {"task": task, "seq": seq, "epoch": epoch, "type": type, "at": at, "data": data}


# Locked: from here on nobody else ends these attempts.
_LEASED = f"""
select {", ".join(Task.__struct_fields__)} from task
where id = :id and epoch = :epoch and state in ('running', 'waiting') for update"""
# What is given is in the order of the names here, too: see `_ending`.
_FINISH = """
update task set state = :state, output = :output, error = :error, due_at = :due_at, finished_at = :finished_at,
    reason = :reason, attempts_charged = attempts_charged - :refund, input_tokens = input_tokens + :input_tokens,
    output_tokens = output_tokens + :output_tokens, owner = null, lease_until = null, event_seq = event_seq + 1
where seq = :seq and epoch = :epoch and state in ('running', 'waiting')"""

# What a task that succeeded was started with is known to be good: the state until now, or the one it had restored.
_SAVE_SESSION = """
update session set state = :state, revision = :revision, tasks = tasks + 1, updated_at = :now,
    good_state = case when :restored then good_state else coalesce(:good, state) end,
    good_revision = case when :restored then good_revision else revision end
where tenant = :tenant and agent = :agent and id = :session"""
_SESSION_STATE = "select state from session where tenant = :tenant and agent = :agent and id = :session"


async def finish(tx: Transaction, news: News, items: Sequence[Finish]) -> list[bool]:
    """Succeeded, failed, expired, or queued again: False for an attempt that is fenced, of which nothing is stored."""
    found = await tx.fetch_many(_LEASED, [(item.id, item.epoch) for item in items])
    leased = {(row[_ID], row[_EPOCH]): row for row in found}
    ends: list[tuple[Finish, Row]] = []
    is_stored = []
    for item in items:
        row = leased.pop((item.id, item.epoch), None)
        is_stored.append(row is not None)
        if row is not None:
            ends.append((item, row))
    await news.seals.take(tx, {row[_TENANT] for _, row in ends})
    await tx.execute_many(_FINISH, [_ending(news, item, row, tx.now_us) for item, row in ends])
    for item, row in ends:
        if item.state in tasks.TERMINAL:
            await _note_end(tx, news, item, row)
        else:
            await _note_requeue(tx, news, Task(*row), item)
    return is_stored


_SEQ, _ID, _EPOCH, _TENANT, _AGENT, _SESSION, _CACHE_KEY, _WEBHOOK = (
    Task.__struct_fields__.index(name)
    for name in ("seq", "id", "epoch", "tenant", "agent", "session", "cache_key", "webhook")
)


def _ending(news: News, item: Finish, row: Row, now_us: int) -> tuple[Any, ...]:
    end: tuple[Any, ...] = item.state, None, None, item.due_at, None, None
    if item.state in tasks.TERMINAL:
        output, error = item.output, item.error
        if news.seals.vault.is_on:
            seal, tenant, place = news.seals.seal, row[_TENANT], (item.id,)
            output = seal(tenant, "task", "output", place, output)
            error = seal(tenant, "task", "error", place, error)
        end = item.state, output, error, None, now_us, item.reason
    return *end, item.refund, item.input_tokens, item.output_tokens, row[_SEQ], item.epoch


async def _note_end(tx: Transaction, news: News, item: Finish, row: Row) -> None:
    tenant, agent, session = row[_TENANT], row[_AGENT], row[_SESSION]
    news.end(item.id, tenant, agent, item.state, lambda: _ended(news, row, item, tx.now_us))
    if row[_WEBHOOK] is not None:
        news.hooked.append(item.id)
    if session is not None:
        if item.session_state is not None and item.state == "succeeded":
            await _save_session(tx, news, item, {"tenant": tenant, "agent": agent, "session": session})
        await _unblock(tx, news, {(tenant, agent, session)})
    elif (key := row[_CACHE_KEY]) is not None:
        output = item.output if item.state == "succeeded" else None
        news.keyed.append(KeyedEnd(tenant, agent, key, item.id, item.revision, output))
    if item.state != "succeeded" or item.epoch > 1:
        await _cancel_children(tx, news, item.id)


async def _save_session(tx: Transaction, news: News, item: Finish, key: dict[str, Any]) -> None:
    tenant, place = key["tenant"], (key["agent"], key["session"])
    state, good = news.seals.seal(tenant, "session", "state", place, item.session_state), None
    if news.seals.vault.is_used and not item.is_restored:  # sealed for another column, it would not open in this one
        ((before,),) = await tx.fetch(_SESSION_STATE, key)
        before = await news.seals.vault.opened(tenant, "session", "state", place, before)
        good = news.seals.seal(tenant, "session", "good_state", place, before)
    saved = {"state": state, "good": good, "revision": item.revision, "restored": item.is_restored}
    await tx.execute_many(_SAVE_SESSION, [key | saved | {"now": tx.now_us}])


def _ended(news: News, row: Row, item: Finish, now_us: int) -> Task | None:
    """Return the task that *item* has made of *row*, if that can be read at once."""
    task = news.seals.vault.task_at_hand(row, input=item.input)
    if task is None:
        return None
    return msgspec.structs.replace(
        task,
        state=item.state,
        output=item.output,
        error=item.error,
        reason=item.reason,
        due_at=None,
        finished_at=now_us,
        event_seq=task.event_seq + 1,
        input_tokens=task.input_tokens + item.input_tokens,
        output_tokens=task.output_tokens + item.output_tokens,
    )


_PIN = sessions.PIN.format(tenant="task.tenant", agent="task.agent", session="task.session")
_UNCLAIM = f"""
update task set replica = null, claimed_at = null, claim_seq = null, kills = kills + :kills,
    restores = case when :restores = 1 then 1 else restores end, pin = case when session is not null then {_PIN} end
where id = :id"""


async def _note_requeue(tx: Transaction, news: News, task: Task, item: Finish) -> None:
    """Write what the row of a task that is queued again tells no more: how its attempt began, and why it ended."""
    end: dict[str, Any] = {"state": item.state, "reason": item.reason, "replica": task.replica}
    if item.error is not None:
        end["error"] = msgspec.Raw(item.error)
    events = [_event(task.id, task.event_seq + 1, task.epoch, tx.now_us, _encode(end))]
    if task.claim_seq is not None and task.claimed_at is not None:
        events.append(_event(task.id, task.claim_seq, task.epoch, task.claimed_at, _encode(rows.begin(task))))
    await _put_events(tx, news, task.tenant, events)
    await tx.execute_many(_UNCLAIM, [{"id": task.id, "kills": item.kills, "restores": item.restores}])
    news.changed.add(task.id)
    if task.kills + item.kills >= tasks.SUSPECT_KILLS:
        news.suspects.add(task.agent)
    if item.due_at is None:
        news.ready.add((task.agent, task.tenant))
    else:
        news.due(item.due_at)


# Behind what waits of its tenant and priority: the newest task, and those that other sessions have let go since.
_LAST_RANK = f"""(
    select {rows.RANK} from task other where other.agent = task.agent and other.tenant = task.tenant
        and other.state = 'queued' and other.due_at is null and not other.blocked and other.priority = task.priority
    order by {rows.RANK} desc limit 1)"""
_UNBLOCK = f"""
update task set blocked = false, pin = {_PIN}, rank = 1 + case
    when {_LAST_RANK} > (select max(seq) from task) * 1048576 then {_LAST_RANK}
    else (select max(seq) from task) * 1048576 end
where seq = (
    select seq from task where tenant = :tenant and agent = :agent and session = :session
        and {rows.IS_OPEN} order by seq limit 1) and blocked"""


async def _unblock(tx: Transaction, news: News, keys: set[SessionKey]) -> None:
    """Let the next task of each session go."""
    await sessions.take(tx, keys)
    for tenant, agent, session in sorted(keys):
        await tx.execute_many(_UNBLOCK, [{"tenant": tenant, "agent": agent, "session": session}])
        news.ready.add((agent, tenant))


_APPEND = """
update task set event_seq = event_seq + :count where id = :id and epoch = :epoch and state in ('running', 'waiting')
returning event_seq, tenant"""


async def append(tx: Transaction, news: News, items: Sequence[Event]) -> list[bool]:
    """Store what running attempts emitted; False for those of a fenced attempt."""
    by_attempt: dict[tuple[str, int], list[int]] = {}
    for index, item in enumerate(items):
        by_attempt.setdefault((item.task, item.epoch), []).append(index)
    is_stored = [False] * len(items)
    stored: dict[str, list[dict[str, Any]]] = {}
    for (id, epoch), indices in by_attempt.items():
        answer = await tx.fetch(_APPEND, {"id": id, "epoch": epoch, "count": len(indices)})
        if not answer:
            continue
        last, tenant = answer[0]
        first = last - len(indices) + 1
        events = []
        for offset, index in enumerate(indices):
            item, is_stored[index] = items[index], True
            events.append(_event(id, first + offset, epoch, tx.now_us, item.data, item.type))
        stored.setdefault(tenant, []).extend(events)
        news.changed.add(id)
    await news.seals.take(tx, stored.keys())
    for tenant, events in stored.items():
        await _put_events(tx, news, tenant, events)
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
        if item.child.cache_key is not None:
            accepted = await results.submit_call(tx, news, item.child)
        else:
            (accepted,) = await submissions.submit(tx, news, [item.child])
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


_TREE = """
with recursive tree (id) as (
    select id from task where {root} union select task.id from task join tree on task.parent = tree.id)"""

_CANCEL = f"""
update task set state = 'cancelled', reason = 'cancelled', finished_at = :now, owner = null,
    lease_until = null, due_at = null, event_seq = event_seq + 1
where id in (select id from tree) and {rows.IS_OPEN}
returning id, tenant, agent, session, state, epoch, cache_key, webhook"""

_CANCEL_TREE = _TREE.format(root="id = :id and tenant = :tenant") + _CANCEL
_CANCEL_BELOW = _TREE.format(root="parent = :id") + _CANCEL
_STATE = "select state from task where id = :id and tenant = :tenant for update"


async def cancel(tx: Transaction, news: News, items: Sequence[Cancel]) -> list[str | None]:
    """Cancelled: end tasks and all their sub-tasks for good. Answers the state before (None: no such task)."""
    answers: list[str | None] = []
    for item in items:
        key = {"id": item.id, "tenant": item.tenant}
        found = await tx.fetch(_STATE, key)
        answers.append(found[0][0] if found else None)
        if found and found[0][0] not in tasks.TERMINAL:
            error = tasks.Error("cancelled", "the task was cancelled by its caller")
            await _cancel_all(tx, news, _CANCEL_TREE, key, error)
    return answers


async def _cancel_children(tx: Transaction, news: News, parent: str) -> None:
    error = tasks.Error("cancelled", f"its parent task {parent} has ended")
    await _cancel_all(tx, news, _CANCEL_BELOW, {"id": parent}, error)


async def _cancel_all(tx: Transaction, news: News, sql: str, params: dict[str, Any], error: tasks.Error) -> None:
    # Again until nothing is found: what was cancelled may have called another sub-task just before.
    while await _end_all(tx, news, sql, params, error):
        pass


_SAY_WHY = "update task set error = :error where id = :id"


async def _end_all(tx: Transaction, news: News, sql: str, params: dict[str, Any], error: tasks.Error) -> list[str]:
    """Run a statement that ends tasks, which returns what `_CANCEL` does, and what follows from that."""
    ended = await tx.fetch(sql, params | {"now": tx.now_us})
    await news.seals.take(tx, {row[1] for row in ended})
    plain, after_run = _encode(error), _encode(msgspec.structs.replace(error, may_have_run=True))
    whys = []
    for id, tenant, _, _, _, epoch, _, _ in ended:
        why = news.seals.seal(tenant, "task", "error", (id,), after_run if epoch else plain)
        whys.append({"error": why, "id": id})
    await tx.execute_many(_SAY_WHY, whys)
    news.hooked += [row[0] for row in ended if row[7] is not None]
    for id, tenant, agent, _, state, epoch, key, _ in ended:
        news.end(id, tenant, agent, state)
        news.stopped.append(id)
        if state == tasks.State.EXPIRED or not epoch:  # of one that was begun nobody knows here whether it waited again
            news.left[tenant] += 1
        if key is not None:
            news.keyed.append(KeyedEnd(tenant, agent, key, id))
    await _unblock(tx, news, {(row[1], row[2], row[3]) for row in ended if row[3] is not None})
    return [row[0] for row in ended]


_RENEW = f"""
update task set lease_until = :until where owner = :owner and {_IS_LEASED} returning id, epoch"""


async def renew(tx: Transaction, news: News, items: Sequence[Renewal]) -> list[set[tuple[str, int]]]:
    """Extend every lease of each owner; answers what it still holds: what is missing there is fenced."""
    return [
        {(row[0], row[1]) for row in await tx.fetch(_RENEW, {"owner": item.owner, "until": tx.now_us + item.ttl_us})}
        for item in items
    ]


MAX_MOVED = 500  # tasks that one rescue, or either half of a tick, moves: what commits together stays short
_GOLDEN = 0.618033988749895  # its multiples are spread evenly between whole numbers

_LOST = f"""
select on_replica_loss, retry_backoff_us, {", ".join(Task.__struct_fields__)} from task
where {_IS_LEASED} and (lease_until < :now or owner <> :not_owner)
    and (cast(:spared as text) is null or owner <> :spared)
limit :most for update skip locked"""


async def rescue(tx: Transaction, news: News, items: Sequence[Rescue]) -> list[int]:
    """Queued or failed: take back what was leased to nodes that are gone, at most `MAX_MOVED` tasks."""
    answers = []
    for item in items:
        who = {"not_owner": item.not_owner, "spared": item.spared}
        lost = await tx.fetch(_LOST, who | {"now": tx.now_us, "most": MAX_MOVED})
        await finish(tx, news, [_loss(row, item.jitter, tx.now_us) for row in lost])
        answers.append(len(lost))
    return answers


def _loss(row: Row, jitter: float, now_us: int) -> Finish:
    """Decide what becomes of a task whose node was lost."""
    on_replica_loss, backoff_us, *columns = row
    task = Task(*columns)
    verdict = tasks.settle(
        tasks.ReplicaGone(tasks.Reason.FENCED, "its node was lost"),
        attempts_charged=task.attempts_charged,
        policy=tasks.Policy(task.max_attempts, on_replica_loss, backoff_us / 1e6),
        now=database.instant(now_us),
        jitter=(jitter + task.seq * _GOLDEN) % 1.0,  # a spread of their own for those that were lost together
    )
    return Finish(
        id=task.id,
        epoch=task.epoch,
        state=verdict.state,
        reason=verdict.reason,
        replica=task.replica or "",
        due_at=None if verdict.due_at is None else database.microseconds(verdict.due_at),
        error=None if verdict.error is None else _encode(verdict.error),
    )


_PROMOTE = """
with due as materialized (
    select seq from task where state = 'queued' and due_at is not null and due_at <= :now
    order by due_at limit :most for update skip locked)
update task set due_at = null from due where task.seq = due.seq returning agent, tenant"""
_EXPIRE = """
with late as materialized (
    select seq from task where state = 'queued' and deadline_at is not null and deadline_at <= :now
    order by deadline_at limit :most for update skip locked)
update task set state = 'expired', reason = 'timeout', finished_at = :now, due_at = null,
    event_seq = event_seq + 1
from late where task.seq = late.seq returning id, tenant, agent, session, state, epoch, cache_key, webhook"""
_EXPIRE_ONE = """
update task set state = 'expired', reason = 'timeout', finished_at = :now, due_at = null,
    event_seq = event_seq + 1
where id = :id and state = 'queued' returning id, tenant, agent, session, state, epoch, cache_key, webhook"""
_LATE = tasks.Error("timeout", "the task's time was over while it was queued")
_NEXT_DUE = """
select min(least_us) from (
    select min(due_at) as least_us from task where state = 'queued' and due_at is not null
    union all select min(deadline_at) from task where state = 'queued' and deadline_at is not null) as nearest"""


async def tick(tx: Transaction, news: News, items: Sequence[Tick]) -> list[int | None]:
    """Promote and expire, at most `MAX_MOVED` tasks each.

    Answers the microseconds until the next instant at which this has to be done, 0 if there is more, or None.
    """
    params = {"now": tx.now_us, "most": MAX_MOVED}
    news.ready.update((row[0], row[1]) for row in await tx.fetch(_PROMOTE, params))
    for id in await _end_all(tx, news, _EXPIRE, params, _LATE):
        await _cancel_children(tx, news, id)  # of an earlier attempt
    ((next_us,),) = await tx.fetch(_NEXT_DUE, {})
    return [None if next_us is None else max(0, next_us - tx.now_us)] * len(items)


async def expire(tx: Transaction, news: News, ids: Sequence[str]) -> None:
    """Expired: end queued tasks that were found to be late."""
    for id in ids:
        if await _end_all(tx, news, _EXPIRE_ONE, {"id": id}, _LATE):
            await _cancel_children(tx, news, id)


_COUNT = """
insert into ended_count (tenant, agent, state, tasks) values (:tenant, :agent, :state, :tasks)
on conflict (tenant, agent, state) do update set tasks = ended_count.tasks + excluded.tasks"""


async def count(tx: Transaction, news: News) -> None:
    """Count what ended in this transaction."""
    if news.endings:
        counted = sorted(news.endings.items())
        names = ("tenant", "agent", "state")
        await tx.execute_many(_COUNT, [dict(zip(names, key, strict=True)) | {"tasks": n} for key, n in counted])


ORDER = (append, call, resume, finish, cancel, renew, rescue, tick)
