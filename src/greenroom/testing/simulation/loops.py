"""The simulation of the real loops: dispatcher, host and janitor over a real SQLite file, in virtual time, by one seed.

A node is killed by ending all that it had begun, in the middle of whatever it did; the next one opens the same file.
Its database fails on some of the look-ups and of the transactions, before the commit or after it. What each commit has
made of the tasks is read from the file, and judged, before anybody is told of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from unittest import mock

import msgspec

from greenroom import errors, random_bits, settings, telemetry
from greenroom.core import plans
from greenroom.engine import contract
from greenroom.store import database, submissions
from greenroom.store.deployments import Deployment
from greenroom.store.rows import StoredEvent, Task
from greenroom.testing import fakes, memory
from greenroom.testing.simulation import checks, incarnations, replicas
from greenroom.testing.simulation.checks import Checks, Violation
from greenroom.testing.simulation.core import Run
from greenroom.testing.simulation.faults import Fault
from greenroom.testing.simulation.virtual import VirtualClock, VirtualLoop

# A seed, at least; drawn are about twice as many.
PLANNED: Mapping[Fault, float] = {
    Fault.NODE_KILLED: 0.5,
    Fault.NODE_PAUSED: 0.5,
    Fault.NODE_DRAINED: 0.3,
    Fault.CLOCK_AHEAD: 0.25,
    Fault.CLOCK_BACK: 0.25,
    Fault.REPLICA_KILLED: 0.5,
    Fault.REPLICA_HANGS: 0.25,
    Fault.REPLICA_CRASHES: 0.8,
    Fault.POISON: 0.8,
    Fault.ANSWER_LATE: 0.7,
    Fault.ANSWER_TWICE: 0.7,
    Fault.AGENT_FAILS: 0.8,
    Fault.COMMIT_FAILS: 1.5,
    Fault.ANSWER_LOST: 1.5,
    Fault.READ_FAILS: 1.0,
    Fault.CANCEL: 0.5,
    Fault.DEADLINE: 0.6,
    Fault.DEPLOY: 0.25,
    Fault.SCALE: 0.25,
}

CLUSTER = settings.load(environ={}, overrides={"cluster": {"autoscaling": True, "max_replicas": 5}}).cluster
QUICK = {
    "max_replicas": 4,
    "target_queue_per_replica": 1,
    "stable_window_s": 2,
    "burst_window_s": 1,
    "stabilisation_s": 2,
    "cooldown_s": 0.5,
    "idle_s": 1,
}

T = TypeVar("T")
Incarnation: TypeAlias = incarnations.Incarnation[replicas.ScriptedEngine]
TENANT = "acme"
FAULTS_S = 30.0
CALM_S = 150.0
STORE_FAULTS = 0.025  # of each of two kinds, of the transactions
READ_FAULTS = 0.02  # of the look-ups
CALLER_TIMEOUT_S = 5.0
UNWRITTEN_S = 6.0  # what a host has noted, and weather has kept it from writing

_ROWS = """
select id, seq, agent, session, idempotency_key, parent, state, epoch, attempts_charged, kills, restores, max_attempts,
    output, error
from task order by seq"""


class SeenRow(msgspec.Struct, frozen=True):
    """A task as a commit has left it."""

    id: str
    seq: int
    agent: str
    session: str | None
    key: str | None
    parent: str | None
    state: str
    epoch: int
    charged: int
    kills: int
    restores: bool
    max_attempts: int
    output: bytes | None
    error: bytes | None


class _WatchedDatabase(fakes.FaultyDatabase):
    def __init__(
        self,
        db: database.Database,
        *,
        draw: Callable[[], fakes.Fault | None],
        draw_read: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        super().__init__(db, draw=draw, draw_read=draw_read)
        self._changed = changed

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[database.Transaction]:
        try:
            async with super().transaction() as tx:
                yield tx
        finally:
            self._changed()


class _Agent(msgspec.Struct):
    name: str
    spec: settings.AgentSettings
    replicas: int
    digest: int = 1
    is_crashing: bool = False


class World:
    def __init__(self, seed: int, folder: Path, loop: VirtualLoop, *, is_traced: bool) -> None:
        self.url = f"sqlite:///{folder / 'greenroom.db'}"
        self.clock = VirtualClock(loop)
        self.checks = Checks(each_move=False)
        self.injected: Counter[Fault] = Counter()
        self.agents: dict[str, _Agent] = {}
        self.trace: list[str] = []
        self.moves = 0
        self._is_traced, self._loop = is_traced, loop
        # One for each purpose: what the loops do in sets has no order, and must not change what comes afterwards.
        self._rng, self._weather, self._read_weather, self._callers = (
            random.Random(f"{seed} {name}") for name in ("world", "db", "reads", "callers")
        )
        jitter = self._rng.random()
        self.jitter = lambda: jitter
        # In every other world replicas are scaled by what there is to do, and people set other numbers meanwhile.
        self.cluster = CLUSTER if seed % 2 else None
        self.node: Incarnation | None = None
        self._incarnations = itertools.count(1)
        self._rows: dict[str, SeenRow] = {}
        self._generations: dict[str, int] = {}
        self._poison: set[str] = set()
        self._broken: BaseException | None = None
        self._calm_since_s: float | None = None
        self._back_s = 0.0
        self.script = replicas.Script(
            seed,
            inject=self.inject,
            note=self.note,
            is_calm=lambda: self._calm_since_s is not None,
            is_crashing=lambda agent: self.agents[agent].is_crashing,
            began=self._note_begin,
            stopped=lambda entry: self.checks.stopped(*self._attempt(entry), **self._place(entry)),
            killed=self._note_kill,
            started=self._note_start,
            died_early=self._note_early_death,
            succeeded=lambda revision: self.checks.judged_anew("node", revision.agent),
        )

    # --- one seed

    async def run(self) -> None:
        """Raise the first violation."""
        self._set_up()
        living = asyncio.create_task(self._keep_a_node())
        acting = [asyncio.create_task(act) for act in (*self._callers_of(), self._strike_often())]
        while acting and self._broken is None:
            _, pending = await asyncio.wait((*acting, living), timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            if living.done():
                await living  # a node cannot be started any more: it raises why
            acting = [task for task in acting if task in pending]
        if self._broken is None:
            await self._calm_down()
        for task in (*acting, living):
            task.cancel()
        await asyncio.wait((*acting, living))
        ends = {} if self._broken else await self._ends()
        await self._end_node()
        if self._broken is not None:
            raise self._broken
        assert self._calm_since_s is not None
        self.checks.finish(ends, waited_s=self._loop.now_s - self._calm_since_s)

    def note(self, text: str, *values: object) -> None:
        if self._is_traced:
            self.trace.append(f"{self._loop.now_s:9.3f}  {text % values}")

    def inject(self, fault: Fault, where: object = "") -> None:
        self.injected[fault] += 1
        self.note("! %s %s", fault, where)

    def draw_weather(self) -> fakes.Fault | None:
        drawn = 1.0 if self._calm_since_s is not None else self._weather.random()
        if drawn < STORE_FAULTS:
            self.inject(Fault.COMMIT_FAILS)
            return fakes.Fault.AT_COMMIT
        if drawn < 2 * STORE_FAULTS:
            self.inject(Fault.ANSWER_LOST)
            return fakes.Fault.AFTER_COMMIT
        return None

    def draw_read_weather(self) -> bool:
        is_drawn = self._calm_since_s is None and self._read_weather.random() < READ_FAULTS
        if is_drawn:
            self.inject(Fault.READ_FAILS)
        return is_drawn

    # --- judging

    def _judge(self, check: Callable[[], None]) -> None:
        """Listeners must not raise, and a loop that crashes is started again: the first breach ends the run."""
        try:
            check()
        except Violation as broken:
            self._broken = self._broken or broken

    def look(self) -> None:
        """A transaction has ended: what it has stored is there to see."""
        assert self.node is not None
        changed = []
        for row in (SeenRow(*row) for row in at_once(self.node.db.lookup(_ROWS, {}))):
            if self._rows.get(row.id) != row:
                self._rows[row.id] = row
                changed.append(row)
                self.note("  %s is %s (epoch %d, %d charged)", row.id, row.state, row.epoch, row.charged)
                if row.error is not None and msgspec.json.decode(row.error)["type"] == "poison":
                    self._judge(functools.partial(self.checks.quarantined, row.id, is_poison=row.id in self._poison))
        self.moves += len(changed)
        self._judge(lambda: self.checks.saw(changed))

    def hear(self, fact: telemetry.Fact) -> None:
        assert isinstance(fact, telemetry.ServiceCrashed)
        self._judge(lambda: _raise(Violation("a bug", f"the {fact.service} has crashed: {fact.error}")))

    def note_survivors(self, node: Incarnation) -> None:
        """A node was stopped: none of its tasks goes on."""
        if node.tasks:
            names = ", ".join(sorted(task.get_name() for task in node.tasks))
            self._judge(lambda: _raise(Violation("I27", f"{names} of {node.id} were cancelled, and go on")))

    def checked_plan(
        self, wanted: plans.Wanted, seen: list[plans.Seen], *, plan: Callable[..., list[plans.Action]]
    ) -> list[plans.Action]:
        actions = plan(wanted, seen)
        self._judge(lambda: self.checks.planned(wanted, seen, actions))
        return actions

    def _note_begin(self, entry: replicas.Entry, neighbours: list[tuple[str, int]]) -> None:
        place = self._place(entry)
        self._judge(lambda: self.checks.began(*self._attempt(entry), **place, neighbours=neighbours))

    def _note_start(self, revision: contract.Revision) -> None:
        """Deployed, scaled or rolled back: its host has judged it anew."""
        assert self.node is not None
        generation = self.node.store.directory.get(revision.agent).agent.generation
        if self._generations.get(revision.agent) != generation:
            self._generations[revision.agent] = generation
            self.checks.judged_anew("node", revision.agent)
        self._judge(lambda: self.checks.started("node", revision.agent, now_s=self._loop.now_s))

    def _note_kill(self, entry: replicas.Entry, reason: str) -> None:
        """By the node: for the sake of a task that does not stop, or because it hangs, of which a task is suspected."""
        if reason == "killed":
            self.checks.spared(*self._attempt(entry))
        else:
            self._poison.add(entry.invoke.task)

    def _note_early_death(self, revision: contract.Revision, started_s: float) -> None:
        if self.node is not None and self.node.store.directory.get(revision.agent).agent.revision == revision.number:
            self.checks.died_early("node", revision.agent, started_s=started_s, now_s=self._loop.now_s)

    @staticmethod
    def _attempt(entry: replicas.Entry) -> tuple[str, int]:
        return entry.invoke.task, entry.invoke.epoch

    def _place(self, entry: replicas.Entry) -> dict[str, Any]:
        return {"agent": self._rows[entry.invoke.task].agent, "session": entry.invoke.session}

    # --- nodes

    async def _keep_a_node(self) -> None:
        """Start another one whenever the last has ended, as an init system does."""
        while True:
            self.node = node = Incarnation(self, next(self._incarnations))
            serving = node.start()
            await asyncio.wait([serving])
            if not serving.cancelled() and (error := serving.exception()) is not None:
                if not isinstance(error, errors.StoreUnavailable):  # at its start
                    self._broken = self._broken or error
                await node.die()
            await asyncio.sleep(self._rng.uniform(0.1, 3.0))

    async def _end_node(self) -> None:
        if self.node is not None and self.node.tasks:
            await self.node.die()

    def engine(self) -> replicas.ScriptedEngine:
        return replicas.ScriptedEngine(self.script)

    def watched(self, db: database.Database) -> database.Database:
        return _WatchedDatabase(db, draw=self.draw_weather, draw_read=self.draw_read_weather, changed=self.look)

    async def welcome(self, node: Incarnation) -> None:
        for agent in self.agents.values():
            await self.deploy(node, agent, judged_anew=False)

    async def deploy(self, node: Incarnation, agent: _Agent, *, judged_anew: bool = True) -> None:
        item = Deployment(
            agent=agent.name,
            digest=f"d{agent.digest}",
            spec=agent.spec,
            by="world",
            judged_anew=judged_anew,
            autoscaled=self.cluster is not None,
        )
        await node.store.deployments.deploy(item)
        await node.store.directory.refresh()
        node.host.wakeup.set()
        node.reconciler.wakeup.set()

    # --- callers

    def _set_up(self) -> None:
        rng = self._rng
        for name in ("a", "b"):
            is_once = rng.random() < 0.15  # then its replicas take one task at a time
            count = rng.randint(1, 2)
            spec = settings.parse_agent(
                name,
                {
                    "factory": "module:agent",
                    "concurrency": 1 if is_once else rng.randint(1, 3),
                    "timeout_s": round(rng.uniform(4.0, 20.0), 1),
                    "max_attempts": rng.randint(2, 3),
                    "on_replica_loss": "fail" if is_once else "retry",
                    "scaling": {"min_replicas": count} if self.cluster is None else QUICK | {"min_replicas": count - 1},
                },
            )
            self.agents[name] = _Agent(name, spec, count)
        self.agents["b"].is_crashing = rng.random() < 0.2

    def _callers_of(self) -> list[Coroutine[Any, Any, None]]:
        rng = self._callers
        return [
            self._submit(
                number,
                at_s=rng.uniform(0.0, FAULTS_S),
                agent="a" if rng.random() < 0.7 else "b",
                session=rng.choice("st") if rng.random() < 0.5 else None,
                kind=rng.choices(("task", replicas.CALLER, replicas.POISON), (0.8, 0.14, 0.06))[0],
                timeout_s=rng.uniform(0.5, 5.0) if rng.random() < 0.08 else None,
                is_keyed=rng.random() < 0.7,
                is_cancelled=rng.random() < 0.06,
            )
            for number in range(rng.randint(12, 24))
        ]

    async def _submit(
        self, number: int, *, at_s: float, agent: str, session: str | None, kind: str, timeout_s: float | None,
        is_keyed: bool, is_cancelled: bool,
    ) -> None:  # fmt: skip
        await asyncio.sleep(at_s)
        if timeout_s is not None:
            self.inject(Fault.DEADLINE, number)
        for _ in range(5 if is_keyed else 1):
            node = await self._a_node()
            task = submissions.new_task(
                agent,
                node.store.directory.get(agent).spec,
                now=self.clock.now(),
                tenant=TENANT,
                input=f'"{kind} {number}"'.encode(),
                submitted_by="caller",
                session=session,
                timeout_s=timeout_s,
                idempotency_key=f"k{number}" if is_keyed else None,
            )
            if kind == replicas.POISON:
                self._poison.add(task.id)
            accepted = await self._answer(node.store.tasks.submit(task))
            if accepted is not None:
                self.note("%s %d was accepted as %s", kind, number, accepted.id)
                self._judge(functools.partial(self.checks.accepted, accepted.id))
                if is_cancelled:
                    await self._cancel(accepted.id)
                return
            await asyncio.sleep(1.0)
        self.checks.counts.unknown += 1

    async def _cancel(self, id: str) -> None:
        await asyncio.sleep(self._callers.uniform(0.0, 10.0))
        node = await self._a_node()
        self.inject(Fault.CANCEL, id)

        async def cancel() -> bool:
            await node.store.tasks.cancel(id, tenant=TENANT)
            return True

        with contextlib.suppress(errors.Conflict):
            if await self._answer(cancel()):
                self._judge(lambda: self.checks.cancelled(id))

    async def _a_node(self) -> Incarnation:
        while self.node is None or not self.node.is_up:  # noqa: ASYNC110 - nodes come and go
            await asyncio.sleep(0.25)
        return self.node

    @staticmethod
    async def _answer(answer: Awaitable[T]) -> T | None:
        """Return the answer, or None where the caller cannot tell what became of it."""
        try:
            async with asyncio.timeout(CALLER_TIMEOUT_S):
                return await answer
        except (TimeoutError, errors.StoreUnavailable):
            return None

    # --- what goes wrong

    async def _strike_often(self) -> None:
        for _ in range(self._rng.randint(5, 9)):
            await asyncio.sleep(self._rng.uniform(0.5, 5.0))
            node = await self._a_node()
            await self._rng.choice(_NEMESES)(self, node)

    async def _kill_node(self, node: Incarnation) -> None:
        self.inject(Fault.NODE_KILLED, node.id)
        self.checks.forget_deaths("node", since_s=self._loop.now_s - UNWRITTEN_S)
        await node.die()

    async def _drain_node(self, node: Incarnation) -> None:
        self.inject(Fault.NODE_DRAINED, node.id)
        for agent in self.agents:
            self.checks.judged_anew("node", agent)  # it is put on probation
        await node.leave()
        await node.die()

    async def _pause_node(self, node: Incarnation) -> None:
        """Everything stands still, time goes on: what was due meanwhile comes in its order, late."""
        del node
        pause_s = self._rng.uniform(3.0, 35.0)
        self.inject(Fault.NODE_PAUSED, f"for {pause_s:.3f} s")
        self._loop.now_s += pause_s

    async def _move_clock_ahead(self, node: Incarnation) -> None:
        del node
        self.inject(Fault.CLOCK_AHEAD)
        self.clock.offset_s += self._rng.choice((60.0, 300.0, 3600.0))

    async def _move_clock_back(self, node: Incarnation) -> None:
        del node
        by_s = self._rng.uniform(5.0, 60.0)
        self.inject(Fault.CLOCK_BACK)
        self.clock.offset_s -= by_s
        self._back_s += by_s

    async def _kill_replica(self, node: Incarnation) -> None:
        if node.engine.replicas:
            replica = self._rng.choice(list(node.engine.replicas))
            self.inject(Fault.REPLICA_KILLED, replica)
            node.engine.die(replica, "killed")

    async def _hang_replica(self, node: Incarnation) -> None:
        if node.engine.replicas:
            replica = self._rng.choice(list(node.engine.replicas))
            self.inject(Fault.REPLICA_HANGS, replica)
            node.engine.hang(replica)

    async def _deploy(self, node: Incarnation) -> None:
        agent = self._rng.choice(list(self.agents.values()))
        self.inject(Fault.DEPLOY, agent.name)
        agent.digest += 1
        await self._answer(self.deploy(node, agent))

    async def _scale(self, node: Incarnation) -> None:
        agent = self._rng.choice(list(self.agents.values()))
        agent.replicas = self._rng.randint(1, 3)
        self.inject(Fault.SCALE, f"{agent.name} to {agent.replicas}")
        await self._answer(node.store.agents.scale(agent.name, agent.replicas))

    # --- in the end

    async def _calm_down(self) -> None:
        """No more faults: what crashed is mended and deployed anew, and everything accepted must end."""
        self.note("calm")
        self._calm_since_s = self._loop.now_s
        node = await self._a_node()
        for agent in self.agents.values():
            agent.digest += agent.is_crashing
            agent.is_crashing = False
            await self.deploy(node, agent)
        while self._broken is None and self._loop.now_s < self._calm_since_s + CALM_S + self._back_s:
            await asyncio.sleep(1.0)
            if all(not seen.is_open for seen in self.checks.tasks.values()):
                return

    async def _ends(self) -> dict[str, list[checks.End]]:
        assert self.node is not None
        ends = {}
        for id in self.checks.tasks:
            task = await self.node.store.tasks.get(id, tenant=TENANT)
            ends[id] = list(_ends_of(task, await self.node.store.tasks.state_events(task)))
        return ends


_NEMESES: tuple[Callable[[World, Incarnation], Awaitable[None]], ...] = (
    *(World._kill_node,) * 2,
    World._drain_node,
    *(World._pause_node,) * 2,
    World._move_clock_ahead,
    World._move_clock_back,
    *(World._kill_replica,) * 2,
    World._hang_replica,
    World._deploy,
    World._scale,
)


def _ends_of(task: Task, events: Sequence[StoredEvent]) -> Iterator[checks.End]:
    """Read from the events of *task* how each of its attempts ended, and whether it was given back."""
    begun: list[int] = []  # what was charged with each attempt
    reasons: list[str] = []
    for event in events:
        told = msgspec.json.decode(event.data)
        if told["state"] == "running" and "attempt" in told:
            begun.append(told["attempt"])
        elif told["state"] not in ("running", "waiting") and len(reasons) < len(begun):
            reasons.append(told["reason"])
    afterwards = [attempt - 1 for attempt in begun[1:]] + [task.attempts_charged]
    for epoch, (reason, charged, after) in enumerate(zip(reasons, begun, afterwards, strict=False), 1):
        yield checks.End(epoch, reason, after < charged)


def at_once(read: Coroutine[Any, Any, T]) -> T:
    """Run a look-up, which never waits on SQLite, where nothing can happen in between."""
    try:
        read.send(None)
    except StopIteration as done:
        answer: T = done.value
        return answer
    raise AssertionError("a look-up has waited")


def _raise(error: Exception) -> None:
    raise error


def run(seed: int, *, is_traced: bool = False) -> Run:
    """Run one seed; what is not a violation is raised."""
    bits, latency = random.Random(f"{seed} ids"), random.Random(f"{seed} disk")
    violation = None
    with contextlib.ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="greenroom-", dir=memory.place())
        loop = VirtualLoop(lambda: latency.uniform(0.0005, 0.004))
        loop.set_task_factory(incarnations.in_its_node)
        world = World(seed, Path(stack.enter_context(folder)), loop, is_traced=is_traced)
        draw = mock.patch.object(random_bits, "token_hex", lambda count: f"{bits.getrandbits(8 * count):0{2 * count}x}")
        plan = mock.patch.object(plans, "plan", functools.partial(world.checked_plan, plan=plans.plan))
        stack.enter_context(draw)
        stack.enter_context(plan)
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            try:
                runner.run(world.run())
            except Violation as broken:
                violation = broken
                world.note("%s", broken)
    return Run(seed, world.moves, world.checks.counts, world.injected, violation, world.trace)
