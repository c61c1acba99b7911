"""Tasks in the store: what the API and the loops call. Writing goes through the group commit, reading does not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from greenroom import errors
from greenroom.core import tasks
from greenroom.store import agent_patterns, database, rows, transitions
from greenroom.store.agent_patterns import Agents
from greenroom.store.commits import Commits, Operation
from greenroom.store.rows import (
    Accepted,
    Call,
    Cancel,
    Event,
    Finish,
    Lease,
    NewTask,
    Renewal,
    Rescue,
    StoredEvent,
    Task,
    Tick,
)
from greenroom.store.vault import Vault

MAX_PAGE = 200
MAX_EVENTS_PAGE = 500

_COLUMNS = ", ".join(Task.__struct_fields__)
_GET = f"select {_COLUMNS} from task where id = :id and tenant = :tenant"
_IS_CHILD = "seq in (select seq from task where parent = :parent)"  # else SQLite looks at all tasks of the tenant
_KEYS = [f"key_{first}{second}" for first in "abcdefgh" for second in "abcdefgh"]
_OF_KEYS = f"""
select fingerprint, {_COLUMNS} from task
where tenant = :tenant and idempotency_key in ({", ".join(f":{name}" for name in _KEYS)}) limit 1"""
_EVENTS = """
select seq, epoch, type, at, data from task_event where task = :task and seq > :after and seq <= :last
order by seq limit :limit"""
# A task may wait for thousands of sub-tasks: what begins and ends its attempts goes before that, the newest first.
_STATE_EVENTS = """
select seq, epoch, type, at, data from (
    select seq, epoch, type, at, data from task_event where task = :id and type = 'state'
    order by case when substr(data, 1, 19) in (:waiting, :resumed) then 1 else 0 end, seq desc limit 500) as latest
order by seq"""
_PAUSES = {"waiting": b'{"state":"waiting",', "resumed": b'{"state":"running"}'}
_IS_UNSUCCESSFUL = "finished_at is not null and state <> 'succeeded'"  # as the partial index has it, to the letter
_OPEN_COUNTS = f"select agent, state, count(*) from task where {rows.IS_OPEN} group by agent, state"
_OWN_OPEN_COUNTS = f"""
select agent, state, count(*) from task where tenant = :tenant and {rows.IS_OPEN} group by agent, state"""
_QUEUED = f"select tenant, count(*) from task where state = 'queued' and {rows.IS_OPEN} group by tenant"
_CLAIMABLE = "select agent, count(*) from task where state = 'queued' and due_at is null and not blocked group by agent"
_WAITING = f"""
select agent, count(*), min({rows.READY_AT}) from task where state = 'queued' and due_at is null and not blocked
group by agent"""
_ALONE = f"""
select agent, count(*) from task where state = 'queued' and {rows.IS_SUSPECT} and due_at is null and not blocked
group by agent"""
_SUSPECTS = f"""
select distinct agent from task where state = 'queued' and {rows.IS_SUSPECT} and due_at is null and not blocked"""
_TIMES = """
select created_at, not_before, started_at, finished_at, (
    select before.finished_at from task before
    where before.tenant = task.tenant and before.session = task.session and before.agent = task.agent
        and before.seq < task.seq
    order by before.seq desc limit 1)
from task where id = :id"""
_END_COUNTS = "select agent, state, tasks from ended_count where tenant = :tenant"


class Tasks:
    def __init__(self, db: database.Database, commits: Commits, vault: Vault, *, submit: Operation) -> None:
        self._db, self._commits, self._vault, self._submit = db, commits, vault, submit

    # --- writing

    def submit(self, task: NewTask) -> asyncio.Future[Accepted]:
        return self._commits.write(self._submit, task)

    def submit_all(self, tasks: Sequence[NewTask]) -> asyncio.Future[list[Accepted | Exception]]:
        """Submit *tasks* together; answers with what became of each, in order."""
        return self._commits.write_all(self._submit, tasks)

    def submitting(self) -> Counter[str]:
        """Return how many submissions of each tenant are on their way: given to the store, perhaps not in it."""
        return Counter(task.tenant for task in self._commits.unanswered(self._submit))

    def call(self, call: Call) -> asyncio.Future[Accepted | None]:
        return self._commits.write(transitions.call, call)

    def resume(self, lease: Lease) -> asyncio.Future[bool]:
        return self._commits.write(transitions.resume, lease)

    def append(self, event: Event) -> asyncio.Future[bool]:
        return self._commits.write(transitions.append, event)

    def finish(self, finish: Finish) -> asyncio.Future[bool]:
        return self._commits.write(transitions.finish, finish)

    def finish_all(self, ends: Sequence[Finish]) -> asyncio.Future[list[bool | Exception]]:
        """Finish attempts together; answers with what became of each, in order."""
        return self._commits.write_all(transitions.finish, ends)

    async def cancel(self, id: str, *, tenant: str) -> None:
        """Cancel for good; raises `errors.NotFound`, or `errors.Conflict` if the task had ended."""
        before = await self._commits.write(transitions.cancel, Cancel(id, tenant))
        if before is None:
            raise errors.NotFound(f"cannot cancel {id}: there is no such task")
        if before in tasks.TERMINAL:
            raise errors.Conflict(f"cannot cancel {id}: it has ended already: {before}")

    async def renew(self, owner: str, *, ttl_us: int) -> set[tuple[str, int]]:
        """Extend the leases of *owner*; return the ``(id, epoch)`` that it still holds."""
        held: set[tuple[str, int]] = await self._commits.write(transitions.renew, Renewal(owner, ttl_us))
        return held

    async def rescue(self, *, not_owner: str | None = None, spared: str | None = None, jitter: float = 0.0) -> int:
        """Queue again what was leased to nodes that are gone; return how many tasks that were."""
        rescued = 0
        while True:
            count: int = await self._commits.write(transitions.rescue, Rescue(not_owner, spared, jitter))
            rescued += count
            if count < transitions.MAX_MOVED:
                return rescued

    async def tick(self) -> float | None:
        """Promote what is due and expire what is late; return the seconds until that is needed next."""
        next_us: int | None = await self._commits.write(transitions.tick, Tick())
        return None if next_us is None else next_us / 1e6

    # --- reading

    async def get(self, id: str, *, tenant: str) -> Task:
        """Return the task; raises `errors.NotFound`, for another tenant's too."""
        found = await self._db.lookup(_GET, {"id": id, "tenant": tenant})
        if not found:
            raise errors.NotFound(f"cannot find the task {id[:64]}")
        return await self._vault.task(found[0])

    async def of_keys(
        self, keys: Sequence[str], *, tenant: str, fingerprint: bytes | None = None
    ) -> tuple[Task, bool] | None:
        """Return a task that one of these idempotency keys stands for, and whether *fingerprint* is its body's; None if
        all are new.
        """
        for start in range(0, len(keys), len(_KEYS)):
            some = list(keys[start : start + len(_KEYS)])
            given = dict(zip(_KEYS, some + some[-1:] * len(_KEYS), strict=False))
            if found := await self._db.lookup(_OF_KEYS, given | {"tenant": tenant}):
                stored, *row = found[0]
                return await self._vault.task(row), await self._vault.is_same(tenant, stored, fingerprint)
        return None

    async def list(
        self,
        *,
        tenant: str,
        agent: str | None = None,
        state: str | None = None,
        session: str | None = None,
        parent: str | None = None,
        before_seq: int | None = None,
        limit: int = 50,
        agents: Agents = None,
    ) -> Sequence[Task]:
        """Return at most *limit* tasks, newest first, older than *before_seq*; of *agents* alone.

        One that does not open has an error of type ``store_damaged``, and no input.
        """
        filters = {"tenant": tenant, "agent": agent, "state": state, "session": session}
        given = {name: value for name, value in filters.items() if value is not None}
        clauses = [f"{name} = :{name}" for name in given]
        if state is not None:
            if state in tasks.OPEN:
                clauses.append(rows.IS_OPEN)
            elif state != tasks.State.SUCCEEDED:
                clauses.append(_IS_UNSUCCESSFUL)
        params: dict[str, Any] = given | {"limit": min(limit, MAX_PAGE)}
        if parent is not None:
            clauses.append(_IS_CHILD)
            params["parent"] = parent
        if before_seq is not None:
            clauses.append("seq < :before_seq")
            params["before_seq"] = before_seq
        if (of_agents := agent_patterns.condition(agents, params)) is not None:
            clauses.append(of_agents)
        sql = f"select {_COLUMNS} from task where {' and '.join(clauses)} order by seq desc limit :limit"
        return [await self._vault.task_or_damage(row) for row in await self._db.read(sql, params)]

    async def events(self, task: Task, *, after: int = 0, limit: int = MAX_EVENTS_PAGE) -> Sequence[StoredEvent]:
        """Return the events of *task* numbered above *after*, oldest first, up to the last one that its row knows of.

        One that does not open has data that say so. Read the row before: an event that came later might stand beside a
        move that the row does not tell yet.
        """
        params = {"task": task.id, "after": after, "last": task.event_seq, "limit": limit}
        found = [StoredEvent(*row) for row in await self._db.lookup(_EVENTS, params)]
        stored = [await self._vault.event_or_damage(task.tenant, task.id, event) for event in found]
        last = stored[-1].seq if len(stored) == limit else task.event_seq
        return _merged([move for move in rows.moves(task) if after < move.seq <= last], stored)[:limit]

    async def state_events(self, task: Task) -> Sequence[StoredEvent]:
        """Return the moves of *task*, oldest first; of more than 500, the latest that begin or end an attempt."""
        stored = await _opened(self._vault, task, await self._db.lookup(_STATE_EVENTS, {"id": task.id} | _PAUSES))
        return _merged(rows.moves(task), stored)

    async def suspected(self) -> frozenset[str]:
        """Return the agents that have tasks which are due and are to run alone."""
        return frozenset(row[0] for row in await self._db.lookup(_SUSPECTS, {}))

    async def queued_counts(self) -> dict[str, int]:
        """Return how many tasks are queued, by tenant."""
        return {row[0]: row[1] for row in await self._db.read(_QUEUED, {})}

    async def times(self, ids: Sequence[str]) -> Sequence[tuple[float, float]]:
        """Return how long each of those that have ended took, and how long it waited before for a slot, in seconds.

        From acceptance on, or from when it was allowed to begin; it waits for a slot since its session let it go.
        """
        found = [row for id in ids for row in await self._db.lookup(_TIMES, {"id": id})]
        return [
            (
                (finished - max(created, due or 0)) / 1e6,
                max(0, (started or finished) - max(created, due or 0, released or 0)) / 1e6,
            )
            for created, due, started, finished, released in found
            if finished is not None
        ]

    async def claimable_counts(self, *, is_large: bool = False) -> dict[str, int]:
        """Return how many tasks of each agent a free slot would take now; those that run alone are not among them.

        *is_large*: there may be many thousands, which take longer than the event loop may be held up.
        """
        read = self._db.read if is_large else self._db.lookup
        counts = {row[0]: int(row[1]) for row in await read(_CLAIMABLE, {})}
        for agent, alone in await self._db.lookup(_ALONE, {}):
            counts[agent] = max(0, counts.get(agent, 0) - alone)
        return counts

    async def waiting(self) -> dict[str, tuple[int, int]]:
        """Return how many tasks of each agent a free slot would take now, and since when the oldest waits, in µs."""
        return {row[0]: (row[1], row[2]) for row in await self._db.read(_WAITING, {})}

    async def open_counts(self, *, tenant: str | None = None) -> dict[tuple[str, str], int]:
        """Return how many tasks are open, by agent and state: of *tenant*, or of all."""
        sql, params = (_OPEN_COUNTS, {}) if tenant is None else (_OWN_OPEN_COUNTS, {"tenant": tenant})
        return {(row[0], row[1]): row[2] for row in await self._db.read(sql, params)}

    async def end_counts(self, *, tenant: str) -> dict[tuple[str, str], int]:
        """Return how many tasks have ended, by agent and state."""
        return {(row[0], row[1]): row[2] for row in await self._db.read(_END_COUNTS, {"tenant": tenant})}


def _merged(told: Sequence[StoredEvent], stored: Sequence[StoredEvent]) -> list[StoredEvent]:
    by_seq = {event.seq: event for event in (*told, *stored)}
    return [by_seq[seq] for seq in sorted(by_seq)]


async def _opened(vault: Vault, task: Task, found: Sequence[database.Row]) -> list[StoredEvent]:
    return [await vault.event(task.tenant, task.id, StoredEvent(*row)) for row in found]
