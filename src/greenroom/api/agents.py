"""The agent and replica routes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import structs

from greenroom import errors, settings, strict_json
from greenroom.api import access, views
from greenroom.api.request import Answer, Call
from greenroom.core.permissions import Action, Rights
from greenroom.store.directory import Entry


async def list_agents(call: Call) -> Answer:
    """List agents with their replicas and queues."""
    entries = await call.store.directory.refresh()
    readable = [entry for name, entry in entries.items() if call.principal.rights.on_agent(Action.AGENT_READ, name)]
    return Answer({"items": await _documents(call, readable), "next_cursor": None})


async def show_agent(call: Call) -> Answer:
    """Show an agent."""
    await call.store.directory.refresh()
    entry = access.find_agent(call, call.path("name"), Action.AGENT_READ)
    return Answer((await _documents(call, [entry]))[0])


async def shown(call: Call, name: str) -> Answer:
    """Show an agent on which the caller has done what they may."""
    await call.store.directory.refresh()
    return Answer((await _documents(call, [call.store.directory.get(name)]))[0])


async def _documents(call: Call, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    full = views.full(call.store.directory.entries, call.services.settings.cluster.max_replicas)
    ready = views.ready(await call.store.agents.replicas(), call.store.board)
    counts = await OpenCounts.of(call)
    return [
        views.agent(
            entry,
            ready=ready,
            open_counts=counts.seen_of(entry.agent.name),
            breaker=call.services.breakers.state(entry.agent.name),
            full=full,
            finding=call.services.health.finding(entry.agent.name),
            is_observed=call.principal.rights.on_agent(Action.AGENT_OBSERVE, entry.agent.name),
        )
        for entry in entries
    ]


class OpenCounts(msgspec.Struct, frozen=True):
    """How many tasks are open, by agent and state: of all tenants, for who may observe the agent, else their own."""

    rights: Rights
    of_all: Mapping[tuple[str, str], int]
    own: Mapping[tuple[str, str], int]

    @classmethod
    async def of(cls, call: Call) -> OpenCounts:
        rights, tasks = call.principal.rights, call.store.tasks
        return cls(
            rights,
            of_all=await tasks.open_counts() if rights.allows(Action.AGENT_OBSERVE) else {},
            own={} if rights.on_all(Action.AGENT_OBSERVE) else await tasks.open_counts(tenant=call.principal.tenant),
        )

    @property
    def agents(self) -> Iterator[str]:
        """Yield the agents of whose tasks the caller may know, also those that are removed."""
        for name, _ in (*self.of_all, *self.own):
            if self.rights.on_agent(Action.AGENT_READ, name):
                yield name

    def seen_of(self, agent: str) -> dict[str, int]:
        """Return the counts of *agent* by state."""
        counts = self.of_all if self.rights.on_agent(Action.AGENT_OBSERVE, agent) else self.own
        return {state: count for (name, state), count in counts.items() if name == agent}


async def put_agent(call: Call) -> Answer:
    """Deploy an agent: its spec as in the manifest, the node's own code or ``?code=``; a dry run begins nothing.

    With ``?strategy=`` and ``?hold_s=`` the rollout is another one for this time.
    """
    name = call.path("name")
    access.require(call, Action.AGENT_DEPLOY, name)  # whether there is one of this name is not said
    value = strict_json.loads(call.body)
    if not isinstance(value, dict):
        raise errors.BodyInvalid("cannot take the body: an agent's spec is an object")
    spec = settings.parse_agent(name, value)
    rollout = settings.rollout_for_once(name, value, strategy=call.query("strategy"), hold_s=_number(call, "hold_s"))
    code, is_tried = call.query("code"), call.flag("sessions")
    if call.flag("dry_run"):
        plan = await call.services.deployments.plan(name, spec, code=code, is_tried=is_tried, rollout=rollout)
        return Answer(plan)
    if is_tried:
        raise errors.QueryInvalid("cannot take ?sessions=true: it goes with dry_run=true")
    await call.services.deployments.deploy(
        name, spec, by=call.principal.name, code=code, rollout=rollout, is_remote=True
    )
    return await shown(call, name)


def _number(call: Call, name: str) -> float | str | None:
    """Return a query parameter, as text where it is no number: the settings say what is wrong with it."""
    text = call.query(name)
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


async def delete_agent(call: Call) -> Answer:
    """Remove an agent: its replicas drain, its queued tasks stay and can be cancelled."""
    await call.store.directory.refresh()
    await call.store.rollouts.remove(access.find_agent(call, call.path("name"), Action.AGENT_DEPLOY).agent.name)
    await call.store.directory.refresh()
    return Answer(None, status=204)


async def release(call: Call) -> Answer:
    """Judge an agent anew: what is quarantined is started again, with the whole ladder of recovery before it, and its
    circuit breaker is closed.
    """
    await call.store.directory.refresh()
    name = access.find_agent(call, call.path("name"), Action.AGENT_OPERATE).agent.name
    await call.store.agents.release(name)
    call.services.breakers.release(name)
    return await shown(call, name)


async def revisions(call: Call) -> Answer:
    """List an agent's revisions, newest first."""
    await call.store.directory.refresh()
    entry = access.find_agent(call, call.path("name"), Action.AGENT_OBSERVE)
    rows = await call.store.agents.revisions(entry.agent.name)
    return Answer({"items": [views.revision(row) for row in rows], "next_cursor": None})


async def list_replicas(call: Call) -> Answer:
    """List the replicas that live."""
    rights, board = call.principal.rights, call.store.board
    rows = [row for row in await call.store.agents.replicas() if rights.on_agent(Action.AGENT_OBSERVE, row.agent)]
    return Answer({"items": [views.replica(row, busy=board.busy(row.id)) for row in rows], "next_cursor": None})


async def restart_replica(call: Call) -> Answer:
    """Put a new replica in this one's place: it takes no more tasks, and goes when it has done its own."""
    return await _let_go(call, "restart")


async def drain_replica(call: Call) -> Answer:
    """Let a replica do its tasks and take no more; as the agent keeps its number, another is started."""
    return await _let_go(call, "drain")


async def _let_go(call: Call, verb: str) -> Answer:
    """Drain a replica; one that drains already does what was asked for."""
    id = call.path("id")
    row = await call.store.agents.replica(id)
    missing = f"cannot find the replica {id[:64]}"
    access.check_object(call, row.agent, read=Action.AGENT_OBSERVE, action=Action.AGENT_OPERATE, missing=missing)
    if row.ended_at is not None:
        raise errors.Conflict(f"cannot {verb} {row.id}: it has {row.state} already")
    await call.audit(f"replica.{verb}", f"replica:{row.id}", agent=row.agent)
    if not call.services.restart(row.id) and row.node != call.services.node:
        raise errors.Conflict(f"cannot {verb} {row.id}: it is of another node, {row.node}; ask that one")
    draining = structs.replace(row, state="draining")  # its row says so only when the host has written it
    return Answer(views.replica(draining, busy=call.store.board.busy(row.id)), status=202)
