"""The routes of rollouts: how they go and went, and what people want of them.

What is asked for is decided in `core.rollouts` and written down; whoever moves rollouts hears of it, and goes on from
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from greenroom import errors, telemetry
from greenroom.api import schemas, views
from greenroom.api.request import Answer, Call
from greenroom.core import rollouts
from greenroom.sdk import models
from greenroom.store.rollouts import Rollout

MAX_ID_DIGITS = 18  # that every store has numbers for


async def list_all(call: Call) -> Answer:
    """List an agent's rollouts, latest first; ``?limit=``. A hundred are kept."""
    limit = call.number("limit", default=50, least=1, most=200)
    await call.store.directory.refresh()
    entry = call.store.directory.get(call.path("name"))
    rows = await call.store.rollouts.history(entry.agent.name, limit=limit)
    return Answer({"items": await _documents(call, rows), "next_cursor": None})


async def show(call: Call) -> Answer:
    """Show how a rollout goes, or how it ended and why."""
    return await _shown(call, await _asked_for(call))


async def promote(call: Call) -> Answer:
    """Leave the stage that a rollout is in, now; its revision has to have proven itself there."""
    seen = await _asked_for(call)

    def promoted(rollout: rollouts.Rollout) -> rollouts.Rollout:
        # What has left the stage meanwhile is not pushed out of the next one, which nobody has seen.
        return rollouts.promote(rollout) if rollout.stage == seen.state.stage else rollout

    return await _move(call, seen, "promote", by=promoted)


async def pause(call: Call) -> Answer:
    """Stop a rollout where it is; what fails is rolled back all the same."""
    return await _move(call, await _asked_for(call), "pause", by=rollouts.pause)


async def resume(call: Call) -> Answer:
    """Let a rollout go on; where it waits for a person, this promotes it."""
    return await _move(call, await _asked_for(call), "resume", by=rollouts.resume)


async def abort(call: Call) -> Answer:
    """Undo a rollout; one that has ended stays as it is."""
    reason = f"{call.principal.name} aborted it"
    return await _move(call, await _asked_for(call), "abort", by=lambda rollout: rollouts.abort(rollout, reason))


async def roll_back(call: Call) -> Answer:
    """Let the revision before serve again, or another one that is kept: at once while it stands."""
    name = call.path("name")
    wanted = schemas.read(call.body, schemas.Rollback) if call.body else schemas.Rollback()
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
        after = await call.store.rollouts.move(before.id, by)
    except rollouts.Refused as refused:
        raise errors.Conflict(f"cannot {verb} rollout {before.id} of {before.agent}: {refused}") from None
    if after.version != before.version:
        call.services.facts.emit(telemetry.RolloutMoved.to(after.state, agent=after.agent, rollout=after.id))
    return await _shown(call, after)


async def _asked_for(call: Call) -> Rollout:
    id = call.path("id")
    if not (id.isascii() and id.isdigit() and len(id) <= MAX_ID_DIGITS):
        raise errors.NotFound(f"cannot find the rollout {id[:64]}: its id is a number")
    return await call.store.rollouts.get(int(id))


async def _shown(call: Call, row: Rollout) -> Answer:
    await call.store.directory.refresh()
    (document,) = await _documents(call, [row])
    return Answer(document)


async def _documents(call: Call, rows: Sequence[Rollout]) -> list[models.Rollout]:
    ready = views.ready(await call.store.agents.replicas())
    entries = call.store.directory.entries
    desired = {name: entry.agent.replicas for name, entry in entries.items()}
    return [views.rollout(row, desired=desired.get(row.agent, 0), ready=ready) for row in rows]
