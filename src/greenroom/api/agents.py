"""The agent and replica routes."""

from __future__ import annotations

from msgspec import structs

from greenroom import errors, settings, strict_json
from greenroom.api import views
from greenroom.api.request import Answer, Call


async def list_agents(call: Call) -> Answer:
    """List agents with their replicas and queues."""
    ready = views.ready(await call.store.agents.replicas(), call.store.board)
    counts = await call.store.tasks.open_counts()
    entries = await call.store.directory.refresh()
    full = views.full(entries, call.services.settings.cluster.max_replicas)
    items = [
        views.agent(entry, ready=ready, open_counts=counts, breaker=call.services.breakers.state(name), full=full)
        for name, entry in entries.items()
    ]
    return Answer({"items": items, "next_cursor": None})


async def show_agent(call: Call) -> Answer:
    """Show an agent."""
    full = views.full(await call.store.directory.refresh(), call.services.settings.cluster.max_replicas)
    entry = call.store.directory.get(call.path("name"))
    counts = await call.store.tasks.open_counts()
    ready = views.ready(await call.store.agents.replicas(), call.store.board)
    breaker = call.services.breakers.state(entry.agent.name)
    return Answer(views.agent(entry, ready=ready, open_counts=counts, breaker=breaker, full=full))


async def put_agent(call: Call) -> Answer:
    """Deploy an agent: its spec as in the manifest, the node's own code or ``?code=``; a dry run begins nothing.

    With ``?strategy=`` and ``?hold_s=`` the rollout is another one for this time.
    """
    name = call.path("name")
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
    await call.services.deployments.deploy(name, spec, by=call.principal.name, code=code, rollout=rollout)
    return await show_agent(call)


def _number(call: Call, name: str) -> float | str | None:
    """Return a query parameter, as text where it is no number: the settings say what is wrong with it."""
    text = call.query(name)
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


async def delete_agent(call: Call) -> Answer:
    """Remove an agent: its replicas drain, its queued tasks stay and can be cancelled."""
    await call.store.rollouts.remove(call.path("name"))
    await call.store.directory.refresh()
    return Answer(None, status=204)


async def release(call: Call) -> Answer:
    """Judge an agent anew: what is quarantined is started again, with the whole ladder of recovery before it, and its
    circuit breaker is closed.
    """
    await call.store.directory.refresh()
    name = call.store.directory.get(call.path("name")).agent.name
    await call.store.agents.release(name)
    call.services.breakers.release(name)
    return await show_agent(call)


async def revisions(call: Call) -> Answer:
    """List an agent's revisions, newest first."""
    await call.store.directory.refresh()
    rows = await call.store.agents.revisions(call.store.directory.get(call.path("name")).agent.name)
    return Answer({"items": [views.revision(row) for row in rows], "next_cursor": None})


async def list_replicas(call: Call) -> Answer:
    """List the replicas that live."""
    rows = await call.store.agents.replicas()
    board = call.store.board
    return Answer({"items": [views.replica(row, busy=board.busy(row.id)) for row in rows], "next_cursor": None})


async def restart_replica(call: Call) -> Answer:
    """Put a new replica in this one's place: it takes no more tasks, and goes when it has done its own."""
    return await _let_go(call, "restart")


async def drain_replica(call: Call) -> Answer:
    """Let a replica do its tasks and take no more; as the agent keeps its number, another is started."""
    return await _let_go(call, "drain")


async def _let_go(call: Call, verb: str) -> Answer:
    """Drain a replica; one that drains already does what was asked for."""
    row = await call.store.agents.replica(call.path("id"))
    if row.ended_at is not None:
        raise errors.Conflict(f"cannot {verb} {row.id}: it has {row.state} already")
    await call.audit(f"replica.{verb}", f"replica:{row.id}", agent=row.agent)
    if not call.services.restart(row.id) and row.node != call.services.node:
        raise errors.Conflict(f"cannot {verb} {row.id}: it is of another node, {row.node}; ask that one")
    draining = structs.replace(row, state="draining")  # its row says so only when the host has written it
    return Answer(views.replica(draining, busy=call.store.board.busy(row.id)), status=202)
