"""Collects what the optimizer goes by, out of facts, the board and a few rows: bounded, over a sliding window.

Nothing here is asked for by a status: only the optimizer's own loop looks. Of the attempts that end a few are drawn,
evenly, and their tasks' rows read, so that a response time is what the store says, whatever ran in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec
from msgspec import field

from greenroom import clock as clocks
from greenroom import settings, telemetry
from greenroom.core import health, measurements, optimizer
from greenroom.store.directory import Entry
from greenroom.store.store import Store

T = TypeVar("T")

DRAWN = 20  # tasks of an agent whose rows one look reads
RUNS = 100  # attempts of an agent whose durations one look keeps
BUCKETS = int(optimizer.WINDOW_S / optimizer.LOOK_EVERY_S)
MAX_STARTS = 100


class Drawn(Generic[T]):
    """At most so many of what is offered, evenly spread over all of it."""

    def __init__(self, most: int) -> None:
        self.items: list[T] = []
        self._most, self._every, self._offered = most, 1, 0

    def offer(self, item: T) -> None:
        if self._offered % self._every == 0:
            if len(self.items) == self._most:
                self.items, self._every = self.items[::2], self._every * 2
            if self._offered % self._every == 0:
                self.items.append(item)
        self._offered += 1


class _Bucket(msgspec.Struct, eq=False):
    """What happened between two looks."""

    attempts: int = 0
    errors: int = 0
    runs: Drawn[tuple[str, float]] = field(default_factory=lambda: Drawn(RUNS))  # of the drawn: task and seconds
    times: Sequence[tuple[float, float]] = ()  # response and wait, of those tasks that have ended
    busy: int = 0
    slots: int = 0
    is_limited: bool = False  # by its breaker
    hits: int = 0
    misses: int = 0


class _Account(msgspec.Struct, eq=False):
    last_end_s: float
    now: _Bucket = field(default_factory=_Bucket)
    past: deque[_Bucket] = field(default_factory=lambda: deque(maxlen=BUCKETS))
    starts: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=MAX_STARTS))
    queued: int = 0


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked at each look."""

    replicas: Callable[[], Sequence[measurements.Replica]]
    cpu_pct: Callable[[], float | None]
    memory_pct: Callable[[], float | None]
    spares: Callable[[], int] = lambda: 0


class Collector:
    def __init__(
        self,
        store: Store,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        found: settings.Settings,
        sources: Sources,
    ) -> None:
        self._store, self._clock, self._settings, self._sources = store, clock, found, sources
        self._accounts: dict[str, _Account] = {}
        facts.subscribe(self._note, telemetry.AttemptEnded)
        facts.subscribe(self._note_start, telemetry.ReplicaReady)
        facts.subscribe(self._note_lookup, telemetry.CacheAsked)

    async def look(self) -> measurements.Measurements:
        """Close the current part of the window, and return what all of it holds."""
        now_s, entries = self._clock.monotonic_s(), self._store.directory.entries
        open_counts = await self._store.tasks.open_counts()
        for gone in self._accounts.keys() - entries.keys():
            del self._accounts[gone]
        replicas = self._sources.replicas()
        agents = []
        for name, entry in entries.items():
            account = self._accounts.setdefault(name, _Account(now_s))
            account.queued = open_counts.get((name, "queued"), 0)
            await self._close(name, account, entry.spec.max_running)
            agents.append(self._agent(entry, account, [each for each in replicas if each.agent == name], now_s))
        cluster = self._settings.cluster
        return measurements.Measurements(
            window_s=optimizer.WINDOW_S,
            target_response_s=self._settings.optimizer.target_response_s,
            is_autoscaled=cluster.autoscaling,
            cpu_pct=self._sources.cpu_pct(),
            memory_pct=self._sources.memory_pct(),
            queued=sum(each.queued for each in agents),
            max_queued=self._settings.server.max_queued_tasks,
            spares=self._sources.spares(),
            cache_entries=sum((await self._store.cache.counts()).values()) if self._store.results.is_on else 0,
            agents=tuple(agents),
            replicas=tuple(replicas),
        )

    async def _close(self, name: str, account: _Account, max_running: int | None) -> None:
        bucket, account.now = account.now, _Bucket()
        usage = self._store.board.usage(name)
        bucket.busy, bucket.slots = usage.busy, usage.slots
        bucket.is_limited = self._store.board.limit_of(name) not in (None, max_running)
        drawn = [task for task, _ in bucket.runs.items]
        bucket.times = await self._store.tasks.times(drawn[:: max(1, len(drawn) // DRAWN)][:DRAWN])
        if bucket.attempts:
            account.last_end_s = self._clock.monotonic_s()
        account.past.append(bucket)

    def _agent(
        self, entry: Entry, account: _Account, replicas: Sequence[measurements.Replica], now_s: float
    ) -> measurements.Agent:
        buckets, spec, name = account.past, entry.spec, entry.agent.name
        usage, cluster = self._store.board.usage(name), self._settings.cluster
        attempts = sum(bucket.attempts for bucket in buckets)
        times = [time for bucket in buckets for time in bucket.times]
        slots = sum(bucket.slots for bucket in buckets)
        starts_s = sorted(start_s for at_s, start_s in account.starts if at_s > now_s - optimizer.WINDOW_S)
        entries = self._store.directory.entries
        others = sum(other.agent.replicas for each, other in entries.items() if each != name)
        return measurements.Agent(
            name=name,
            replicas=usage.replicas,
            slots=usage.slots,
            busy=usage.busy,
            busy_pct=100 * sum(bucket.busy for bucket in buckets) / slots if slots else None,
            queued=account.queued,
            concurrency=spec.concurrency,
            min_replicas=spec.scaling.min_replicas if cluster.autoscaling else entry.agent.replicas,
            max_replicas=min(spec.scaling.max_replicas or cluster.max_replicas, max(1, cluster.max_replicas - others)),
            max_running=spec.max_running,
            was_limited=any(bucket.is_limited for bucket in buckets),
            attempts=attempts,
            error_pct=100 * sum(bucket.errors for bucket in buckets) / attempts if attempts else None,
            response_s=measurements.spread([response_s for response_s, _ in times], count=attempts),
            wait_s=measurements.spread([wait_s for _, wait_s in times], count=attempts),
            run_s=measurements.spread([run_s for bucket in buckets for _, run_s in bucket.runs.items], count=attempts),
            memory_mb=sum(each.memory_mb for each in replicas),
            cpu=sum(each.cpu for each in replicas),
            cache_hits=sum(bucket.hits for bucket in buckets),
            cache_misses=sum(bucket.misses for bucket in buckets),
            cold_starts=len(starts_s),
            start_s=starts_s[len(starts_s) // 2] if starts_s else None,
            idle_s=0.0 if usage.busy or account.queued else now_s - account.last_end_s,
        )

    # --- facts

    def _note(self, ended: telemetry.AttemptEnded) -> None:
        account = self._accounts.get(ended.agent)
        is_error = health.is_error(ended.reason)
        if account is None or is_error is None:  # of those who were stopped nothing is learnt
            return
        bucket = account.now
        bucket.attempts += 1
        if is_error:
            bucket.errors += 1
        bucket.runs.offer((ended.task, ended.duration_s))

    def _note_lookup(self, asked: telemetry.CacheAsked) -> None:
        if (account := self._accounts.get(asked.agent)) is not None:
            if asked.result == "miss":
                account.now.misses += asked.count
            else:
                account.now.hits += asked.count

    def _note_start(self, ready: telemetry.ReplicaReady) -> None:
        """Count a start that tasks had to wait for: no other replica was there, and there was work at the last look, or
        the agent had gone to sleep, and nothing but a task wakes it.
        """
        account, entry = self._accounts.get(ready.agent), self._store.directory.entries.get(ready.agent)
        if account is None or entry is None or self._store.board.usage(ready.agent).replicas != 1:
            return
        if account.queued or entry.spec.scaling.min_replicas == 0:
            account.starts.append((self._clock.monotonic_s(), ready.start_s))
