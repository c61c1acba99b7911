"""Facts: said once, where they became true. Logs and metrics subscribe; decisions neither log nor count.

One `Telemetry` for each node: several nodes may live in one process.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Self, get_args

import msgspec
import prometheus_client as prometheus
import structlog
from prometheus_client import core as families
from prometheus_client.utils import floatToGoString

from greenroom.core import breaker, failures, health, rollouts, tasks


class TaskAccepted(msgspec.Struct, frozen=True):
    agent: str
    count: int = 1


class CacheAsked(msgspec.Struct, frozen=True):
    """Tasks of an agent that caches were accepted, outside of sessions.

    *result* is ``hit`` (answered at once), ``joined`` (it waits for the same input's first task) or ``miss``.
    """

    agent: str
    result: str
    count: int = 1


class AttemptEnded(msgspec.Struct, frozen=True, gc=False):
    """*state* is the task's afterwards; *duration_s* the attempt's. *end* is None where it was cancelled.

    Each attempt tells one of these to many. Never logged: *output*, JSON, and the text of *end* are its caller's.
    """

    agent: str
    state: str
    reason: str
    duration_s: float
    replica: str
    end: tasks.End | None = None
    session: str | None = None
    task: str = ""
    epoch: int = 0
    tokens: int = 0
    output: bytes | None = None


class AttemptBegan(msgspec.Struct, frozen=True, gc=False):
    task: str
    epoch: int
    agent: str
    revision: int


class ReplicaReady(msgspec.Struct, frozen=True):
    agent: str
    replica: str
    start_s: float


class ReplicaExited(msgspec.Struct, frozen=True):
    agent: str
    replica: str
    reason: str
    detail: str = ""


class ReplicaRecycled(msgspec.Struct, frozen=True):
    """Another is to take its place, though nothing has failed."""

    agent: str
    replica: str
    reason: str


class EnvelopeHeld(msgspec.Struct, frozen=True):
    """The limits of all replicas together, each with what holds it."""

    cpu: str
    memory: str


class EnvelopeWeak(msgspec.Struct, frozen=True):
    """A limit is not held, or not quite."""

    warning: str


class EnvelopeMeasured(msgspec.Struct, frozen=True):
    """What all replicas use together, by agent CPU seconds since the last look and memory; *pct* of each limit."""

    cpu_s: dict[str, float]
    memory_mb: dict[str, float]
    pct: dict[str, float]


class AdviceChanged(msgspec.Struct, frozen=True):
    """What the optimizer advises is open, applied, withdrawn, or measured, with the *outcome*; *open* are there now."""

    rule: str
    agent: str
    state: str
    what: str
    outcome: str
    open: int


class ReplicaGraded(msgspec.Struct, frozen=True):
    """Its grade has changed; a replica that has just become ready is ``unknown`` without being said to be."""

    agent: str
    replica: str
    grade: str
    reason: str


class ProbeAnswered(msgspec.Struct, frozen=True):
    agent: str
    round_trip_s: float


class ReplicaSaid(msgspec.Struct, frozen=True):
    """A line that a replica's process wrote outside of any task."""

    agent: str
    replica: str
    stream: str
    line: str


class AgentFailing(msgspec.Struct, frozen=True):
    agent: str
    reason: str


class AgentScaled(msgspec.Struct, frozen=True):
    """It is to have *replicas* instead of *before*, by *rule*; *by* says who decided."""

    agent: str
    before: int
    replicas: int
    rule: str
    reason: str
    by: str


class ScalingDecided(msgspec.Struct, frozen=True):
    """A decision about an agent's number of replicas was stored; it may be the same number."""

    agent: str
    replicas: int
    rule: str


class AgentRolledBack(msgspec.Struct, frozen=True):
    """*revision* did not work, *to* serves again."""

    agent: str
    revision: int
    to: int
    reason: str


class BreakerMoved(msgspec.Struct, frozen=True):
    """An agent's circuit breaker has come to *state*."""

    agent: str
    state: str
    reason: str = ""


class ReplicaEjected(msgspec.Struct, frozen=True):
    """It fails where its peers do not: another takes its place."""

    agent: str
    replica: str
    reason: str


class RolloutMoved(msgspec.Struct, frozen=True):
    """It has come to *stage* (from 1), with *weight_pct* of the traffic for *revision*, or to its end."""

    agent: str
    rollout: int
    phase: str
    revision: int
    stage: int
    weight_pct: int
    reason: str = ""

    @classmethod
    def to(cls, state: rollouts.Rollout, *, agent: str, rollout: int) -> Self:
        return cls(
            agent,
            rollout,
            state.phase,
            revision=state.to_revision,
            stage=state.stage + 1,
            weight_pct=state.weight_pct,
            reason=state.reason,
        )


class AlertChanged(msgspec.Struct, frozen=True):
    """It fires, with *severity*, or is resolved."""

    alert: str
    state: str
    severity: str = ""
    reason: str = ""


class AgentDropped(msgspec.Struct, frozen=True):
    """It has left the manifest."""

    agent: str
    reason: str


class ServiceCrashed(msgspec.Struct, frozen=True):
    """A loop of the node raised what it should not: a bug of Greenroom's own."""

    service: str
    error: str


class StoreTrouble(msgspec.Struct, frozen=True):
    where: str
    error: str


class StoreRecovered(msgspec.Struct, frozen=True):
    """The trouble that was said of *where* is over."""

    where: str


class BackupMade(msgspec.Struct, frozen=True):
    """*stored_bytes* is what restoring it reads, *new_bytes* what it added to the backups before it."""

    backup: str
    duration_s: float
    stored_bytes: int
    new_bytes: int


class BackupFailed(msgspec.Struct, frozen=True):
    error: str


class BackupsNotDeleted(msgspec.Struct, frozen=True):
    """A backup was made, and the old ones that may go could not be deleted."""

    error: str


class NewestBackup(msgspec.Struct, frozen=True):
    """The newest backup there is: one that was made now, or by an earlier life of the node."""

    created_at: datetime


class BackupKeyMade(msgspec.Struct, frozen=True):
    """The first backup is being made. Without a copy of *key_file* on another machine no backup can be restored."""

    key_file: str
    advice: str = "copy this file to another machine: without it no backup can be restored"


class NodeChanged(msgspec.Struct, frozen=True):
    """The node is ready, drains or has stopped."""

    node: str
    state: str
    detail: str = ""


Fact = (
    TaskAccepted
    | CacheAsked
    | AttemptEnded
    | AttemptBegan
    | ReplicaReady
    | ReplicaExited
    | ReplicaRecycled
    | EnvelopeHeld
    | EnvelopeWeak
    | EnvelopeMeasured
    | AdviceChanged
    | ReplicaGraded
    | ProbeAnswered
    | ReplicaSaid
    | AgentFailing
    | AgentDropped
    | AgentScaled
    | ScalingDecided
    | AgentRolledBack
    | BreakerMoved
    | ReplicaEjected
    | RolloutMoved
    | AlertChanged
    | ServiceCrashed
    | StoreTrouble
    | StoreRecovered
    | BackupMade
    | BackupFailed
    | BackupsNotDeleted
    | NewestBackup
    | BackupKeyMade
    | NodeChanged
)
FACTS: tuple[type[Fact], ...] = get_args(Fact)


class Telemetry:
    def __init__(self) -> None:
        self._subscribers: dict[type[Fact], list[Callable[[Any], None]]] = {kind: [] for kind in FACTS}

    def subscribe(self, subscriber: Callable[[Any], None], *kinds: type[Fact]) -> None:
        """Call *subscriber* with every fact of *kinds*, of every kind if none is named."""
        for kind in kinds or FACTS:
            self._subscribers[kind].append(subscriber)

    def unsubscribe(self, subscriber: Callable[[Any], None], kind: type[Fact]) -> None:
        self._subscribers[kind].remove(subscriber)

    def is_heard(self, kind: type[Fact]) -> bool:
        """Whether anybody subscribes to *kind*: what each task would say is not made for nobody."""
        return bool(self._subscribers[kind])

    def emit(self, fact: Fact) -> None:
        for subscriber in self._subscribers[type(fact)]:
            subscriber(fact)


_BREAKER_LEVELS: dict[str, int] = {breaker.State.CLOSED: 0, breaker.State.HALF_OPEN: 1, breaker.State.OPEN: 2}


class _Tally:
    """A counter that costs a dictionary's addition: prometheus' own takes a lock and checks, for each task anew."""

    def __init__(self, name: str, help: str, labels: Sequence[str], registry: prometheus.CollectorRegistry) -> None:
        self._about = name, help
        self._labels = labels
        self._counts: Counter[tuple[str, ...]] = Counter()
        registry.register(self)

    def add(self, *labels: str, count: int = 1) -> None:
        self._counts[labels] += count

    def collect(self) -> Iterator[families.CounterMetricFamily]:
        family = families.CounterMetricFamily(*self._about, labels=self._labels)
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        yield family


class _Durations:
    """A histogram by agent, as cheap as `_Tally`. *bounds* are seconds."""

    def __init__(self, name: str, help: str, bounds: Sequence[float], registry: prometheus.CollectorRegistry) -> None:
        self._about, self._bounds = (name, help), bounds
        self._counts: dict[str, list[int]] = {}
        self._sums_s: Counter[str] = Counter()
        registry.register(self)

    def add(self, agent: str, duration_s: float) -> None:
        counts = self._counts.get(agent)
        if counts is None:
            counts = self._counts[agent] = [0] * (len(self._bounds) + 1)
        counts[bisect.bisect_left(self._bounds, duration_s)] += 1
        self._sums_s[agent] += duration_s  # type: ignore[assignment] # a Counter may count seconds

    def collect(self) -> Iterator[families.HistogramMetricFamily]:
        family = families.HistogramMetricFamily(*self._about, labels=["agent"])
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for agent, counts in self._counts.items():
            buckets = zip(names, itertools.accumulate(counts), strict=True)
            family.add_metric([agent], buckets=list(buckets), sum_value=self._sums_s[agent])
        yield family


class Metrics:
    """The Prometheus metrics of a node, in a registry of its own. Labels are agents and fixed words only."""

    KINDS: tuple[type[Fact], ...] = (
        TaskAccepted,
        CacheAsked,
        AttemptEnded,
        ReplicaReady,
        ReplicaExited,
        ReplicaGraded,
        EnvelopeMeasured,
        AdviceChanged,
        ProbeAnswered,
        BreakerMoved,
        ReplicaEjected,
        ScalingDecided,
        BackupMade,
        BackupFailed,
        NewestBackup,
    )

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._accepted = _Tally("greenroom_tasks_accepted", "Tasks accepted", ["agent"], self.registry)
        self._cache = self._counter("cache", "Tasks accepted for agents that cache", ["agent", "result"])
        self._attempts = _Tally("greenroom_attempts", "Attempts ended", ["agent", "state", "reason"], self.registry)
        self._exits = self._counter("replica_exits", "Replicas that ended", ["agent", "reason"])
        bounds_s = (0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
        self._duration = _Durations("greenroom_attempt_seconds", "Duration of attempts", bounds_s, self.registry)
        self._start = prometheus.Histogram(
            "greenroom_replica_start_seconds",
            "From asking for a replica to its readiness",
            ["agent"],
            registry=self.registry,
        )
        self._probe = prometheus.Histogram(
            "greenroom_probe_seconds",
            "From a probe's sending to its answer",
            ["agent"],
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self._replicas = prometheus.Gauge(
            "greenroom_replicas", "Replicas that are ready or drain", ["agent", "grade"], registry=self.registry
        )
        self._cpu = self._counter("replica_cpu_seconds", "CPU time of replicas and what they have started", ["agent"])
        self._memory = self._gauge("replicas_memory_bytes", "Memory of replicas, shared pages in each", ["agent"])
        self._envelope = self._gauge("envelope_use_ratio", "Use of the limits of all replicas together", ["resource"])
        self._measured: set[str] = set()  # agents
        self._advice = prometheus.Gauge(
            "greenroom_advice_open", "Advice of the optimizer that is open or was applied", registry=self.registry
        )
        self._wanted = prometheus.Gauge(
            "greenroom_replicas_wanted", "Replicas that there should be", ["agent"], registry=self.registry
        )
        self._decisions = self._counter("scaling_decisions", "Decisions about numbers of replicas", ["agent", "rule"])
        self._grades: dict[str, tuple[str, str]] = {}  # of the replicas that the gauge counts: agent and grade
        self._breakers = prometheus.Gauge(
            "greenroom_breaker_state",
            "The agent's circuit breaker: 0 closed, 1 half-open, 2 open; absent until it has opened once",
            ["agent"],
            registry=self.registry,
        )
        self._ejections = self._counter(
            "replica_ejections", "Replicas that failed where their peers did not", ["agent"]
        )
        self._backups = self._counter("backups", "Backups made, and not made", ["result"])
        self._backup_at = prometheus.Gauge(
            "greenroom_backup_last_success_timestamp_seconds",
            "When the newest backup was made, in seconds since 1970",
            registry=self.registry,
        )
        self._children: dict[tuple[Any, ...], Any] = {}  # labels() costs more than the counting

    def _counter(self, name: str, help: str, labels: list[str]) -> prometheus.Counter:
        return prometheus.Counter(f"greenroom_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, labels: list[str]) -> prometheus.Gauge:
        return prometheus.Gauge(f"greenroom_{name}", help, labels, registry=self.registry)

    def _child(self, metric: Any, *labels: str) -> Any:
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def _count(self, replica: str, now: tuple[str, str] | None) -> None:
        """Move *replica* to where it counts in the gauge *now*: agent and grade, or nowhere."""
        before = self._grades.pop(replica, None)
        if before is not None:
            self._child(self._replicas, *before).dec()
        if now is not None:
            self._grades[replica] = now
            self._child(self._replicas, *now).inc()

    def __call__(self, fact: Fact) -> None:
        if type(fact) is AttemptEnded:  # each task comes by here
            self._attempts.add(fact.agent, fact.state, fact.reason)
            self._duration.add(fact.agent, fact.duration_s)
            return
        match fact:
            case TaskAccepted(agent, count):
                self._accepted.add(agent, count=count)
            case CacheAsked(agent, result, count):
                self._child(self._cache, agent, result).inc(count)
            case ReplicaReady(agent, replica, start_s):
                self._child(self._start, agent).observe(start_s)
                self._count(replica, (agent, health.Grade.UNKNOWN))
            case AdviceChanged():
                self._advice.set(fact.open)
            case EnvelopeMeasured():
                self._measure(fact)
            case ReplicaGraded(agent, replica, grade, _):
                self._count(replica, (agent, grade))
            case ReplicaExited(agent, replica, reason, _):
                self._child(self._exits, agent, failures.of(reason) or "stopped").inc()
                self._count(replica, None)
            case ProbeAnswered(agent, round_trip_s):
                self._child(self._probe, agent).observe(round_trip_s)
            case BreakerMoved(agent, state):
                self._child(self._breakers, agent).set(_BREAKER_LEVELS[state])
            case ReplicaEjected(agent):
                self._child(self._ejections, agent).inc()
            case ScalingDecided(agent, replicas, rule):
                self._child(self._wanted, agent).set(replicas)
                self._child(self._decisions, agent, rule).inc()
            case BackupMade():
                self._child(self._backups, "made").inc()
            case BackupFailed():
                self._child(self._backups, "failed").inc()
            case NewestBackup(created_at):
                self._backup_at.set(created_at.timestamp())
            case _:
                pass

    def _measure(self, seen: EnvelopeMeasured) -> None:
        for agent, spent_s in seen.cpu_s.items():
            self._child(self._cpu, agent).inc(spent_s)
        for agent in self._measured | seen.memory_mb.keys():  # of one without replicas it is nothing
            self._child(self._memory, agent).set(seen.memory_mb.get(agent, 0.0) * 2**20)
        self._measured = set(seen.memory_mb)
        for resource, used_pct in seen.pct.items():
            self._child(self._envelope, resource).set(used_pct / 100)

    def render(self) -> bytes:
        return prometheus.generate_latest(self.registry)


# What becomes of tasks is in the store; a line for each would be noise.
_LEVELS: dict[type[Fact], int] = {
    ReplicaReady: logging.INFO,
    ReplicaExited: logging.INFO,
    ReplicaRecycled: logging.INFO,
    AdviceChanged: logging.INFO,
    EnvelopeHeld: logging.INFO,
    EnvelopeWeak: logging.WARNING,
    ReplicaGraded: logging.INFO,
    ReplicaSaid: logging.DEBUG,
    AgentFailing: logging.ERROR,
    AgentDropped: logging.WARNING,
    AgentScaled: logging.INFO,
    AgentRolledBack: logging.ERROR,
    BreakerMoved: logging.WARNING,
    ReplicaEjected: logging.WARNING,
    RolloutMoved: logging.INFO,
    AlertChanged: logging.ERROR,
    ServiceCrashed: logging.ERROR,
    StoreTrouble: logging.WARNING,
    StoreRecovered: logging.WARNING,  # whoever was told of the trouble is told of its end
    BackupMade: logging.INFO,
    BackupFailed: logging.ERROR,
    BackupsNotDeleted: logging.WARNING,
    BackupKeyMade: logging.WARNING,
    NodeChanged: logging.INFO,
}


class Log:
    """Facts as lines on stderr: readable ones, or one JSON object each. Lifecycle facts ignore the level.

    A line that cannot be written is dropped: who emits a fact goes on, whatever happened to stderr.
    """

    KINDS = tuple(_LEVELS)

    def __init__(self, *, level: str, as_json: bool) -> None:
        self._level = logging.getLevelNamesMapping()[level]
        renderer: Any = (
            structlog.processors.JSONRenderer()
            if as_json
            else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        )
        self._logger = structlog.wrap_logger(
            structlog.PrintLogger(sys.stderr),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                renderer,
            ],
            wrapper_class=structlog.BoundLogger,
        )

    def __call__(self, fact: Fact) -> None:
        is_over = isinstance(fact, AlertChanged) and fact.state == "resolved"
        level = logging.WARNING if is_over else _LEVELS[type(fact)]
        if level >= self._level or isinstance(fact, NodeChanged):
            method = getattr(self._logger, logging.getLevelName(level).lower())
            with contextlib.suppress(OSError, ValueError):  # its reader has left, or the stream is closed
                method(_words(type(fact).__name__), **msgspec.structs.asdict(fact))


def _words(name: str) -> str:
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
