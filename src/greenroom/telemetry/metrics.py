"""The metrics of a node, from what is told; and, at each scrape, from what the store says then.

Labels are agents, their revisions and fixed words, and bounded: `MAX_AGENTS` agents have series of their own, each for
its `MAX_REVISIONS` latest revisions; the other agents share one, `families.OTHER`. What is gone is forgotten.
docs/metrics.md lists them all.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from prometheus_client import core as prometheus_core
from prometheus_client.registry import Collector

from greenroom.core import breaker, failures, health, slo, tasks
from greenroom.telemetry import facts
from greenroom.telemetry.facts import Fact
from greenroom.telemetry.families import OTHER, Family, Histogram, Level, Spread, Total

MAX_AGENTS = 100
MAX_REVISIONS = 4  # of each agent: the serving one, the next, and what ends late

_F = TypeVar("_F", bound=Family)
_GRADE_LEVELS: dict[str, int] = {grade: place for place, grade in enumerate(health.Grade)}
_BREAKER_LEVELS: dict[str, int] = {breaker.State.CLOSED: 0, breaker.State.HALF_OPEN: 1, breaker.State.OPEN: 2}
_GRADES = ", ".join(f"{level} {grade}" for grade, level in _GRADE_LEVELS.items())
_QUICK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TASK_S = (0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_PROBE_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0)
_START_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_BATCH = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Seen(msgspec.Struct, frozen=True):
    """What the store says when somebody scrapes.

    *open*: tasks by agent and state; *queue*: by agent, those that a free slot would take, and since when the oldest
    waits, in seconds; *replicas* by agent, revision, state and grade; *traffic*: percent, by agent and revision;
    *alerts*: open ones, by kind, severity and state; *agents*: those that there are; *objectives*: how their SLOs
    stand.
    """

    agents: Collection[str] = ()
    open: Mapping[tuple[str, str], int] = {}
    queue: Mapping[str, tuple[int, float]] = {}
    replicas: Mapping[tuple[str, int, str, str], int] = {}
    traffic: Mapping[tuple[str, int], int] = {}
    alerts: Mapping[tuple[str, str, str], int] = {}
    queue_limit: int = 0
    grades: Mapping[str, str] = {}
    system_grade: str | None = None
    objectives: Mapping[str, Sequence[slo.State]] = {}


class _Work:
    """What has become of the attempts of one revision."""

    __slots__ = ("at_once", "ends", "input_tokens", "output_tokens", "run", "wait")

    def __init__(self) -> None:
        self.ends: dict[tuple[str, str], int] = {}  # by the task's state afterwards, and the reason
        self.run, self.wait = Spread(_TASK_S), Spread(_TASK_S)
        self.input_tokens = self.output_tokens = 0
        self.at_once = 0  # that did not wait, and are not yet among *wait*


class Requests:
    """What one route has answered: how many, by the class of their status, and how long it took."""

    __slots__ = ("duration", "statuses")

    def __init__(self, duration: Spread) -> None:
        self.duration, self.statuses = duration, [0] * 6

    def add(self, status: int, duration_s: float) -> None:
        self.statuses[status // 100] += 1
        duration = self.duration
        duration.counts[bisect.bisect_left(_QUICK_S, duration_s)] += 1
        duration.sum += duration_s


class Metrics(Collector):
    """The Prometheus metrics of a node: hears facts (`listen`); what none tells is given by its name here."""

    def __init__(self) -> None:  # noqa: PLR0915 - a statement for each metric
        self._work: dict[tuple[str, int], _Work] = {}  # by agent and revision
        self._revisions: dict[str, list[int]] = {}  # those that have work, by agent; the first come first
        self._agents: set[str] = set()  # those with series of their own
        self._routes: dict[tuple[str, str], Requests] = {}
        self._measured: set[str] = set()  # agents
        self._seen: Seen | None = None  # what was rendered last
        self._missing: set[str] = set()  # agents that were not among it
        self.families: list[Family] = []
        self._accepted = self._total("tasks_accepted", "Tasks accepted", "agent")
        self._ended = self._total("tasks", "Tasks that ended, by the final state", "agent", "outcome")
        self._attempts = self._total(
            "attempts",
            "Attempts that ended, by the task's state afterwards (queued: it is tried again) and the reason",
            *("agent", "revision", "state", "reason"),
        )
        self._retries = self._total(
            "task_retries", "Attempts after which the task was queued again", "agent", "revision", "reason"
        )
        self._run = self._histogram("attempt_seconds", "Duration of attempts", "agent", "revision", bounds=_TASK_S)
        self._wait = self._histogram(
            "task_wait_seconds",
            "From when a task was accepted, or might begin, to its first attempt; counted when that ends",
            *("agent", "revision"),
            bounds=_TASK_S,
        )
        self._tokens = self._total(
            "tokens", "Tokens that attempts have reported: input or output", "agent", "revision", "type"
        )
        self._cost = self._total("cost_usd", "What tasks have cost, of agents whose manifest gives prices", "agent")
        self._cache = self._total("cache", "Tasks accepted for agents that cache, by result", "agent", "result")
        self._queue = self._level("queue_tasks", "Tasks that a free slot would take now", "agent")
        self._oldest = self._level(
            "queue_oldest_wait_seconds", "How long the oldest of the tasks that a slot would take has waited", "agent"
        )
        self._open = self._level("tasks_open", "Tasks that have not ended, by state", "agent", "state")
        self._queue_limit = self._level("queue_limit_tasks", "Tasks that may be queued: server.max_queued_tasks")
        self._replicas = self._level("replicas", "Replicas that there are", "agent", "revision", "state", "grade")
        self._wanted = self._level("replicas_wanted", "Replicas that there should be", "agent")
        self._start = self._histogram(
            "replica_start_seconds", "From asking for a replica to its readiness", "agent", bounds=_START_S
        )
        self._cold = self._total("cold_starts", "Replicas that became ready where their agent had none", "agent")
        self._exits = self._total("replica_exits", "Replicas that ended; stopped: in order", "agent", "reason")
        self._restarts = self._total("replica_restarts", "Replicas that are ready in a dead one's place", "agent")
        self._recycled = self._total("replica_recycles", "Replicas that another replaces though none failed", "agent")
        self._ejections = self._total("replica_ejections", "Replicas that failed where their peers did not", "agent")
        self._probe = self._histogram("probe_seconds", "From a probe's sending to its answer", "agent", bounds=_PROBE_S)
        self._cpu = self._total("replica_cpu_seconds", "CPU time of replicas and what they have started", "agent")
        self._memory = self._level("replicas_memory_bytes", "Memory of replicas, shared pages in each", "agent")
        self._envelope = self._level("envelope_use_ratio", "Use of the limits of all replicas together", "resource")
        self._breakers = self._level(
            "breaker_state",
            "The agent's circuit breaker: 0 closed, 1 half-open, 2 open; absent until it has opened once",
            "agent",
        )
        self._grades = self._level("agent_grade", f"The agent's grade: {_GRADES}", "agent")
        self._system_grade = self._level("system_grade", f"The worst of the node's and its agents': {_GRADES}")
        self._budget = self._level(
            "slo_budget_left_ratio", "What is left of an error budget; below 0: overspent", "agent", "objective"
        )
        self._burn = self._level(
            "slo_burn_rate",
            "How many times faster than it lasts an error budget is spent; absent where too few tasks have ended",
            *("agent", "objective", "burn", "window"),
        )
        self._decisions = self._total(
            "scaling_decisions", "Decisions about numbers of replicas, also for the same", "agent", "rule"
        )
        self._scalings = self._total("scalings", "Changes of a number of replicas: up or down", "agent", "direction")
        self._advice = self._level("advice_open", "Advice of the optimizer that is open or was applied")
        self._moves = self._total("rollout_moves", "Moves of rollouts, by the phase they came to", "agent", "phase")
        self._traffic = self._level(
            "revision_traffic_ratio", "Part of the agent's tasks that each revision gets", "agent", "revision"
        )
        self._requests = self._total(
            "http_requests",
            "Requests answered, by the class of the status; without a route: refused before, or there is none",
            *("method", "route", "status"),
        )
        self._request_s = self._histogram(
            "http_request_seconds",
            "From a request's head to its answer; of a stream, to its begin. Waiting for a task counts",
            *("method", "route"),
            bounds=_QUICK_S,
        )
        self._limited = self._total("rate_limited", "Requests that were answered 429 for their rate", "limit")
        self._rejected = self._total("credentials_rejected", "Requests without a credential that is accepted", "why")
        self._refused = self._total("requests_refused", "Requests of known callers that were refused", "status")
        self._intrusions = self._total("intrusions", "What the rules of intrusion detection have found", "rule")
        self._commit_s = self._histogram("store_commit_seconds", "Duration of commits, retries in it", bounds=_QUICK_S)
        self._commit_items = self._histogram(
            "store_commit_items", "Writes that went together into a commit", bounds=_BATCH
        )
        self._troubles = self._total(
            "store_troubles", "Times that the store's trouble was told, by who met it", "where"
        )
        self._up = self._level("store_up", "Whether the store answered this scrape: without it, levels are missing")
        self._damaged = self._total(
            "damaged_values", "Times that something stored did not open where it is: it was changed or moved"
        )
        self._alerts = self._level("alerts", "Alerts that are not resolved", "kind", "severity", "state")
        self._backups = self._total("backups", "Backups made, and not made", "result")
        self._backup_at = self._level(
            "backup_last_success_timestamp_seconds", "When the newest backup was made, in seconds since 1970"
        )
        self._webhooks = self._total("webhook_tries", "Deliveries of webhooks tried, by what became of them", "state")
        self._spans = self._total(
            "trace_spans", "Spans of traces, by what became of them: exported or dropped", "result"
        )
        self._look_at_spans: Callable[[], Mapping[str, int]] | None = None
        self._notifications = self._total(
            "notifications", "Messages to receivers of alerts, by what became of them", "type", "outcome"
        )
        self._crashes = self._total("crashes", "Bugs of Greenroom's own that were met: in request or loop", "where")
        for total, words in ((self._crashes, ("request", "loop")), (self._backups, ("made", "failed"))):
            for word in words:
                total.add(word, count=0)
        self._hearers = self._hearing()

    def _hearing(self) -> dict[type[Fact], Callable[[Any], None]]:
        """Return who counts which fact."""
        return {
            facts.AttemptEnded: self._on_end,
            facts.TaskAccepted: lambda fact: self._accepted.add(self._named(fact.agent), count=fact.count),
            facts.CacheAsked: lambda fact: self._cache.add(self._named(fact.agent), fact.result, count=fact.count),
            facts.ReplicaReady: self._on_ready,
            facts.ReplicaExited: self._on_exit,
            facts.ReplicaRecycled: lambda fact: self._recycled.add(self._named(fact.agent)),
            facts.ReplicaEjected: lambda fact: self._ejections.add(self._named(fact.agent)),
            facts.ProbeAnswered: lambda fact: self._probe.add(fact.round_trip_s, self._named(fact.agent)),
            facts.EnvelopeMeasured: self._on_measured,
            facts.AdviceChanged: lambda fact: self._advice.set(fact.open),
            facts.BreakerMoved: lambda fact: self._breakers.set(_BREAKER_LEVELS[fact.state], self._named(fact.agent)),
            facts.ScalingDecided: self._on_decided,
            facts.AgentScaled: lambda fact: self._scalings.add(
                self._named(fact.agent), "up" if fact.replicas > fact.before else "down"
            ),
            facts.RolloutMoved: lambda fact: self._moves.add(self._named(fact.agent), fact.phase),
            facts.BackupMade: lambda _: self._backups.add("made"),
            facts.BackupFailed: lambda _: self._backups.add("failed"),
            facts.NewestBackup: lambda fact: self._backup_at.set(fact.created_at.timestamp()),
            facts.RateLimited: lambda fact: self._limited.add(fact.limit),
            facts.WebhookTried: lambda fact: self._webhooks.add(fact.state),
            facts.NotificationTried: lambda fact: self._notifications.add(fact.type, fact.outcome),
            facts.CredentialRejected: lambda fact: self._rejected.add(fact.why),
            facts.RequestRefused: lambda fact: self._refused.add(str(fact.status)),
            facts.IntrusionFound: lambda fact: self._intrusions.add(fact.rule),
            facts.ValueDamaged: lambda _: self._damaged.add(),
            facts.StoreTrouble: lambda fact: self._troubles.add(fact.where),
            facts.RequestCrashed: lambda _: self._crashes.add("request"),
            facts.ServiceCrashed: lambda _: self._crashes.add("loop"),
        }

    def _total(self, name: str, help: str, *labels: str) -> Total:
        return self._with(Total(name, help, labels))

    def _level(self, name: str, help: str, *labels: str) -> Level:
        return self._with(Level(name, help, labels))

    def _histogram(self, name: str, help: str, *labels: str, bounds: tuple[float, ...]) -> Histogram:
        return self._with(Histogram(name, help, labels, bounds=bounds))

    def _with(self, family: _F) -> _F:
        self.families.append(family)
        return family

    # --- who has series of their own

    def _named(self, agent: str) -> str:
        """Return *agent*, or what stands for all that are too many."""
        if agent in self._agents:
            return agent
        if len(self._agents) >= MAX_AGENTS:
            return OTHER
        self._agents.add(agent)
        for outcome in tasks.TERMINAL:  # a counter that begins with one has never increased
            self._ended.add(agent, outcome, count=0)
        return agent

    def _admitted(self, agent: str, revision: int) -> _Work:
        """Return where a revision's attempts are counted from now on; the one that came first makes room for it."""
        if (name := self._named(agent)) == OTHER:
            return self._work.setdefault((OTHER, 0), _Work())
        known = self._revisions.setdefault(name, [])
        if len(known) >= MAX_REVISIONS:
            del self._work[name, known.pop(0)]
        known.append(revision)
        work = self._work[name, revision] = _Work()
        return work

    def _forget(self, agent: str) -> None:
        self._agents.discard(agent)
        for revision in self._revisions.pop(agent, ()):
            del self._work[agent, revision]
        for family in self.families:
            family.forget(agent)

    def _forget_missing(self, seen: Seen) -> None:
        """Forget who is not there, and was not when the store was asked before: what is new may be told of first."""
        if seen is not self._seen:
            missing = self._agents - set(seen.agents)
            for agent in missing & self._missing:
                self._forget(agent)
            self._seen, self._missing = seen, missing

    # --- what is told

    def listen(self, told: facts.Telemetry) -> None:
        """Count what is told from now on, in one step where `__call__` takes two."""
        for kind, hear in self._hearers.items():
            told.subscribe(hear, kind)

    def __call__(self, fact: Fact) -> None:
        self._hearers[type(fact)](fact)

    def _on_end(self, fact: facts.AttemptEnded) -> None:
        """Each task comes by here."""
        work = self._work.get((fact.agent, fact.revision)) or self._admitted(fact.agent, fact.revision)
        end = fact.state, fact.reason
        work.ends[end] = work.ends.get(end, 0) + 1
        run, duration_s = work.run, fact.duration_s
        run.counts[bisect.bisect_left(_TASK_S, duration_s)] += 1
        run.sum += duration_s
        if fact.wait_us == 0:
            work.at_once += 1
        elif fact.wait_us is not None:
            work.wait.add(fact.wait_us / 1e6)
        if fact.tokens:
            work.input_tokens += fact.input_tokens
            work.output_tokens += fact.tokens - fact.input_tokens

    def count_spans(self, look: Callable[[], Mapping[str, int]]) -> None:
        """Tell what *look* returns at each scrape: spans, by what became of them."""
        self._look_at_spans = look

    def tasks_ended(self, agent: str, outcome: str, count: int) -> None:
        """Count tasks whose end is stored."""
        self._ended.add(self._named(agent), outcome, count=count)

    def spent(self, agent: str, usd: float) -> None:
        """Count what tasks have cost, in dollars."""
        self._cost.add(self._named(agent), count=usd)

    def committed(self, duration_s: float, items: int) -> None:
        """Count a commit of the store, of so many writes."""
        self._commit_s.add(duration_s)
        self._commit_items.add(items)

    def requests(self, method: str, route: str) -> Requests:
        """Return where the answers of a route are counted."""
        found = self._routes.get((method, route))
        if found is None:
            found = self._routes[method, route] = Requests(self._request_s.of(method, route))
        return found

    def _on_ready(self, fact: facts.ReplicaReady) -> None:
        agent = self._named(fact.agent)
        self._start.add(fact.start_s, agent)
        if fact.is_cold:
            self._cold.add(agent)
        if fact.is_restart:
            self._restarts.add(agent)

    def _on_exit(self, fact: facts.ReplicaExited) -> None:
        self._exits.add(self._named(fact.agent), failures.of(fact.reason) or "stopped")

    def _on_decided(self, fact: facts.ScalingDecided) -> None:
        agent = self._named(fact.agent)
        self._wanted.set(fact.replicas, agent)
        self._decisions.add(agent, fact.rule)

    def _on_measured(self, fact: facts.EnvelopeMeasured) -> None:
        for agent, spent_s in fact.cpu_s.items():
            self._cpu.add(self._named(agent), count=spent_s)
        for agent in self._measured | fact.memory_mb.keys():  # of one without replicas it is nothing
            self._memory.set(fact.memory_mb.get(agent, 0.0) * 2**20, self._named(agent))
        self._measured = set(fact.memory_mb)
        for resource, used_pct in fact.pct.items():
            self._envelope.set(used_pct / 100, resource)

    # --- what is scraped

    def render(self, seen: Seen | None = None) -> bytes:
        """Return all in Prometheus' text format; *seen* is None where the store does not answer."""
        self._see(seen)
        self._gather()
        return "".join([family.text() for family in self.families]).encode()

    def _see(self, seen: Seen | None) -> None:
        self._up.set(float(seen is not None))
        if seen is None:
            seen = Seen()
        else:
            self._forget_missing(seen)
            self._queue_limit.set(seen.queue_limit)
        named = {agent: self._named(agent) for agent in seen.agents}
        self._open.replace(((named.get(of, OTHER), state), count) for (of, state), count in seen.open.items())
        waits = {agent: (count, wait_s) for agent, (count, wait_s) in seen.queue.items()}
        self._queue.replace(((named.get(of, OTHER),), waits[of][0] if of in waits else 0) for of in {*named, *waits})
        self._oldest.replace(_longest({of: wait_s for of, (_, wait_s) in waits.items()}, named))
        self._replicas.replace(
            ((named.get(of, OTHER), str(revision) if named.get(of, OTHER) != OTHER else OTHER, state, grade), count)
            for (of, revision, state, grade), count in seen.replicas.items()
        )
        self._traffic.replace(
            ((named[of], str(revision)), pct / 100)
            for (of, revision), pct in seen.traffic.items()
            if named.get(of, OTHER) != OTHER
        )
        self._alerts.replace((key, count) for key, count in seen.alerts.items())
        self._see_health(seen)

    def _see_health(self, seen: Seen) -> None:
        """Say of agents with series of their own how they are: grades and budgets of many are not their sum."""
        own = [(agent, name) for agent in seen.agents if (name := self._named(agent)) != OTHER]
        self._system_grade.replace([] if seen.system_grade is None else [((), _GRADE_LEVELS[seen.system_grade])])
        self._grades.replace(
            ((name,), _GRADE_LEVELS[seen.grades[agent]]) for agent, name in own if agent in seen.grades
        )
        states = [(name, state) for agent, name in own for state in seen.objectives.get(agent, ())]
        self._budget.replace(((name, state.goal.name), state.budget_left) for name, state in states)
        self._burn.replace(
            ((name, state.goal.name, burn.tier.name, window), rate)
            for name, state in states
            for burn in state.burns
            if burn.has_volume
            for window, rate in (("long", burn.long_rate), ("short", burn.short_rate))
        )

    def _gather(self) -> None:
        """Have the families say what is counted elsewhere, for the main path's sake."""
        for family in (self._attempts, self._retries, self._tokens, self._requests):
            family.values = {}
        if self._look_at_spans is not None:
            self._spans.values = {(result,): count for result, count in self._look_at_spans().items()}
        self._run.values, self._wait.values = {}, {}
        for (agent, number), work in self._work.items():
            revision = OTHER if agent == OTHER else str(number)
            for (state, reason), count in work.ends.items():
                self._attempts.add(agent, revision, state, reason, count=count)
                if state == "queued":
                    self._retries.add(agent, revision, reason, count=count)
            for type, tokens in (("input", work.input_tokens), ("output", work.output_tokens)):
                if tokens:
                    self._tokens.add(agent, revision, type, count=tokens)
            work.wait.counts[0] += work.at_once
            work.at_once = 0
            self._run.values[agent, revision], self._wait.values[agent, revision] = work.run, work.wait
        for (method, route), requests in self._routes.items():
            for hundreds, count in enumerate(requests.statuses):
                if count:
                    self._requests.add(method, route, f"{hundreds}xx", count=count)

    def collect(self) -> Iterator[prometheus_core.Metric]:
        """Yield what the last `render` has written, for a registry of `prometheus_client`."""
        for family in self.families:
            yield family.collect()


def _longest(waits_s: Mapping[str, float], named: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield how long each agent's oldest task has waited; of those that share a series, the longest."""
    found: dict[str, float] = {}
    for agent, wait_s in waits_s.items():
        name = named.get(agent, OTHER)
        found[name] = max(wait_s, found.get(name, 0.0))
    return (((name,), wait_s) for name, wait_s in found.items())
