"""The simulation of the pure core: clients, nodes and replicas on an event heap, in virtual time, from one seed.

A world has 30 seconds with faults, then a calm in which everything accepted must end. What a store call met is drawn in
`World.ask`: nothing stored, all stored but the answer lost, executed late (after its caller has given up) or twice.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from greenroom.core import recovery, tasks
from greenroom.testing.simulation import checks, nodes, table
from greenroom.testing.simulation.checks import Checks, Violation
from greenroom.testing.simulation.faults import Fault
from greenroom.testing.simulation.nodes import Attempt, Node, Replica

# A seed, at least; drawn are about twice as many.
PLANNED: Mapping[Fault, float] = {
    Fault.NODE_KILLED: 0.4,
    Fault.NODE_PAUSED: 0.4,
    Fault.NODE_DRAINED: 0.3,
    Fault.NODE_CLOCK: 0.3,
    Fault.CLOCK_AHEAD: 0.2,
    Fault.CLOCK_BACK: 0.05,
    Fault.REPLICA_KILLED: 0.4,
    Fault.REPLICA_HANGS: 0.3,
    Fault.REPLICA_CRASHES: 0.5,
    Fault.POISON: 0.3,
    Fault.ANSWER_LATE: 0.4,
    Fault.ANSWER_TWICE: 0.4,
    Fault.AGENT_FAILS: 0.5,
    Fault.COMMIT_FAILS: 2.0,
    Fault.ANSWER_LOST: 2.0,
    Fault.STATEMENT_LATE: 0.4,
    Fault.STATEMENT_TWICE: 0.4,
    Fault.NEWS_LOST: 3.0,
    Fault.CANCEL: 0.3,
    Fault.DEADLINE: 0.3,
    Fault.DEPLOY: 0.3,
    Fault.SCALE: 0.3,
}

T = TypeVar("T")
FAULTS_S = 30.0
CALM_S = 150.0  # lease, rescue, hung attempts, queues of sessions: what was accepted ends within this
STORE_FAULTS = 0.04  # of each kind, of the calls
MAX_EVENTS = 200_000  # of one seed: a world that never comes to rest is a bug of the simulation


@dataclass(slots=True)
class Agent:
    name: str
    slots: int
    replicas: int
    timeout_s: float
    max_attempts: int
    is_crashing: bool = False  # its replicas die before they are ready
    revision: int = 1
    generation: int = 1
    latest: int = 1
    proven: set[int] = field(default_factory=set)  # revisions that have succeeded with a task

    def deploy(self) -> None:
        self.latest += 1
        self.revision = self.latest
        self.generation += 1


@dataclass(slots=True)
class Job:
    """What a caller asks for."""

    id: str
    agent: str
    session: str | None
    key: str | None
    priority: int
    delay_s: float | None
    timeout_s: float  # of an attempt
    deadline_s: float | None  # of the whole task
    max_attempts: int
    on_loss: str
    is_poison: bool
    backoff_s: float = 1.0
    calls: str | None = None  # an agent
    parent: str | None = None
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a seed; *violation* is the first broken promise."""

    seed: int
    events: int
    counts: checks.Counts
    injected: Counter[Fault]
    violation: Violation | None = None
    trace: list[str] = field(default_factory=list)


class World:
    def __init__(
        self, seed: int, *, guards: table.Guards = table.ALL, habits: nodes.Habits = nodes.ALL, is_traced: bool = False
    ) -> None:
        self.seed, self.rng, self._habits = seed, random.Random(seed), habits
        self.now = 0.0
        self.checks = Checks(each_move=True)
        self.table = table.Table(guards, changed=self._changed)
        self.injected: Counter[Fault] = Counter()
        self.jobs: dict[str, Job] = {}
        self.agents: dict[str, Agent] = {}
        self.nodes: dict[str, Node] = {}
        self.queued: Counter[str] = Counter()  # by agent
        self.records: defaultdict[str, dict[str, recovery.Record]] = defaultdict(dict)  # by node and agent
        self.deaths: Counter[tuple[str, str]] = Counter()  # by node and agent, since it was judged anew
        self._trace: list[str] | None = [] if is_traced else None
        self._heap: list[tuple[float, int, Node | None, Callable[[], None]]] = []
        self._order = itertools.count()
        self._clock_offset_s = self._back_s = 0.0
        self._calm_since_s: float | None = None
        self._submitting = 0
        self._is_over = False
        self.is_alone = self.rng.random() < 0.3

    # --- one seed

    def run(self) -> Run:
        violation = None
        events = 0
        try:
            self._set_up()
            while self._heap and not self._is_over:
                self.now, _, node, act = heapq.heappop(self._heap)
                if node is None:
                    act()
                elif node.is_up:
                    if node.paused_until_s > self.now:
                        self._push(node.paused_until_s, node, act)
                    else:
                        act()
                events += 1
                if events > MAX_EVENTS:
                    raise Violation("I7", f"the world does not come to rest within {MAX_EVENTS} events")
            self._conclude()
        except Violation as broken:
            violation = broken
            self.note("%s", broken)
        return Run(self.seed, events, self.checks.counts, self.injected, violation, self._trace or [])

    def note(self, text: str, *values: object) -> None:
        if self._trace is not None:
            self._trace.append(f"{self.now:9.3f}  {text % values}")

    def inject(self, fault: Fault, where: object = "") -> None:
        self.injected[fault] += 1
        self.note("! %s %s", fault, where)

    @property
    def is_calm(self) -> bool:
        return self._calm_since_s is not None

    def _draw(self, chance: float) -> bool:
        return not self.is_calm and self.rng.random() < chance

    def at(self, delay_s: float, act: Callable[[], None]) -> None:
        self._push(self.now + delay_s, None, act)

    def at_node(self, node: Node, delay_s: float, act: Callable[[], None]) -> None:
        """Do *act* if this incarnation still lives; a paused one does it when it goes on, in the same order."""
        self._push(self.now + delay_s, node, act)

    def _push(self, at_s: float, node: Node | None, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (at_s, next(self._order), node, act))

    # --- the store, and what may happen on the way to it

    def ask(
        self,
        node: Node,
        act: Callable[[], T],
        then: Callable[[T], None] | None = None,
        unknown: Callable[[], None] | None = None,
    ) -> None:
        """Have *node* run a statement: *then* has its answer; *unknown* that nobody can say whether it was stored."""
        self.table.now = self.now + self._clock_offset_s
        drawn = 1.0 if self.is_calm else self.rng.random()
        if drawn >= 2.5 * STORE_FAULTS:
            answer = act()
            if then is not None:
                # A node has one writer: its answers come in the order of its statements.
                node.answered_s = max(node.answered_s, self.now + 0.002 + 0.02 * drawn)
                self._push(node.answered_s, node, lambda: then(answer))
            return
        after_s = 0.1
        if drawn < STORE_FAULTS:
            self.inject(Fault.COMMIT_FAILS, node)
        elif drawn < 2 * STORE_FAULTS:
            self.inject(Fault.ANSWER_LOST, node)
            act()
        elif drawn < 2.25 * STORE_FAULTS:
            self.inject(Fault.STATEMENT_LATE, node)
            self._execute_in(node, self.rng.uniform(2.0, 25.0), act)
            after_s = 2.0
        else:
            self.inject(Fault.STATEMENT_TWICE, node)
            act()
            self._execute_in(node, self.rng.uniform(0.0, 3.0), act)
        if unknown is not None:
            self.at_node(node, after_s, unknown)

    def _execute_in(self, node: Node, delay_s: float, act: Callable[[], object]) -> None:
        def execute() -> None:
            if node.is_up or not self.is_alone:  # one file, one node: a dead node's statements have died with it
                self.table.now = self.now + self._clock_offset_s
                act()

        self.at(delay_s, execute)

    def spread_news(self, agent: str) -> None:
        """Tell nodes that there is work: a hint, which may get lost."""
        for node in self.nodes.values():
            if self._draw(0.3):
                self.inject(Fault.NEWS_LOST, node)
            else:
                self.at_node(node, 0.01, functools.partial(node.claim, agent))

    def _changed(self, row: table.Row) -> None:
        self.note("  %s is %s (epoch %d, %d charged)", row.id, row.state, row.epoch, row.charged)
        before = self.checks.tasks.get(row.id)
        self.queued[row.agent] += (row.state == "queued") - (before is not None and before.state == "queued")
        self.checks.saw((row,))
        if row.state == "succeeded":
            agent = self.agents[row.agent]
            agent.proven.add(agent.revision)
        if row.error == "poison":
            self.checks.quarantined(row.id, is_poison=self.jobs[row.id].is_poison)
        if row.state in ("cancelled", "expired", "failed") and row.epoch and row.owner is None:
            for node in self.nodes.values():
                self.at_node(node, 0.01, functools.partial(node.stop_task, row.id))

    # --- what replicas do

    def bring_up(self, node: Node, replica: Replica) -> None:
        is_crashing = self.agents[replica.agent].is_crashing
        if is_crashing:
            self.inject(Fault.REPLICA_CRASHES, replica.id)
        delay_s = self.rng.uniform(0.05, 0.5)
        self.at_node(node, delay_s, lambda: node.lose(replica, "crashed") if is_crashing else node.ready(replica))

    def work(self, node: Node, attempt: Attempt) -> None:
        """The replica works on *attempt*, in whatever way it was drawn to."""
        job, rng = attempt.job, self.rng
        duration_s = rng.uniform(0.05, 2.0) if self.is_calm or rng.random() < 0.7 else rng.uniform(2.0, 12.0)
        if job.is_poison:
            self.inject(Fault.POISON, job.id)
            self.at(duration_s / 2, lambda: self._kill_by(attempt, node))
        elif job.calls is not None:
            child = self._child(job)
            self.at(duration_s / 2, lambda: self._say(node, attempt, lambda: node.call(attempt, child)))
        else:
            if self._draw(0.1):
                self.inject(Fault.ANSWER_LATE, attempt)
                duration_s += rng.uniform(5.0, 30.0)
            self._answer_in(node, attempt, duration_s)

    def work_on(self, node: Node, attempt: Attempt) -> None:
        """The sub-task has ended, and the attempt has its slot again."""
        self._answer_in(node, attempt, self.rng.uniform(0.05, 1.0))

    def _answer_in(self, node: Node, attempt: Attempt, delay_s: float) -> None:
        end: tasks.End = tasks.Succeeded()
        if self._draw(0.12):
            self.inject(Fault.AGENT_FAILS, attempt)
            end = tasks.AgentFailed("ValueError", "no", retryable=self.rng.random() < 0.5)
        self.at(delay_s, lambda: self._say(node, attempt, lambda: node.answer(attempt, end)))
        if self._draw(0.1):
            self.inject(Fault.ANSWER_TWICE, attempt)
            delay_s += self.rng.uniform(0.0, 3.0)
            self.at(delay_s, lambda: self._say(node, attempt, lambda: node.answer(attempt, end)))

    def _say(self, node: Node, attempt: Attempt, act: Callable[[], None]) -> None:
        if not attempt.replica.is_hung:
            self.at_node(node, 0.001, act)

    def _kill_by(self, attempt: Attempt, node: Node) -> None:
        if attempt.is_running:
            self._die(node, attempt.replica, "crashed")

    def _die(self, node: Node, replica: Replica, reason: str) -> None:
        self.at_node(node, 0.01, lambda: node.lose(replica, reason))

    def interrupt(self, node: Node, attempt: Attempt) -> None:
        """The replica is asked to stop *attempt*; some do not."""
        if self.rng.random() < 0.9:
            end = tasks.AgentFailed("cancelled", "it was asked to stop")
            self.at(self.rng.uniform(0.01, 0.5), lambda: self._say(node, attempt, lambda: node.answer(attempt, end)))

    def halt(self, attempt: Attempt) -> None:
        """Nothing runs *attempt* any more."""
        if attempt.is_running:
            attempt.is_running = False
            self.checks.stopped(*attempt.key, agent=attempt.job.agent, session=attempt.job.session)

    # --- what callers do

    def row_of(self, job: Job) -> table.Row:
        """Return what a request for *job* would store: each request has an id of its own."""
        job.tries += 1
        id = job.id if job.tries == 1 else f"{job.id}+{job.tries}"
        self.jobs[id] = job if job.tries == 1 else dataclasses.replace(job, id=id)
        due_at = None if job.delay_s is None else self.now + self._clock_offset_s + job.delay_s
        return table.Row(
            id, job.agent, job.session, job.priority, due_at, None, job.max_attempts, job.on_loss, job.parent, job.key,
            b"", job.backoff_s,
        )  # fmt: skip

    def _submit(self, job: Job) -> None:
        up = [node for node in self.nodes.values() if node.is_up and not node.is_leaving]
        if not up:
            self.at(1.0, lambda: self._submit(job))
            return
        row, is_over = self.row_of(job), False

        def store() -> tuple[str, bool, bool]:
            answer = self.table.submit(row, timeout_s=job.deadline_s)
            self.spread_news(job.agent)
            return answer

        def accepted(answer: tuple[str, bool, bool]) -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._submitting -= 1
                self.checks.accepted(answer[0])

        def unknown() -> None:
            nonlocal is_over
            if is_over:
                return
            is_over = True
            if not self._habits.accepts_only_what_is_stored:
                self.checks.accepted(row.id)
            if job.key is not None and job.tries < 5:
                self.at(1.0, lambda: self._submit(job))
                return
            self._submitting -= 1
            self.checks.counts.unknown += 1

        self.at(10.0, unknown)
        self.ask(self.rng.choice(up), store, accepted, unknown)

    def _child(self, job: Job) -> Job:
        assert job.calls is not None
        return self._job(job.calls, f"{job.id}.{next(self._order)}", key=f"call:{job.id}:0", parent=job.id)

    def _job(self, agent: str, id: str, *, key: str | None, parent: str | None = None) -> Job:
        rng, on_loss = self.rng, "retry" if self.rng.random() < 0.85 else "fail"
        has_session = parent is None and rng.random() < 0.5
        job = Job(
            id,
            agent,
            session=rng.choice("st") if has_session else None,
            key=key,
            priority=rng.choice((0, 0, 1)),
            delay_s=rng.uniform(1.0, 8.0) if rng.random() < 0.1 else None,
            timeout_s=self.agents[agent].timeout_s,
            deadline_s=None,
            max_attempts=self.agents[agent].max_attempts,
            on_loss=on_loss,
            is_poison=parent is None and rng.random() < 0.06,
            calls="b" if parent is None and agent == "a" and rng.random() < 0.3 else None,
            parent=parent,
        )
        if parent is None and rng.random() < 0.05:
            self.inject(Fault.DEADLINE, id)
            job.deadline_s = rng.uniform(0.5, 5.0)
        return job

    # --- what goes wrong

    def _set_up(self) -> None:
        rng = self.rng
        for name in ("a", "b"):
            self.agents[name] = Agent(
                name, rng.randint(1, 3), rng.randint(1, 2), rng.uniform(4.0, 20.0), rng.randint(2, 3)
            )
        self.agents["b"].is_crashing = rng.random() < 0.25
        for number in range(1, 2 if self.is_alone else rng.choice((3, 3, 3, 4))):
            self._start_node(f"node-{number}")
        for number in range(1, rng.randint(6, 14)):
            agent = "a" if rng.random() < 0.7 else "b"
            job = self._job(agent, f"t{number}", key=f"k{number}" if rng.random() < 0.7 else None)
            self._submitting += 1
            self.at(rng.uniform(0.0, FAULTS_S), functools.partial(self._submit, job))
        for _ in range(rng.randint(5, 10)):
            act = rng.choice(_NEMESES)
            self.at(rng.uniform(1.0, FAULTS_S - 1), functools.partial(self._strike, act))
        self.at(FAULTS_S, self._calm_down)

    def _start_node(self, name: str, incarnation: int = 1) -> None:
        self.nodes[name] = Node(self, name, incarnation, self._habits)
        self.note("%s starts", self.nodes[name])

    def gone(self, node: Node) -> None:
        """The node has left in order."""
        node.kill()
        self._restart(node, within_s=3.0)

    def _restart(self, node: Node, *, within_s: float) -> None:
        self.at(self.rng.uniform(0.5, within_s), lambda: self._start_node(node.name, node.incarnation + 1))

    def _strike(self, act: Callable[[World, Node], bool]) -> None:
        if self.is_calm:
            return
        up = [node for node in self.nodes.values() if node.is_up]
        if not up or not act(self, self.rng.choice(up)):
            self.at(1.0, lambda: self._strike(act))

    def _kill_node(self, node: Node) -> bool:
        self.inject(Fault.NODE_KILLED, node)
        node.kill()
        self._restart(node, within_s=8.0)
        return True

    def _pause_node(self, node: Node) -> bool:
        node.paused_until_s = max(node.paused_until_s, self.now + self.rng.uniform(3.0, 35.0))
        self.inject(Fault.NODE_PAUSED, f"{node} until {node.paused_until_s:.3f}")
        return True

    def _drain_node(self, node: Node) -> bool:
        if node.is_leaving or node.paused_until_s > self.now:
            return False
        self.inject(Fault.NODE_DRAINED, node)
        node.drain()
        return True

    def _move_node_clock(self, node: Node) -> bool:
        node.clock_offset_s = self.rng.uniform(-3600.0, 3600.0)
        self.inject(Fault.NODE_CLOCK, node)
        return True

    def _move_clock_ahead(self, node: Node) -> bool:
        del node
        self.inject(Fault.CLOCK_AHEAD)
        self._clock_offset_s += self.rng.uniform(10.0, 300.0)
        return True

    def _move_clock_back(self, node: Node) -> bool:
        del node
        by_s = self.rng.uniform(10.0, 300.0)
        self.inject(Fault.CLOCK_BACK)
        self._clock_offset_s -= by_s
        self._back_s += by_s
        return True

    def _kill_replica(self, node: Node) -> bool:
        if not node.replicas:
            return False
        replica = self.rng.choice(node.replicas)
        self.inject(Fault.REPLICA_KILLED, replica.id)
        self._die(node, replica, "killed")
        return True

    def _hang_replica(self, node: Node) -> bool:
        working = [replica for replica in node.replicas if replica.attempts]
        if not working:
            return False
        replica = self.rng.choice(working)
        replica.is_hung = True
        self.inject(Fault.REPLICA_HANGS, replica.id)
        return True

    def _cancel(self, node: Node) -> bool:
        if not self.table.rows:
            return False
        id = self.rng.choice(list(self.table.rows))  # it may have ended
        self.inject(Fault.CANCEL, id)

        def cancelled(before: str) -> None:
            if before in table.OPEN:
                self.checks.cancelled(id)

        self.ask(node, lambda: self.table.cancel(id), cancelled)
        return True

    def _deploy(self, node: Node) -> bool:
        del node
        agent = self.rng.choice(list(self.agents.values()))
        self.inject(Fault.DEPLOY, agent.name)
        agent.deploy()
        return True

    def _scale(self, node: Node) -> bool:
        del node
        agent = self.rng.choice(list(self.agents.values()))
        agent.replicas = self.rng.randint(1, 3)
        agent.generation += 1
        self.inject(Fault.SCALE, f"{agent.name} to {agent.replicas}")
        return True

    def proven_before(self, agent: Agent) -> int | None:
        """Return the revision that the agent can go back to."""
        before = [number for number in agent.proven if number < agent.revision]
        return max(before, default=None) if agent.revision not in agent.proven else None

    def roll_back(self, agent: Agent, *, generation: int, to: int) -> None:
        """Serve *to* again, if the agent is still what it was at *generation*."""
        if agent.generation == generation:
            self.note("%s is rolled back to revision %d", agent.name, to)
            agent.revision = to
            agent.generation += 1

    def is_suspected(self, agent: str) -> bool:
        """Whether tasks of *agent* wait that have to run alone."""
        return self.queued[agent] > 0 and any(
            row.state == "queued" and row.agent == agent and row.kills >= tasks.SUSPECT_KILLS and row.due_at is None
            for row in self.table.rows.values()
        )

    def rescue(self, *, not_owner: str | None = None, spared: str | None = None) -> int:
        """Take back what dead nodes held, and see that it was theirs."""
        held = [
            (row, row.epoch)
            for row in self.table.rows.values()
            if row.lease_until is not None
            and row.lease_until >= self.table.now
            and (not_owner is None or row.owner == not_owner)
        ]
        rescued = self.table.rescue(not_owner=not_owner, spared=spared, jitter=self.rng.random())
        for row, epoch in held:
            if row.state in ("queued", "failed"):
                raise Violation("I5", f"{row.id}#{epoch} was taken from a node whose lease is valid")
        return rescued

    # --- in the end

    def _calm_down(self) -> None:
        """No more faults: what crashed is mended and deployed anew."""
        self.note("calm")
        self._calm_since_s = self.now
        for agent in self.agents.values():
            agent.is_crashing = False
            agent.deploy()
        self._look()

    def _look(self) -> None:
        assert self._calm_since_s is not None
        all_ended = not self._submitting and not any(row.state in table.OPEN for row in self.table.rows.values())
        self._is_over = all_ended or self.now > self._calm_since_s + CALM_S + self._back_s
        self.at(1.0, self._look)

    def _conclude(self) -> None:
        assert self._calm_since_s is not None
        ends = {
            row.id: [checks.End(epoch, reason, bool(refund)) for epoch, reason, refund in row.ends]
            for row in self.table.rows.values()
        }
        self.checks.finish(ends, waited_s=self.now - self._calm_since_s)


# How often one is drawn is how often it stands here.
_NEMESES: tuple[Callable[[World, Node], bool], ...] = (
    *(World._kill_node,) * 3,
    *(World._pause_node,) * 3,
    *(World._drain_node,) * 2,
    *(World._move_node_clock,) * 2,
    *(World._move_clock_ahead,) * 2,
    World._move_clock_back,
    *(World._kill_replica,) * 3,
    *(World._hang_replica,) * 2,
    *(World._cancel,) * 2,
    *(World._deploy,) * 2,
    *(World._scale,) * 2,
)


def run(
    seed: int, *, guards: table.Guards = table.ALL, habits: nodes.Habits = nodes.ALL, is_traced: bool = False
) -> Run:
    return World(seed, guards=guards, habits=habits, is_traced=is_traced).run()
