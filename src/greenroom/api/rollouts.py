"""The routes of rollouts: how they go and went, and what people want of them.

What is asked for is decided in `core.rollouts` and written down; whoever moves rollouts hears of it, and goes on from
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from greenroom import errors, telemetry
from greenroom.api import access, schemas, views
from greenroom.api.request import Answer, Call
from greenroom.core import rollouts, strategies
from greenroom.core.permissions import Action
from greenroom.sdk import models
from greenroom.store.rollouts import Rollout

MAX_ID_DIGITS = 18  # that every store has numbers for
MOST_PAGES = 10  # that are looked through for what the caller may see


async def list_all(call: Call) -> Answer:
    """List an agent's rollouts, latest first; ``?limit=``. A hundred are kept."""
    limit = call.number("limit", default=50, least=1, most=200)
    await call.store.directory.refresh()
    entry = access.find_agent(call, call.path("name"), Action.AGENT_OBSERVE)
    rows = await call.store.rollouts.history(entry.agent.name, limit=limit)
    return Answer({"items": await _documents(call, rows), "next_cursor": None})


async def latest_ended(call: Call, *, limit: int) -> Answer:
    """List the latest rollouts that have ended, of all agents that the caller may observe."""
    rights, found, before = call.principal.rights, list[Rollout](), None
    for _ in range(MOST_PAGES):
        rows = await call.store.rollouts.latest_ended(before_id=before, limit=limit)
        found += [row for row in rows if rights.on_agent(Action.AGENT_OBSERVE, row.agent)]
        if len(rows) < limit or len(found) >= limit:
            break
        before = rows[-1].id
    return Answer({"items": await _documents(call, found[:limit]), "next_cursor": None})


async def show(call: Call) -> Answer:
    """Show how a rollout goes, or how it ended and why."""
    return await _shown(call, await _asked_for(call, Action.AGENT_OBSERVE))


async def promote(call: Call) -> Answer:
    """Leave the stage that a rollout is in, now; its revision has to have proven itself there, and be there in full."""
    wanted = schemas.read(call.body, schemas.Promotion) if call.body else schemas.Promotion()
    seen = await _asked_for(call, Action.AGENT_OPERATE)
    missing = await _missing(call, seen)

    def promoted(rollout: rollouts.Rollout) -> rollouts.Rollout:
        if rollout.is_open and wanted.stage not in (None, rollout.stage + 1):
            raise rollouts.Refused(f"it is in stage {rollout.stage + 1}, and not in stage {wanted.stage}")
        # What has left the stage meanwhile is not pushed out of the next one, which nobody has seen.
        if rollout.stage != seen.state.stage:
            return rollout
        after = rollouts.promote(rollout)
        if missing is not None:
            raise rollouts.Refused(missing)
        return after

    return await _move(call, seen, "promote", by=promoted)


async def pause(call: Call) -> Answer:
    """Stop a rollout where it is; what fails is rolled back all the same."""
    return await _move(call, await _asked_for(call, Action.AGENT_OPERATE), "pause", by=rollouts.pause)


async def resume(call: Call) -> Answer:
    """Let a rollout go on; where it waits for a person, this promotes it."""
    seen = await _asked_for(call, Action.AGENT_OPERATE)
    missing = await _missing(call, seen)

    def resumed(rollout: rollouts.Rollout) -> rollouts.Rollout:
        if rollout.is_open and rollout.awaits_promotion and missing is not None:
            raise rollouts.Refused(missing)
        return rollouts.resume(rollout)

    return await _move(call, seen, "resume", by=resumed)


async def abort(call: Call) -> Answer:
    """Undo a rollout; one that has ended stays as it is."""
    reason = f"{call.principal.name} aborted it"
    seen = await _asked_for(call, Action.AGENT_OPERATE)
    return await _move(call, seen, "abort", by=lambda rollout: rollouts.abort(rollout, reason))


async def roll_back(call: Call) -> Answer:
    """Let the revision before serve again, or another one that is kept: at once while it stands."""
    wanted = schemas.read(call.body, schemas.Rollback) if call.body else schemas.Rollback()
    await call.store.directory.refresh()
    name = access.find_agent(call, call.path("name"), Action.AGENT_OPERATE).agent.name
    rollout = await call.services.deployments.undo(name, to=wanted.to, by=call.principal.name)
    if rollout is None:  # it serves already
        rollout = call.store.directory.get(name).rollout
    if rollout is None:
        raise errors.Conflict(f"cannot roll back {name}: it has had no rollout; deploy it")
    return await _shown(call, rollout)


async def _move(
    call: Call, before: Rollout, verb: str, *, by: Callable[[rollouts.Rollout], rollouts.Rollout]
) -> Answer:
    try:
        after = await call.store.rollouts.move(before.id, by, verb=verb)
    except rollouts.Refused as refused:
        raise errors.Conflict(f"cannot {verb} rollout {before.id} of {before.agent}: {refused}") from None
    if after.version != before.version:
        call.services.facts.emit(telemetry.RolloutMoved.to(after.state, agent=after.agent, rollout=after.id))
    return await _shown(call, after)


async def _missing(call: Call, row: Rollout) -> str | None:
    """Say so where fewer of the new replicas are ready than the rollout's stage is to have."""
    if not row.state.is_open:
        return None
    entry = (await call.store.directory.refresh()).get(row.agent)
    desired = 0 if entry is None else entry.agent.replicas
    wanted = strategies.replicas(row.state.stages[row.state.stage].capacity_pct, desired)
    ready = len(views.ready(await call.store.agents.replicas(), call.store.board)[row.agent, row.to_revision])
    return f"only {ready} of {wanted} replicas are ready" if ready < wanted else None


async def _asked_for(call: Call, action: Action) -> Rollout:
    id = call.path("id")
    if not (id.isascii() and id.isdigit() and len(id) <= MAX_ID_DIGITS):
        raise errors.NotFound(f"cannot find the rollout {id[:64]}: its id is a number")
    row = await call.store.rollouts.get(int(id))
    missing = f"cannot find the rollout {row.id}"
    access.check_object(call, row.agent, read=Action.AGENT_OBSERVE, action=action, missing=missing)
    return row


async def _shown(call: Call, row: Rollout) -> Answer:
    await call.store.directory.refresh()
    (document,) = await _documents(call, [row])
    return Answer(document)


async def _documents(call: Call, rows: Sequence[Rollout]) -> list[models.Rollout]:
    ready = views.ready(await call.store.agents.replicas(), call.store.board)
    entries = call.store.directory.entries
    desired = {name: entry.agent.replicas for name, entry in entries.items()}
    return [views.rollout(row, desired=desired.get(row.agent, 0), ready=ready) for row in rows]
