"""The routes of scaling: how many replicas an agent has and why, what load it had, and another number for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from greenroom import errors, settings, telemetry
from greenroom.api import access, agents, schemas, views
from greenroom.api.request import Answer, Call
from greenroom.core import scaling
from greenroom.core.permissions import Action
from greenroom.sdk import models
from greenroom.store import database
from greenroom.store import scaling as rows
from greenroom.store.deployments import Limits
from greenroom.store.directory import Entry

MOST_HOURS = 7 * 24  # that are kept


async def show(call: Call) -> Answer:
    """Show how an agent is scaled, and what was decided, latest first; ``?limit= &cursor=``."""
    limit = call.number("limit", default=50, least=1, most=rows.MAX_PAGE)
    before = call.number("cursor", default=0, most=2**62) or None
    await call.store.directory.refresh()
    entry = access.find_agent(call, call.path("name"), Action.AGENT_OBSERVE)
    found = await call.store.scaling.decisions(entry.agent.name, before_seq=before, limit=limit)
    latest = found[:1] if before is None else await call.store.scaling.decisions(entry.agent.name, limit=1)
    (standing,) = await _standing(call, [(entry, latest)])
    return Answer(
        msgspec.structs.replace(
            standing,
            items=tuple(map(views.scaling_decision, found)),
            next_cursor=str(found[-1].seq) if len(found) == limit else None,
        )
    )


async def list_all(call: Call) -> Answer:
    """Show how all agents that may be observed are scaled, each with what was decided last."""
    entries = await call.store.directory.refresh()
    may = call.principal.rights.on_agent
    observed = [entry for name, entry in sorted(entries.items()) if may(Action.AGENT_OBSERVE, name)]
    latest = [await call.store.scaling.decisions(entry.agent.name, limit=1) for entry in observed]
    return Answer({"items": await _standing(call, list(zip(observed, latest, strict=True))), "next_cursor": None})


async def _standing(call: Call, found: Sequence[tuple[Entry, Sequence[rows.Decision]]]) -> list[models.AgentScaling]:
    counts = await call.store.tasks.claimable_counts(is_large=True)
    draining = Counter(row.agent for row in await call.store.agents.replicas() if row.state == "draining")
    cluster, board = call.services.settings.cluster, call.store.board
    documents = []
    for entry, latest in found:
        name = entry.agent.name
        usage, policy = board.usage(name), settings.scaling_policy(entry.spec, most=cluster.max_replicas)
        document = models.AgentScaling(
            agent=name,
            is_automatic=cluster.autoscaling,
            min_replicas=policy.min_replicas,
            max_replicas=policy.max_replicas,
            target_queue_per_replica=policy.target_queue,
            target_busy_pct=policy.target_busy_pct,
            replicas=entry.agent.replicas,
            beside=sum(entry.capacity.values()) - entry.agent.replicas,
            ready=usage.replicas,
            draining=draining[name],
            slots=usage.slots,
            busy=usage.busy,
            waiting=counts.get(name, 0),
            latest=views.scaling_decision(latest[0]) if latest else None,
        )
        documents.append(document)
    return documents


async def load(call: Call) -> Answer:
    """Show what load an agent had, in steps of ten seconds, oldest first; ``?hours=`` (24; at most a week)."""
    hours = call.number("hours", default=24, least=1, most=MOST_HOURS)
    return await loads_of(call, call.path("name"), hours=hours)


async def loads_of(call: Call, agent: str, *, hours: int) -> Answer:
    """Show what load *agent* had in the last *hours*."""
    await call.store.directory.refresh()
    name = access.find_agent(call, agent, Action.AGENT_OBSERVE).agent.name
    after_us = database.microseconds(call.services.clock.now()) - hours * 3_600_000_000
    found = await call.store.scaling.loads(name, after_us=after_us)
    return Answer({"items": [views.load(row) for row in found], "next_cursor": None})


async def scale(call: Call) -> Answer:
    """Set how many replicas an agent should have; where that is automatic, for now, and within its bounds."""
    name, wanted = call.path("name"), schemas.read(call.body, schemas.Scale)
    before = access.find_agent(call, name, Action.AGENT_OPERATE).agent.replicas
    cluster = call.services.settings.cluster
    if wanted.replicas == 0 and not cluster.autoscaling:
        raise errors.BodyInvalid(
            f"cannot scale {name} to 0: cluster.autoscaling is off, and nothing would start a replica again; "
            "expected at least 1, or switch it on"
        )
    by, room = call.principal.name, Limits.of(cluster)
    await call.store.scaling.set(name, wanted.replicas, room=room, by=by, within_bounds=cluster.autoscaling)
    call.services.facts.emit(telemetry.ScalingDecided(name, wanted.replicas, scaling.Rule.SET))
    if wanted.replicas != before:
        why = f"{by} has set it"
        fact = telemetry.AgentScaled(name, before, wanted.replicas, rule=scaling.Rule.SET, reason=why, by=by)
        call.services.facts.emit(fact)
    return await agents.shown(call, name)
