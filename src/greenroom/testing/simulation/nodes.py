"""A node of the simulated core: dispatcher, host and janitor in the fewest lines that ask the real decisions.

`core.tasks.settle`, `core.recovery` and `core.plans` decide; statements go to the table through `World.ask`, where they
fail, arrive late or twice, or lose their answer. One object is one incarnation; what it scheduled dies with it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from greenroom.core import plans, recovery, tasks
from greenroom.testing.fakes import START
from greenroom.testing.simulation import agents, table

if TYPE_CHECKING:
    from greenroom.testing.simulation.core import Agent, Job, World

T = TypeVar("T")
STEP_EVERY_S = 2.0
RENEW_EVERY_S = RESCUE_EVERY_S = 5.0
GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Habits:
    """What a node does against loss; a test takes one away, to see that its lack is found."""

    gives_back_unknown_claims: bool = True
    writes_ends_again: bool = True
    renews: bool = True
    rescues: bool = True
    plans_with_care: bool = True  # else every other revision goes at once
    counts_deaths: bool = True
    spares_neighbours: bool = True
    accepts_only_what_is_stored: bool = True


ALL = Habits()


@dataclass(slots=True, eq=False)
class Replica:
    id: str
    agent: str
    revision: int
    slots: int
    started_s: float
    state: str = "starting"
    attempts: list[Attempt] = field(default_factory=list)
    for_suspects: bool = False  # one by one
    ready_at_s: float | None = None
    has_succeeded: bool = False
    is_hung: bool = False
    drain_until_s: float | None = None

    @property
    def free(self) -> int:
        return self.slots - sum(attempt.holds_slot for attempt in self.attempts)


@dataclass(slots=True, eq=False)
class Attempt:
    job: Job
    epoch: int
    charged: int
    state: bytes | None
    is_restored: bool
    has_good: bool
    replica: Replica
    holds_slot: bool = True
    has_ended: bool = False  # as the store knows; its replica may run it still
    child: str | None = None
    is_running: bool = True

    @property
    def key(self) -> tuple[str, int]:
        return self.job.id, self.epoch

    def __str__(self) -> str:
        return f"{self.job.id}#{self.epoch}"


@dataclass(frozen=True, slots=True)
class Finish:
    id: str
    epoch: int
    state: str
    reason: str
    error: str | None = None
    output: bytes | None = None
    saves: bytes | None = None
    delay_s: float | None = None
    refund: int = 0
    kills: int = 0
    restores: bool = False
    is_restored: bool = False


class Node:
    def __init__(self, world: World, name: str, incarnation: int, habits: Habits) -> None:
        self._world, self.name, self.incarnation, self._habits = world, name, incarnation, habits
        self.owner = f"{name}.{incarnation}"
        self.is_up = True
        self.is_leaving = False
        self.paused_until_s = 0.0
        self.clock_offset_s = 0.0
        self.answered_s = 0.0
        self.replicas: list[Replica] = []
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._writing: set[tuple[str, int]] = set()
        self._unwritten: list[Finish] = []
        self._claiming: Counter[tuple[str, bool]] = Counter()
        self._unsettled = set(world.agents)  # agents whose replicas have changed since they were planned
        self._records = dict(world.records[name])  # as the last incarnation has written them
        self._renew_at_s = self._rescue_at_s = 0.0
        self._count = 0
        if world.is_alone:  # one file, one node: whatever another incarnation held is free
            self._ask(lambda: world.rescue(not_owner=self.owner))
        self._soon(0.0, self.step)

    def __str__(self) -> str:
        return self.owner

    # --- the loops

    def step(self) -> None:
        world = self._world
        self._soon(STEP_EVERY_S, self.step)
        unwritten, self._unwritten = self._unwritten, []
        for finish in unwritten if self._habits.writes_ends_again else ():
            self._write(finish)
        if world.now >= self._renew_at_s and self._habits.renews:
            self._renew_at_s = world.now + RENEW_EVERY_S
            self._renew()
        if world.now >= self._rescue_at_s and self._habits.rescues:
            self._rescue_at_s = world.now + RESCUE_EVERY_S
            self._ask(lambda: world.rescue(spared=self.owner))
        self._ask(world.table.tick)
        for agent in world.agents.values():
            if agent.name in self._unsettled or self._records[agent.name].generation != agent.generation:
                self._reconcile(agent)
            self._reconcile_alone(agent)
            self.claim(agent.name)
        world.records[self.name].update(self._records)
        for replica in list(self.replicas):
            self._stop_if_drained(replica)
            self._resume(replica)
        if self.is_leaving and not (self.replicas or self._unwritten or self._writing):
            world.gone(self)

    def drain(self) -> None:
        """Take no more, hand back what runs, and leave; whoever starts it again may have mended what was wrong."""
        self.is_leaving = True
        for name, record in self._records.items():
            self._records[name] = recovery.on_probation(record)
        for replica in self.replicas:
            self._drain(replica, within_s=GRACE_S)

    def kill(self) -> None:
        """Nothing of this incarnation happens any more, its replicas are gone."""
        self.is_up = False
        lag_s = self._world.rng.uniform(0.0, 5.0)  # until the last replica has noticed
        for replica in self.replicas:
            self._world.at(lag_s, functools.partial(self._halt, replica))

    # --- tasks

    def claim(self, agent: str) -> None:
        if self.is_leaving or not self._world.queued[agent]:  # what finds nothing needs no run
            return
        self._claim(agent, is_alone=False)
        if any(replica.for_suspects for replica in self.replicas):
            self._claim(agent, is_alone=True)

    def _claim(self, agent: str, *, is_alone: bool) -> None:
        revision = slots = 0
        for replica in self.replicas:
            if (replica.agent, replica.state, replica.for_suspects) == (agent, "ready", is_alone):
                free = replica.free
                if free > 0 and replica.revision > revision:
                    revision, slots = replica.revision, 0
                slots += free if replica.revision == revision else 0
        slots -= self._claiming[agent, is_alone]
        if slots <= 0:
            return
        self._claiming[agent, is_alone] += slots

        def claimed(claims: list[table.Claim]) -> None:
            self._claiming[agent, is_alone] -= slots
            for claim in claims:
                self._begin(claim, (agent, revision, is_alone))

        def unknown() -> None:
            self._claiming[agent, is_alone] -= slots

        def claim() -> list[table.Claim]:
            return self._world.table.claim(agent, slots, self.owner, is_alone=is_alone)

        self._world.ask(self, claim, claimed, unknown)

    def _begin(self, claim: table.Claim, place: tuple[str, int, bool]) -> None:
        world = self._world
        job = world.jobs[claim.id]
        fitting = [
            replica
            for replica in self.replicas
            if (replica.agent, replica.revision, replica.for_suspects) == place
            and replica.state == "ready"
            and replica.free > 0
        ]
        if not fitting:
            gone = tasks.ReplicaGone(tasks.Reason.DRAINED, "the replica was gone", charged=False, ran=False)
            self._settle(job, claim.epoch, claim.charged, gone)
            return
        replica = min(fitting, key=lambda replica: -replica.free)
        attempt = Attempt(job, claim.epoch, claim.charged, claim.state, claim.is_restored, claim.has_good, replica)
        neighbours = [neighbour.key for neighbour in replica.attempts]
        replica.attempts.append(attempt)
        self._attempts[attempt.key] = attempt
        world.note("%s begins %s on %s", self, attempt, replica.id)
        world.checks.began(*attempt.key, agent=job.agent, session=job.session, neighbours=neighbours)
        self._soon(job.timeout_s, lambda: self._enforce_deadline(attempt))
        world.work(self, attempt)

    def answer(self, attempt: Attempt, end: tasks.End) -> None:
        """The replica says how *attempt* ended; it may say so late, and twice."""
        if self._attempts.get(attempt.key) is not attempt:
            return
        self._forget(attempt)
        if isinstance(end, tasks.Succeeded):
            attempt.replica.has_succeeded = True
            self._note_success(attempt.replica)
        if not attempt.has_ended:
            result = agents.work(*attempt.key, attempt.state) if isinstance(end, tasks.Succeeded) else None
            self._settle(attempt.job, attempt.epoch, attempt.charged, end, result, is_restored=attempt.is_restored)
        self._resume(attempt.replica)
        self.claim(attempt.replica.agent)

    def _settle(
        self,
        job: Job,
        epoch: int,
        charged: int,
        end: tasks.End,
        result: agents.Result | None = None,
        *,
        is_restored: bool = False,
        is_kill: bool = False,
    ) -> None:
        now = START + timedelta(seconds=self._world.now + self.clock_offset_s)
        policy = tasks.Policy(job.max_attempts, job.on_loss, job.backoff_s)
        verdict = tasks.settle(end, attempts_charged=charged, policy=policy, now=now, jitter=self._world.rng.random())
        self._write(
            Finish(
                job.id,
                epoch,
                verdict.state,
                verdict.reason,
                error=None if verdict.error is None else verdict.error.type,
                output=None if result is None else result.output,
                saves=None if result is None else result.state,
                delay_s=None if verdict.due_at is None else (verdict.due_at - now).total_seconds(),
                refund=int(verdict.refund),
                kills=int(is_kill),
                restores=isinstance(end, tasks.ReplicaGone) and end.restores,
                is_restored=is_restored,
            )
        )

    def _write(self, finish: Finish) -> None:
        world, key = self._world, (finish.id, finish.epoch)
        self._writing.add(key)

        def store() -> bool:
            is_stored = world.table.finish(
                finish.id, finish.epoch, finish.state, reason=finish.reason, output=finish.output, error=finish.error,
                delay_s=finish.delay_s, refund=finish.refund, kills=finish.kills, restores=finish.restores,
                saves=finish.saves, is_restored=finish.is_restored,
            )  # fmt: skip
            world.note("%s writes %s#%d %s: %s", self, *key, finish.state, "stored" if is_stored else "fenced")
            if is_stored and finish.state == "queued":
                world.spread_news(world.jobs[finish.id].agent)
            return is_stored

        def unknown() -> None:
            self._writing.discard(key)
            self._unwritten.append(finish)

        world.ask(self, store, lambda _: self._writing.discard(key), unknown)

    def _enforce_deadline(self, attempt: Attempt) -> None:
        if self._attempts.get(attempt.key) is attempt and not attempt.has_ended:
            self._settle(attempt.job, attempt.epoch, attempt.charged, tasks.TimedOut(attempt.job.timeout_s))
            self.stop(attempt)

    def stop(self, attempt: Attempt) -> None:
        """Stop an attempt whose end is recorded: ask, and kill its process after the grace."""
        if attempt.has_ended:
            return
        attempt.has_ended = True
        self._world.interrupt(self, attempt)

        def kill() -> None:
            if self._attempts.get(attempt.key) is attempt:
                for neighbour in attempt.replica.attempts:
                    self._world.checks.spared(*neighbour.key)
                self.lose(attempt.replica, "killed", is_charged=not self._habits.spares_neighbours)

        self._soon(GRACE_S, kill)

    def stop_task(self, id: str) -> None:
        """News: the task has ended although it may run here."""
        for attempt in [attempt for attempt in self._attempts.values() if attempt.job.id == id]:
            self.stop(attempt)

    def _forget(self, attempt: Attempt) -> None:
        del self._attempts[attempt.key]
        attempt.replica.attempts.remove(attempt)
        self._world.halt(attempt)

    def _renew(self) -> None:
        before = set(self._attempts)

        def renewed(held: set[tuple[str, int]]) -> None:
            for key in sorted(before - held):
                if (attempt := self._attempts.get(key)) is not None:  # fenced: another node may run it already
                    self.stop(attempt)
            if not self._habits.gives_back_unknown_claims:
                return
            unwritten = {(finish.id, finish.epoch) for finish in self._unwritten}
            for id, epoch in sorted(held - before - self._attempts.keys() - self._writing - unwritten):
                self._write(Finish(id, epoch, tasks.State.QUEUED, tasks.Reason.FENCED, refund=1))

        self._ask(lambda: self._world.table.renew(self.owner), renewed)

    # --- sub-tasks

    def call(self, attempt: Attempt, child: Job) -> None:
        """The replica asks for a sub-task; until it has ended, the attempt's slot is free."""
        if self._attempts.get(attempt.key) is not attempt or attempt.has_ended:
            return
        world = self._world

        def stored(answer: tuple[str, bool, bool] | None) -> None:
            if answer is None or self._attempts.get(attempt.key) is not attempt:
                return  # fenced, or over
            attempt.child, attempt.holds_slot = answer[0], False
            self.claim(attempt.replica.agent)

        row = world.row_of(child)

        def submit() -> tuple[str, bool, bool] | None:
            answer = world.table.call(*attempt.key, row)
            world.note("%s calls %s: %s", attempt, child.id, "fenced" if answer is None else answer[0])
            if answer is not None:
                world.spread_news(child.agent)
            return answer

        world.ask(self, submit, stored, lambda: self._soon(0.5, lambda: self.call(attempt, child)))

    def _resume(self, replica: Replica) -> None:
        """Let attempts go on whose sub-tasks have ended; a lost answer is asked for again at the next step."""
        for attempt in replica.attempts:
            child = attempt.child
            if child is None or self._world.table.rows[child].state in table.OPEN:
                continue
            claiming = self._claiming[replica.agent, replica.for_suspects]
            if not attempt.holds_slot and replica.free - claiming <= 0:
                continue
            attempt.holds_slot = True
            resume = functools.partial(self._world.table.resume, *attempt.key)
            self._ask(resume, functools.partial(self._go_on, attempt))

    def _go_on(self, attempt: Attempt, is_held: bool) -> None:  # noqa: FBT001 - the answer of a statement
        if is_held and attempt.child is not None:
            attempt.child = None
            self._world.work_on(self, attempt)

    # --- replicas

    def ready(self, replica: Replica) -> None:
        if replica in self.replicas and replica.state == "starting":
            replica.state = "ready"
            replica.ready_at_s = self._world.now
            self._unsettled.add(replica.agent)
            self.claim(replica.agent)

    def lose(self, replica: Replica, reason: str, *, is_charged: bool = True) -> None:
        """The process of *replica* has ended: *reason* is one of `engine.contract.Exit`."""
        if replica not in self.replicas:
            return
        world = self._world
        world.note("%s loses %s: %s", self, replica.id, reason)
        was_working = bool(replica.attempts)
        self._halt(replica)
        self.replicas.remove(replica)
        self._unsettled.add(replica.agent)
        running = [attempt for attempt in replica.attempts if attempt.holds_slot] or replica.attempts
        suspects = running if is_charged and reason != "stopped" else []
        for attempt in replica.attempts:
            del self._attempts[attempt.key]
            if not attempt.has_ended:
                is_suspect = attempt in suspects
                end = _loss(reason, attempt, suspects=len(suspects), is_suspect=is_suspect)
                self._settle(attempt.job, attempt.epoch, attempt.charged, end, is_kill=is_suspect)
        if reason != "stopped" and replica.agent in self._records:
            self._note_death(replica, reason, was_working=was_working)

    def _note_death(self, replica: Replica, reason: str, *, was_working: bool) -> None:
        world, record = self._world, self._records[replica.agent]
        agent = world.agents[replica.agent]
        death = recovery.Death(
            revision=replica.revision,
            started_s=replica.started_s,
            was_working=was_working,
            has_succeeded=replica.has_succeeded,
            by_itself=reason == "crashed",
            max_attempts=agent.max_attempts,
            ready_s=None if replica.ready_at_s is None else world.now - replica.ready_at_s,
            what=reason,
            for_suspects=replica.for_suspects,
        )
        world.deaths[self.name, agent.name] += 1
        if replica.revision == record.revision and not death.was_ready:
            world.checks.died_early(self.owner, agent.name, started_s=replica.started_s, now_s=world.now)
        after = recovery.after_death(record, death, now_s=world.now, jitter=world.rng.random())
        if after.rung is not record.rung:
            world.note("%s comes to %s with %s", self, after.rung, agent.name)
        if after.is_given_up and not record.is_given_up:
            world.checks.given_up(agent.name, world.deaths[self.name, agent.name])
        if self._habits.counts_deaths:
            self._records[replica.agent] = after

    def _note_success(self, replica: Replica) -> None:
        if (before := self._records.get(replica.agent)) is not None:
            after = recovery.after_success(before, replica.revision, started_s=replica.started_s)
            if after is not before:
                self._world.checks.judged_anew(self.owner, replica.agent)
            self._records[replica.agent] = after

    def _reconcile(self, agent: Agent) -> None:
        world = self._world
        record = self._records.get(agent.name, recovery.Record())
        if record.generation != agent.generation:
            fallback = world.proven_before(agent)
            record = recovery.judged_anew(record, agent.revision, generation=agent.generation, fallback=fallback)
            self._records[agent.name] = record
            world.deaths[self.name, agent.name] = 0
            world.checks.judged_anew(self.owner, agent.name)
        if record.rung is recovery.Rung.ROLL_BACK:
            assert record.fallback is not None
            world.roll_back(agent, generation=record.generation, to=record.fallback)
            return
        mine = [replica for replica in self.replicas if replica.agent == agent.name and not replica.for_suspects]
        ready_s = [each.started_s for each in mine if each.state == "ready" and each.revision == agent.revision]
        wanted = plans.Wanted(
            agent.name,
            agent.revision,
            agent.replicas,
            may_start=self._may_start(record),
            one_by_one=recovery.is_tried_out(record, ready_s),
        )
        self._unsettled.discard(agent.name)
        if (not wanted.may_start or wanted.one_by_one) and not self.is_leaving:
            self._unsettled.add(agent.name)  # until it may
        moved_at_s = record.moved_at_s
        seen = [
            plans.Seen(
                replica.id,
                replica.revision,
                replica.state == "ready",
                replica.state == "draining",
                is_moving=moved_at_s is not None and replica.started_s < moved_at_s,
            )
            for replica in mine
        ]
        actions = plans.plan(wanted, seen)
        if not self._habits.plans_with_care:
            actions += [plans.DrainReplica(each.id) for each in seen if each.revision != agent.revision]
        world.checks.planned(wanted, seen, actions)
        for action in actions:
            match action:
                case plans.StartReplica():
                    self._start(agent)
                case plans.DrainReplica(id, hands_over):
                    moving = next(replica for replica in mine if replica.id == id)
                    self._drain(moving, within_s=0.0 if hands_over else agent.timeout_s)
        if len(ready_s) >= agent.replicas:
            self._records[agent.name] = recovery.after_settling(record)

    def _reconcile_alone(self, agent: Agent) -> None:
        """Have one more replica while tasks have to run alone."""
        is_suspected = self._world.is_suspected(agent.name)
        alone = [replica for replica in self.replicas if replica.agent == agent.name and replica.for_suspects]
        for replica in alone:
            if not is_suspected or replica.revision != agent.revision:
                self._drain(replica, within_s=agent.timeout_s)
        if is_suspected and not alone and self._may_start(self._records[agent.name]):
            self._start(agent, for_suspects=True)

    def _may_start(self, record: recovery.Record) -> bool:
        return not self.is_leaving and not record.is_halted and self._world.now >= record.start_not_before_s

    def _start(self, agent: Agent, *, for_suspects: bool = False) -> None:
        world = self._world
        self._count += 1
        name, slots = f"{agent.name}-{self.owner}-{self._count}", 1 if for_suspects else agent.slots
        replica = Replica(name, agent.name, agent.revision, slots, world.now, for_suspects=for_suspects)
        self.replicas.append(replica)
        world.checks.started(self.owner, agent.name, now_s=world.now)
        world.note("%s starts %s", self, replica.id)
        world.bring_up(self, replica)

    def _drain(self, replica: Replica, *, within_s: float) -> None:
        replica.state = "draining"
        until_s = self._world.now + within_s
        replica.drain_until_s = until_s if replica.drain_until_s is None else min(replica.drain_until_s, until_s)

    def _stop_if_drained(self, replica: Replica) -> None:
        if replica.drain_until_s is not None and (not replica.attempts or self._world.now >= replica.drain_until_s):
            self.lose(replica, "stopped")

    def _halt(self, replica: Replica) -> None:
        for attempt in replica.attempts:
            self._world.halt(attempt)

    # --- what they need

    def _soon(self, delay_s: float, act: Callable[[], None]) -> None:
        self._world.at_node(self, delay_s, act)

    def _ask(self, act: Callable[[], T], then: Callable[[T], None] | None = None) -> None:
        self._world.ask(self, act, then)


def _loss(reason: str, attempt: Attempt, *, suspects: int, is_suspect: bool) -> tasks.ReplicaGone:
    if reason == "stopped":
        return tasks.ReplicaGone(tasks.Reason.DRAINED, charged=False)
    if not is_suspect:
        return tasks.ReplicaGone(tasks.Reason.NEIGHBOUR, charged=False)
    is_poison = attempt.replica.for_suspects and reason == "crashed"
    if is_poison and attempt.has_good and not attempt.is_restored:
        return tasks.ReplicaGone(tasks.Reason.REPLICA_LOST, reason, charged=False, restores=True)
    return tasks.ReplicaGone(tasks.Reason.REPLICA_LOST, reason, charged=suspects == 1, is_poison=is_poison)
