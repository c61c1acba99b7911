"""Scaling in the store: an agent's number of replicas with the decision that changed it, in one commit; and the load.

Where scaling is automatic `control.autoscaler` decides and the API only for a person who asks; where it is manual, the
API alone. Whoever it is, what there may be in all is compared in the commit: two that scale at once see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from greenroom import errors
from greenroom.core import rollouts, scaling
from greenroom.store import database
from greenroom.store import rollouts as rows
from greenroom.store.agents import Agent
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.deployments import Limits
from greenroom.store.news import News
from greenroom.store.rollouts import Rollout, spec_of

KEEP = 1_000  # decisions of each agent
KEEP_US = 30 * 86_400 * 1_000_000  # decisions
KEEP_LOAD_US = 7 * 86_400 * 1_000_000
MAX_REASON = 2_000  # characters
MAX_PAGE = 200
BUCKET_S = 10
AUTOSCALER = "autoscaler"


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """Have *agent* have *replicas*, or note why it keeps what it has.

    *before*: only if it has so many still. *within_bounds*: only within its ``min_replicas`` and ``max_replicas``.
    *judged_anew*: what its replicas have died of is forgotten, as a person who scales an agent wants to see it work.
    """

    agent: str
    replicas: int
    room: Limits
    rule: str
    by: str
    reason: str = ""  # "": a sentence is made
    inputs: bytes = b"{}"
    before: int | None = None
    within_bounds: bool = False
    judged_anew: bool = False


class Decision(msgspec.Struct, frozen=True):
    """A decision's row. *inputs* is JSON; *at* in microseconds."""

    seq: int
    agent: str
    at: int
    from_replicas: int
    to_replicas: int
    rule: str
    reason: str
    inputs: bytes
    decided_by: str


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Ten seconds of an agent; see the table."""

    agent: str
    at: int = 0
    arrivals: int
    ends: int
    run_us: int | None
    waiting: int
    busy: float
    replicas: int
    start_us: int | None


def _columns(row_type: type[msgspec.Struct]) -> str:
    return ", ".join(row_type.__struct_fields__)


_RESIZE = "update agent set replicas = :replicas, updated_at = :now where name = :agent"
_RESIZE_ANEW = """
update agent set replicas = :replicas, generation = generation + 1, updated_at = :now where name = :agent"""
_OTHERS = "select coalesce(sum(replicas), 0) from agent where name <> :agent"
_ROLLOUTS = f"select {rows.ROW}, agent.replicas from rollout join agent on agent.rollout = rollout.id"
_DECIDED = """
insert into scaling_decision (agent, at, from_replicas, to_replicas, rule, reason, inputs, decided_by)
values (:agent, :now, :before, :replicas, :rule, :reason, :inputs, :by)"""
_FORGET = """
delete from scaling_decision where agent = :agent and seq <= (
    select seq from scaling_decision where agent = :agent order by seq desc limit 1 offset :keep)"""
_FORGET_OLD = "delete from scaling_decision where at < :before"
_DECISIONS = f"""
select {_columns(Decision)} from scaling_decision where agent = :agent and seq < :before
order by seq desc limit :limit"""
_LOADED = f"""
insert into load ({_columns(Load)}) values ({", ".join(f":{name}" for name in Load.__struct_fields__)})
on conflict (agent, at) do update set arrivals = load.arrivals + :arrivals, ends = load.ends + :ends,
    waiting = :waiting, busy = :busy, replicas = :replicas"""
_FORGET_LOAD = "delete from load where at < :before"
_LOADS = f"select {_columns(Load)} from load where agent = :agent and at >= :after order by at"


async def scale(tx: Transaction, news: News, items: Sequence[Scale]) -> list[bool | errors.GreenroomError]:
    """Write decisions, one after the other; False where the number is another one by now."""
    return [await _scale(tx, news, item) for item in items]


async def _scale(tx: Transaction, news: News, item: Scale) -> bool | errors.GreenroomError:
    agent = await rows.agent_of(tx, item.agent)
    if agent is None:
        return errors.NotFound(f"cannot find the agent {item.agent[:64]}")
    if item.before is not None and agent.replicas != item.before:
        return False
    refusal = _beyond_bounds(item, agent) if item.within_bounds else None
    if refusal is None and item.replicas > agent.replicas:
        refusal = await _no_room(tx, item)
    if refusal is not None:
        return refusal
    params = {"agent": item.agent, "now": tx.now_us, "before": agent.replicas, "replicas": item.replicas}
    if item.replicas != agent.replicas or item.judged_anew:
        await tx.execute_many(_RESIZE_ANEW if item.judged_anew else _RESIZE, [params])
        news.scaled.add(item.agent)
    reason = item.reason or f"from {agent.replicas} to {item.replicas}: {item.by} has set it"
    told = {"rule": item.rule, "reason": reason[:MAX_REASON], "inputs": item.inputs, "by": item.by}
    await tx.execute_many(_DECIDED, [params | told])
    await tx.execute_many(_FORGET, [{"agent": item.agent, "keep": KEEP}])
    await tx.execute_many(_FORGET_OLD, [{"before": tx.now_us - KEEP_US}])
    return True


def _beyond_bounds(item: Scale, agent: Agent) -> errors.Conflict | None:
    wanted = spec_of(agent.spec).scaling
    most = item.room.replicas if wanted.max_replicas is None else wanted.max_replicas
    if wanted.min_replicas <= item.replicas <= most:
        return None
    key = "min_replicas" if item.replicas < wanted.min_replicas else "max_replicas"
    return errors.Conflict(
        f"cannot scale {item.agent} to {item.replicas}: it is scaled automatically between {wanted.min_replicas} and "
        f"{most}; choose one of these, or deploy it with another scaling.{key}"
    )


async def _no_room(tx: Transaction, item: Scale) -> errors.Conflict | None:
    """Say what is in the way where there are too many with the new ones, or the agent's rollout has no room."""
    ((others,),) = await tx.fetch(_OTHERS, {"agent": item.agent})
    if others + item.replicas > item.room.replicas:
        return errors.Conflict(
            f"cannot scale {item.agent} to {item.replicas}: other agents have {others} and cluster.max_replicas is "
            f"{item.room.replicas}; take fewer, scale another one down, or raise cluster.max_replicas"
        )
    found = [(Rollout(*row), replicas) for *row, replicas in await tx.fetch(_ROLLOUTS, {})]
    own = next((rollout for rollout, _ in found if rollout.agent == item.agent), None)
    needed = 0 if own is None else rollouts.beside(own.state, item.replicas)
    taken = sum(rollouts.beside(rollout.state, replicas) for rollout, replicas in found if rollout.agent != item.agent)
    if own is None or not needed or taken + needed <= item.room.surge:
        return None
    return errors.Conflict(
        f"cannot scale {item.agent} to {item.replicas}: rollout {own.id} would need {needed} replicas beside "
        f"them, other rollouts have {taken}, and cluster.max_surge is {item.room.surge}; wait for it, abort it, or "
        "raise cluster.max_surge"
    )


async def record(tx: Transaction, news: News, items: Sequence[Load]) -> list[None]:
    """Write what the ten seconds that end now were like."""
    at_us = tx.now_us - tx.now_us % (BUCKET_S * 1_000_000)
    await tx.execute_many(_LOADED, [msgspec.structs.asdict(item) | {"at": at_us} for item in items])
    await tx.execute_many(_FORGET_LOAD, [{"before": tx.now_us - KEEP_LOAD_US}])
    return [None] * len(items)


class Scaling:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def set(self, agent: str, replicas: int, *, room: Limits, by: str, within_bounds: bool) -> None:
        """Have *agent* have *replicas* because *by* says so; raises `errors.NotFound` and `errors.Conflict`."""
        item = Scale(
            agent=agent,
            replicas=replicas,
            room=room,
            rule=scaling.Rule.SET,
            by=by,
            within_bounds=within_bounds,
            judged_anew=True,
        )
        await self._commits.write(scale, item)

    async def decide(self, items: Sequence[Scale]) -> list[bool | Exception]:
        """Write decisions in one commit, in their order; answers with what became of each."""
        return await self._commits.write_all(scale, items)

    async def record(self, loads: Sequence[Load]) -> None:
        await self._commits.write_all(record, loads)

    async def decisions(self, agent: str, *, before_seq: int | None = None, limit: int = 50) -> Sequence[Decision]:
        """Return the latest decisions, latest first."""
        params: dict[str, Any] = {
            "agent": agent,
            "before": 2**62 if before_seq is None else before_seq,
            "limit": min(limit, MAX_PAGE),
        }
        return [Decision(*row) for row in await self._db.read(_DECISIONS, params)]

    async def loads(self, agent: str, *, after_us: int) -> Sequence[Load]:
        """Return what is recorded since *after_us*, oldest first: only times in which something was done."""
        found = await self._db.read(_LOADS, {"agent": agent, "after": after_us})
        return [Load(**dict(zip(Load.__struct_fields__, row, strict=True))) for row in found]


ORDER = (scale, record)
