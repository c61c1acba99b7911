"""Rollouts and revisions in the store. What a rollout does is decided in `core.rollouts`; here each move is one write.

One write moves everything that hangs on it: the rollout's row, the serving revision and spec of its agent, the
revisions that stand, the tasks of sessions that kept to one that does not, and, once it is durable, the traffic on the
board.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from greenroom import errors, settings
from greenroom.core import analysis, rollouts
from greenroom.store import agents, database, recovery
from greenroom.store.agents import Agent, Revision
from greenroom.store.board import Traffic
from greenroom.store.commits import Commits
from greenroom.store.database import Row, Transaction
from greenroom.store.news import News

KEEP = 100  # ended rollouts of each agent
MAX_REASON = 4_000  # characters
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
        return decoded(self.record)

    @property
    def traffic(self) -> Traffic:
        return Traffic((self.id, self.version), self.state.shares)


decode = msgspec.json.Decoder(rollouts.Rollout).decode
decoded = functools.lru_cache(maxsize=256)(decode)
_encode = msgspec.json.encode


class Limits(msgspec.Struct, frozen=True):
    """How many replicas there may be of all agents: as they should be, and beside that for rollouts."""

    replicas: int
    surge: int


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's wanted code and spec."""

    agent: str
    digest: str
    spec: settings.AgentSettings
    by: str
    judged_anew: bool
    limits: Limits | None


class Begun(msgspec.Struct, frozen=True):
    """*rollout* moves the agent to *revision*, or has done so. *is_new*: it was begun by this very deployment."""

    rollout: int
    revision: int
    is_new: bool


class Put(msgspec.Struct, frozen=True):
    """The rollout's next state, if it still is what it was at *version*."""

    id: int
    version: int
    state: rollouts.Rollout


class Switch(msgspec.Struct, frozen=True):
    """Give everything to *to* at once, if the agent still is what it was at *generation*."""

    agent: str
    generation: int
    to: int
    reason: str
    by: str


class Reading(Protocol):
    """What decisions read by: a transaction, or the database outside of any."""

    async def fetch(self, sql: str, params: database.Params) -> Sequence[Row]: ...


def _columns(row_type: type[msgspec.Struct], *, of: str = "") -> str:
    return ", ".join(f"{of}{name}" for name in row_type.__struct_fields__)


_AGENT = f"select {_columns(Agent)} from agent where name = :agent for update"
_LAST = f"""
select {_columns(Rollout, of="rollout.")} from rollout join agent on agent.rollout = rollout.id
where agent.name = :agent"""
_BY_ID = f"select {_columns(Rollout)} from rollout where id = :id"
_SAME = "select number from revision where agent = :agent and identity = :identity order by number desc limit 1"
_HIGHEST = "select coalesce(max(number), 0) from revision where agent = :agent"
_NEW_REVISION = """
insert into revision (agent, number, digest, spec, identity, created_at)
values (:agent, :number, :digest, :spec, :identity, :now)"""
_NEW_AGENT = """
insert into agent (name, generation, revision, replicas, state, reason, spec, updated_at)
values (:agent, :now, :number, :replicas, 'starting', '', :spec, :now)"""
_NEW_ROLLOUT = """
insert into rollout (agent, strategy, from_revision, to_revision, phase, reason, record, spec, from_spec, begun_by,
    version, created_at, updated_at, ended_at)
values (:agent, :strategy, :from_revision, :to_revision, :phase, :reason, :record, :spec, :from_spec, :by,
    1, :now, :now, :ended_at) returning id"""
_PUT = """
update rollout set phase = :phase, reason = :reason, record = :record, version = version + 1, updated_at = :now,
    ended_at = coalesce(ended_at, :ended_at)
where id = :id and version = :version returning agent"""
_PUT_SPEC = "update rollout set spec = :spec where id = :id"
_LEAD = "update agent set rollout = :id where name = :agent"
_SERVE = """
update agent set revision = :number, spec = :spec, generation = generation + 1, updated_at = :now where name = :agent"""
_RESPEC = "update agent set spec = :spec, updated_at = :now where name = :agent and spec <> :spec"
_RESIZE = """
update agent set replicas = :replicas, generation = generation + 1, updated_at = :now where name = :agent"""
_RESTART = """
update agent set generation = generation + 1, state = 'starting', reason = '', updated_at = :now
where name = :agent"""
_STAND = """
update revision set retired_at = null
where agent = :agent and (number = :one or number = :other) and retired_at is not null"""
_RETIRE = """
update revision set retired_at = :now
where agent = :agent and number <> :one and number <> :other and retired_at is null"""
_UNPIN = """
update task set pin = null
where agent = :agent and state = 'queued' and pin is not null and pin <> :one and pin <> :other"""
_READY = "select count(*) from replica where agent = :agent and revision = :number and state = 'ready'"
_OTHERS = "select coalesce(sum(replicas), 0) from agent where name <> :agent"
_SURGING = f"""
select {_columns(Rollout, of="rollout.")}, agent.replicas from rollout join agent on agent.rollout = rollout.id
where agent.name <> :agent"""
_FORGET = """
delete from rollout where agent = :agent and id < (
    select min(id) from (select id from rollout where agent = :agent order by id desc limit :keep) as kept)"""
_HISTORY = f"select {_columns(Rollout)} from rollout where agent = :agent order by id desc limit :limit"


# --- deployments


class Do(enum.Enum):
    """What a deployment comes to."""

    BEGIN = enum.auto()
    JOIN = enum.auto()  # the rollout to it is on its way
    STAY = enum.auto()  # it serves already
    LEAVE = enum.auto()  # it was undone, and nobody asks for it anew


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """*last* is the last rollout of *agent*; *state* is the one to begin, if there is no *refusal*."""

    do: Do
    agent: Agent | None
    last: Rollout | None
    number: int  # the revision's
    is_known: bool  # there is such a revision already
    desired: int
    state: rollouts.Rollout | None = None
    refusal: errors.Conflict | None = None


async def begin(tx: Transaction, news: News, items: Sequence[Begin]) -> list[Begun | Exception]:
    """Begin to move agents to what is wanted of them, or find out that nothing has to move."""
    return [await _begin(tx, news, item) for item in items]


async def _begin(tx: Transaction, news: News, item: Begin) -> Begun | Exception:
    decision = await _decide(tx, item)
    agent, last = decision.agent, decision.last
    if decision.refusal is not None:
        return decision.refusal
    match decision.do:
        case Do.JOIN:
            assert last is not None
            return await _join(tx, item, last, desired=decision.desired)
        case Do.STAY:
            return await _stay(tx, news, item, decision)
        case Do.LEAVE:
            assert agent is not None
            assert last is not None
            return Begun(last.id, agent.revision, is_new=False)
        case Do.BEGIN:
            return await _start(tx, news, item, decision)


async def _decide(tx: Reading, item: Begin) -> Decision:
    agent, last = await _found(tx, item.agent), await _last(tx, item.agent)
    number, is_known = await _number(tx, item)
    before = None if agent is None else await _serving(tx, agent, last)
    decision = Decision(
        do=Do.BEGIN, agent=agent, last=last, number=number, is_known=is_known, desired=_desired(agent, item.spec)
    )
    if agent is not None and last is not None and is_known:
        if last.state.is_open and number == last.to_revision:
            desired = _desired(agent, item.spec, since=last.spec)
            refusal = await _refusal(tx, item, last.state, desired=desired) if desired > agent.replicas else None
            return dataclasses.replace(decision, do=Do.JOIN, desired=desired, refusal=refusal)
        if number == before and last.state.phase is not rollouts.Phase.FAILED:
            refusal = await _shortage(tx, item, decision.desired) if decision.desired > agent.replicas else None
            return dataclasses.replace(decision, do=Do.STAY, refusal=refusal)
        if not item.judged_anew and before is not None and number == await _highest(tx, item.agent) != before:
            return dataclasses.replace(decision, do=Do.LEAVE)
        if number == before:
            before = None  # it has failed as the first one, and is tried again
    state = _planned(item, before, number, desired=decision.desired)
    refusal = await _refusal(tx, item, state, desired=decision.desired)
    return dataclasses.replace(decision, state=state, refusal=refusal)


async def _start(tx: Transaction, news: News, item: Begin, decision: Decision) -> Begun:
    """Begin the rollout that was decided on; the one before it ends."""
    state, number, last = decision.state, decision.number, decision.last
    assert state is not None
    if not decision.is_known:
        await _add_revision(tx, item, number)
    if last is not None:
        reason = f"revision {number} was deployed before it was complete"
        await _put(tx, news, Put(last.id, last.version, rollouts.supersede(last.state, reason)), alone=False)
    spec, is_first = _encode(item.spec), state.from_revision is None
    if decision.agent is None:
        params = {"agent": item.agent, "number": number, "spec": spec, "replicas": decision.desired, "now": tx.now_us}
        await tx.execute_many(_NEW_AGENT, [params])
    from_spec = await _resize(tx, item.agent, decision.desired, is_restarted=is_first)
    strategy = "first" if is_first else item.spec.rollout.strategy
    id = await _add(tx, news, item.agent, state, strategy=strategy, spec=spec, from_spec=from_spec, by=item.by)
    return Begun(id, number, is_new=True)


async def _found(tx: Reading, agent: str) -> Agent | None:
    rows = await tx.fetch(_AGENT, {"agent": agent})
    return Agent(*rows[0]) if rows else None


def _desired(agent: Agent | None, spec: settings.AgentSettings, *, since: bytes | None = None) -> int:
    """Return how many replicas there should be: those that there are, unless the wanted number has changed.

    That is, from what the spec *since* has, default: the agent's.
    """
    wanted = spec.scaling.min_replicas
    if agent is None or not agent.replicas or wanted != _spec(since or agent.spec).scaling.min_replicas:
        return wanted
    return agent.replicas


async def _resize(tx: Transaction, name: str, desired: int, *, is_restarted: bool) -> bytes:
    """Have *desired* replicas; return the spec that the agent has now."""
    agent = await _found(tx, name)
    assert agent is not None
    if desired != agent.replicas:
        await tx.execute_many(_RESIZE, [{"agent": name, "replicas": desired, "now": tx.now_us}])
    if is_restarted:
        await tx.execute_many(_RESTART, [{"agent": name, "now": tx.now_us}])
    return agent.spec


async def _number(tx: Reading, item: Begin) -> tuple[int, bool]:
    """Return the number of the revision that *item* is, and whether there is one already."""
    same = await tx.fetch(_SAME, {"agent": item.agent, "identity": _identity(item)})
    return (same[0][0], True) if same else (await _highest(tx, item.agent) + 1, False)


async def _highest(tx: Reading, agent: str) -> int:
    ((number,),) = await tx.fetch(_HIGHEST, {"agent": agent})
    return int(number)


def _identity(item: Begin) -> str:
    return hashlib.sha256(item.digest.encode() + b"\n" + settings.revision_part(item.spec)).hexdigest()


async def _add_revision(tx: Transaction, item: Begin, number: int) -> None:
    params = {"agent": item.agent, "number": number, "digest": item.digest, "spec": _encode(item.spec)}
    await tx.execute_many(_NEW_REVISION, [params | {"identity": _identity(item), "now": tx.now_us}])


async def _join(tx: Transaction, item: Begin, last: Rollout, *, desired: int) -> Begun:
    """It is on its way already; what is no part of a revision is taken as it is wanted now."""
    await _resize(tx, item.agent, desired, is_restarted=False)
    await tx.execute_many(_PUT_SPEC, [{"id": last.id, "spec": _encode(item.spec)}])
    return Begun(last.id, last.to_revision, is_new=False)


async def _stay(tx: Transaction, news: News, item: Begin, decision: Decision) -> Begun:
    """It serves already: whatever moves away from it is undone, and what is no part of a revision is changed."""
    agent, last, desired = decision.agent, decision.last, decision.desired
    assert agent is not None
    assert last is not None
    if last.state.is_open:
        aborted = rollouts.abort(last.state, f"revision {decision.number} was deployed again")
        await _put(tx, news, Put(last.id, last.version, aborted))
    params = {"agent": item.agent, "spec": _encode(item.spec), "replicas": desired, "now": tx.now_us}
    await tx.execute_many(_RESPEC, [params])
    if desired != agent.replicas:
        await tx.execute_many(_RESIZE, [params])
    elif item.judged_anew:
        await tx.execute_many(agents.RELEASE, [params])
    return Begun(last.id, decision.number, is_new=False)


async def _serving(tx: Reading, agent: Agent, last: Rollout | None) -> int | None:
    """Return the revision that serves, and that the next one is held against; None if nothing does."""
    if not agent.replicas:
        return None
    if last is None:
        return agent.revision
    if last.from_revision is not None:
        return last.from_revision if last.state.is_open else agent.revision
    if last.state.phase is rollouts.Phase.COMPLETE:
        return agent.revision
    ((ready,),) = await tx.fetch(_READY, {"agent": agent.name, "number": agent.revision})
    return agent.revision if ready and last.state.weight_pct else None


def _planned(item: Begin, before: int | None, number: int, *, desired: int) -> rollouts.Rollout:
    wanted = item.spec.rollout
    if before is None:
        has_checks = bool(wanted.checks or wanted.examples)
        return rollouts.first(number, has_checks=has_checks, progress_deadline_s=wanted.progress_deadline_s)
    return rollouts.Rollout(
        from_revision=before,
        to_revision=number,
        stages=rollouts.stages(strategy(wanted, desired), desired),
        progress_deadline_s=wanted.progress_deadline_s,
        scale_down_delay_s=wanted.scale_down_delay_s,
        evidence=(analysis.Stage(weight_pct=0),),
    )


def strategy(wanted: settings.Rollout, desired: int) -> rollouts.Strategy:
    """Return what *wanted* asks for, of an agent with *desired* replicas."""
    return rollouts.Strategy(
        kind=wanted.strategy,
        hold_s=wanted.hold_s,
        weights=wanted.weights,
        surge=rollouts.bound(wanted.max_surge, desired),
        unavailable=rollouts.bound(wanted.max_unavailable, desired),
        needs_promotion=wanted.promotion == "manual",
    )


async def _refusal(tx: Reading, item: Begin, state: rollouts.Rollout, *, desired: int) -> errors.Conflict | None:
    """Say what is missing, where this would be more than there may be."""
    if item.limits is None:
        return None
    if (shortage := await _shortage(tx, item, desired)) is not None:
        return shortage
    needed, others = rollouts.beside(state, desired), await tx.fetch(_SURGING, {"agent": item.agent})
    taken = sum(rollouts.beside(Rollout(*row).state, replicas) for *row, replicas in others)
    missing = taken + needed - item.limits.surge
    if not needed or missing <= 0:
        return None
    return errors.Conflict(
        f"cannot roll out {item.agent}: {item.spec.rollout.strategy} needs {needed} replicas beside its {desired}, "
        f"other rollouts have {taken}, and cluster.max_surge is {item.limits.surge}: {missing} are missing; wait for "
        "the others, use the strategy rolling with a smaller max_surge, or raise cluster.max_surge"
    )


async def _shortage(tx: Reading, item: Begin, desired: int) -> errors.Conflict | None:
    """Say so where there is no room for *desired* replicas, whatever moves."""
    if item.limits is None:
        return None
    ((others,),) = await tx.fetch(_OTHERS, {"agent": item.agent})
    if others + desired <= item.limits.replicas:
        return None
    return errors.Conflict(
        f"cannot deploy {item.agent}: {others} replicas of other agents and {desired} of it "
        f"are more than cluster.max_replicas ({item.limits.replicas})"
    )


# --- moves


async def put(tx: Transaction, news: News, items: Sequence[Put]) -> list[bool]:
    """Move rollouts on; False where somebody else has moved it before."""
    return [await _put(tx, news, item) for item in items]


async def _put(tx: Transaction, news: News, item: Put, *, alone: bool = True) -> bool:
    """Write a rollout's next state; *alone*: with all that follows from it, for no other one begins."""
    before, state = await _by_id(tx, item.id), item.state
    params = {"id": item.id, "version": item.version, "phase": state.phase, "reason": state.reason[:MAX_REASON]}
    ended_at = None if state.is_open else tx.now_us
    if not await tx.fetch(_PUT, params | {"record": _encode(state), "now": tx.now_us, "ended_at": ended_at}):
        return False
    assert before is not None
    after = replace(before, version=before.version + 1, record=_encode(state))
    if state.serving != before.state.serving:
        spec = after.spec if state.serving == state.to_revision else after.from_spec
        await _serve(tx, before.agent, state.serving, spec)
    elif state.phase is rollouts.Phase.COMPLETE and before.state.is_open:
        await tx.execute_many(_RESPEC, [{"agent": before.agent, "spec": after.spec, "now": tx.now_us}])
    if alone:
        await _follow(tx, news, after)
    await _tell(tx, before.agent, before.state, state)
    return True


async def _tell(tx: Transaction, agent: str, before: rollouts.Rollout, after: rollouts.Rollout) -> None:
    """Raise an alert where the rollout has failed by itself, and resolve it where one is complete again."""
    id = f"rollout-{agent}"
    if after.phase is before.phase or after.is_open:
        return
    has_failed_checks = after.phase is rollouts.Phase.FAILED and not after.weight_pct  # else its deaths are told of
    if after.phase is rollouts.Phase.ROLLED_BACK or has_failed_checks:
        back = "" if after.from_revision is None else f" and revision {after.from_revision} serves"
        what = f"the rollout of {agent} to revision {after.to_revision} has failed{back}: {after.reason}"
        await recovery.note_alert(tx, recovery.Raised(id, "rollout-failed", agent, "warning", what))
    elif after.phase is rollouts.Phase.COMPLETE:
        await recovery.note_alert(tx, recovery.Resolved(id))


async def _serve(tx: Transaction, agent: str, number: int, spec: bytes) -> None:
    await tx.execute_many(_SERVE, [{"agent": agent, "number": number, "spec": spec, "now": tx.now_us}])


async def _follow(tx: Transaction, news: News, rollout: Rollout) -> None:
    """Have stand what should, let go what need not, and route by what is so now."""
    await _stand(tx, rollout.agent, rollout.state.standing)
    news.traffic[rollout.agent] = rollout.traffic


async def _stand(tx: Transaction, agent: str, standing: frozenset[int]) -> None:
    """Retire all revisions but *standing*: the sessions that kept to them go wherever they are given to."""
    one, other = min(standing, default=-1), max(standing, default=-1)
    params = {"agent": agent, "one": one, "other": other}
    await tx.execute_many(_STAND, [params])
    await tx.execute_many(_RETIRE, [params | {"now": tx.now_us}])
    await tx.execute_many(_UNPIN, [params])


async def _add(
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
    """Store a rollout as the agent's last one, with all that follows from it."""
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
    ((id,),) = await tx.fetch(_NEW_ROLLOUT, params)
    await tx.execute_many(_LEAD, [{"agent": agent, "id": id}])
    await tx.execute_many(_FORGET, [{"agent": agent, "keep": KEEP}])
    if state.from_revision is None or not state.is_open:
        await _serve(tx, agent, state.serving, spec)
    row = await _by_id(tx, id)
    assert row is not None
    await _follow(tx, news, row)
    return int(id)


async def switch(tx: Transaction, news: News, items: Sequence[Switch]) -> list[int | None]:
    """Let revisions serve at once; None where the agent is no longer what it was, or that revision is not kept."""
    return [await _switch(tx, news, item) for item in items]


async def _switch(tx: Transaction, news: News, item: Switch) -> int | None:
    agent = await _found(tx, item.agent)
    revision = await tx.fetch(agents.REVISION, {"agent": item.agent, "number": item.to})
    if agent is None or not revision or agent.generation != item.generation:
        return None
    last = await _last(tx, item.agent)
    if last is not None:
        undone = rollouts.roll_back if last.to_revision == agent.revision else rollouts.supersede
        ended = undone(last.state, item.reason) if last.state.is_open else rollouts.supersede(last.state, "")
        await _put(tx, news, Put(last.id, last.version, ended), alone=False)
        if last.state.is_open and ended.serving == item.to:  # it has never been complete: this is its end
            await _follow(tx, news, replace(last, version=last.version + 1, record=_encode(ended)))
            return last.id
    spec = _encode(settings.with_revision_part(_spec(agent.spec), _spec(Revision(*revision[0]).spec)))
    state = rollouts.switched(agent.revision, item.to, item.reason)
    return await _add(tx, news, item.agent, state, strategy="switch", spec=spec, from_spec=agent.spec, by=item.by)


async def remove(tx: Transaction, news: News, items: Sequence[agents.Remove]) -> list[bool]:
    """Remove agents: their rollouts end, none of their revisions stands."""
    answers = []
    for item in items:
        last = await _last(tx, item.agent)
        if last is not None and last.state.is_open:
            aborted = rollouts.abort(last.state, "the agent was removed")
            await _put(tx, news, Put(last.id, last.version, aborted), alone=False)
        (is_removed,) = await agents.remove(tx, news, [item])
        if is_removed:
            await _stand(tx, item.agent, frozenset())
            if last is not None:
                news.traffic[item.agent] = Traffic((last.id, 2**62), {})
        answers.append(is_removed)
    return answers


async def _last(tx: Reading, agent: str) -> Rollout | None:
    found = await tx.fetch(_LAST, {"agent": agent})
    return Rollout(*found[0]) if found else None


async def _by_id(tx: Transaction, id: int) -> Rollout | None:
    found = await tx.fetch(_BY_ID, {"id": id})
    return Rollout(*found[0]) if found else None


_spec = msgspec.json.Decoder(settings.AgentSettings).decode


@dataclass(frozen=True, slots=True)
class _Outside:
    """Reads outside any transaction: what is found may have changed when it is acted upon."""

    db: database.Database

    async def fetch(self, sql: str, params: database.Params) -> Sequence[Row]:
        return await self.db.lookup(sql.removesuffix(" for update"), params)


class Rollouts:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def begin(
        self,
        agent: str,
        spec: settings.AgentSettings,
        *,
        digest: str,
        by: str,
        judged_anew: bool = True,
        limits: Limits | None = None,
    ) -> Begun:
        """Begin to move *agent* to this code and spec: a new revision, unless one of its revisions is equal.

        An agent without a serving revision gets it at once. A rollout that is on its way is superseded, joined if it is
        to the same revision, aborted if it is away from it. Without *judged_anew* a revision that was undone stays so.
        Raises `errors.Conflict`, and changes nothing, over *limits*.
        """
        item = Begin(agent=agent, digest=digest, spec=spec, by=by, judged_anew=judged_anew, limits=limits)
        begun: Begun = await self._commits.write(begin, item)
        return begun

    async def decide(
        self, agent: str, spec: settings.AgentSettings, *, digest: str, limits: Limits | None = None
    ) -> Decision:
        """Return what `begin` would do."""
        item = Begin(agent=agent, digest=digest, spec=spec, by="", judged_anew=True, limits=limits)
        return await _decide(_Outside(self._db), item)

    async def put(self, rollout: Rollout, state: rollouts.Rollout) -> bool:
        """Move *rollout* to *state*; False if somebody else has moved it since it was read."""
        is_put: bool = await self._commits.write(put, Put(rollout.id, rollout.version, state))
        return is_put

    async def move(self, id: int, by: Callable[[rollouts.Rollout], rollouts.Rollout]) -> Rollout:
        """Move a rollout to what *by* makes of it, whatever it is by then, and return it.

        Raises what *by* raises; `errors.Conflict` where somebody else moves it again and again meanwhile.
        """
        for _ in range(TRIES):
            rollout = await self.get(id)
            state = by(rollout.state)
            if state == rollout.state:
                return rollout
            if await self.put(rollout, state):
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


ORDER = (begin, switch, put, remove)
