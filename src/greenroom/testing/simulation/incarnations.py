"""A node of the real loops in virtual time, from its start to its end: by a kill, in the middle of whatever it did.

What a node has begun is noted as it is begun, so that all of it can be ended; the next one opens the same file.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from greenroom import settings, telemetry
from greenroom.control import supervisor
from greenroom.control.autoscaler import Autoscaler
from greenroom.control.dispatcher import Dispatcher
from greenroom.control.host import Host
from greenroom.control.janitor import Janitor
from greenroom.control.reconciler import Reconciler
from greenroom.engine import contract
from greenroom.store import database, store
from greenroom.store.directory import Entry
from greenroom.testing.simulation.virtual import VirtualClock

STOP_S = 1.0  # what is cancelled ends within this
GRACE_S = 3.0  # of a node that leaves in order

_node: contextvars.ContextVar[dict[asyncio.Task[Any], None] | None] = contextvars.ContextVar("node", default=None)


class Engine(contract.Engine, Protocol):
    def vanish(self) -> None:
        """The node is dead, and all of its replicas with it; nobody hears of it."""


E = TypeVar("E", bound=Engine)


class World(Protocol[E]):
    """What nodes live in."""

    url: str
    clock: VirtualClock
    jitter: Callable[[], float]
    cluster: settings.Cluster | None  # where an autoscaler takes part

    def engine(self) -> E: ...

    def watched(self, db: database.Database) -> database.Database:
        """Return what a node uses in the place of *db*."""

    def hear(self, fact: telemetry.Fact) -> None: ...

    def note(self, text: str, *values: object) -> None: ...

    def note_survivors(self, node: Incarnation[E]) -> None:
        """A node was stopped: none of its tasks goes on."""

    async def welcome(self, node: Incarnation[E]) -> None:
        """A node has started, and deploys what its manifest names."""


class Incarnation(Generic[E]):
    """One node from its start to its end; `tasks` are all that it has begun."""

    def __init__(self, world: World[E], number: int) -> None:
        self.id = f"node-{number}"
        self.is_up = False
        self.tasks: dict[asyncio.Task[Any], None] = {}  # in the order in which they were begun
        self.db = store.open(world.url, clock=world.clock, owner=self.id).db
        self.store = store.Store(world.watched(self.db), owner=self.id)
        self.engine = world.engine()
        self.facts = telemetry.Telemetry()
        self.facts.subscribe(world.hear, telemetry.ServiceCrashed)
        self._world = world
        jitter = world.jitter
        self.host = Host(
            self.store,
            self.engine,
            world.clock,
            self.facts,
            node=self.id,
            revision_of=self._revision_of,
            jitter=jitter,
        )
        self.dispatcher = Dispatcher(self.store, self.engine, world.clock, self.facts, jitter=jitter)
        self.reconciler = Reconciler(self.store, self.engine, world.clock, self.facts)
        self.janitor = Janitor(self.store, world.clock, jitter=jitter)
        self.autoscaler = (
            None if world.cluster is None else Autoscaler(self.store, world.clock, self.facts, world.cluster)
        )

    def start(self) -> asyncio.Task[None]:
        """Begin to live: all that is begun from here on is this node's."""
        token = _node.set(self.tasks)
        living = asyncio.create_task(self._live(), name=self.id)
        _node.reset(token)
        return living

    async def _live(self) -> None:
        """Start as `greenroom.node` does, and serve until the end."""
        await self.store.start()
        await self.store.tasks.rescue(not_owner=self.id)
        await self.store.agents.close_nodes(only=self.id)
        await self._world.welcome(self)
        self.is_up = True
        self._world.note("%s is up", self.id)
        loops: list[supervisor.Loop] = [self.host, self.host.checks, self.reconciler, self.dispatcher, self.janitor]
        if self.autoscaler is not None:
            loops.append(self.autoscaler)
        async with asyncio.TaskGroup() as group:
            group.create_task(supervisor.supervise(loops, self._world.clock, self.facts))
            group.create_task(self.store.commits.ended())

    async def leave(self) -> None:
        """Stop in order: what has ended is stored."""
        if self.autoscaler is not None:
            self.autoscaler.stop()
        await self.host.drain_all(grace_s=GRACE_S)
        await self.host.leave()
        await self.dispatcher.close()
        self.reconciler.stop()
        await self.store.commits.close()

    def fall(self) -> None:
        """Be dead from here on: nothing that it had begun goes beyond where it waits now."""
        self.is_up = False
        self.engine.vanish()
        for task in list(self.tasks):
            task.cancel()

    async def die(self) -> None:
        """End in the middle of everything."""
        self.fall()
        while self.tasks:
            await asyncio.wait(self.tasks, timeout=STOP_S)
            self._world.note_survivors(self)
            self.fall()
        await self.db.close()

    async def _revision_of(self, entry: Entry, number: int) -> contract.Revision:
        """Look the revision up, as `greenroom.node` does: it may not be told."""
        row = await self.store.agents.revision(entry.agent.name, number)
        return contract.Revision(row.agent, row.number, Path("/nowhere"), entry.spec.factory)


def in_its_node(loop: asyncio.AbstractEventLoop, coroutine: Any, **given: Any) -> asyncio.Task[Any]:
    """Make a task, and note it with the node that it is of: what a task starts is of its own node."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **given)
    if (tasks := _node.get()) is not None:
        tasks[task] = None
        task.add_done_callback(tasks.pop)
    return task
