"""Tasks in the store: what the API and the loops call. Writing goes through the group commit, reading does not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from greenroom import errors
from greenroom.core import tasks
from greenroom.store import database, transitions
from greenroom.store.commits import Commits
from greenroom.store.transitions import Accepted, Call, Event, Finish, Lease, NewTask

MAX_PAGE = 200
MAX_EVENTS_PAGE = 500


class Task(msgspec.Struct, frozen=True):
    """A task's row. Instants are microseconds, byte fields JSON."""

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
    revision: int | None
    parent: str | None
    submitted_by: str
    input: bytes
    output: bytes | None
    error: bytes | None
    metadata: bytes | None
    routing: bytes | None
    input_tokens: int
    output_tokens: int
    created_at: int
    started_at: int | None
    finished_at: int | None


class StoredEvent(msgspec.Struct, frozen=True):
    seq: int
    epoch: int
    type: str
    at: int
    data: bytes


class Ended(msgspec.Struct, frozen=True):
    """A task as its end left it, and its state events."""

    task: Task
    state_events: Sequence[StoredEvent]


_COLUMNS = ", ".join(Task.__struct_fields__)
_GET = f"select {_COLUMNS} from task where id = :id and tenant = :tenant"
_EVENTS = """
select seq, epoch, type, at, data from task_event where task = :task and seq > :after order by seq limit :limit"""
# A task may wait for thousands of sub-tasks: what begins and ends its attempts goes before that, the newest first.
_STATE_EVENTS = """
select task, seq, epoch, type, at, data from (
    select task, seq, epoch, type, at, data from task_event where task = :id and type = 'state'
    order by case when substr(data, 1, 19) in (:waiting, :resumed) then 1 else 0 end, seq desc limit 500) as latest
order by seq"""
_PAUSES = {"waiting": b'{"state":"waiting",', "resumed": b'{"state":"running"}'}
_SHOW = f"select {_COLUMNS} from task where id = :id"
# As the partial indexes have it, to the letter: SQLite does not find that one state is among them.
_IS_OPEN = "state in ('queued', 'running', 'waiting')"
_HAS_ENDED = "state in ('succeeded', 'failed', 'cancelled', 'expired')"
_OPEN_COUNTS = f"select agent, state, count(*) from task where {_IS_OPEN} group by agent, state"
_QUEUED = f"select count(*) from task where state = 'queued' and {_IS_OPEN}"
_END_COUNTS = f"select agent, state, count(*) from task where tenant = :tenant and {_HAS_ENDED} group by agent, state"


async def shown(tx: database.Transaction, ids: Sequence[str]) -> dict[str, Ended]:
    """Read tasks inside the transaction that ends them: what waits for them need not read each by itself."""
    if not ids:
        return {}
    keys: list[dict[str, Any]] = [{"id": id} for id in ids]
    events: dict[str, list[StoredEvent]] = {id: [] for id in ids}
    for id, *event in await tx.fetch_many(_STATE_EVENTS, [key | _PAUSES for key in keys]):
        events[id].append(StoredEvent(*event))
    rows = (Task(*row) for row in await tx.fetch_many(_SHOW, keys))
    return {row.id: Ended(row, events[row.id]) for row in rows}


class Tasks:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    # --- writing

    def submit(self, task: NewTask) -> asyncio.Future[Accepted]:
        return self._commits.write(transitions.submit, task)

    def call(self, call: Call) -> asyncio.Future[Accepted | None]:
        return self._commits.write(transitions.call, call)

    def resume(self, lease: Lease) -> asyncio.Future[bool]:
        return self._commits.write(transitions.resume, lease)

    def append(self, event: Event) -> asyncio.Future[bool]:
        return self._commits.write(transitions.append, event)

    def finish(self, finish: Finish) -> asyncio.Future[bool]:
        return self._commits.write(transitions.finish, finish)

    async def cancel(self, id: str, *, tenant: str) -> None:
        """Cancel for good; raises `errors.NotFound`, or `errors.Conflict` if the task had ended."""
        before = await self._commits.write(transitions.cancel, transitions.Cancel(id, tenant))
        if before is None:
            raise errors.NotFound(f"cannot cancel {id}: there is no such task")
        if before not in ("queued", "running", "waiting"):
            raise errors.Conflict(f"cannot cancel {id}: it has {before} already")

    async def renew(self, owner: str, *, ttl_us: int) -> set[tuple[str, int]]:
        """Extend the leases of *owner*; return the ``(id, epoch)`` that it still holds."""
        held: set[tuple[str, int]] = await self._commits.write(transitions.renew, transitions.Renewal(owner, ttl_us))
        return held

    async def rescue(self, *, not_owner: str | None = None, spared: str | None = None) -> int:
        """Queue again what was leased to nodes that are gone; return how many tasks that were."""
        rescued = 0
        while True:
            count: int = await self._commits.write(transitions.rescue, transitions.Rescue(not_owner, spared))
            rescued += count
            if count < transitions.MAX_MOVED:
                return rescued

    async def tick(self) -> float | None:
        """Promote what is due and expire what is late; return the seconds until that is needed next."""
        next_us: int | None = await self._commits.write(transitions.tick, transitions.Tick())
        return None if next_us is None else next_us / 1e6

    # --- reading

    async def get(self, id: str, *, tenant: str) -> Task:
        """Return the task; raises `errors.NotFound`, for another tenant's too."""
        rows = await self._db.lookup(_GET, {"id": id, "tenant": tenant})
        if not rows:
            raise errors.NotFound(f"cannot find the task {id[:64]}")
        return Task(*rows[0])

    async def list(
        self,
        *,
        tenant: str,
        agent: str | None = None,
        state: str | None = None,
        session: str | None = None,
        before_seq: int | None = None,
        limit: int = 50,
    ) -> Sequence[Task]:
        """Return at most *limit* tasks, newest first, older than *before_seq*."""
        filters = {"tenant": tenant, "agent": agent, "state": state, "session": session}
        given = {name: value for name, value in filters.items() if value is not None}
        clauses = [f"{name} = :{name}" for name in given]
        if state is not None:
            clauses.append(_HAS_ENDED if state in tasks.TERMINAL else _IS_OPEN)
        params: dict[str, Any] = given | {"limit": min(limit, MAX_PAGE)}
        if before_seq is not None:
            clauses.append("seq < :before_seq")
            params["before_seq"] = before_seq
        sql = f"select {_COLUMNS} from task where {' and '.join(clauses)} order by seq desc limit :limit"
        return [Task(*row) for row in await self._db.read(sql, params)]

    async def events(self, id: str, *, after: int = 0, limit: int = MAX_EVENTS_PAGE) -> Sequence[StoredEvent]:
        """Return the events of a task numbered above *after*, oldest first; number 1, its acceptance, is not stored."""
        params = {"task": id, "after": after, "limit": limit}
        return [StoredEvent(*row) for row in await self._db.lookup(_EVENTS, params)]

    async def state_events(self, id: str) -> Sequence[StoredEvent]:
        """Return what moved a task, oldest first; of more than 500 moves, the latest that begin or end an attempt."""
        return [StoredEvent(*row[1:]) for row in await self._db.lookup(_STATE_EVENTS, {"id": id} | _PAUSES)]

    async def queued_count(self) -> int:
        ((count,),) = await self._db.read(_QUEUED, {})
        return int(count)

    async def open_counts(self) -> dict[tuple[str, str], int]:
        """Return how many tasks are open, by agent and state."""
        return {(row[0], row[1]): row[2] for row in await self._db.read(_OPEN_COUNTS, {})}

    async def end_counts(self, *, tenant: str) -> dict[tuple[str, str], int]:
        """Return how many tasks have ended, by agent and state."""
        return {(row[0], row[1]): row[2] for row in await self._db.read(_END_COUNTS, {"tenant": tenant})}
