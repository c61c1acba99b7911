"""A run of chaos: load and faults side by side, then quiet until everything has ended, then the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from greenroom import errors
from greenroom.sdk import models
from greenroom.sdk.async_client import AsyncClient
from greenroom.testing.chaos import judging, ledger, recovery
from greenroom.testing.chaos.history import History, Outcome
from greenroom.testing.chaos.load import Load, Recipe
from greenroom.testing.chaos.nemesis import Injector, Nemesis
from greenroom.testing.chaos.schedule import Planned
from greenroom.testing.chaos.sightings import Sightings

FACTORY = "greenroom.testing.chaos.agent:perform"
READY_WITHIN_S = 60.0
SETTLE_WITHIN_S = 90.0  # a lease, its rescue, the longest backoffs, and the run itself
LOOK_EVERY_S = 0.2
PAGE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """*tasks* within *for_s*, and the *faults* of a schedule. *settle_s*: how long everything may take to end then."""

    name: str
    seed: int
    for_s: float
    tasks: int
    faults: Sequence[Planned]
    settle_s: float = SETTLE_WITHIN_S

    @property
    def planned(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for fault in self.faults:
            counts[fault.kind] = counts.get(fault.kind, 0) + 1
        return counts


@dataclass(slots=True)
class Campaign:
    """*history* and *documents* are there to be looked into after `run`."""

    client: AsyncClient
    plan: Plan
    recipe: Recipe
    ledger_path: Path | None
    history: History = field(default_factory=History)
    documents: dict[str, models.Task] = field(default_factory=dict)
    load: Load = field(init=False)
    nemesis: Nemesis | None = None
    begun_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        plan = self.plan
        self.load = Load(
            self.client,
            self.recipe,
            self.history,
            name=plan.name,
            count=plan.tasks,
            rate_per_s=plan.tasks / plan.for_s,
            seed=plan.seed,
            patience_s=plan.settle_s,
        )

    async def run(
        self, injectors: Mapping[str, Injector], *, unavailable: Mapping[str, str] | None = None
    ) -> judging.Report:
        """Run the plan to its end; every fault is undone when this returns or raises."""
        begun_at = datetime.now(UTC) - timedelta(seconds=1)
        desired = (await self.client.agent(self.recipe.agent)).replicas.desired
        nemesis = self.nemesis = Nemesis(self.plan.faults, injectors, unavailable or {})
        sightings = Sightings(self.client, {self.recipe.agent})
        watching = asyncio.create_task(sightings.run())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.load.run())
                group.create_task(nemesis.run())
            give_up_at_s = time.monotonic() + self.plan.settle_s
            await self._settle(begun_at, give_up_at_s)
            while recovery.not_ready_again(nemesis.injected, sightings.seen, desired=desired):
                if time.monotonic() > give_up_at_s:
                    break  # the verdict says so
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        seen = judging.Seen(
            seed=self.plan.seed,
            tasks=self.plan.tasks,
            planned=self.plan.planned,
            injected=nemesis.injected,
            replicas=sightings.seen,
            desired=desired,
            unavailable=unavailable or {},
        )
        runs = None if self.ledger_path is None else ledger.read(self.ledger_path)
        return judging.judge(self.history, runs, self.documents, seen)

    def progress(self) -> str:
        """What has happened so far, on one line."""
        sent = self.history.sent.values()
        unknown = sum(each.outcome == Outcome.UNKNOWN for each in sent)
        injected = self.nemesis.injected if self.nemesis is not None else []
        elapsed_s = time.monotonic() - self.begun_s
        return (
            f"{elapsed_s:.0f} of {self.plan.for_s:.0f} s: {len(sent)} of {self.plan.tasks} tasks submitted, "
            f"{unknown} without an answer; {len(injected)} of {len(self.plan.faults)} faults are over"
        )

    async def _settle(self, begun_at: datetime, give_up_at_s: float) -> None:
        """Read all tasks when the last has ended, or at the latest when the time for it is over."""
        while True:
            try:
                self.documents = await self._read(begun_at)
                pending = [task.id for task in self.documents.values() if not task.ended]
                left_s = give_up_at_s - time.monotonic()
                if not pending or left_s <= 0:
                    return
                await self.client.wait(pending[-1], left_s)
            except errors.GreenroomError:
                if time.monotonic() > give_up_at_s:
                    raise
                await asyncio.sleep(LOOK_EVERY_S)

    async def _read(self, begun_at: datetime) -> dict[str, models.Task]:
        found: dict[str, models.Task] = {}
        cursor = None
        while True:
            page = await self.client.tasks(self.recipe.agent, cursor=cursor, limit=PAGE)
            ours = {task.id: task for task in page.items if task.created_at is None or task.created_at >= begun_at}
            found |= ours
            cursor = page.next_cursor
            if cursor is None or len(ours) < len(page.items):  # what follows is older than the run
                return found


def spec(*, replicas: int) -> dict[str, Any]:
    """The built-in agent, as the manifest or ``PUT /v1/agents`` takes it."""
    return {
        "factory": FACTORY,
        "concurrency": 8,
        "sessions": True,
        "max_attempts": 8,
        "retry_backoff_s": 0.1,
        "timeout_s": 120.0,
        "scaling": {"min_replicas": replicas},
    }


@contextlib.asynccontextmanager
async def deployed(client: AsyncClient, name: str, *, replicas: int, writes: Path) -> AsyncIterator[None]:
    """The built-in agent for the length of the block, its replicas ready; then it is removed, with its open tasks.

    *writes* is the folder of its ledger.
    """
    await client.put_agent(name, spec(replicas=replicas) | {"write_paths": [str(writes)]})
    try:
        await ready(client, name, replicas=replicas)
        yield
    finally:
        await asyncio.shield(remove(client, name))


async def ready(client: AsyncClient, agent: str, *, replicas: int) -> None:
    """Return when *agent* has its replicas; raises `errors.AgentInvalid` if it fails or takes too long."""
    give_up_at_s = time.monotonic() + READY_WITHIN_S
    while True:
        found = await client.agent(agent)
        if found.replicas.ready >= replicas:
            return
        if found.state in ("failed", "quarantined") or time.monotonic() > give_up_at_s:
            raise errors.AgentInvalid(f"cannot begin: agent {agent} is {found.state}: {found.reason}")
        await asyncio.sleep(LOOK_EVERY_S)


async def remove(client: AsyncClient, name: str) -> None:
    """Remove the built-in agent of that name with its open tasks and its sessions."""
    for state in ("queued", "running", "waiting"):
        async for task in client.iter_tasks(name, state):
            with contextlib.suppress(errors.Conflict):  # it has ended meanwhile
                await client.cancel(task.id)
    for session in await _sessions(client, name):
        with contextlib.suppress(errors.Conflict):
            await client.delete_session(session, name)
    await client.delete_agent(name)


async def _sessions(client: AsyncClient, agent: str) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = await client.sessions(cursor=cursor)
        found += [session.id for session in page.items if session.agent == agent]
        cursor = page.next_cursor
        if cursor is None:
            return found
