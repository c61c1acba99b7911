"""Planning: what a deployment would change, told before anything is begun.

What it comes to is the store's own decision, the one that a deployment is carried out by. Held by `node`, asked by the
API. Trying a revision takes a replica and its time, so there is one trial at a time.
"""

from __future__ import annotations

import asyncio
import filecmp
import itertools
from pathlib import Path

import msgspec
from msgspec import structs

from greenroom import deployments, errors, settings
from greenroom.api import views
from greenroom.control.rehearsal import Rehearsal
from greenroom.core import rollouts
from greenroom.engine import snapshots
from greenroom.sdk import models
from greenroom.store.deployments import Action, Decision
from greenroom.store.rollouts import spec_of
from greenroom.store.store import Store


class Planning:
    """*folder* is where a relative interpreter is found."""

    def __init__(self, store: Store, deployer: deployments.Deployments, rehearsal: Rehearsal, *, folder: Path) -> None:
        self._store, self._deployer, self._rehearsal, self._folder = store, deployer, rehearsal, folder
        self._trying = asyncio.Lock()
        self._trials = itertools.count(1)

    async def plan(
        self,
        name: str,
        spec: settings.AgentSettings,
        *,
        code: str | None = None,
        is_tried: bool = False,
        rollout: settings.Rollout | None = None,
    ) -> models.Plan:
        """Return what deploying *spec* would do; have its revision tried, too, if *is_tried*.

        Raises as `deployments.Deployments.add` does, but where there is no room: the plan's refusal says so.
        """
        decision, snapshot = await self._deployer.decide(name, spec, code=code, rollout=rollout)
        plan = await self._told(name, spec, decision, snapshot, by=rollout or spec.rollout)
        return await self._tried(plan, spec, snapshot) if is_tried else plan

    async def _told(
        self,
        name: str,
        spec: settings.AgentSettings,
        decision: Decision,
        snapshot: snapshots.Snapshot,
        *,
        by: settings.Rollout,
    ) -> models.Plan:
        agent, state = decision.agent, _state(decision)
        before = None if agent is None else await self._store.agents.revision(name, agent.revision)
        old = None if before is None else self._deployer.snapshots / before.digest
        plan = models.Plan(
            agent=name,
            action=decision.action.value,
            to_revision=decision.number,
            is_new_revision=not decision.is_known,
            from_revision=decision.number if state is None else state.from_revision,
            digest=snapshot.digest,
            changes=() if agent is None else _changes(agent.spec, spec),
            files=await asyncio.to_thread(_differences, old, snapshot.path),
            replicas=decision.desired,
            refusal=None if decision.refusal is None else str(decision.refusal),
            ends_rollout=_ended(decision),
        )
        if state is None:
            return plan
        is_first = state.from_revision is None
        joined = decision.last if decision.action is Action.JOIN else None
        return structs.replace(
            plan,
            strategy="first" if is_first else by.strategy if joined is None else joined.strategy,
            stages=views.stages(state, desired=max(1, decision.desired)),
            surge=0 if is_first else rollouts.beside(state, decision.desired),
        )

    async def _tried(
        self, plan: models.Plan, spec: settings.AgentSettings, snapshot: snapshots.Snapshot
    ) -> models.Plan:
        if self._trying.locked():
            raise errors.Conflict(
                f"cannot try revision {plan.to_revision} of {plan.agent}: another one is being tried; "
                "ask again when that is done"
            )
        async with self._trying:
            revision = deployments.revision_of(
                plan.agent, plan.to_revision, spec, snapshot=snapshot.path, folder=self._folder
            )
            # An interpreter of its own: what is deployed under this number may have other settings.
            apart = msgspec.structs.replace(revision, interpreter=-next(self._trials))
            rehearsed = await self._rehearsal.run(apart, keeps_sessions=spec.sessions)
        is_sound = rehearsed.error is None and spec.sessions
        sessions = models.SessionsTried(
            stored=rehearsed.stored,
            tried=rehearsed.tried,
            failed=rehearsed.failed,
            failures=dict(rehearsed.failures),
        )
        return structs.replace(plan, error=rehearsed.error, sessions=sessions if is_sound else None)


def _state(decision: Decision) -> rollouts.Rollout | None:
    """Return the rollout that would move the agent, or does so already; None if it stays."""
    match decision.action:
        case Action.BEGIN:
            return decision.state
        case Action.JOIN:
            assert decision.last is not None
            return decision.last.state
        case Action.STAY:
            return None
        case Action.LEAVE:
            raise AssertionError("who plans asks anew, and is left alone by nobody")


def _ended(decision: Decision) -> int | None:
    """Return the rollout on its way that ends before its time: superseded by the next one, or aborted."""
    last = decision.last
    if last is None or not last.state.is_open or decision.action is Action.JOIN:
        return None
    return last.id


def _changes(before: bytes, after: settings.AgentSettings) -> tuple[models.Change, ...]:
    changes = settings.changes(spec_of(before), after)
    return tuple(models.Change(key=each.key, before=each.before, after=each.after) for each in changes)


def _differences(before: Path | None, after: Path) -> dict[str, tuple[str, ...]]:
    """Return the names of the files that differ, by how. Snapshots are bounded, so this is. Blocks."""
    if before == after or (before is not None and not before.is_dir()):
        return {}
    old, new = ({} if folder is None else deployments.files_of(folder) for folder in (before, after))
    found = {
        "changed": {name for name in old.keys() & new.keys() if not filecmp.cmp(old[name], new[name], shallow=False)},
        "added": new.keys() - old.keys(),
        "removed": old.keys() - new.keys(),
    }
    return {how: tuple(sorted(names)) for how, names in found.items() if names}
