"""News: what a commit made true, told to whoever waits in this process. A hint; polling is the guarantee."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class News:
    """Facts of one commit, by the ids of those whom they concern."""

    ended: list[str] = field(default_factory=list)  # tasks now in a terminal state
    stopped: list[str] = field(default_factory=list)  # tasks that ended although an attempt of theirs may still run
    changed: set[str] = field(default_factory=set)  # tasks with new events
    ready: set[str] = field(default_factory=set)  # agents with tasks that may be claimed
    due_at_us: int | None = None  # the earliest new due time

    def due(self, at_us: int) -> None:
        self.due_at_us = at_us if self.due_at_us is None else min(self.due_at_us, at_us)


class Hub:
    """Who waits for what. All on the event loop's thread."""

    def __init__(self) -> None:
        self._ends: dict[str, list[asyncio.Future[None]]] = defaultdict(list)
        self._watchers: dict[str, list[asyncio.Event]] = defaultdict(list)
        self._subscribers: list[Callable[[News], None]] = []

    def subscribe(self, subscriber: Callable[[News], None]) -> None:
        self._subscribers.append(subscriber)

    def end_of(self, task: str) -> asyncio.Future[None]:
        """Return a future that is done when *task* has ended; cancel it to stop waiting."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ends[task].append(future)
        future.add_done_callback(lambda done: self._forget(task, done))
        return future

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
        for task in news.ended:
            for future in self._ends.get(task, ()):
                if not future.done():
                    future.set_result(None)
        for task in news.changed if self._watchers else ():
            for event in self._watchers.get(task, ()):
                event.set()
        for subscriber in self._subscribers:
            subscriber(news)

    def _forget(self, task: str, future: asyncio.Future[None]) -> None:
        futures = self._ends.get(task)
        if futures is not None and future in futures:
            futures.remove(future)
            if not futures:
                del self._ends[task]
