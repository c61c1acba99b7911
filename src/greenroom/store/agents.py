"""Agents, their revisions and their replicas in the store. Specs are JSON that `settings` has validated."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from greenroom import errors
from greenroom.store import database
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.news import News


class Agent(msgspec.Struct, frozen=True):
    """An agent's row: *revision* is the serving one, *replicas* how many there should be. *updated_at* in µs."""

    name: str
    generation: int  # grows with each change; never one that an agent of this name had before
    revision: int
    replicas: int
    state: str
    reason: str
    adapter: str | None
    spec: bytes
    updated_at: int


class Revision(msgspec.Struct, frozen=True):
    """A revision's row. *spec* is the agent's as it was deployed; only its part of it is the revision's."""

    agent: str
    number: int
    digest: str
    spec: bytes
    created_at: int
    proven_at: int | None = None  # its first success with a task
    retired_at: int | None = None  # since when it keeps no replicas and no sessions


class Replica(msgspec.Struct, frozen=True):
    """A replica's row, written by its node's host only. Instants in microseconds."""

    id: str
    agent: str
    revision: int
    node: str
    pid: int | None
    state: str
    grade: str
    reason: str
    slots: int
    memory_mb: float | None
    restarts: int
    started_at: int
    ended_at: int | None = None


class Observed(msgspec.Struct, frozen=True):
    """What the host found out about an agent."""

    agent: str
    state: str
    reason: str
    adapter: str | None = None
    generation: int | None = None  # of the agent that it was found out about; None: whatever it is


class OtherNodes(msgspec.Struct, frozen=True):
    """All nodes but *only*."""

    only: str


class Scale(msgspec.Struct, frozen=True):
    agent: str
    replicas: int


class Remove(msgspec.Struct, frozen=True):
    agent: str


class Release(msgspec.Struct, frozen=True):
    agent: str


def _columns(row_type: type[msgspec.Struct]) -> str:
    return ", ".join(row_type.__struct_fields__)


_AGENTS = f"select {_columns(Agent)} from agent order by name"
RELEASE = "update agent set generation = generation + 1, updated_at = :now where name = :agent returning name"
_OBSERVE = """
update agent set state = :state, reason = :reason, adapter = coalesce(:adapter, adapter), updated_at = :now
where name = :agent and (cast(:generation as bigint) is null or generation = :generation)"""
_SCALE = """
update agent set replicas = :replicas, generation = generation + 1, updated_at = :now where name = :agent
returning name"""
_REMOVE = "delete from agent where name = :agent returning name"
_FALLBACK = """
select number from revision
where agent = :agent and proven_at is not null and number <> :number and (number < :number or number = :before)
    and not exists (select 1 from revision where agent = :agent and number = :number and proven_at is not null)
order by case when number = :before then 1 else 0 end desc, number desc limit 1"""
_REVISIONS = f"select {_columns(Revision)} from revision where agent = :agent order by number desc limit 100"
REVISION = f"select {_columns(Revision)} from revision where agent = :agent and number = :number"
_PUT_REPLICA = f"""
insert into replica ({_columns(Replica)}) values ({", ".join(f":{name}" for name in Replica.__struct_fields__)})
on conflict (id) do update set pid = :pid, state = :state, grade = :grade, reason = :reason, memory_mb = :memory_mb,
    restarts = :restarts, ended_at = :ended_at"""
_REPLICAS = f"""
select {_columns(Replica)} from replica where state in ('starting', 'ready', 'draining')
    order by agent, started_at, id"""
_REPLICA = f"select {_columns(Replica)} from replica where id = :id"
_CLOSE_NODES = """
update replica set state = 'stopped', reason = 'its node was lost', ended_at = :now
where state in ('starting', 'ready', 'draining') and node <> :only"""
_FORGET = "delete from replica where ended_at < :before"

KEEP_ENDED_REPLICAS_US = 3600 * 1_000_000


async def release(tx: Transaction, news: News, items: Sequence[Release]) -> list[bool]:
    """Have agents judged anew."""
    return [bool(await tx.fetch(RELEASE, {"agent": item.agent, "now": tx.now_us})) for item in items]


async def observe(tx: Transaction, news: News, items: Sequence[Observed]) -> list[None]:
    await tx.execute_many(_OBSERVE, [msgspec.structs.asdict(item) | {"now": tx.now_us} for item in items])
    return [None] * len(items)


async def scale(tx: Transaction, news: News, items: Sequence[Scale]) -> list[bool]:
    return [
        bool(await tx.fetch(_SCALE, {"agent": item.agent, "replicas": item.replicas, "now": tx.now_us}))
        for item in items
    ]


async def remove(tx: Transaction, news: News, items: Sequence[Remove]) -> list[bool]:
    return [bool(await tx.fetch(_REMOVE, {"agent": item.agent})) for item in items]


async def put_replicas(tx: Transaction, news: News, items: Sequence[Replica]) -> list[None]:
    await tx.execute_many(_PUT_REPLICA, [msgspec.structs.asdict(item) for item in items])
    await tx.execute_many(_FORGET, [{"before": tx.now_us - KEEP_ENDED_REPLICAS_US}])
    news.replicas.update(item.agent for item in items)
    return [None] * len(items)


async def close_nodes(tx: Transaction, news: News, items: Sequence[OtherNodes]) -> list[None]:
    await tx.execute_many(_CLOSE_NODES, [msgspec.structs.asdict(item) | {"now": tx.now_us} for item in items])
    return [None] * len(items)


class Agents:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def release(self, agent: str) -> None:
        """Have the agent judged anew, whatever its replicas died of."""
        if not await self._commits.write(release, Release(agent)):
            raise errors.NotFound(f"cannot find the agent {agent[:64]}")

    async def fallback(self, agent: str, number: int, *, before: int | None = None) -> int | None:
        """Return a revision that has succeeded with a task, unless *number* has, too: the one *before*, else the latest
        of lower numbers.
        """
        rows = await self._db.lookup(_FALLBACK, {"agent": agent, "number": number, "before": before or -1})
        return int(rows[0][0]) if rows else None

    async def observe(
        self, agent: str, *, state: str, reason: str, adapter: str | None = None, generation: int | None = None
    ) -> None:
        """Note how an agent stands; nothing, where it is no longer what it was at *generation*."""
        await self._commits.write(observe, Observed(agent, state, reason, adapter, generation))

    async def scale(self, agent: str, replicas: int) -> None:
        if not await self._commits.write(scale, Scale(agent, replicas)):
            raise errors.NotFound(f"cannot find the agent {agent[:64]}")

    async def list(self) -> Sequence[Agent]:
        return [Agent(*row) for row in await self._db.lookup(_AGENTS, {})]

    async def revisions(self, agent: str) -> Sequence[Revision]:
        return [Revision(*row) for row in await self._db.read(_REVISIONS, {"agent": agent})]

    async def revision(self, agent: str, number: int) -> Revision:
        rows = await self._db.lookup(REVISION, {"agent": agent, "number": number})
        if not rows:
            raise errors.NotFound(f"cannot find revision {number} of {agent[:64]}")
        return Revision(*rows[0])

    async def put_replica(self, replica: Replica) -> None:
        await self._commits.write(put_replicas, replica)

    async def replicas(self) -> Sequence[Replica]:
        """Return the replicas that live, of every node."""
        return [Replica(*row) for row in await self._db.lookup(_REPLICAS, {})]

    async def replica(self, id: str) -> Replica:
        rows = await self._db.lookup(_REPLICA, {"id": id})
        if not rows:
            raise errors.NotFound(f"cannot find the replica {id[:64]}")
        return Replica(*rows[0])

    async def close_nodes(self, *, only: str) -> None:
        """Mark the replicas of every node but *only* as gone: a store has one node."""
        await self._commits.write(close_nodes, OtherNodes(only))


ORDER = (scale, release, observe, put_replicas, close_nodes)
