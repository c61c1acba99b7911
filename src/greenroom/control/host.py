"""The host: makes its node's replica rows true. The only writer of observed replica state.

Every step compares what each agent should have with the replicas that are, and applies `core.plans`. Deaths come as
messages of the engine; `core.recovery` says when the next start is due and when an agent is given up.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from greenroom import clock as clocks
from greenroom import errors, telemetry
from greenroom.control.checks import Checks
from greenroom.core import agents, plans, recovery
from greenroom.engine import contract, protocol
from greenroom.store import database, submissions
from greenroom.store.agents import Replica
from greenroom.store.directory import Entry
from greenroom.store.store import Store

STEP_EVERY_S = 1.0
MEASURE_EVERY_S = 5.0
RESUME_S = 0.5  # from the end of a sub-task to its parent's going on, at most
STOP_GRACE_S = 2.0
START_S = 120.0  # the longest that a replica may take to become ready: the import has a bound of its own
_BY_ITSELF = frozenset({"crashed", "oom", "hung", "protocol"})  # reasons of `contract.Exit`; others were killed


@dataclass(slots=True, eq=False)
class Hosted:
    """A replica of this node."""

    id: str
    agent: str
    revision: int
    slots: int
    timeout_s: float  # of an attempt
    max_attempts: int  # of a task that loses its replica
    hang_after_s: float
    started_at_us: int
    started_s: float
    state: str = "starting"
    reason: str = ""
    memory_mb: float | None = None
    has_answered: bool = False  # a task, with success
    drain_until_s: float | None = None
    is_stopping: bool = False


@dataclass(slots=True)
class Health:
    """What this host knows of an agent beside its replicas."""

    generation: int = 0  # of the agent; another one is judged anew
    record: recovery.Record = field(default_factory=recovery.Record)
    last_failure: str = ""
    told: tuple[str, str] = ("", "")


class Host:
    name = "host"

    def __init__(
        self,
        store: Store,
        engine: contract.Engine,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        *,
        node: str,
        revision_of: Callable[[Entry], Awaitable[contract.Revision]],
        health_checks: bool = True,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store, self._engine, self._clock, self._facts = store, engine, clock, facts
        self._node, self._revision_of, self._jitter = node, revision_of, jitter
        self.wakeup = asyncio.Event()
        self.settled = asyncio.Event()  # every agent has its replicas ready, or has failed
        self.has_settled = False  # it once was so: the node is ready, and stays so
        self._replicas: dict[str, Hosted] = {}
        self._health: dict[str, Health] = {}
        self._unwritten: set[Hosted] = set()
        self._adapters: dict[str, str] = {}
        self._stops: set[asyncio.Task[None]] = set()
        self._measure_at_s = 0.0
        self._is_leaving = False
        self._is_hurried = asyncio.Event()
        self.checks = Checks(engine, clock, facts, graded=self._on_graded, is_grading=health_checks)
        engine.subscribe(self)

    async def step(self) -> float:
        entries = await self._store.directory.refresh()
        for entry in entries.values():
            await self._reconcile(entry)
        for replica in [replica for replica in self._replicas.values() if replica.agent not in entries]:
            self._drain(replica)
        for gone in self._health.keys() - entries.keys():
            del self._health[gone]
        self._stop_drained()
        self._end_late_starters()
        self._measure()
        states = {name: self._state_of(entry) for name, entry in entries.items()}
        await self._write_rows()  # first: an agent that is said to be ready has replicas that are
        await self._write_agents(entries, states)
        return STEP_EVERY_S

    async def drain_all(self, *, grace_s: float) -> None:
        """Take no more work, let what runs end within *grace_s*, then stop every replica. For good."""
        for replica in list(self._replicas.values()):
            self._drain(replica)
        self._is_leaving = True
        now_s = busy_at_s = self._clock.monotonic_s()
        deadline_s = now_s + grace_s
        # What waits for a sub-task that nobody starts any more is handed back; one that ended lets it go on at once.
        while (
            not self._is_hurried.is_set()
            and now_s < min(deadline_s, busy_at_s + RESUME_S)
            and any(self._store.board.attempts(replica.id) for replica in self._replicas.values())
        ):
            await self._clock.sleep(0.02)
            now_s = self._clock.monotonic_s()
            if any(self._store.board.busy(replica.id) for replica in self._replicas.values()):
                busy_at_s = now_s
        await asyncio.gather(*(self._stop(replica) for replica in list(self._replicas.values())))

    def hurry(self) -> None:
        """Cut `drain_all`'s grace short."""
        self._is_hurried.set()

    def restart(self, id: str) -> bool:
        """Drain one replica; the next step starts another in its place. False if it is not here, or goes already."""
        replica = self._replicas.get(id)
        if replica is None or replica.drain_until_s is not None:
            return False
        self._drain(replica)
        self.wakeup.set()
        return True

    # --- what the engine says (engine.contract.Listener)

    def on_ready(self, replica: str, ready: protocol.Ready) -> None:
        hosted = self._replicas.get(replica)
        if hosted is None or hosted.state != "starting":
            return
        hosted.state = "ready"
        self._unwritten.add(hosted)
        self._adapters[hosted.agent] = ready.took
        self._store.board.open(replica, agent=hosted.agent, revision=hosted.revision, slots=hosted.slots)
        self._store.commits.nudge()
        self._measure_at_s = 0.0  # its memory is not known yet
        start_s = self._clock.monotonic_s() - hosted.started_s
        self._facts.emit(telemetry.ReplicaReady(hosted.agent, replica, start_s))
        self.checks.open(replica, agent=hosted.agent, revision=hosted.revision, hang_after_s=hosted.hang_after_s)
        self.wakeup.set()

    def on_message(self, replica: str, message: protocol.Emitted | protocol.Called | protocol.Ended) -> None:
        if isinstance(message, protocol.Ended) and message.output is not None:
            hosted = self._replicas.get(replica)
            if hosted is None:
                return
            hosted.has_answered = True
            if (health := self._health.get(hosted.agent)) is not None:
                health.record = recovery.after_success(health.record, hosted.revision)

    def on_log(self, replica: str, stream: str, line: str) -> None:
        hosted = self._replicas.get(replica)
        if hosted is not None:
            self._facts.emit(telemetry.ReplicaSaid(hosted.agent, replica, stream, line))

    def on_alive(self, replica: str, number: int) -> None:
        """Progress is the checks' business."""

    def on_exit(self, replica: str, exit: contract.Exit) -> None:
        hosted = self._replicas.pop(replica, None)
        if hosted is None:
            return
        death = recovery.Death(
            hosted.revision,
            was_ready=hosted.state != "starting",
            was_working=self._store.board.attempts(replica) > 0,
            has_succeeded=hosted.has_answered,
            by_itself=exit.reason in _BY_ITSELF,
            max_attempts=hosted.max_attempts,
        )
        self._store.board.close(replica)
        self._facts.emit(telemetry.ReplicaExited(hosted.agent, replica, exit.reason, exit.detail))
        hosted.state = "stopped" if exit.reason == "stopped" else "failed"
        hosted.reason = exit.detail or exit.reason
        self._unwritten.add(hosted)
        if exit.reason != "stopped":
            self._note_death(hosted, exit, death)
        self.wakeup.set()

    def _note_death(self, hosted: Hosted, exit: contract.Exit, death: recovery.Death) -> None:
        health = self._health.setdefault(hosted.agent, Health())
        if recovery.weight(health.record, death):
            health.last_failure = exit.detail or exit.reason
            self._facts.emit(telemetry.AgentFailing(hosted.agent, health.last_failure))
        health.record = recovery.after_death(
            health.record, death, now_s=self._clock.monotonic_s(), jitter=self._jitter()
        )

    def _on_graded(self, replica: str) -> None:
        if (hosted := self._replicas.get(replica)) is not None:
            self._unwritten.add(hosted)
            self.wakeup.set()

    # --- making it so

    async def _reconcile(self, entry: Entry) -> None:
        name = entry.agent.name
        health = self._health.get(name)
        if health is None or health.generation != entry.agent.generation:
            record = recovery.Record() if health is None else health.record
            record = recovery.judged_anew(record, entry.agent.revision)
            health = self._health[name] = Health(entry.agent.generation, record)
        record, now_s = health.record, self._clock.monotonic_s()
        may_start = not self._is_leaving and not record.is_given_up and now_s >= record.start_not_before_s
        wanted = plans.Wanted(name, entry.agent.revision, entry.agent.replicas, may_start)
        seen = [
            plans.Seen(replica.id, replica.revision, replica.state == "ready", replica.state == "draining")
            for replica in self._replicas.values()
            if replica.agent == name
        ]
        for action in plans.plan(wanted, seen):
            match action:
                case plans.StartReplica():
                    await self._start(entry)
                case plans.DrainReplica(id):
                    self._drain(self._replicas[id])

    async def _start(self, entry: Entry) -> None:
        name, spec = entry.agent.name, entry.spec
        hosted = Hosted(
            id=f"{name}-{submissions.new_id()[:8]}",
            agent=name,
            revision=entry.agent.revision,
            slots=spec.concurrency,
            timeout_s=spec.timeout_s,
            max_attempts=1 if spec.on_replica_loss == "fail" else spec.max_attempts,
            hang_after_s=spec.hang_after_s,
            started_at_us=database.microseconds(self._clock.now()),
            started_s=self._clock.monotonic_s(),
        )
        self._replicas[hosted.id] = hosted
        self._unwritten.add(hosted)
        try:
            await self._engine.start(hosted.id, await self._revision_of(entry))
        except errors.AgentInvalid as error:
            self.on_exit(hosted.id, contract.Exit("refused", str(error)))

    def _drain(self, replica: Hosted) -> None:
        if replica.drain_until_s is None:
            self._store.board.drain(replica.id)
            replica.drain_until_s = self._clock.monotonic_s() + replica.timeout_s
            replica.state = "draining"
            self._unwritten.add(replica)

    def _stop_drained(self) -> None:
        now_s = self._clock.monotonic_s()
        for replica in list(self._replicas.values()):
            until_s = replica.drain_until_s
            if until_s is None or replica.is_stopping:
                continue
            if now_s >= until_s or not self._store.board.attempts(replica.id):
                replica.is_stopping = True
                stop = asyncio.create_task(self._stop(replica), name=f"stop-{replica.id}")
                self._stops.add(stop)
                stop.add_done_callback(self._stops.discard)

    async def _stop(self, replica: Hosted) -> None:
        replica.is_stopping = True
        await self._engine.stop(replica.id, grace_s=STOP_GRACE_S)

    def _end_late_starters(self) -> None:
        now_s = self._clock.monotonic_s()
        for replica in self._replicas.values():
            if replica.state == "starting" and now_s >= replica.started_s + START_S:
                self._engine.kill(replica.id, "late", f"it was not ready within {START_S:g} s")

    def _measure(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s < self._measure_at_s:
            return
        self._measure_at_s = now_s + MEASURE_EVERY_S
        for observation in self._engine.observe():
            replica = self._replicas.get(observation.replica)
            if replica is None:
                continue
            before = replica.memory_mb
            if before is None or abs(observation.rss_mb - before) > 0.1 * before:
                replica.memory_mb = round(observation.rss_mb, 1)
                self._unwritten.add(replica)

    # --- telling the store

    async def _write_rows(self) -> None:
        unwritten, self._unwritten = self._unwritten, set()
        pids = {seen.replica: seen.pid for seen in self._engine.observe()} if unwritten else {}
        try:
            async with asyncio.TaskGroup() as group:  # one commit for all of them
                for replica in unwritten:
                    group.create_task(self._store.agents.put_replica(self._row(replica, pids.get(replica.id))))
        except* errors.StoreUnavailable as weather:
            self._unwritten |= unwritten
            raise weather.exceptions[0] from None

    def _row(self, replica: Hosted, pid: int | None) -> Replica:
        has_ended = replica.state in ("stopped", "failed")
        health = self._health.get(replica.agent, Health())
        finding = None if has_ended or replica.state == "starting" else self.checks.finding(replica.id)
        return Replica(
            id=replica.id,
            agent=replica.agent,
            revision=replica.revision,
            node=self._node,
            pid=pid,
            state=replica.state,
            grade="unknown" if finding is None else finding.grade,
            reason=replica.reason if finding is None else finding.reason,
            slots=replica.slots,
            memory_mb=replica.memory_mb,
            restarts=health.record.restarts,
            started_at=replica.started_at_us,
            ended_at=database.microseconds(self._clock.now()) if has_ended else None,
        )

    async def _write_agents(self, entries: Mapping[str, Entry], states: Mapping[str, tuple[str, str]]) -> None:
        for name, (state, reason) in states.items():
            health = self._health.setdefault(name, Health())
            if (state, reason) != health.told or entries[name].agent.state != state:
                await self._store.agents.observe(name, state=state, reason=reason, adapter=self._adapters.get(name))
                health.told = (state, reason)
        is_settled = all(state in agents.SETTLED for state, _ in states.values())
        # No deployment may have come in between.
        if is_settled and _generations(entries) == _generations(self._store.directory.entries):
            self.settled.set()
            self.has_settled = True

    def _state_of(self, entry: Entry) -> tuple[str, str]:
        ready = sum(
            replica.state == "ready" and replica.agent == entry.agent.name and replica.revision == entry.agent.revision
            for replica in self._replicas.values()
        )
        health = self._health.get(entry.agent.name, Health())
        if entry.agent.state == agents.State.DROPPED and not entry.agent.replicas:
            return agents.State.DROPPED, entry.agent.reason
        if ready >= entry.agent.replicas:
            return agents.State.READY, ""
        if health.record.is_given_up:
            return agents.State.FAILED, f"{health.last_failure} (given up; deploy it again or restart the node)"
        if health.record.deaths:
            return agents.State.FAILED, health.last_failure
        return agents.State.STARTING, f"{ready} of {entry.agent.replicas} replicas are ready"


def _generations(entries: Mapping[str, Entry]) -> dict[str, int]:
    return {name: entry.agent.generation for name, entry in entries.items()}
