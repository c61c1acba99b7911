"""Submissions: what a caller asks for, completed by what its agent's spec says, and how it is stored.

For the API and ``Context.call``; `store.claims` says which submissions run at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from greenroom import random_bits, settings
from greenroom.store import database, sessions
from greenroom.store.database import Transaction
from greenroom.store.news import News
from greenroom.store.rows import IS_OPEN, Accepted, NewTask
from greenroom.store.sealed import SEALED
from greenroom.store.vault import Seals


def new_id() -> str:
    """Return 128 unpredictable bits, as 32 hexadecimal digits (ASVS 11.5.1: not a plain UUID)."""
    return random_bits.token_hex(16)


def task_id(now: datetime) -> str:
    """Return *now* in milliseconds and 128 unpredictable bits, as 11 and 32 hexadecimal digits.

    The time is in front so that tasks of one commit, and their events, share pages: each of ids that are random from
    their first digit would have three pages of its own written.
    """
    return f"{database.microseconds(now) // 1000:011x}{new_id()}"


def fingerprint(*parts: bytes) -> bytes:
    """Return what two equal requests have in common."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()[:16]


def new_task(
    agent: str,
    spec: settings.AgentSettings,
    *,
    now: datetime,
    tenant: str,
    input: bytes,
    submitted_by: str,
    session: str | None = None,
    priority: int = 0,
    timeout_s: float | None = None,
    not_before: datetime | None = None,
    deadline_us: int | None = None,
    parent: str | None = None,
    depth: int = 0,
    idempotency_key: str | None = None,
    fingerprint: bytes | None = None,
    metadata: bytes | None = None,
    routing: bytes | None = None,
    trace: str | None = None,
    cache_key: str | None = None,
    webhook: str | None = None,
) -> NewTask:
    """Build the task. *timeout_s* is of the whole task, queue included; the spec's is of one attempt."""
    return NewTask(
        id=task_id(now),
        tenant=tenant,
        agent=agent,
        input=input,
        submitted_by=submitted_by,
        run_timeout_us=int(spec.timeout_s * 1e6),
        max_attempts=spec.max_attempts,
        on_replica_loss=spec.on_replica_loss,
        retry_backoff_us=int(spec.retry_backoff_s * 1e6),
        session=session,
        priority=priority,
        not_before=None if not_before is None else database.microseconds(not_before),
        deadline_at=deadline_us,
        timeout_us=None if timeout_s is None else int(timeout_s * 1e6),
        parent=parent,
        depth=depth,
        idempotency_key=idempotency_key,
        fingerprint=fingerprint,
        metadata=metadata,
        routing=routing,
        trace=trace,
        cache_key=cache_key,
        webhook=webhook,
    )


class Placing(msgspec.Struct, frozen=True):
    """How a task is stored: queued, or claimed already for a slot that is free. All fields are columns."""

    state: str = "queued"
    epoch: int = 0
    event_seq: int = 1
    attempts_charged: int = 0
    owner: str | None = None
    lease_until: int | None = None
    revision: int | None = None
    replica: str | None = None
    claimed_at: int | None = None
    claim_seq: int | None = None
    started_at: int | None = None


QUEUED = Placing()

CacheKey = tuple[str, str, str]  # tenant, agent, and the key of a revision and an input


class Found(msgspec.Struct, frozen=True):
    """A result that is kept: of which *task*, and which revision made it."""

    task: str
    revision: int | None
    output: bytes


_GIVEN = NewTask.__struct_fields__[:-4]  # two of the last make up deadline_at, few have the others
_INSERTED = (*_GIVEN, "deadline_at", "due_at", "created_at", "blocked", "pin", *Placing.__struct_fields__)
_ANSWERED = ("cache_key", "output", "reason", "cached_from", "finished_at")


def _insert_sql(columns: Sequence[str]) -> str:
    return f"\ninsert into task ({', '.join(columns)}) values ({', '.join(f':{name}' for name in columns)})"


# Apart, so that tasks without a key of the result cache have nothing of it to carry.
_INSERT, _INSERT_KEYED = _insert_sql(_INSERTED), _insert_sql((*_INSERTED, *_ANSWERED))
_ONCE = """
on conflict (tenant, idempotency_key) where idempotency_key is not null do nothing
returning id"""

_SESSION = f"""
select {sessions.PIN.format(tenant=":tenant", agent=":agent", session=":session")}, exists (
    select 1 from task where tenant = :tenant and agent = :agent and session = :session and {IS_OPEN})"""

_BY_KEY = "select id, fingerprint, created_at from task where tenant = :tenant and idempotency_key = :idempotency_key"


async def submit(
    tx: Transaction, news: News, items: Sequence[NewTask], placings: Sequence[Placing] = ()
) -> list[Accepted]:
    """Store tasks: queued, or as *placings* says of each of them.

    A used idempotency key stores nothing and answers with the task that it stands for.
    """
    placings = placings or [QUEUED] * len(items)
    if keys := {(item.tenant, item.agent, item.session) for item in items if item.session is not None}:
        await sessions.take(tx, keys)
        await news.seals.take(tx, {item.tenant for item in items})
        return [await _submit_one(tx, news, item, placing) for item, placing in zip(items, placings, strict=True)]
    await news.seals.take(tx, {item.tenant for item in items})
    inserts = [_insertion(news, item, placing, tx.now_us) for item, placing in zip(items, placings, strict=True)]
    stored = await _insert(tx, items, inserts)
    return [
        _accepted(news, item, placing, tx.now_us) if item.id in stored else await _replayed(tx, news, item)
        for item, placing in zip(items, placings, strict=True)
    ]


async def _insert(
    tx: Transaction, items: Sequence[NewTask], inserts: Sequence[tuple[Any, ...]], sql: str = _INSERT
) -> set[str]:
    """Store rows; return the ids of those whose idempotency key was new."""
    # Apart, because SQLite makes a table for what each statement returns: 1 µs a task, or 20 when memory is unlucky.
    plain = [insert for item, insert in zip(items, inserts, strict=True) if item.idempotency_key is None]
    once = [insert for item, insert in zip(items, inserts, strict=True) if item.idempotency_key is not None]
    await tx.execute_many(sql, plain)
    stored = {item.id for item in items if item.idempotency_key is None}
    return stored | {row[0] for row in await tx.fetch_many(sql + _ONCE, once)} if once else stored


async def submit_keyed(
    tx: Transaction, news: News, items: Sequence[NewTask], found: Mapping[CacheKey, Found]
) -> list[Accepted]:
    """Store tasks that have a key of the result cache: as succeeded with what was *found* for it, else blocked.

    Sub-tasks are not blocked.
    """
    await news.seals.take(tx, {item.tenant for item in items})
    inserts, answered = [], set()
    for item in items:
        assert item.cache_key is not None
        result = found.get((item.tenant, item.agent, item.cache_key))
        end: tuple[Any, ...] = (None,) * 4
        placing = QUEUED
        if result is not None:
            placing = Placing(state="succeeded", event_seq=2, revision=result.revision)
            output = news.seals.seal(item.tenant, "task", "output", (item.id,), result.output)
            end = (output, "cached", result.task, tx.now_us)
            answered.add(item.id)
        insertion = _insertion(news, item, placing, tx.now_us, is_blocked=result is None and item.parent is None)
        inserts.append((*insertion, item.cache_key, *end))
    stored = await _insert(tx, items, inserts, _INSERT_KEYED)
    return [
        _accepted_keyed(news, item, tx.now_us, is_answered=item.id in answered)
        if item.id in stored
        else await _replayed(tx, news, item)
        for item in items
    ]


def _accepted_keyed(news: News, item: NewTask, now_us: int, *, is_answered: bool) -> Accepted:
    if item.webhook is not None:
        news.named[item.id] = item.webhook
        news.hooked += [item.id] if is_answered else []
    if is_answered:
        news.end(item.id, item.tenant, item.agent, "succeeded")
    elif item.parent is not None:
        news.ready.add((item.agent, item.tenant))
    return Accepted(item.id, True, True, now_us, deadline_at(item, now_us), is_answered)


async def _submit_one(tx: Transaction, news: News, item: NewTask, placing: Placing) -> Accepted:
    pin, is_blocked = None, False
    if item.session is not None:
        key = {"tenant": item.tenant, "agent": item.agent, "session": item.session}
        ((pin, is_blocked),) = await tx.fetch(_SESSION, key)
        pin = None if is_blocked else pin  # it gets one when it may be claimed
    if await _insert(tx, [item], [_insertion(news, item, placing, tx.now_us, is_blocked=bool(is_blocked), pin=pin)]):
        return _accepted(news, item, placing, tx.now_us)
    return await _replayed(tx, news, item)


def deadline_at(item: NewTask, now_us: int) -> int | None:
    """Return the instant by which a task that is accepted now must have ended."""
    if item.timeout_us is None:
        return item.deadline_at
    deadline_us = max(now_us, item.not_before or 0) + item.timeout_us
    return min(deadline_us, item.deadline_at or deadline_us)


def _due_at(item: NewTask, now_us: int) -> int | None:
    return item.not_before if item.not_before is not None and item.not_before > now_us else None


def _insertion(
    news: News, item: NewTask, placing: Placing, now_us: int, *, is_blocked: bool = False, pin: int | None = None
) -> tuple[Any, ...]:
    given, placed = _sealed(news.seals, item), msgspec.structs.astuple(placing)
    return *given[:-4], deadline_at(item, now_us), _due_at(item, now_us), now_us, is_blocked, pin, *placed


_SEALED = tuple((_GIVEN.index(name), name) for name in SEALED["task"].columns if name in _GIVEN)
_FINGERPRINT = _GIVEN.index("fingerprint")


def _sealed(seals: Seals, item: NewTask) -> Sequence[Any]:
    given = msgspec.structs.astuple(item)
    if not seals.vault.is_on:
        return given
    sealed, place = list(given), (item.id,)
    for index, name in _SEALED:
        if (value := given[index]) is not None:
            sealed[index] = seals.seal(item.tenant, "task", name, place, value)
    sealed[_FINGERPRINT] = seals.fingerprint(item.tenant, item.fingerprint)
    return sealed


def _accepted(news: News, item: NewTask, placing: Placing, now_us: int) -> Accepted:
    if item.webhook is not None:
        news.named[item.id] = item.webhook
    if placing is QUEUED:
        due_at = _due_at(item, now_us)
        if due_at is None:
            news.ready.add((item.agent, item.tenant))
        else:
            news.due(due_at)
    return Accepted(item.id, True, True, now_us, deadline_at(item, now_us))


async def _replayed(tx: Transaction, news: News, item: NewTask) -> Accepted:
    key = {"tenant": item.tenant, "idempotency_key": item.idempotency_key}
    ((id, fingerprint, created_at),) = await tx.fetch(_BY_KEY, key)
    matches = await news.seals.vault.is_same(item.tenant, fingerprint, item.fingerprint)
    return Accepted(id, False, matches, created_at)
