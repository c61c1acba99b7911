"""Resources: measures what all replicas use, makes room where memory runs short, and replaces who has had enough.

It writes no row: `control.host` replaces replicas and says why in theirs. What it has measured last is what the status,
the metrics, the optimizer and whoever adds replicas go by.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import msgspec
from msgspec.structs import replace

from greenroom import clock as clocks
from greenroom import telemetry
from greenroom.control.hosted import Hosted
from greenroom.core import resources
from greenroom.engine import contract
from greenroom.store.directory import Entry

LOOK_EVERY_S = 1.0  # at the sizes of replicas that have a bound
MEASURE_EVERY_S = 5.0  # all processes; where memory is short, at each look


class _Watched(msgspec.Struct, eq=False):
    """What is known of a replica."""

    tasks: int = 0
    cpu_s: float = 0.0
    cpu: float = 0.0
    held: contract.Held | None = None
    new_mb: float | None = None  # its size when it became ready
    trend: resources.Trend = msgspec.field(default_factory=resources.Trend)


class Engine(contract.Engine, contract.Meter, Protocol):
    """An engine that measures."""


class Resources:
    """*recycle* is `Host.recycle`; *entries* are the directory's, *hosted* the host's replicas. *lower_spares* lets
    some of the interpreters go that are only kept warm, and says whether there were any.
    """

    name = "resources"

    def __init__(
        self,
        engine: Engine,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        *,
        limits: resources.Limits,
        hosted: Callable[[], Collection[Hosted]],
        entries: Callable[[], Mapping[str, Entry]],
        recycle: Callable[[str, str], bool],
        lower_spares: Callable[[], bool] = lambda: False,
    ) -> None:
        self._engine, self._clock, self._facts, self._limits = engine, clock, facts, limits
        self._hosted, self._entries, self._recycle = hosted, entries, recycle
        self._lower_spares = lower_spares
        self.wakeup = asyncio.Event()
        self._watched: dict[str, _Watched] = {}
        self._new: set[str] = set()  # replicas that have become ready since the last step
        self._new_mb: dict[str, float] = {}  # of each agent, of the replica that became ready last
        self._use: resources.Use | None = None
        self._trees: Mapping[int, float] = {}
        self._measured_s: float | None = None
        self._relieved_s = -math.inf
        self._cpus = float(os.cpu_count() or 1)
        facts.subscribe(self._begin, telemetry.ReplicaReady)
        facts.subscribe(self._count, telemetry.AttemptEnded)
        facts.subscribe(self._forget, telemetry.ReplicaExited)

    # --- what others ask

    @property
    def limits(self) -> resources.Limits:
        return self._limits

    def use(self) -> resources.Use:
        """Return what all replicas used at the last look; nothing before the first."""
        return self._use or resources.Use()

    @property
    def is_known(self) -> bool:
        return self._use is not None

    def cpu_of(self, replica: str) -> float:
        """Return how many CPUs *replica* used at the last look."""
        return self._watched[replica].cpu if replica in self._watched else 0.0

    def successor_mb(self, replica: str, agent: str) -> float:
        """Return what another in the place of *replica* would hold when it is new; 0 where nobody knows.

        Of the pages that it shares its part, supposed that this is as large a part as of its predecessor's.
        """
        held, new_mb = self.held_by(replica), self._new_mb.get(agent)
        if held is None or new_mb is None or not held.memory_mb:
            return 0.0
        return held.share_mb * min(1.0, new_mb / held.memory_mb)

    def held_by(self, replica: str) -> contract.Held | None:
        return self._watched[replica].held if replica in self._watched else None

    # --- the loop

    async def step(self) -> float:
        now_s = self._clock.monotonic_s()
        if self._new:
            self._note_new()
        every_s = LOOK_EVERY_S if resources.is_short(self._limits, self.use()) else MEASURE_EVERY_S
        if self._measured_s is None or now_s >= self._measured_s + every_s:
            await self._measure(now_s)
            self._relieve()
        else:
            self._look()
        self._recycle_all()
        return LOOK_EVERY_S

    async def _measure(self, now_s: float) -> None:
        limit_mb = self._limits.memory_mb
        enough_mb = math.inf if limit_mb is None else limit_mb * resources.KNOWN_PCT / 100
        each_mb = {each.id: most_mb for each in self._ours() if (most_mb := self._bounds(each).most_mb) is not None}
        usage = await self._engine.measure(enough_mb=enough_mb, each_mb=each_mb)
        before_s, self._measured_s = self._measured_s, now_s
        elapsed_s = 0.0 if before_s is None else now_s - before_s
        cpu = 0.0 if before_s is None else resources.cpus(self._trees, usage.cpu_s, elapsed_s=elapsed_s)
        self._trees = usage.cpu_s
        counted = Counter(each.agent for each in self._ours() if each.state == "ready" and each.id in usage.replicas)
        self._use = resources.Use(min(cpu, self._cpus), usage.memory_mb, counted)
        for gone in self._new_mb.keys() - self._entries().keys():
            del self._new_mb[gone]
        spent_s: defaultdict[str, float] = defaultdict(float)
        for each in self._hosted():
            if (held := usage.replicas.get(each.id)) is not None:
                spent_s[each.agent] += self._note(each, held, now_s=now_s, elapsed_s=elapsed_s)
        self._tell(spent_s)

    def _note(self, replica: Hosted, held: contract.Held, *, now_s: float, elapsed_s: float) -> float:
        """Take down what *replica* holds; return the CPU time that it has spent since the last look."""
        watched = self._watched.setdefault(replica.id, _Watched())
        spent_s = max(0.0, held.cpu_s - watched.cpu_s)
        watched.cpu = min(spent_s / elapsed_s, self._cpus) if elapsed_s > 0 else 0.0
        watched.cpu_s, watched.held = held.cpu_s, held
        if replica.ready_at_s is not None and now_s >= replica.ready_at_s + resources.WARM_S:
            watched.trend = watched.trend.noted(resources.Sample(now_s, held.memory_mb))
        return spent_s

    def _look(self) -> None:
        """Look at each replica's own size, which costs little, so that who grows fast is seen before it is too late."""
        bounded = {each.id for each in self._ours() if self._bounds(each).most_mb is not None}
        if not bounded:
            return
        for seen in self._engine.observe():
            watched = self._watched.get(seen.replica)
            if seen.replica not in bounded or watched is None:
                continue
            held = watched.held or contract.Held(0.0, 0.0, 0.0)
            watched.held = replace(held, memory_mb=max(held.memory_mb, seen.rss_mb))

    def _relieve(self) -> None:
        """Make room: first in what nobody uses now, which has to do unless all of the envelope is full."""
        assert self._use is not None
        now_s = self._clock.monotonic_s()
        is_eased = resources.is_short(self._limits, self._use) and self._lower_spares()
        since_s = 0.0 if is_eased else now_s - self._relieved_s
        replicas = [
            resources.Replica(
                each.id,
                each.agent,
                held.memory_mb,
                held.share_mb,
                is_ready=each.state == "ready" and not each.for_suspects,  # that one goes by itself
                is_recycled=bool(each.recycled_for),
                successor_mb=self.successor_mb(each.id, each.agent),
            )
            for each in self._hosted()
            if (held := self.held_by(each.id)) is not None
        ]
        match resources.relieve(self._limits, self._use, replicas, since_s=since_s):
            case resources.Recycle(replica, reason):
                if self._recycle(replica, reason):
                    self._relieved_s = now_s
            case [*evicted]:
                for each in evicted:
                    self._engine.kill(each.replica, each.failure, each.reason)
            case None:
                pass

    def _recycle_all(self) -> None:
        for each in self._ours():
            watched = self._watched.get(each.id)
            if each.state != "ready" or each.recycled_for or watched is None:
                continue
            reason = resources.why_recycled(
                self._bounds(each),
                memory_mb=watched.held.memory_mb if watched.held is not None else 0.0,
                tasks=watched.tasks,
                trend=watched.trend,
                new_mb=watched.new_mb,
            )
            if reason is not None:
                self._recycle(each.id, reason)

    def _ours(self) -> list[Hosted]:
        """Return the replicas that may be replaced: not those that run suspects, for they go by themselves."""
        return [each for each in self._hosted() if not each.for_suspects]

    def _bounds(self, replica: Hosted) -> resources.Bounds:
        entry = self._entries().get(replica.agent)
        if entry is None or replica.revision not in entry.capacity:
            return resources.Bounds()
        spec = entry.spec_of(replica.revision)
        return resources.Bounds(spec.recycling.memory_mb, spec.memory_mb, spec.recycling.tasks)

    def _tell(self, spent_s: Mapping[str, float]) -> None:
        held_mb: defaultdict[str, float] = defaultdict(float)
        for each in self._hosted():
            if (held := self.held_by(each.id)) is not None:
                held_mb[each.agent] += held.memory_mb
        use, limits = self.use(), self._limits
        ratios = {"cpu": resources.pct(use.cpu, limits.cpu), "memory": resources.pct(use.memory_mb, limits.memory_mb)}
        known = {name: used_pct for name, used_pct in ratios.items() if used_pct is not None}
        self._facts.emit(telemetry.EnvelopeMeasured(dict(spent_s), dict(held_mb), known))

    def _begin(self, ready: telemetry.ReplicaReady) -> None:
        self._watched.setdefault(ready.replica, _Watched())
        self._new.add(ready.replica)
        self.wakeup.set()

    def _note_new(self) -> None:
        """Note what those hold that have become ready: one look for all of them, as many may come at once."""
        sizes_mb = {seen.replica: seen.rss_mb for seen in self._engine.observe() if seen.replica in self._new}
        self._new.clear()
        for each in self._ours():
            if (new_mb := sizes_mb.get(each.id)) is None or (watched := self._watched.get(each.id)) is None:
                continue
            watched.new_mb = self._new_mb[each.agent] = new_mb
            most_mb = self._bounds(each).most_mb
            if most_mb is not None and new_mb > most_mb:
                warning = (
                    f"replicas of {each.agent} hold {new_mb:.0f} MB when they are new: they are not recycled from "
                )
                warning += f"{most_mb:.0f} MB on, as the next would be as large; raise recycling.memory_mb or memory_mb"
                self._facts.emit(telemetry.EnvelopeWeak(warning))

    def _count(self, ended: telemetry.AttemptEnded) -> None:
        if (watched := self._watched.get(ended.replica)) is not None:  # else it is gone
            watched.tasks += 1

    def _forget(self, gone: telemetry.ReplicaExited) -> None:
        self._watched.pop(gone.replica, None)
        self._new.discard(gone.replica)
