"""The metrics of a node, from what is told."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import prometheus_client as prometheus
from prometheus_client import core as families
from prometheus_client.utils import floatToGoString

from greenroom.core import breaker, failures, health
from greenroom.telemetry.facts import (
    AdviceChanged,
    AttemptEnded,
    BackupFailed,
    BackupMade,
    BreakerMoved,
    CacheAsked,
    CredentialRejected,
    EnvelopeMeasured,
    Fact,
    IntrusionFound,
    NewestBackup,
    ProbeAnswered,
    RateLimited,
    ReplicaEjected,
    ReplicaExited,
    ReplicaGraded,
    ReplicaReady,
    RequestRefused,
    ScalingDecided,
    TaskAccepted,
    ValueDamaged,
    WebhookTried,
)

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
        RateLimited,
        WebhookTried,
        CredentialRejected,
        RequestRefused,
        IntrusionFound,
        ValueDamaged,
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
        self._limited = self._counter("rate_limited", "Requests that were answered 429 for their rate", ["limit"])
        self._backups = self._counter("backups", "Backups made, and not made", ["result"])
        self._backup_at = prometheus.Gauge(
            "greenroom_backup_last_success_timestamp_seconds",
            "When the newest backup was made, in seconds since 1970",
            registry=self.registry,
        )
        self._webhooks = self._counter(
            "webhook_tries", "Deliveries of webhooks tried, by what became of them", ["state"]
        )
        self._rejected = self._counter(
            "credentials_rejected", "Requests without a credential that is accepted", ["why"]
        )
        self._refused = self._counter("requests_refused", "Requests of known callers that were refused", ["status"])
        self._intrusions = self._counter("intrusions", "What the rules of intrusion detection have found", ["rule"])
        self._damaged = prometheus.Counter(
            "greenroom_damaged_values",
            "Times that something stored did not open where it is: it was changed or moved",
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
            case CredentialRejected(why=why):
                self._child(self._rejected, why).inc()
            case RequestRefused(status=status):
                self._child(self._refused, str(status)).inc()
            case IntrusionFound(rule=rule):
                self._child(self._intrusions, rule).inc()
            case NewestBackup(created_at):
                self._backup_at.set(created_at.timestamp())
            case RateLimited(limit):
                self._child(self._limited, limit).inc()
            case WebhookTried(_, state):
                self._child(self._webhooks, state).inc()
            case ValueDamaged():
                self._damaged.inc()
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
