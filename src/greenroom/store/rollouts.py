"""Rollouts in the store. What one does is decided in `core.rollouts`; here each move is one write.

One write moves everything that hangs on it: the rollout's row, the serving revision and spec of its agent, the
revisions that stand, the tasks of sessions that kept to one that does not, and, once it is durable, the traffic on the
board. `store.deployments` begins them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from greenroom import errors, settings
from greenroom.core import rollouts
from greenroom.store import agents, alerts, database
from greenroom.store.agents import Agent, Revision
from greenroom.store.board import Traffic
from greenroom.store.commits import Commits
from greenroom.store.database import Row, Transaction
from greenroom.store.news import News

KEEP = 100  # ended rollouts of each agent
MAX_REASON = 4_000  # characters
MAX_MOMENTS, MAX_TOLD = 100, 500  # of a rollout; characters of why
TRIES = 10  # to move a rollout that others move, too


class Rollout(msgspec.Struct, frozen=True):
    """A rollout's row. *record* is `core.rollouts.Rollout` as JSON; instants are in microseconds."""

    id: int
    agent: str
    strategy: str
    from_revision: int | None
    to_revision: int
    phase: str
    reason: str
    record: bytes
    spec: bytes
    from_spec: bytes
    begun_by: str
    version: int
    created_at: int
    updated_at: int
    ended_at: int | None

    @property
    def state(self) -> rollouts.Rollout:
        return _state_of(self.record)

    @property
    def traffic(self) -> Traffic:
        return Traffic((self.id, self.version), self.state.shares, self.state.serving)


_state_of = functools.lru_cache(maxsize=256)(msgspec.json.Decoder(rollouts.Rollout).decode)
spec_of = functools.lru_cache(maxsize=64)(msgspec.json.Decoder(settings.AgentSettings).decode)
_encode = msgspec.json.encode


class Put(msgspec.Struct, frozen=True):
    """The rollout's next state, if it still is what it was at *version*. *verb* is what somebody asked for."""

    id: int
    version: int
    state: rollouts.Rollout
    agent: str = ""
    verb: str = ""


class Switch(msgspec.Struct, frozen=True):
    """Give everything to *to* at once, if the agent still is what it was at *generation*."""

    agent: str
    generation: int
    to: int
    reason: str
    by: str


def _columns(row_type: type[msgspec.Struct], *, of: str = "") -> str:
    return ", ".join(f"{of}{name}" for name in row_type.__struct_fields__)


ROW = _columns(Rollout, of="rollout.")
_AGENT = f"select {_columns(Agent)} from agent where name = :agent for update"
_LAST = f"select {ROW} from rollout join agent on agent.rollout = rollout.id where agent.name = :agent"
_BY_ID = f"select {_columns(Rollout)} from rollout where id = :id"
_NEW = """
insert into rollout (agent, strategy, from_revision, to_revision, phase, reason, record, spec, from_spec, begun_by,
    version, created_at, updated_at, ended_at)
values (:agent, :strategy, :from_revision, :to_revision, :phase, :reason, :record, :spec, :from_spec, :by,
    1, :now, :now, :ended_at) returning id"""
_PUT = """
update rollout set phase = :phase, reason = :reason, record = :record, version = version + 1, updated_at = :now,
    ended_at = coalesce(ended_at, :ended_at)
where id = :id and version = :version returning agent"""
_LEAD = "update agent set rollout = :id where name = :agent"
_SERVE = """
update agent set revision = :number, spec = :spec, generation = generation + 1, updated_at = :now
where name = :agent and (revision <> :number or spec <> :spec)"""
RESPEC = "update agent set spec = :spec, updated_at = :now where name = :agent and spec <> :spec"
RESIZE = """
update agent set replicas = :replicas, generation = generation + 1, updated_at = :now
where name = :agent and replicas <> :replicas"""
_STAND = """
update revision set retired_at = null
where agent = :agent and (number = :one or number = :other) and retired_at is not null returning number"""
_FORGET_PINS = "update session set pin = null where agent = :agent and pin = :number"
_RETIRE = """
update revision set retired_at = :now
where agent = :agent and number <> :one and number <> :other and retired_at is null"""
_UNPIN = """
update task set pin = null
where agent = :agent and state = 'queued' and pin is not null and pin <> :one and pin <> :other"""
_LAST_DEATH = "select coalesce(max(seq), 0) from failure where agent = :agent"
_FORGET = """
delete from rollout where agent = :agent and id < (
    select min(id) from (select id from rollout where agent = :agent order by id desc limit :keep) as kept)"""
_LATEST_ENDED = f"""
select {_columns(Rollout)} from rollout where ended_at is not null and id < :before order by id desc limit :limit"""
_HISTORY = f"select {_columns(Rollout)} from rollout where agent = :agent order by id desc limit :limit"


class Reading(Protocol):
    """What decisions read by: a transaction, or the database outside of any."""

    async def fetch(self, sql: str, params: database.Params) -> Sequence[Row]: ...


async def agent_of(tx: Reading, name: str) -> Agent | None:
    rows = await tx.fetch(_AGENT, {"agent": name})
    return Agent(*rows[0]) if rows else None


async def last_of(tx: Reading, agent: str) -> Rollout | None:
    found = await tx.fetch(_LAST, {"agent": agent})
    return Rollout(*found[0]) if found else None


async def _by_id(tx: Transaction, id: int) -> Rollout | None:
    found = await tx.fetch(_BY_ID, {"id": id})
    return Rollout(*found[0]) if found else None


async def put(tx: Transaction, news: News, items: Sequence[Put]) -> list[bool]:
    """Move rollouts on; False where somebody else has moved it before."""
    return [await _put(tx, news, item) for item in items]


async def end(tx: Transaction, news: News, rollout: Rollout, state: rollouts.Rollout) -> None:
    """End *rollout*, which another one follows in the same commit: that says what stands and what gets tasks."""
    if not await _put(tx, news, Put(rollout.id, rollout.version, state), alone=False):
        raise database.RetryTransaction("somebody else has moved the rollout meanwhile")


async def _put(tx: Transaction, news: News, item: Put, *, alone: bool = True) -> bool:
    """Write a rollout's next state; *alone*: with all that follows from it."""
    before, state = await _by_id(tx, item.id), item.state
    if before is None:
        return False
    record = _encode(_noted(before.state, state, tx.now_us))
    params = {"id": item.id, "version": item.version, "phase": state.phase, "reason": state.reason[:MAX_REASON]}
    ended_at = None if state.is_open else tx.now_us
    if not await tx.fetch(_PUT, params | {"record": record, "now": tx.now_us, "ended_at": ended_at}):
        return False
    after = replace(before, version=before.version + 1, record=record)
    spec = after.spec if state.serving == state.to_revision else after.from_spec
    if state.serving != before.state.serving:
        await _serve(tx, before.agent, state.serving, spec)
    if state.phase is rollouts.Phase.COMPLETE and before.state.is_open:
        await _complete(tx, after)
    if alone and rollouts.has_moved(before.state, state):
        await _follow(tx, news, after, was_standing=before.state.standing)
    await _tell(tx, before.agent, before.state, state)
    return True


def _noted(before: rollouts.Rollout, after: rollouts.Rollout, now_us: int) -> rollouts.Rollout:
    """Return *after* with the moment in which it became so, if it is another phase, stage or weight."""
    if (before.phase, before.stage, before.weight_pct) == (after.phase, after.stage, after.weight_pct):
        return after
    moment = rollouts.Moment(
        at_us=now_us,
        phase=after.phase,
        stage=after.stage,
        weight_pct=after.weight_pct,
        reason=after.reason[:MAX_TOLD],
    )
    return replace(after, moments=(*after.moments, moment)[-MAX_MOMENTS:])


async def intend(tx: Transaction, rollout: Rollout, *, replicas_after: int | None) -> None:
    """Have the agent be of another size when the rollout is complete."""
    state = replace(rollout.state, replicas_after=replicas_after)
    params = {"id": rollout.id, "version": rollout.version, "phase": state.phase, "reason": state.reason}
    record = {"record": _encode(state), "now": tx.now_us, "ended_at": None}
    if not await tx.fetch(_PUT, params | record):
        raise database.RetryTransaction("somebody else has moved the rollout meanwhile")


async def _complete(tx: Transaction, rollout: Rollout) -> None:
    """Let the agent be what was deployed: what is no part of a revision, too."""
    params = {"agent": rollout.agent, "spec": rollout.spec, "now": tx.now_us}
    await tx.execute_many(RESPEC, [params])
    if rollout.state.replicas_after is not None:
        await tx.execute_many(RESIZE, [params | {"replicas": rollout.state.replicas_after}])


async def _tell(tx: Transaction, agent: str, before: rollouts.Rollout, after: rollouts.Rollout) -> None:
    """Raise an alert where the rollout has failed by itself, and resolve it where one is complete again."""
    if after.phase is before.phase or after.is_open:
        return
    has_failed_checks = after.phase is rollouts.Phase.FAILED and not after.weight_pct  # else its deaths are told of
    if after.phase is rollouts.Phase.ROLLED_BACK or has_failed_checks:
        back = "" if after.from_revision is None else f" and revision {after.from_revision} serves"
        what = f"the rollout of {agent} to revision {after.to_revision} has failed{back}: {after.reason}"
        await alerts.note(tx, alerts.Raised(f"rollout-{agent}", "rollout-failed", agent, "warning", what))
    elif after.phase is rollouts.Phase.COMPLETE:
        await calm(tx, agent)


async def calm(tx: Transaction, agent: str) -> None:
    """Resolve the alert that a rollout of *agent* has failed: what serves is what somebody wants."""
    await alerts.note(tx, alerts.Resolved(f"rollout-{agent}"))


async def _serve(tx: Transaction, agent: str, number: int, spec: bytes) -> None:
    await tx.execute_many(_SERVE, [{"agent": agent, "number": number, "spec": spec, "now": tx.now_us}])


async def _follow(tx: Transaction, news: News, rollout: Rollout, *, was_standing: frozenset[int] | None = None) -> None:
    """Have stand what should, let go what need not, and route by what is so now."""
    if rollout.state.standing != was_standing:
        await _stand(tx, rollout.agent, rollout.state.standing)
    news.traffic[rollout.agent] = rollout.traffic


async def _stand(tx: Transaction, agent: str, standing: frozenset[int]) -> None:
    """Retire all revisions but *standing*: the sessions that kept to them go wherever they are given to.

    One that was retired and stands again gets none of them back: it may have to prove itself first.
    """
    one, other = min(standing, default=-1), max(standing, default=-1)
    params = {"agent": agent, "one": one, "other": other}
    again = await tx.fetch(_STAND, params)
    await tx.execute_many(_FORGET_PINS, [{"agent": agent, "number": number} for (number,) in again])
    await tx.execute_many(_RETIRE, [params | {"now": tx.now_us}])
    await tx.execute_many(_UNPIN, [params])


async def add(
    tx: Transaction,
    news: News,
    agent: str,
    state: rollouts.Rollout,
    *,
    strategy: str,
    spec: bytes,
    from_spec: bytes,
    by: str,
) -> int:
    """Store a rollout as the agent's last one, with all that follows from it; return its id."""
    ((last_death,),) = await tx.fetch(_LAST_DEATH, {"agent": agent})
    state = replace(state, deaths_after=last_death)
    params: dict[str, Any] = {
        "agent": agent,
        "strategy": strategy,
        "from_revision": state.from_revision,
        "to_revision": state.to_revision,
        "phase": state.phase,
        "reason": state.reason[:MAX_REASON],
        "record": _encode(state),
        "spec": spec,
        "from_spec": from_spec,
        "by": by,
        "now": tx.now_us,
        "ended_at": None if state.is_open else tx.now_us,
    }
    ((id,),) = await tx.fetch(_NEW, params)
    await tx.execute_many(_LEAD, [{"agent": agent, "id": id}])
    await tx.execute_many(_FORGET, [{"agent": agent, "keep": KEEP}])
    if state.from_revision is None or not state.is_open:
        await _serve(tx, agent, state.serving, spec)
    row = await _by_id(tx, id)
    assert row is not None
    await _follow(tx, news, row)
    if state.phase is rollouts.Phase.COMPLETE:
        await calm(tx, agent)
    return int(id)


async def switch(tx: Transaction, news: News, items: Sequence[Switch]) -> list[int | None]:
    """Let revisions serve at once; None where the agent is no longer what it was, or that revision is not kept."""
    return [await _switch(tx, news, item) for item in items]


async def _switch(tx: Transaction, news: News, item: Switch) -> int | None:
    agent = await agent_of(tx, item.agent)
    revision = await tx.fetch(agents.REVISION, {"agent": item.agent, "number": item.to})
    if agent is None or not revision or agent.generation != item.generation:
        return None
    last = await last_of(tx, item.agent)
    if last is not None and last.state.is_open:
        is_to = last.to_revision == agent.revision
        ended = rollouts.roll_back(last.state, item.reason) if is_to else rollouts.supersede(last.state, item.reason)
        if ended.serving == item.to:  # it has never been complete: this is its end
            return last.id if await _put(tx, news, Put(last.id, last.version, ended)) else None
        await end(tx, news, last, ended)
    spec = _encode(settings.with_revision_part(spec_of(agent.spec), spec_of(Revision(*revision[0]).spec)))
    state = rollouts.switched(agent.revision, item.to, item.reason)
    return await add(tx, news, item.agent, state, strategy="switch", spec=spec, from_spec=agent.spec, by=item.by)


async def remove(tx: Transaction, news: News, items: Sequence[agents.Remove]) -> list[bool]:
    """Remove agents: their rollouts end, none of their revisions stands."""
    answers = []
    for item in items:
        last = await last_of(tx, item.agent)
        if last is not None and last.state.is_open:
            await end(tx, news, last, rollouts.abort(last.state, "the agent was removed"))
        (is_removed,) = await agents.remove(tx, news, [item])
        if is_removed:
            await _stand(tx, item.agent, frozenset())
            await calm(tx, item.agent)
            if last is not None:
                news.traffic[item.agent] = Traffic((last.id, 2**62), {})
        answers.append(is_removed)
    return answers


class Rollouts:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def put(self, rollout: Rollout, state: rollouts.Rollout, *, verb: str = "") -> bool:
        """Move *rollout* to *state*; False if somebody else has moved it since it was read."""
        item = Put(rollout.id, rollout.version, state, rollout.agent, verb)
        is_put: bool = await self._commits.write(put, item)
        return is_put

    async def move(self, id: int, by: Callable[[rollouts.Rollout], rollouts.Rollout], *, verb: str = "") -> Rollout:
        """Move a rollout to what *by* makes of it, whatever it is by then, and return it; *verb* is for the audit log.

        Raises what *by* raises; `errors.Conflict` where somebody else moves it again and again meanwhile.
        """
        for _ in range(TRIES):
            rollout = await self.get(id)
            state = by(rollout.state)
            if state == rollout.state:
                return rollout
            if await self.put(rollout, state, verb=verb):
                return await self.get(id)
        raise errors.Conflict(f"cannot move the rollout {id} now: it moves on all the time; look at it, and try again")

    async def switch(self, agent: str, *, generation: int, to: int, reason: str, by: str) -> int | None:
        """Let revision *to* serve at once, and return the rollout that says so.

        None, and nothing has changed, if *agent* is no longer what it was at *generation*, or *to* is not kept.
        """
        id: int | None = await self._commits.write(switch, Switch(agent, generation, to, reason, by))
        return id

    async def remove(self, agent: str) -> None:
        if not await self._commits.write(remove, agents.Remove(agent)):
            raise errors.NotFound(f"cannot find the agent {agent[:64]}")

    async def get(self, id: int) -> Rollout:
        rows = await self._db.lookup(_BY_ID, {"id": id})
        if not rows:
            raise errors.NotFound(f"cannot find the rollout {id}")
        return Rollout(*rows[0])

    async def history(self, agent: str, *, limit: int = 50) -> Sequence[Rollout]:
        """Return the agent's rollouts, latest first."""
        return [Rollout(*row) for row in await self._db.read(_HISTORY, {"agent": agent, "limit": min(limit, KEEP)})]

    async def latest_ended(self, *, before_id: int | None = None, limit: int = 20) -> Sequence[Rollout]:
        """Return the rollouts of all agents that have ended, those that began latest first."""
        params = {"before": 2**62 if before_id is None else before_id, "limit": min(limit, KEEP)}
        return [Rollout(*row) for row in await self._db.read(_LATEST_ENDED, params)]


ORDER = (switch, put, remove)
