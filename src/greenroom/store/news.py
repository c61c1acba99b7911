"""News: what a commit made true, told to whoever waits in this process. A hint; polling is the guarantee."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greenroom.store.tasks import Ended


@dataclass(slots=True)
class News:
    """Facts of one commit, by the ids of those whom they concern."""

    ended: list[str] = field(default_factory=list)  # tasks now in a terminal state
    stopped: list[str] = field(default_factory=list)  # tasks that ended although an attempt of theirs may still run
    changed: set[str] = field(default_factory=set)  # tasks with new events
    ready: set[str] = field(default_factory=set)  # agents with tasks that may be claimed
    due_at_us: int | None = None  # the earliest new due time
    shown: Mapping[str, Ended] = field(default_factory=dict)  # of those that ended, the ones awaited here

    def due(self, at_us: int) -> None:
        self.due_at_us = at_us if self.due_at_us is None else min(self.due_at_us, at_us)


class Hub:
    """Who waits for what. All on the event loop's thread."""

    def __init__(self) -> None:
        self._ends: dict[str, list[asyncio.Future[Ended | None]]] = defaultdict(list)
        self._watchers: dict[str, list[asyncio.Event]] = defaultdict(list)
        self._subscribers: list[Callable[[News], None]] = []

    def subscribe(self, subscriber: Callable[[News], None]) -> None:
        self._subscribers.append(subscriber)

    def awaited(self, tasks: Iterable[str]) -> list[str]:
        """Return those of *tasks* whose end somebody waits for."""
        return [task for task in tasks if task in self._ends] if self._ends else []

    def end_of(self, task: str) -> asyncio.Future[Ended | None]:
        """Return a future that is done when *task* has ended; cancel it to stop waiting.

        Its result is the task, or None to whom began to wait while the end was being written: read it then.
        """
        future: asyncio.Future[Ended | None] = asyncio.get_running_loop().create_future()
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
                    future.set_result(news.shown.get(task))
        for task in news.changed if self._watchers else ():
            for event in self._watchers.get(task, ()):
                event.set()
        for subscriber in self._subscribers:
            subscriber(news)

    def _forget(self, task: str, future: asyncio.Future[Ended | None]) -> None:
        futures = self._ends.get(task)
        if futures is not None and future in futures:
            futures.remove(future)
            if not futures:
                del self._ends[task]
