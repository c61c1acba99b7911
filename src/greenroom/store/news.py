"""News: what a commit made true, told to whoever waits in this process. A hint; polling is the guarantee."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable

import msgspec
from msgspec import field

from greenroom.store.board import Demand, Traffic
from greenroom.store.rows import Claim, Task
from greenroom.store.vault import PLAIN, Seals


class KeyedEnd(msgspec.Struct, frozen=True):
    """The end of a task that has a key of the result cache; *output* is None unless it succeeded."""

    tenant: str
    agent: str
    key: str
    task: str
    revision: int | None = None
    output: bytes | None = None


class News(msgspec.Struct):
    """Facts of one commit, by the ids of those whom they concern; and the seals that it writes with."""

    seals: Seals = field(default_factory=lambda: Seals(PLAIN))
    ended: dict[str, Callable[[], Task | None] | None] = {}  # tasks now in a terminal state
    endings: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # how many, by tenant, agent and state
    keyed: list[KeyedEnd] = []  # ends that the result cache has to look at
    cache: Counter[tuple[str, str]] = field(default_factory=Counter)  # submissions to it: agent, and how they met it
    stopped: list[str] = []  # tasks that ended although an attempt of theirs may still run
    changed: set[str] = set()  # tasks with new events
    ready: set[tuple[str, str]] = set()  # agents and tenants with tasks that may be claimed
    left: Counter[str] = field(default_factory=Counter)  # how many tasks have left the queue, by tenant
    suspects: set[str] = set()  # agents with tasks that are to run alone
    due_at_us: int | None = None  # the earliest new due time
    named: dict[str, str] = {}  # new tasks whose callers want to be told, and by which webhook
    hooked: list[str] = []  # such tasks that have ended
    deliveries: dict[str, str] = {}  # webhooks with something to tell, and their tenants
    claims: list[Claim] = []  # attempts that begin
    traffic: dict[str, Traffic] = {}  # of agents whose rollouts have moved
    replicas: set[str] = set()  # agents whose replicas have changed
    scaled: set[str] = set()  # agents of which there should be another number
    audited: int = 0  # new entries of the audit log
    demands: list[Demand] = []  # what was reserved on the board to find them

    def due(self, at_us: int) -> None:
        self.due_at_us = at_us if self.due_at_us is None else min(self.due_at_us, at_us)

    def end(
        self, task: str, tenant: str, agent: str, state: str, show: Callable[[], Task | None] | None = None
    ) -> None:
        """Note that *task* has ended; *show* makes its row for those who wait for it, if that is at hand."""
        self.ended[task] = show
        self.endings[tenant, agent, state] += 1
        self.changed.add(task)


class Hub:
    """Who waits for what. All on the event loop's thread."""

    def __init__(self) -> None:
        self._ends: dict[str, list[asyncio.Future[Task | None]]] = {}
        self._watchers: dict[str, list[asyncio.Event]] = defaultdict(list)
        self._subscribers: list[Callable[[News], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # kept: to ask for it costs a system call

    def subscribe(self, subscriber: Callable[[News], None]) -> None:
        self._subscribers.append(subscriber)

    def unsubscribe(self, subscriber: Callable[[News], None]) -> None:
        self._subscribers.remove(subscriber)

    def end_of(self, task: str) -> End:
        """Return the coming end of *task*; it listens from now on, until it is closed."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return End(self._ends, task, self._loop)

    def watch(self, task: str) -> asyncio.Event:
        """Return an event that is set whenever *task* has new events; `unwatch` it."""
        event = asyncio.Event()
        self._watchers[task].append(event)
        return event

    def unwatch(self, task: str, event: asyncio.Event) -> None:
        watchers = self._watchers[task]
        watchers.remove(event)
        if not watchers:
            del self._watchers[task]

    def publish(self, news: News) -> None:
        if self._ends:
            for task, show in news.ended.items():
                for future in self._ends.get(task, ()):
                    if not future.done():
                        future.set_result(None if show is None else show())
        for task in news.changed if self._watchers else ():
            for event in self._watchers.get(task, ()):
                event.set()
        for subscriber in self._subscribers:
            subscriber(news)


class End:
    """The end of a task, for one who waits for it once; as a context it listens until it is left."""

    __slots__ = ("_ends", "_future", "_loop", "_task")

    def __init__(
        self, ends: dict[str, list[asyncio.Future[Task | None]]], task: str, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._ends, self._task, self._loop = ends, task, loop
        self._future: asyncio.Future[Task | None] = loop.create_future()
        ends.setdefault(task, []).append(self._future)

    def __enter__(self) -> End:
        return self

    def __exit__(self, *_: object) -> None:
        listening = self._ends[self._task]
        listening.remove(self._future)
        if not listening:
            del self._ends[self._task]

    @property
    def has_come(self) -> bool:
        return self._future.done()

    async def within(self, timeout_s: float) -> Task | None:
        """Wait for it; return the task, or None if the time is over or the row was not at hand: read it then."""
        # Not asyncio.timeout or asyncio.wait, which cost each waiting request several times this.
        timer = self._loop.call_later(timeout_s, self._give_up)
        try:
            return await self._future
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        if not self._future.done():
            self._future.set_result(None)
