"""Writes down what became of each agent's tasks and attempts and how long they took, in buckets: see `core.history`.

The only writer of the history. Between two steps an attempt costs some additions; each step adds what was told since
the last one to the minute and the hour in which it began, and writes these as they are then. What a crash loses is what
was told since the last step that was stored.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable

import msgspec
from msgspec import field

from greenroom import clock as clocks
from greenroom import settings, telemetry
from greenroom.core import costs, history
from greenroom.core.history import BOUNDS_S
from greenroom.store import database
from greenroom.store import history as rows
from greenroom.store.news import News
from greenroom.store.store import Store

WRITE_EVERY_S = 5.0
EXPIRE_EVERY_S = 60.0
DRAWN = 10  # tasks of an agent whose rows a step reads: the latest, which cost least to know
AT_ONCE = 400  # parts that one commit writes
MOST = 10_000  # parts that are held while the store takes none

Key = tuple[str, int, int, str]  # agent, step_s, at, part


class _Seen(msgspec.Struct, eq=False):
    """What was told of an agent since the last step: each attempt comes by here, and is to cost little."""

    ends: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    tasks: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    tokens: int = 0
    input_tokens: int = 0
    bins: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    run_s: float = 0.0
    latest: deque[str] = field(default_factory=lambda: deque(maxlen=DRAWN))  # tasks

    @property
    def counts(self) -> history.Counts:
        run = history.Histogram(self.bins, self.run_s)
        made = history.Counts(tasks=self.tasks, tokens=self.tokens, input_tokens=self.input_tokens, run=run)
        for (state, reason), count in self.ends.items():
            made.end(state, reason, count)
        return made


class History:
    """*spent* is told what an agent's tasks have cost, in dollars, at each step."""

    name = "history"

    def __init__(
        self,
        store: Store,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        found: settings.History,
        *,
        node: str,
        spent: Callable[[str, float], None] | None = None,
    ) -> None:
        self._store, self._clock, self._node, self._spent = store, clock, node, spent
        self._keep_s = {
            history.MINUTE_S: found.keep_minutes_days * history.DAY_S,
            history.HOUR_S: found.keep_hours_days * history.DAY_S,
        }
        self.wakeup = asyncio.Event()
        self._seen: dict[str, _Seen] = {}
        self._held: dict[Key, history.Counts] = {}  # of buckets that may grow, or are not stored as they are
        self._unwritten: dict[Key, None] = {}  # the longest unchanged first
        self._began_us = database.microseconds(clock.now())
        self._turns_back = 0
        self._expire_at_s = clock.monotonic_s()
        facts.subscribe(self._note, telemetry.AttemptEnded)
        store.hub.subscribe(self._hear)

    async def step(self) -> float:
        for keys, drawn in self._take():
            for response_s, wait_s in await self._store.tasks.times(list(drawn)):
                for counts in filter(None, map(self._held.get, keys)):
                    counts.response.add(response_s)
                    counts.wait.add(wait_s)
        await self._write()
        await self._expire()
        left_us = history.MINUTE_S * 1_000_000 - self._began_us % (history.MINUTE_S * 1_000_000)
        return min(WRITE_EVERY_S, left_us / 1e6)

    async def close(self) -> None:
        """Write the rest; raises `errors.StoreUnavailable`."""
        self._take()
        await self._write()

    def _hear(self, news: News) -> None:
        """Count the tasks that a commit has ended: also those that nobody has tried, which no attempt tells of."""
        for (_, agent, state), count in news.endings.items():
            self._of(agent).tasks[state] += count

    def _of(self, agent: str) -> _Seen:
        seen = self._seen.get(agent)
        if seen is None:
            seen = self._seen[agent] = _Seen()
        return seen

    def _note(self, ended: telemetry.AttemptEnded) -> None:
        seen = self._seen.get(ended.agent) or self._of(ended.agent)
        seen.ends[ended.state, ended.reason] += 1
        if ended.tokens:
            seen.tokens += ended.tokens
            seen.input_tokens += ended.input_tokens
        duration_s = ended.duration_s
        seen.bins[bisect_left(BOUNDS_S, duration_s)] += 1
        seen.run_s += duration_s
        seen.latest.append(ended.task)

    def _take(self) -> list[tuple[list[Key], Iterable[str]]]:
        """Add what was told to the buckets in which this step began; return which these are, and the drawn tasks."""
        now_us = database.microseconds(self._clock.now())
        if now_us < self._began_us:
            # The buckets of that time may be stored, and are not held any more: what comes is another part of them.
            self._turns_back += 1
            self._began_us = now_us
        began_us, self._began_us = self._began_us, now_us
        told, self._seen = self._seen, {}
        taken: list[tuple[list[Key], Iterable[str]]] = []
        for agent, seen in told.items():
            counts = seen.counts
            self._price(agent, counts)
            keys = [self._key(agent, step_s, began_us) for step_s in history.KEPT_S]
            for key in keys:
                self._held.setdefault(key, history.Counts()).merge(counts)
                self._unwritten.pop(key, None)
                self._unwritten[key] = None
            taken.append((keys, seen.latest))
        while len(self._unwritten) > MOST:
            oldest = next(iter(self._unwritten))
            del self._unwritten[oldest], self._held[oldest]
        return taken

    def _price(self, agent: str, counts: history.Counts) -> None:
        """Say what *counts* have cost, by the prices of now: what is linear need not be reckoned for each attempt."""
        entry = self._store.directory.entries.get(agent)
        prices = None if entry is None else settings.prices(entry.spec)
        if prices is not None:
            output_tokens = counts.tokens - counts.input_tokens
            counts.cost = prices.of(input_tokens=counts.input_tokens, output_tokens=output_tokens, tasks=counts.ended)
            if self._spent is not None:
                self._spent(agent, costs.usd(counts.cost))

    def _key(self, agent: str, step_s: int, at_us: int) -> Key:
        part = f"{self._node}.{self._turns_back}" if self._turns_back else self._node
        return agent, step_s, history.begin_us(at_us, step_s), part

    async def _write(self) -> None:
        while self._unwritten:
            keys = list(self._unwritten)[:AT_ONCE]
            await self._store.history.put([rows.Part(*key, history.encode(self._held[key])) for key in keys])
            for key in keys:
                del self._unwritten[key]
        for key in [key for key in self._held if key != self._key(key[0], key[1], self._began_us)]:
            del self._held[key]

    async def _expire(self) -> None:
        """Drop what is kept for long enough: some of it in each step, as long as there is more."""
        now_s = self._clock.monotonic_s()
        if now_s < self._expire_at_s:
            return
        is_more = [await self._store.history.expire(step_s, keep_s=keep_s) for step_s, keep_s in self._keep_s.items()]
        if not any(is_more):
            self._expire_at_s = now_s + EXPIRE_EVERY_S
