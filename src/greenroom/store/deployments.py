"""Deployments in the store: an agent's wanted code and spec become a revision, and the rollout to it begins.

In one commit, or not at all; what a deployment comes to is one decision, which is also asked for alone, before anything
is begun. Called by `greenroom.deployments`; what happens to the rollout afterwards is `store.rollouts`.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from typing import Self

import msgspec

from greenroom import errors, settings
from greenroom.core import analysis, rollouts, strategies
from greenroom.core.agents import State
from greenroom.store import agents, database
from greenroom.store import rollouts as rows
from greenroom.store.agents import Agent
from greenroom.store.commits import Commits
from greenroom.store.database import Row, Transaction
from greenroom.store.news import News
from greenroom.store.rollouts import Reading, Rollout, spec_of


class Limits(msgspec.Struct, frozen=True):
    """How many replicas there may be of all agents: as they should be, and beside that for rollouts."""

    replicas: int
    surge: int

    @classmethod
    def of(cls, cluster: settings.Cluster) -> Self:
        most = cluster.max_replicas
        return cls(most, most if cluster.max_surge is None else cluster.max_surge)


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's wanted code and spec. *rollout*, if given, goes before the spec's for this time.

    *autoscaled*: how many replicas there should be is decided elsewhere, between the spec's bounds; a deployment only
    brings it within them.
    """

    agent: str
    digest: str
    spec: settings.AgentSettings
    by: str
    judged_anew: bool = True
    limits: Limits | None = None
    rollout: settings.Rollout | None = None
    autoscaled: bool = False

    @property
    def wanted(self) -> settings.Rollout:
        return self.spec.rollout if self.rollout is None else self.rollout


class Action(enum.StrEnum):
    """What a deployment comes to."""

    BEGIN = "begin"
    JOIN = "join"  # the rollout to it is on its way
    STAY = "stay"  # it serves already
    LEAVE = "leave"  # it was undone, or is about to be, and nobody asks for it anew


class Deployed(msgspec.Struct, frozen=True):
    """*rollout* moves the agent to *revision*, or has done so, or was undone."""

    rollout: int
    revision: int
    action: Action

    @property
    def is_under_way(self) -> bool:
        return self.action in (Action.BEGIN, Action.JOIN)


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """*last* is the last rollout of *agent*; *state* is the one to begin, if there is no *refusal*."""

    action: Action
    agent: Agent | None
    last: Rollout | None
    number: int  # the revision's
    is_known: bool  # there is such a revision already
    desired: int  # replicas, in the end
    state: rollouts.Rollout | None = None
    refusal: errors.Conflict | None = None


_SAME = "select number from revision where agent = :agent and identity = :identity order by number desc limit 1"
# Of a schema that knew no identities.
_UNIDENTIFIED = """
select number, spec from revision where agent = :agent and digest = :digest and identity is null
order by number desc limit 100"""
_HIGHEST = "select coalesce(max(number), 0) from revision where agent = :agent"
_NEW_REVISION = """
insert into revision (agent, number, digest, spec, identity, created_at)
values (:agent, :number, :digest, :spec, :identity, :now)"""
_NEW_AGENT = """
insert into agent (name, generation, revision, replicas, state, reason, spec, updated_at)
values (:agent, :now, :number, :replicas, 'starting', '', :spec, :now)"""
_PUT_SPEC = "update rollout set spec = :spec where id = :id"
_RESTART = """
update agent set generation = generation + 1, state = 'starting', reason = '', updated_at = :now
where name = :agent"""
_READY = "select count(*) from replica where agent = :agent and revision = :number and state = 'ready'"
_OTHERS = "select replicas, spec from agent where name <> :agent"
_OTHERS_ROLLOUTS = f"""
select {rows.ROW}, agent.replicas from rollout join agent on agent.rollout = rollout.id
where agent.name <> :agent"""

_encode = msgspec.json.encode


# --- what it comes to


async def decide(tx: Reading, item: Deployment) -> Decision:
    agent, last = await rows.agent_of(tx, item.agent), await rows.last_of(tx, item.agent)
    number, is_known = await _number(tx, item)
    before = None if agent is None else await _serving(tx, agent, last)
    decision = Decision(
        action=Action.BEGIN,
        agent=agent,
        last=last,
        number=number,
        is_known=is_known,
        desired=_desired(agent, item),
    )
    is_served = False
    if last is not None and is_known:
        if last.state.is_open and number == last.to_revision:
            return msgspec.structs.replace(decision, action=Action.JOIN, refusal=await _shortage(tx, item, decision))
        is_left = before is not None and (number != before or last.state.is_open)  # nothing newer has taken its place
        if not item.judged_anew and is_left and number == await _highest(tx, item.agent):
            return msgspec.structs.replace(decision, action=Action.LEAVE)
        is_served = number == before
        if is_served and last.state.phase is not rollouts.Phase.FAILED:
            return msgspec.structs.replace(decision, action=Action.STAY, refusal=await _shortage(tx, item, decision))
        if is_served:
            before = None  # it has failed as the first one, and is tried again
    state = _planned(item, before, decision, is_served=is_served)
    refusal = await _shortage(tx, item, decision) or await _crowding(tx, item, decision, state)
    return msgspec.structs.replace(decision, state=state, refusal=refusal)


async def _number(tx: Reading, item: Deployment) -> tuple[int, bool]:
    """Return the number of the revision that *item* is, and whether there is one already."""
    if same := await tx.fetch(_SAME, {"agent": item.agent, "identity": _identity(item)}):
        return same[0][0], True
    part = settings.revision_part(item.spec)
    for number, spec in await tx.fetch(_UNIDENTIFIED, {"agent": item.agent, "digest": item.digest}):
        if settings.revision_part(spec_of(spec)) == part:
            return number, True
    return await _highest(tx, item.agent) + 1, False


async def _highest(tx: Reading, agent: str) -> int:
    ((number,),) = await tx.fetch(_HIGHEST, {"agent": agent})
    return int(number)


def _identity(item: Deployment) -> str:
    return hashlib.sha256(item.digest.encode() + b"\n" + settings.revision_part(item.spec)).hexdigest()


async def _serving(tx: Reading, agent: Agent, last: Rollout | None) -> int | None:
    """Return the revision that serves, and that the next one is held against; None if nothing does."""
    if _is_dropped(agent):
        return None
    if last is None:
        return agent.revision
    if last.from_revision is not None:
        return last.from_revision if last.state.is_open else agent.revision
    if last.state.phase is rollouts.Phase.COMPLETE:
        return agent.revision
    ((ready,),) = await tx.fetch(_READY, {"agent": agent.name, "number": agent.revision})
    return agent.revision if ready and last.state.weight_pct else None


def _is_dropped(agent: Agent) -> bool:
    """Whether it has left the manifest; else one without replicas sleeps, and serves."""
    return not agent.replicas and agent.state == State.DROPPED


def _desired(agent: Agent | None, item: Deployment) -> int:
    """Return how many replicas there should be: those that there are, unless the wanted number has changed.

    Where they are scaled automatically: those that there are, within the new bounds.
    """
    scaling = item.spec.scaling
    if agent is None or _is_dropped(agent):
        return scaling.min_replicas
    if item.autoscaled:
        most = agent.replicas if scaling.max_replicas is None else scaling.max_replicas
        return max(scaling.min_replicas, min(agent.replicas, most))
    if not agent.replicas or scaling.min_replicas != spec_of(agent.spec).scaling.min_replicas:
        return scaling.min_replicas
    return agent.replicas


def _planned(item: Deployment, before: int | None, decision: Decision, *, is_served: bool) -> rollouts.Rollout:
    wanted, agent, desired = item.wanted, decision.agent, decision.desired
    if before is None:
        return rollouts.first(
            decision.number,
            has_checks=bool(wanted.checks or wanted.examples),
            is_served=is_served,
            progress_deadline_s=wanted.progress_deadline_s,
        )
    assert agent is not None
    awake = max(1, agent.replicas)
    return rollouts.Rollout(
        from_revision=before,
        to_revision=decision.number,
        stages=strategies.stages(_strategy(wanted, awake), awake),
        progress_deadline_s=wanted.progress_deadline_s,
        scale_down_delay_s=wanted.scale_down_delay_s,
        replicas_after=_after(item, agent, desired),
        evidence=(analysis.Stage(weight_pct=0),),
    )


def _after(item: Deployment, agent: Agent, desired: int) -> int | None:
    """Return how many replicas there should be when a rollout is complete; None: as many as there are then."""
    return None if item.autoscaled or desired == agent.replicas else desired


def _strategy(wanted: settings.Rollout, desired: int) -> strategies.Strategy:
    return strategies.Strategy(
        kind=wanted.strategy,
        hold_s=wanted.hold_s,
        weights=wanted.weights,
        surge=strategies.bound(wanted.max_surge, desired),
        unavailable=strategies.bound(wanted.max_unavailable, desired),
        needs_promotion=wanted.promotion == "manual",
    )


async def _shortage(tx: Reading, item: Deployment, decision: Decision) -> errors.Conflict | None:
    """Say so where there is no room for more replicas, whatever moves."""
    has_now = decision.agent.replicas if decision.agent is not None else 0
    if item.limits is None or (decision.action is not Action.BEGIN and decision.desired <= has_now):
        return None
    others = await _others(tx, item)
    if others + decision.desired <= item.limits.replicas:
        return None
    return errors.Conflict(
        f"cannot deploy {item.agent}: {others} replicas of other agents and {decision.desired} of it "
        f"are more than cluster.max_replicas ({item.limits.replicas})"
    )


async def _others(tx: Reading, item: Deployment) -> int:
    """Return how many replicas the other agents need: where they are scaled automatically, they share what there is."""
    found = await tx.fetch(_OTHERS, {"agent": item.agent})
    if not item.autoscaled:
        return sum(replicas for replicas, _ in found)
    return sum(min(replicas, spec_of(spec).scaling.min_replicas) for replicas, spec in found)


async def _crowding(
    tx: Reading, item: Deployment, decision: Decision, state: rollouts.Rollout
) -> errors.Conflict | None:
    """Say what is missing, where the rollout would need more replicas beside those than there may be."""
    if item.limits is None or decision.agent is None:
        return None
    has_now, others = decision.agent.replicas, await tx.fetch(_OTHERS_ROLLOUTS, {"agent": item.agent})
    needed = rollouts.beside(state, has_now)
    taken = sum(rollouts.beside(Rollout(*row).state, replicas) for *row, replicas in others)
    missing = taken + needed - item.limits.surge
    if not needed or missing <= 0:
        return None
    return errors.Conflict(
        f"cannot roll out {item.agent}: {item.wanted.strategy} needs {needed} replicas beside its {has_now}, "
        f"other rollouts have {taken}, and cluster.max_surge is {item.limits.surge}: {missing} are missing; wait for "
        "the others, use the strategy rolling with a smaller max_surge, or raise cluster.max_surge"
    )


# --- carried out


async def deploy(tx: Transaction, news: News, items: Sequence[Deployment]) -> list[Deployed | Exception]:
    """Begin to move agents to what is wanted of them, or find out that nothing has to move."""
    return [await _deploy(tx, news, item) for item in items]


async def _deploy(tx: Transaction, news: News, item: Deployment) -> Deployed | Exception:
    await _adopt(tx, news, item.agent)
    decision = await decide(tx, item)
    agent, last = decision.agent, decision.last
    if decision.refusal is not None:
        return decision.refusal
    if decision.action is Action.BEGIN:
        return await _begin(tx, news, item, decision)
    assert agent is not None
    assert last is not None
    match decision.action:
        case Action.JOIN:
            await _join(tx, item, decision.desired, last=last, agent=agent)
        case Action.STAY:
            await _stay(tx, news, item, decision, last=last)
        case Action.LEAVE:
            return Deployed(last.id, agent.revision, Action.LEAVE)
    return Deployed(last.id, decision.number, decision.action)


async def _adopt(tx: Transaction, news: News, name: str) -> None:
    """Give an agent of a schema without rollouts the one that it has behind it."""
    agent = await rows.agent_of(tx, name)
    if agent is None or await rows.last_of(tx, name) is not None:
        return
    state = rollouts.adopted(agent.revision)
    await rows.add(tx, news, name, state, strategy="first", spec=agent.spec, from_spec=agent.spec, by="")


async def _begin(tx: Transaction, news: News, item: Deployment, decision: Decision) -> Deployed:
    """Begin the rollout that was decided on; the one before it ends."""
    state, number, last = decision.state, decision.number, decision.last
    assert state is not None
    if not decision.is_known:
        await _add_revision(tx, item, number)
    if last is not None:
        reason = f"revision {number} was deployed before it was complete"
        await rows.end(tx, news, last, rollouts.supersede(last.state, reason))
    spec, is_first = _encode(item.spec), state.from_revision is None
    params = {"agent": item.agent, "number": number, "spec": spec, "replicas": decision.desired, "now": tx.now_us}
    if decision.agent is None:
        await tx.execute_many(_NEW_AGENT, [params])
    elif is_first:  # nothing serves that would have to keep what it has
        await tx.execute_many(rows.RESIZE, [params])
        await tx.execute_many(_RESTART, [params])
    agent = await rows.agent_of(tx, item.agent)
    assert agent is not None
    strategy = "first" if is_first else item.wanted.strategy
    id = await rows.add(tx, news, item.agent, state, strategy=strategy, spec=spec, from_spec=agent.spec, by=item.by)
    return Deployed(id, number, Action.BEGIN)


async def _add_revision(tx: Transaction, item: Deployment, number: int) -> None:
    params = {"agent": item.agent, "number": number, "digest": item.digest, "spec": _encode(item.spec)}
    await tx.execute_many(_NEW_REVISION, [params | {"identity": _identity(item), "now": tx.now_us}])


async def _join(tx: Transaction, item: Deployment, desired: int, *, last: Rollout, agent: Agent) -> None:
    """It is on its way already; what is no part of a revision is taken as it is wanted now, when it is complete."""
    await tx.execute_many(_PUT_SPEC, [{"id": last.id, "spec": _encode(item.spec)}])
    if last.from_revision is None:
        params = {"agent": item.agent, "spec": _encode(item.spec), "replicas": desired, "now": tx.now_us}
        await tx.execute_many(rows.RESPEC, [params])
        await tx.execute_many(rows.RESIZE, [params])
    else:
        await rows.intend(tx, last, replicas_after=_after(item, agent, desired))


async def _stay(tx: Transaction, news: News, item: Deployment, decision: Decision, *, last: Rollout) -> None:
    """It serves already: whatever moves away from it is undone, and what is no part of a revision is changed."""
    if last.state.is_open:
        aborted = rollouts.abort(last.state, f"revision {decision.number} was deployed again")
        (is_put,) = await rows.put(tx, news, [rows.Put(last.id, last.version, aborted)])
        if not is_put:
            raise database.RetryTransaction("somebody else has moved the rollout meanwhile")
    params = {"agent": item.agent, "spec": _encode(item.spec), "replicas": decision.desired, "now": tx.now_us}
    await tx.execute_many(rows.RESPEC, [params])
    await tx.execute_many(rows.RESIZE, [params])
    if item.judged_anew:
        await tx.execute_many(agents.RELEASE, [params])
        await rows.calm(tx, item.agent)


class _Outside(msgspec.Struct, frozen=True):
    """Reads outside any transaction: what is found may have changed when it is acted upon."""

    db: database.Database

    async def fetch(self, sql: str, params: database.Params) -> Sequence[Row]:
        return await self.db.lookup(sql.removesuffix(" for update"), params)


class Deployments:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def deploy(self, item: Deployment) -> Deployed:
        """Begin to move an agent to this code and spec: a new revision, unless one of its revisions is equal.

        An agent without a serving revision gets it at once. A rollout that is on its way is superseded, joined if it is
        to the same revision, aborted if it is away from it. What is not *judged_anew* stays undone, if it was. Raises
        `errors.Conflict`, and changes nothing, over the limits.
        """
        deployed: Deployed = await self._commits.write(deploy, item)
        return deployed

    async def decide(self, item: Deployment) -> Decision:
        """Return what `deploy` would do."""
        return await decide(_Outside(self._db), item)


ORDER = (deploy,)
