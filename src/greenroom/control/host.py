"""The host: makes its node's replica rows true. The only writer of observed replica state.

Every step compares what each agent should have with the replicas that are, and applies `core.plans`. Deaths come as
messages of the engine; `control.recovery` says what is done about them and when the next start is due. Beside an
agent's replicas there is one more while tasks of it are suspected to kill those that they run in: they run there alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import msgspec

from greenroom import clock as clocks
from greenroom import errors, telemetry
from greenroom.control.checks import Checks
from greenroom.control.hosted import Hosted
from greenroom.control.recovery import Recovery
from greenroom.core import agents, failures, plans, recovery
from greenroom.engine import contract, protocol, said
from greenroom.store import database, submissions
from greenroom.store.agents import Replica
from greenroom.store.directory import Entry
from greenroom.store.news import News
from greenroom.store.recovery import NewFailure
from greenroom.store.store import Store

STEP_EVERY_S = 1.0
MEASURE_EVERY_S = 5.0
RESUME_S = 0.5  # from the end of a sub-task to its parent's going on, at most
STOP_GRACE_S = 2.0
WARM_SPARES = 16  # an interpreter with what the agent imports: about 30 to 200 MB each
START_S = 120.0  # the longest that a replica may take to become ready: the import has a bound of its own


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
        revision_of: Callable[[Entry, int], Awaitable[contract.Revision]],
        health_checks: bool = True,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store, self._engine, self._clock, self._facts = store, engine, clock, facts
        self._node, self._revision_of = node, revision_of
        self.wakeup = asyncio.Event()
        self.settled = asyncio.Event()  # every agent has its replicas ready, or has failed
        self._replicas: dict[str, Hosted] = {}
        self._recovery = Recovery(store, clock, facts, jitter=jitter)
        self._told: dict[str, tuple[str, str]] = {}  # each agent's state and reason, as the store has them
        self._unwritten: set[Hosted] = set()
        self._adapters: dict[str, str] = {}
        self._stops: set[asyncio.Task[None]] = set()
        self._measure_at_s = 0.0
        self.warm_spares = WARM_SPARES  # of agents that sleep; who is short of memory may lower it
        self._warm: frozenset[tuple[str, int]] = frozenset()
        self._is_leaving = False
        self._is_hurried = asyncio.Event()
        self.checks = Checks(engine, clock, facts, graded=self._on_graded, is_grading=health_checks)
        engine.subscribe(self)
        store.hub.subscribe(self._hear)

    async def step(self) -> float:
        entries = await self._store.directory.refresh()
        await self._recovery.judge(entries)
        suspected = await self._store.tasks.suspected()
        for entry in entries.values():
            await self._reconcile(entry)
            await self._reconcile_alone(entry, is_suspected=entry.agent.name in suspected)
        for replica in [replica for replica in self._replicas.values() if replica.agent not in entries]:
            self._drain(replica)
        for gone in self._told.keys() - entries.keys():
            del self._told[gone]
        self._stop_drained()
        await self._keep_warm(entries)
        self._end_late_starters()
        self._measure()
        states = {name: self._state_of(entry) for name, entry in entries.items()}
        await self._write_rows()  # first: an agent that is said to be ready has replicas that are
        await self._recovery.write()
        await self._write_agents(entries, states)
        return min(STEP_EVERY_S, self._recovery.next_start_s())

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

    async def leave(self) -> None:
        """After `drain_all`, where the node is stopped in order: what is quarantined may try once more."""
        with contextlib.suppress(errors.StoreUnavailable):  # then the quarantine lasts
            await self._recovery.leave()

    def hurry(self) -> None:
        """Cut `drain_all`'s grace short."""
        self._is_hurried.set()

    def restart(self, id: str, reason: str = "") -> bool:
        """Drain one replica; the next step starts another in its place. False if it is not here, or goes already.

        *reason* is for its row, where it is not somebody's wish.
        """
        replica = self._replicas.get(id)
        if replica is None or replica.drain_until_s is not None:
            return False
        replica.reason = failures.told(reason)
        self._drain(replica)
        self.wakeup.set()
        return True

    @property
    def hosted(self) -> Collection[Hosted]:
        """The replicas that there are."""
        return self._replicas.values()

    def recycle(self, id: str, reason: str) -> bool:
        """Replace a replica for *reason*: another is started, and when that is ready this one ends its tasks and goes.

        False if it is not here, is not ready, or another of its agent waits to be replaced already.
        """
        replica = self._replicas.get(id)
        if replica is None or replica.state != "ready" or replica.for_suspects:
            return False
        if any(each.recycled_for and each.state == "ready" for each in self.hosted if each.agent == replica.agent):
            return False
        replica.recycled_for = failures.told(f"recycled: {reason}")
        self._unwritten.add(replica)
        self._facts.emit(telemetry.ReplicaRecycled(replica.agent, id, failures.told(reason)))
        self.wakeup.set()
        return True

    def lower_spares(self) -> bool:
        """Keep half as many interpreters warm for agents that sleep, for this life; False where none is kept."""
        if not self._warm:
            return False
        self.warm_spares = len(self._warm) // 2
        self.wakeup.set()
        return True

    # --- what the engine says (engine.contract.Listener)

    def on_ready(self, replica: str, ready: protocol.Ready) -> None:
        hosted = self._replicas.get(replica)
        if hosted is None or hosted.state != "starting":
            return
        hosted.state = "ready"
        hosted.ready_at_s = self._clock.monotonic_s()
        self._unwritten.add(hosted)
        is_cold = not self._store.board.usage(hosted.agent).replicas
        self._adapters[hosted.agent] = failures.told(ready.took)
        self._store.board.open(
            replica,
            agent=hosted.agent,
            revision=hosted.revision,
            slots=hosted.slots,
            for_suspects=hosted.for_suspects,
        )
        self._store.commits.nudge()
        self._recovery.on_ready(hosted.agent, replica, replaces=hosted.replaces)
        self._measure_at_s = 0.0  # its memory is not known yet
        start_s = hosted.ready_at_s - hosted.started_s
        self._facts.emit(
            telemetry.ReplicaReady(hosted.agent, replica, start_s, is_cold, is_restart=bool(hosted.replaces))
        )
        self.checks.open(replica, agent=hosted.agent, revision=hosted.revision, hang_after_s=hosted.hang_after_s)
        self.wakeup.set()

    def on_message(self, replica: str, message: protocol.OfAttempt) -> None:
        if not isinstance(message, protocol.Ended) or (hosted := self._replicas.get(replica)) is None:
            return
        if hosted.drain_until_s is not None:
            self.wakeup.set()  # it may have been the last one
        # Epoch 0 is of a trial, which proves less than a task.
        if message.output is not None and message.epoch:
            hosted.has_answered = True
            self._recovery.on_success(hosted.agent, hosted.revision, started_s=hosted.started_s)

    def on_log(self, replica: str, line: said.Line) -> None:
        hosted = self._replicas.get(replica)
        if hosted is not None:
            self._facts.emit(
                telemetry.ReplicaSaid(hosted.agent, replica, line.stream, line.text, line.level, line.logger)
            )

    def on_alive(self, replica: str, number: int) -> None:
        """Progress is the checks' business."""

    def on_exit(self, replica: str, exit: contract.Exit) -> None:
        hosted = self._replicas.pop(replica, None)
        if hosted is None:
            return
        hosted.state = "stopped" if exit.reason == "stopped" else "failed"
        if exit.reason != "stopped" or not hosted.reason:  # why it was let go says more than that it went
            hosted.reason = failures.told(exit.detail or exit.reason)
        if exit.reason != "stopped":
            self._note_death(hosted, exit)
        self._store.board.close(replica)
        self._facts.emit(telemetry.ReplicaExited(hosted.agent, replica, exit.reason, exit.detail))
        self._unwritten.add(hosted)
        self.wakeup.set()

    def _note_death(self, hosted: Hosted, exit: contract.Exit) -> None:
        was_working = self._store.board.attempts(hosted.id) > 0
        # Who hangs while it has nothing to do was stopped by somebody.
        was_stopped = exit.reason == failures.Failure.HUNG and not was_working
        death = recovery.Death(
            revision=hosted.revision,
            started_s=hosted.started_s,
            was_working=was_working,
            # Who was killed for the others' sake says nothing about its revision.
            has_succeeded=hosted.has_answered or exit.reason == failures.Failure.EVICTED,
            by_itself=exit.is_its_own and not was_stopped,
            max_attempts=hosted.max_attempts,
            ready_s=None if hosted.ready_at_s is None else self._clock.monotonic_s() - hosted.ready_at_s,
            what=hosted.reason,
            for_suspects=hosted.for_suspects,
        )
        kind = failures.of(exit.reason) or failures.Failure.KILLED
        failure = NewFailure(hosted.id, hosted.agent, hosted.revision, self._node, kind, hosted.reason)
        is_missed = hosted.drain_until_s is None and not hosted.for_suspects
        self._recovery.on_death(death, failure, is_missed=is_missed)

    def _hear(self, news: News) -> None:
        if news.suspects or news.traffic or news.scaled:
            self.wakeup.set()

    def _on_graded(self, replica: str) -> None:
        if (hosted := self._replicas.get(replica)) is not None:
            self._unwritten.add(hosted)
            self.wakeup.set()

    # --- making it so

    async def _reconcile(self, entry: Entry) -> None:
        if self._recovery.record(entry.agent.name).rung is recovery.Rung.ROLL_BACK:
            await self._recovery.roll_back(entry.agent.name)
            self.wakeup.set()  # the next step sees the agent as it is then
            return
        ours = [each for each in self._replicas.values() if each.agent == entry.agent.name and not each.for_suspects]
        wanted = entry.capacity
        for number, count in wanted.items():
            seen = [each for each in ours if each.revision == number]
            if number == entry.agent.revision:  # it takes the place of those that should be no more
                seen += [each for each in ours if each.revision not in wanted]
            await self._reconcile_revision(entry, number, count, seen=seen)

    async def _reconcile_revision(self, entry: Entry, number: int, count: int, *, seen: Sequence[Hosted]) -> None:
        name = entry.agent.name
        record = self._recovery.record(name, number)
        ready = [each for each in seen if each.serves(name, number)]
        wanted = plans.Wanted(
            name,
            number,
            count,
            may_start=self._may_start(record),
            one_by_one=recovery.is_tried_out(record, (each.started_s for each in ready)),
        )
        moved_at_s = record.moved_at_s
        found = [
            plans.Seen(
                replica.id,
                replica.revision,
                replica.state == "ready",
                replica.state == "draining",
                is_moving=bool(replica.recycled_for) or (moved_at_s is not None and replica.started_s < moved_at_s),
                load=self._store.board.attempts(replica.id),
                started_s=replica.started_s,
            )
            for replica in seen
        ]
        for action in plans.plan(wanted, found):
            match action:
                case plans.StartReplica():
                    await self._start(entry, number)
                case plans.DrainReplica(id, hands_over):
                    if (replica := self._replicas.get(id)) is not None:  # it may have died since
                        # Where no task may run twice, none is handed over; who is recycled ends what it has.
                        is_free = not (replica.runs_once or replica.recycled_for)
                        self._drain(replica, hands_over=hands_over and is_free)

    async def _reconcile_alone(self, entry: Entry, *, is_suspected: bool) -> None:
        """Have one more replica while tasks have to run alone, and none when none has."""
        agent = entry.agent
        alone = [each for each in self._replicas.values() if each.agent == agent.name and each.for_suspects]
        for replica in alone:
            if not is_suspected or replica.revision != agent.revision:
                self._drain(replica)
        if is_suspected and not alone and not entry.is_dropped and self._may_start(self._recovery.record(agent.name)):
            await self._start(entry, agent.revision, for_suspects=True)

    async def _keep_warm(self, entries: Mapping[str, Entry]) -> None:
        """Have those who sleep wake up fast: the engine keeps ready what their replicas are made from."""
        asleep = [entry for entry in entries.values() if not entry.agent.replicas and not entry.is_dropped]
        wanted = {(entry.agent.name, entry.agent.revision): entry for entry in asleep[: max(0, self.warm_spares)]}
        if wanted.keys() == self._warm or self._is_leaving:
            return
        revisions = [await self._revision(entry, number) for (_, number), entry in wanted.items()]
        await self._engine.keep_warm(revisions)
        self._warm = frozenset(wanted)

    async def _revision(self, entry: Entry, number: int) -> contract.Revision:
        """Return what the engine is to run: from a fresh interpreter, where recovery wants one."""
        interpreter = self._recovery.record(entry.agent.name, number).interpreter
        return msgspec.structs.replace(await self._revision_of(entry, number), interpreter=interpreter)

    def _may_start(self, record: recovery.Record) -> bool:
        is_time = self._clock.monotonic_s() >= record.start_not_before_s
        return is_time and not self._is_leaving and not record.is_halted

    async def _start(self, entry: Entry, number: int, *, for_suspects: bool = False) -> None:
        name, spec = entry.agent.name, entry.spec_of(number)
        # First, for the store may not answer: then there is no replica, and the next step tries again.
        revision = await self._revision(entry, number)
        hosted = Hosted(
            id=f"{name}-{submissions.new_id()[:8]}",
            agent=name,
            revision=number,
            slots=1 if for_suspects else spec.concurrency,
            timeout_s=spec.timeout_s,
            max_attempts=1 if spec.on_replica_loss == "fail" else spec.max_attempts,
            runs_once=spec.on_replica_loss == "fail",
            hang_after_s=spec.hang_after_s,
            started_at_us=database.microseconds(self._clock.now()),
            started_s=self._clock.monotonic_s(),
            for_suspects=for_suspects,
            replaces=None if for_suspects else self._recovery.successor_of(name, number),
        )
        self._replicas[hosted.id] = hosted
        self._unwritten.add(hosted)
        try:
            await self._engine.start(hosted.id, revision)
        except errors.AgentInvalid as error:
            self.on_exit(hosted.id, contract.Exit("refused", str(error)))
        except BaseException:
            del self._replicas[hosted.id]
            raise

    def _drain(self, replica: Hosted, *, hands_over: bool = False) -> None:
        """Let *replica* go when its tasks are done, or at once: then they are given back, and run elsewhere."""
        if replica.drain_until_s is None:
            self._store.board.drain(replica.id)
            replica.drain_until_s = self._clock.monotonic_s() + (0.0 if hands_over else replica.timeout_s)
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
        for replica in list(self._replicas.values()):
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
        # One commit for all of them. No task group: one that meets weather forgets that it was cancelled meanwhile.
        writing = [self._store.agents.put_replica(self._row(replica, pids.get(replica.id))) for replica in unwritten]
        troubles = [error for error in await asyncio.gather(*writing, return_exceptions=True) if error is not None]
        if any(isinstance(error, errors.StoreUnavailable) for error in troubles):
            self._unwritten |= unwritten
        if troubles:  # a row that the store can never take is not written again: it would end this loop for good
            raise troubles[0]

    def _row(self, replica: Hosted, pid: int | None) -> Replica:
        return replica.row(
            self._node,
            pid,
            self.checks.finding(replica.id),
            restarts=self._recovery.record(replica.agent).restarts,
            now_us=database.microseconds(self._clock.now()),
        )

    async def _write_agents(self, entries: Mapping[str, Entry], states: Mapping[str, tuple[str, str]]) -> None:
        for name, (state, reason) in states.items():
            if (state, reason) != self._told.get(name) or entries[name].agent.state != state:
                await self._store.agents.observe(
                    name,
                    state=state,
                    reason=reason,
                    adapter=self._adapters.get(name),
                    generation=entries[name].agent.generation,
                )
                self._told[name] = (state, reason)
        is_settled = all(state in agents.SETTLED for state, _ in states.values())
        # No deployment may have come in between.
        if is_settled and _generations(entries) == _generations(self._store.directory.entries):
            self.settled.set()

    def _state_of(self, entry: Entry) -> tuple[str, str]:
        agent = entry.agent
        if entry.is_dropped:
            return agents.State.DROPPED, agent.reason
        ready = sum(replica.serves(agent.name, agent.revision) for replica in self._replicas.values())
        wanted = entry.capacity.get(agent.revision, agent.replicas)
        if ready >= wanted > 0:
            self._recovery.on_settled(agent.name)
        if entry.rollout is not None and (checking := agents.checking(entry.rollout.state)) is not None:
            return checking
        draining = sum(each.agent == agent.name and each.state == "draining" for each in self._replicas.values())
        record = self._recovery.record(agent.name)
        return agents.standing(agent.name, record, ready=ready, wanted=wanted, draining=draining)


def _generations(entries: Mapping[str, Entry]) -> dict[str, int]:
    return {name: entry.agent.generation for name, entry in entries.items()}
