"""Sessions in the store: state that the tasks of a session share. Written with a task's result, in its transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from greenroom import errors
from greenroom.security.vault import OVERHEAD_BYTES, VERSION
from greenroom.store import agent_patterns, database
from greenroom.store.agent_patterns import Agents
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.news import News
from greenroom.store.rows import IS_OPEN, SessionKey
from greenroom.store.vault import Vault

MAX_PAGE = 200


class Session(msgspec.Struct, frozen=True):
    """A session's row. Instants are microseconds; *state* is JSON."""

    id: str
    agent: str
    revision: int | None
    tasks: int
    created_at: int
    updated_at: int
    state: bytes | None
    pin: int | None  # the revision that it keeps to


class Summary(msgspec.Struct, frozen=True):
    """A session's row without its state, which may be large."""

    id: str
    agent: str
    revision: int | None
    tasks: int
    created_at: int
    updated_at: int
    state_bytes: int
    pin: int | None


class Stored(msgspec.Struct, frozen=True):
    """A session's state, and the revision that wrote it."""

    tenant: str
    id: str
    updated_at: int
    revision: int
    state: bytes


class Place(msgspec.Struct, frozen=True):
    """Where in the list a session stands."""

    updated_at: int
    agent: str
    id: str


class Removal(msgspec.Struct, frozen=True):
    tenant: str
    agent: str
    id: str


_COLUMNS = ", ".join(Session.__struct_fields__)
_LIST = """
select id, agent, revision, tasks, created_at, updated_at,
    coalesce(length(state) - case when substr(state, 1, 1) = :sealed then {overhead} else 0 end, 0), pin
from session where tenant = :tenant {further} order by updated_at desc, agent desc, id desc limit :limit"""
_BEHIND = " and (updated_at, agent, id) < (:updated_at, :agent, :id)"
_STATES = f"""
select {", ".join(Stored.__struct_fields__)} from session
where agent = :agent and state is not null and revision is not null
    and (updated_at, tenant, id) < (:updated_at, :tenant, :id)
order by updated_at desc, tenant desc, id desc limit :limit"""
_COUNT = "select count(*) from session where agent = :agent and state is not null and revision is not null"
_OPEN = f"""
select count(*) from task where tenant = :tenant and agent = :agent and session = :id
    and {IS_OPEN}"""
_LOCK = "select 1 from session where tenant = :tenant and agent = :agent and id = :id for update"
_REMOVE = "delete from session where tenant = :tenant and agent = :agent and id = :id returning id"

# The revision that a session keeps to, unless that has been retired.
PIN = """
(select pinned.pin from session as pinned
    join revision as kept on kept.agent = pinned.agent and kept.number = pinned.pin and kept.retired_at is null
    where pinned.tenant = {tenant} and pinned.agent = {agent} and pinned.id = {session})"""

_TAKE = """
insert into session (tenant, agent, id, created_at, updated_at) values (:tenant, :agent, :session, :now, :now)
on conflict (tenant, agent, id) do update set updated_at = :now"""


async def take(tx: Transaction, keys: Collection[SessionKey]) -> None:
    """Take the rows of these sessions, made if missing: nobody else opens or closes a task of theirs meanwhile.

    In one order for all, so that two nodes seldom wait for each other; where they do, one runs its commit again.
    """
    names = ("tenant", "agent", "session")
    await tx.execute_many(_TAKE, [dict(zip(names, key, strict=True)) | {"now": tx.now_us} for key in sorted(keys)])


async def remove(tx: Transaction, news: News, items: Sequence[Removal]) -> list[int]:
    """Forget sessions: answers 1 if removed, 0 if there is none, minus the number of open tasks if it is in use."""
    answers = []
    for item in items:
        key = msgspec.structs.asdict(item)
        await tx.fetch(_LOCK, key)
        ((open_tasks,),) = await tx.fetch(_OPEN, key)
        answers.append(-open_tasks if open_tasks else len(await tx.fetch(_REMOVE, key)))
    return answers


class Sessions:
    def __init__(self, db: database.Database, commits: Commits, vault: Vault) -> None:
        self._db, self._commits, self._vault = db, commits, vault

    async def find(self, id: str, *, tenant: str, agent: str | None = None) -> Sequence[Session]:
        """Return the sessions named *id*: one for each agent that has it."""
        sql = f"select {_COLUMNS} from session where tenant = :tenant and id = :id"
        params = {"tenant": tenant, "id": id}
        if agent is not None:
            sql, params = sql + " and agent = :agent", params | {"agent": agent}
        found = [Session(*row) for row in await self._db.read(sql, params)]
        return [replace(each, state=await self._state(tenant, each.agent, each.id, each.state)) for each in found]

    async def list(
        self, *, tenant: str, behind: Place | None = None, limit: int = 50, agents: Agents = None
    ) -> Sequence[Summary]:
        """Return the sessions used last, latest first, behind *behind*; one that is used comes to the front.

        Of *agents* alone.
        """
        params: dict[str, Any] = {"tenant": tenant, "sealed": VERSION, "limit": min(limit, MAX_PAGE)}
        if behind is not None:
            params |= msgspec.structs.asdict(behind)
        of_agents = agent_patterns.condition(agents, params)
        further = ("" if behind is None else _BEHIND) + ("" if of_agents is None else f" and {of_agents}")
        rows = await self._db.read(_LIST.format(further=further, overhead=OVERHEAD_BYTES), params)
        return [Summary(*row) for row in rows]

    async def _state(self, tenant: str, agent: str, id: str, stored: bytes | None) -> bytes | None:
        return await self._vault.opened(tenant, "session", "state", (agent, id), stored)

    async def count(self, agent: str) -> int:
        """Return how many sessions of *agent*, of all tenants, have a state."""
        ((count,),) = await self._db.read(_COUNT, {"agent": agent})
        return int(count)

    async def states(self, agent: str, *, behind: Stored | None = None, limit: int = 100) -> Sequence[Stored]:
        """Return the states of *agent*'s sessions, of all tenants: those used last first, behind *behind*."""
        place = (2**62, "", "") if behind is None else (behind.updated_at, behind.tenant, behind.id)
        params = dict(zip(("updated_at", "tenant", "id"), place, strict=True))
        stored = [Stored(*row) for row in await self._db.read(_STATES, {"agent": agent, "limit": limit, **params})]
        opened = []
        for each in stored:
            state = await self._state(each.tenant, agent, each.id, each.state)
            assert state is not None
            opened.append(replace(each, state=state))
        return opened

    async def remove(self, id: str, *, tenant: str, agent: str) -> None:
        """Forget a session's state; raises `errors.NotFound`, or `errors.Conflict` while it has open tasks."""
        answer = await self._commits.write(remove, Removal(tenant, agent, id))
        if answer < 0:
            raise errors.Conflict(f"cannot remove the session {id}: it has {-answer} open tasks; cancel them first")
        if answer == 0:
            raise errors.NotFound(f"cannot find the session {id[:64]}")
