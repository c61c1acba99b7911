"""The loops over a real SQLite file, with a clock and an engine that tests move by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from greenroom import settings, telemetry
from greenroom.control.dispatcher import Dispatcher
from greenroom.control.host import Host
from greenroom.control.janitor import Janitor
from greenroom.control.reconciler import Reconciler
from greenroom.engine import contract
from greenroom.store import submissions
from greenroom.store.deployments import Deployment
from greenroom.store.directory import Entry
from greenroom.store.rows import Task
from greenroom.store.store import Store
from greenroom.testing import databases
from greenroom.testing.fake_engine import FakeEngine

TENANT = "acme"


@dataclass
class Loops:
    """A node's loops; nothing moves but by `step`, `advance` and the engine."""

    scratch: databases.Scratch
    store: Store
    engine: FakeEngine
    host: Host
    reconciler: Reconciler
    dispatcher: Dispatcher
    janitor: Janitor
    told: telemetry.Telemetry
    facts: list[telemetry.Fact] = field(default_factory=list)

    def another_host(self) -> Host:
        """A host that knows nothing but what the store does; the engine tells the one before no more."""
        self.engine._listeners.remove(self.host)
        return _host(self.scratch, self.store, self.engine, self.told)

    def another_reconciler(self) -> None:
        """Let one go on that knows nothing but what the store does."""
        self.reconciler = Reconciler(self.store, self.engine, self.scratch.clock, self.told)

    async def step(self, *, times: int = 1) -> None:
        for _ in range(times):
            await self.host.checks.step()
            await self.host.step()
            await self.reconciler.step()
            await self.dispatcher.step()
            await self.janitor.step()
            await self.settle()

    async def settle(self) -> None:
        """Let what was written be committed, and who waits for it go on."""
        for _ in range(3):
            await self.store.tasks.renew(self.store.claims.owner, ttl_us=self.store.claims.lease_ttl_us)
            for _ in range(20):
                await asyncio.sleep(0)

    async def advance(self, delay_s: float) -> None:
        await self.scratch.advance(delay_s)
        await self.step(times=2)

    async def deploy(self, agent: str = "agent", *, replicas: int = 1, digest: str = "d", **spec: Any) -> None:
        scaling = {"scaling": {"min_replicas": replicas}}
        parsed = settings.parse_agent(agent, {"factory": "module:agent", **scaling, **spec})
        await self.store.deployments.deploy(Deployment(agent=agent, digest=digest, spec=parsed, by="ann"))
        await self.step(times=2)

    async def submit(self, agent: str = "agent", **given: Any) -> str:
        entry = (await self.store.directory.refresh())[agent]
        task = submissions.new_task(
            agent, entry.spec, now=self.scratch.clock.now(), tenant=TENANT, input=b"1", submitted_by="key", **given
        )
        await self.store.tasks.submit(task)
        await self.settle()
        return task.id

    async def task(self, id: str) -> Task:
        return await self.store.tasks.get(id, tenant=TENANT)

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not is_so():
                await self.settle()

    def replica_of(self, id: str) -> str:
        """The replica that was given the task last."""
        told = [replica.id for replica in self.engine.started for invoke in replica.invocations if invoke.task == id]
        assert told, f"no replica was given {id}"
        return told[-1]


async def _revision_of(entry: Entry, number: int) -> contract.Revision:
    return contract.Revision(entry.agent.name, number, Path("/nowhere"), entry.spec_of(number).factory)


def _host(scratch: databases.Scratch, store: Store, engine: FakeEngine, facts: telemetry.Telemetry) -> Host:
    return Host(store, engine, scratch.clock, facts, node="node-1", revision_of=_revision_of, jitter=lambda: 0.5)


@pytest.fixture
async def loops(tmp_path: Path) -> AsyncIterator[Loops]:
    async with databases.sqlite(tmp_path) as scratch:
        store, engine, facts = await scratch.open(), FakeEngine(is_eager=True), telemetry.Telemetry()
        host = _host(scratch, store, engine, facts)
        dispatcher = Dispatcher(store, engine, scratch.clock, facts, jitter=lambda: 0.5)
        reconciler = Reconciler(store, engine, scratch.clock, facts)
        janitor = Janitor(store, scratch.clock)
        made = Loops(scratch, store, engine, host, reconciler, dispatcher, janitor, facts)
        facts.subscribe(made.facts.append)
        yield made
        reconciler.stop()
        await dispatcher.close()
