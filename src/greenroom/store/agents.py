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
    generation: int
    revision: int
    replicas: int
    state: str
    reason: str
    adapter: str | None
    spec: bytes
    updated_at: int


class Revision(msgspec.Struct, frozen=True):
    agent: str
    number: int
    digest: str
    spec: bytes
    created_at: int


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


class Deploy(msgspec.Struct, frozen=True):
    """An agent's wanted spec and code; equal ones deployed again change nothing, or have it *judged anew*."""

    agent: str
    digest: str
    spec: bytes
    replicas: int
    judged_anew: bool


class Observed(msgspec.Struct, frozen=True):
    """What the host found out about an agent."""

    agent: str
    state: str
    reason: str
    adapter: str | None = None


class LostNodes(msgspec.Struct, frozen=True):
    """The node *lost*, or all but *only*."""

    lost: str | None
    only: str | None


class Scale(msgspec.Struct, frozen=True):
    agent: str
    replicas: int


class Remove(msgspec.Struct, frozen=True):
    agent: str


class Release(msgspec.Struct, frozen=True):
    agent: str


class RollBack(msgspec.Struct, frozen=True):
    """Serve *to* again, if the agent is still what it was at *generation*."""

    agent: str
    generation: int
    to: int


def _columns(row_type: type[msgspec.Struct]) -> str:
    return ", ".join(row_type.__struct_fields__)


_AGENTS = f"select {_columns(Agent)} from agent order by name"
_LATEST = "select number, digest, spec from revision where agent = :agent order by number desc limit 1"
# As it is: also its replica count stays, for it may have been scaled since.
_STANDS = "select revision from agent where name = :agent"
_RELEASE = "update agent set generation = generation + 1, updated_at = :now where name = :agent returning name"
_NEW_REVISION = """
insert into revision (agent, number, digest, spec, created_at) values (:agent, :number, :digest, :spec, :now)"""
_PUT_AGENT = """
insert into agent (name, generation, revision, replicas, state, reason, spec, updated_at)
values (:agent, 1, :number, :replicas, 'starting', '', :spec, :now)
on conflict (name) do update set generation = agent.generation + 1, revision = :number, replicas = :replicas,
    spec = :spec, state = 'starting', reason = '', updated_at = :now"""
_OBSERVE = """
update agent set state = :state, reason = :reason, adapter = coalesce(:adapter, adapter), updated_at = :now
where name = :agent"""
_SCALE = """
update agent set replicas = :replicas, generation = generation + 1, updated_at = :now where name = :agent
returning name"""
_REMOVE = "delete from agent where name = :agent returning name"
# Generations begin anew with whom is deployed under its name: what it died of is not theirs.
_FORGET_DEATHS = "delete from recovery where agent = :agent"
_ROLL_BACK = """
update agent set revision = :to, spec = (select spec from revision where agent = :agent and number = :to),
    generation = generation + 1, state = 'starting', reason = '', updated_at = :now
where name = :agent and generation = :generation returning name"""
_FALLBACK = """
select max(number) from revision where agent = :agent and number < :number and proven_at is not null
    and not exists (select 1 from revision where agent = :agent and number = :number and proven_at is not null)"""
_REVISIONS = f"select {_columns(Revision)} from revision where agent = :agent order by number desc limit 100"
_REVISION = f"select {_columns(Revision)} from revision where agent = :agent and number = :number"
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
where state in ('starting', 'ready', 'draining') and (node = :lost or node <> :only)"""
_FORGET = "delete from replica where ended_at < :before"

KEEP_ENDED_REPLICAS_US = 3600 * 1_000_000


async def deploy(tx: Transaction, news: News, items: Sequence[Deploy]) -> list[int]:
    """Answer the revision that now serves: a new number if code or spec differ from the latest one."""
    answers = []
    for item in items:
        latest = await tx.fetch(_LATEST, {"agent": item.agent})
        number = latest[0][0] if latest else 0
        params = {"agent": item.agent, "digest": item.digest, "spec": item.spec, "now": tx.now_us}
        is_same = bool(latest) and tuple(latest[0][1:]) == (item.digest, item.spec)
        serving = await tx.fetch(_STANDS, {"agent": item.agent}) if is_same else []
        if serving and (not item.judged_anew or serving[0][0] == number):
            if item.judged_anew:
                await tx.fetch(_RELEASE, params)
            answers.append(serving[0][0])
            continue
        if not is_same:
            number += 1
            await tx.execute_many(_NEW_REVISION, [params | {"number": number}])
        await tx.execute_many(_PUT_AGENT, [params | {"number": number, "replicas": item.replicas}])
        answers.append(number)
    return answers


async def release(tx: Transaction, news: News, items: Sequence[Release]) -> list[bool]:
    """Have agents judged anew."""
    return [bool(await tx.fetch(_RELEASE, {"agent": item.agent, "now": tx.now_us})) for item in items]


async def roll_back(tx: Transaction, news: News, items: Sequence[RollBack]) -> list[bool]:
    return [bool(await tx.fetch(_ROLL_BACK, msgspec.structs.asdict(item) | {"now": tx.now_us})) for item in items]


async def observe(tx: Transaction, news: News, items: Sequence[Observed]) -> list[None]:
    await tx.execute_many(_OBSERVE, [msgspec.structs.asdict(item) | {"now": tx.now_us} for item in items])
    return [None] * len(items)


async def scale(tx: Transaction, news: News, items: Sequence[Scale]) -> list[bool]:
    return [
        bool(await tx.fetch(_SCALE, {"agent": item.agent, "replicas": item.replicas, "now": tx.now_us}))
        for item in items
    ]


async def remove(tx: Transaction, news: News, items: Sequence[Remove]) -> list[bool]:
    names = [{"agent": item.agent} for item in items]
    await tx.execute_many(_FORGET_DEATHS, names)
    news.removed.update(item.agent for item in items)
    return [bool(await tx.fetch(_REMOVE, name)) for name in names]


async def put_replicas(tx: Transaction, news: News, items: Sequence[Replica]) -> list[None]:
    await tx.execute_many(_PUT_REPLICA, [msgspec.structs.asdict(item) for item in items])
    await tx.execute_many(_FORGET, [{"before": tx.now_us - KEEP_ENDED_REPLICAS_US}])
    return [None] * len(items)


async def close_nodes(tx: Transaction, news: News, items: Sequence[LostNodes]) -> list[None]:
    await tx.execute_many(_CLOSE_NODES, [msgspec.structs.asdict(item) | {"now": tx.now_us} for item in items])
    return [None] * len(items)


class Agents:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def deploy(self, agent: str, *, digest: str, spec: bytes, replicas: int, judged_anew: bool = True) -> int:
        """Make this spec and code the serving revision; return its number, unchanged if nothing differs.

        Without *judged_anew* an agent whose latest revision has them stays as it is: quarantined, or rolled back.
        """
        number: int = await self._commits.write(deploy, Deploy(agent, digest, spec, replicas, judged_anew))
        return number

    async def release(self, agent: str) -> None:
        """Have the agent judged anew, whatever its replicas died of."""
        if not await self._commits.write(release, Release(agent)):
            raise errors.NotFound(f"cannot find the agent {agent[:64]}")

    async def fallback(self, agent: str, number: int) -> int | None:
        """Return the latest revision before *number* that has succeeded with a task, unless *number* has, too."""
        ((before,),) = await self._db.lookup(_FALLBACK, {"agent": agent, "number": number})
        return None if before is None else int(before)

    async def roll_back(self, agent: str, *, generation: int, to: int) -> bool:
        """Make revision *to* the serving one again; False if somebody changed the agent meanwhile."""
        is_back: bool = await self._commits.write(roll_back, RollBack(agent, generation, to))
        return is_back

    async def observe(self, agent: str, *, state: str, reason: str, adapter: str | None = None) -> None:
        await self._commits.write(observe, Observed(agent, state, reason, adapter))

    async def scale(self, agent: str, replicas: int) -> None:
        if not await self._commits.write(scale, Scale(agent, replicas)):
            raise errors.NotFound(f"cannot find the agent {agent[:64]}")

    async def remove(self, agent: str) -> None:
        if not await self._commits.write(remove, Remove(agent)):
            raise errors.NotFound(f"cannot find the agent {agent[:64]}")

    async def list(self) -> Sequence[Agent]:
        return [Agent(*row) for row in await self._db.lookup(_AGENTS, {})]

    async def revisions(self, agent: str) -> Sequence[Revision]:
        return [Revision(*row) for row in await self._db.read(_REVISIONS, {"agent": agent})]

    async def revision(self, agent: str, number: int) -> Revision:
        rows = await self._db.lookup(_REVISION, {"agent": agent, "number": number})
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

    async def close_nodes(self, *, lost: str | None = None, only: str | None = None) -> None:
        """Mark replicas as gone: those of the node *lost*, or those of every node but *only* (one node, one file)."""
        await self._commits.write(close_nodes, LostNodes(lost, only))


ORDER = (deploy, scale, release, roll_back, remove, observe, put_replicas, close_nodes)
