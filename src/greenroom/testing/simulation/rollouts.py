"""The simulation of rollouts: the real loops over a real SQLite file, struck at every commit that moves a rollout.

A `Scenario` is run once undisturbed, and the commits are counted that change a rollout, an agent, its revisions or its
replicas. Then it is run again for each of them and each way to strike there, up to that point move by move as before;
and each time it has to come to rest as it did. People's deployments, aborts and promotions are repeated until they are
answered, as a client repeats them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import random
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar
from unittest import mock

from greenroom import errors, random_bits, settings, telemetry
from greenroom.core import rollouts
from greenroom.engine import protocol
from greenroom.store import database, submissions
from greenroom.store.deployments import Deployment
from greenroom.store.rollouts import Rollout
from greenroom.testing import memory
from greenroom.testing.fake_engine import FakeReplica
from greenroom.testing.simulation import incarnations, loops, rollout_replicas
from greenroom.testing.simulation.checks import Checks, Violation
from greenroom.testing.simulation.rollout_checks import RolloutChecks, RolloutRow, View
from greenroom.testing.simulation.rollout_replicas import RolloutEngine
from greenroom.testing.simulation.scenarios import AGENT, Plot, Scenario
from greenroom.testing.simulation.strikes import Blow, Point, Strike, StruckDatabase
from greenroom.testing.simulation.virtual import VirtualClock, VirtualLoop

T = TypeVar("T")
Incarnation: TypeAlias = incarnations.Incarnation[RolloutEngine]
TENANT = "acme"
TASK_EVERY_S = 0.2
DISK_S = 0.002
DOWN_S = 0.5  # from a node's death to the next one's start
ANSWER_S = 0.5  # how long people wait for one
LOOK_EVERY_S = 0.05
SLOW_S = 0.3  # people are: what they see is no longer quite so
WARM_S = 1.0  # of traffic, before anything is deployed
REST_S = 90.0  # to come to rest; deadlines and evidence are in it
DRAIN_S = 30.0  # for the last tasks to end

_AGENT = "select revision from agent"
_ROLLOUTS = f"select {', '.join(RolloutRow.__struct_fields__)} from rollout where agent = '{AGENT}' order by id desc"
_STANDING = "select number from revision where retired_at is null"
_DRAINING = "select id from replica where state = 'draining'"


class SeenRow(loops.SeenRow, frozen=True):
    """A task as a commit has left it, and where it runs."""

    revision: int | None
    replica: str | None


_COLUMNS = ", ".join(
    {"key": "idempotency_key", "charged": "attempts_charged"}.get(n, n) for n in SeenRow.__struct_fields__
)
_TASKS = f"select {_COLUMNS} from task where seq >= :seq order by seq"


class World:
    def __init__(
        self, scenario: Scenario, blow: Blow | None, folder: Path, loop: VirtualLoop, *, is_traced: bool
    ) -> None:
        self.url = f"sqlite:///{folder / 'greenroom.db'}"
        self.clock = VirtualClock(loop)
        self.jitter = lambda: 0.5
        self.points: list[Point] = []
        self.trace: list[str] = []
        self.has_struck = False
        self.checks = Checks(each_move=False)
        self.cluster: settings.Cluster | None = None
        self.evidence = rollout_replicas.Evidence()
        self.rollouts = RolloutChecks(scenario, self.evidence)
        self._scenario, self._blow, self._spec = scenario, blow, scenario.spec
        self._loop, self._is_traced = loop, is_traced
        self._node: Incarnation | None = None
        self._incarnations = itertools.count(1)
        self._is_armed = not scenario.has_first
        self._is_closing = self._is_over = False
        self._wanted: int | None = None  # the revision that the manifest has
        self._rows: dict[str, SeenRow] = {}
        self._settled_seq = 0
        self._broken: BaseException | None = None

    # --- one scenario

    async def run(self) -> None:
        """Raise the first violation."""
        living = asyncio.create_task(self._keep_a_node())
        acting = [asyncio.create_task(self._act())]
        if self._scenario.plot is not Plot.FIRST_FAILS:  # then nothing would ever run
            acting.append(asyncio.create_task(self._load()))
        ruling = asyncio.create_task(self._rule(acting))
        await asyncio.wait((ruling, living), return_when=asyncio.FIRST_COMPLETED)
        self._is_over = True
        for task in (*acting, ruling, living):
            task.cancel()
        await asyncio.wait((*acting, ruling, living))
        if self._node is not None:
            await self._node.die()
        for task in (living, ruling):
            if not task.cancelled() and (error := task.exception()) is not None:
                self._broken = self._broken or error
        if self._broken is not None:
            raise self._broken

    async def _rule(self, acting: Sequence[asyncio.Task[None]]) -> None:
        """Wait until all is said, done and at rest; judge the end."""
        act, *loads = acting
        await self._until_broken_or(act.done, "I37", "people are not answered")
        if act.done():
            await act
        await self._until_broken_or(self._is_at_rest, "I37", "it does not come to rest")
        await asyncio.sleep(WARM_S)  # and stays there
        self._is_closing = True
        for load in loads:
            await load
        await self._until_broken_or(self._are_tasks_over, "I7", "tasks do not end")
        if self._broken is None and self._node is not None:
            self.rollouts.finish(self._node.engine, self._node.engine.replicas)

    async def _until_broken_or(self, is_so: Callable[[], bool], promise: str, what: str) -> None:
        limit_s = DRAIN_S if promise == "I7" else REST_S
        deadline_s = self._loop.now_s + limit_s
        while self._broken is None and not is_so():
            if self._loop.now_s > deadline_s:
                raise Violation(promise, f"{what} within {limit_s:.0f} s: {self._told()}")
            await asyncio.sleep(LOOK_EVERY_S)

    def _told(self) -> str:
        view = self.rollouts.view
        phases = ", ".join(f"{row.id} is {row.phase} at stage {row.stage}" for row in view.rollouts)
        replicas = {} if self._node is None else self._node.engine.replicas
        open = [row.id for row in self._rows.values() if self.checks.tasks[row.id].is_open]
        return f"revision {view.serving} serves, {phases}, {len(replicas)} replicas, open tasks {open[:5]}"

    def _is_at_rest(self) -> bool:
        node, view, desired = self._node, self.rollouts.view, self._scenario.desired
        if node is None or not node.is_up or view.serving is None or not self._has_all_of(node, view.serving):
            return False
        if (self._blow is not None and not self.has_struck) or view.standing != {view.serving}:
            return False
        return not any(row.is_open for row in view.rollouts) and len(node.engine.replicas) == desired

    def _has_all_of(self, node: Incarnation, revision: int) -> bool:
        return len(node.engine.serving(revision)) == self._scenario.desired

    def _are_tasks_over(self) -> bool:
        return not any(seen.is_open for seen in self.checks.tasks.values())

    def note(self, text: str, *values: object) -> None:
        if self._is_traced:
            self.trace.append(f"{self._loop.now_s:9.3f}  {text % values}")

    # --- what happens at a commit

    def strike_now(self) -> Strike | None:
        if not self._is_armed or self._node is None or self._is_closing:
            return None
        revisions = [replica.revision.number for replica in self._node.engine.replicas.values()]
        has_new, has_old = any(number > 1 for number in revisions), 1 in revisions
        self.points.append(Point(len(self.points) + 1, has_new, has_old))
        if self._blow is None or self.has_struck or self._blow.number != len(self.points):
            return None
        self.has_struck = True
        self.note("! %s", self._blow.strike)
        return self._blow.strike

    async def fell(self) -> None:
        assert self._node is not None
        self._node.fall()
        self.rollouts.struck(self._loop.now_s)
        await asyncio.sleep(0)  # whoever commits is cancelled with all the others

    def kill(self, *, is_new: bool) -> None:
        assert self._node is not None
        node, self._node = self._node, None  # nobody counts before all are gone
        for id, replica in list(node.engine.replicas.items()):
            if (replica.revision.number > 1) is is_new:
                node.engine.die(id, "killed")
        self._node = node
        self.rollouts.struck(self._loop.now_s)

    # --- judging

    def _judge(self, check: Callable[[], None]) -> None:
        """Listeners must not raise, and a loop that crashes is started again: the first breach ends the run."""
        if self._is_over:
            return
        try:
            check()
        except Violation as broken:
            self._broken = self._broken or broken

    def look(self) -> None:
        assert self._node is not None
        db, engine = self._node.db, self._node.engine
        serving = loops.at_once(db.lookup(_AGENT, {}))
        view = View(
            serving[0][0] if serving else None,
            [RolloutRow(*row) for row in loops.at_once(db.lookup(_ROLLOUTS, {}))],
            {row[0] for row in loops.at_once(db.lookup(_STANDING, {}))},
            {row[0] for row in loops.at_once(db.lookup(_DRAINING, {}))},
        )
        changed = self._changed(db)
        for row in changed:
            self.note("  %s is %s (revision %s)", row.id, row.state, row.revision)
        if view.rollouts != self.rollouts.view.rollouts or view.serving != self.rollouts.view.serving:
            for rollout in view.rollouts[:2]:
                self.note("  rollout %d: %s", rollout.id, rollout.record.decode())
            self.note("  revision %s serves, %s stand", view.serving, view.standing)
        self._judge(lambda: self.checks.saw(changed))
        self._judge(lambda: self.rollouts.saw(view, changed, engine, self._loop.now_s))

    def _changed(self, db: database.Database) -> list[SeenRow]:
        rows = [SeenRow(*row) for row in loops.at_once(db.lookup(_TASKS, {"seq": self._settled_seq}))]
        changed = [row for row in rows if self._rows.get(row.id) != row]
        self._rows.update((row.id, row) for row in changed)
        over = itertools.takewhile(lambda row: row.state in ("succeeded", "failed"), rows)
        self._settled_seq = max((row.seq for row in over), default=self._settled_seq)
        return changed

    def hear(self, fact: telemetry.Fact) -> None:
        assert isinstance(fact, telemetry.ServiceCrashed)
        self._judge(lambda: _raise(Violation("a bug", f"the {fact.service} has crashed: {fact.error}")))

    def note_survivors(self, node: Incarnation) -> None:
        if node.tasks:
            names = ", ".join(sorted(task.get_name() for task in node.tasks))
            self._judge(lambda: _raise(Violation("I27", f"{names} of {node.id} were cancelled, and go on")))

    def began(self, replica: FakeReplica, invoke: protocol.Invoke, neighbours: list[tuple[str, int]]) -> None:
        attempt, session = (invoke.task, invoke.epoch), invoke.session
        self._judge(lambda: self.checks.began(*attempt, agent=AGENT, session=session, neighbours=neighbours))
        self._judge(lambda: self.rollouts.began(replica, invoke))

    def stopped(self, invoke: protocol.Invoke) -> None:
        self.checks.stopped(invoke.task, invoke.epoch, agent=AGENT, session=invoke.session)

    def counted(self) -> None:
        if self._node is not None and self._node.is_up:
            engine = self._node.engine
            self._judge(lambda: self.rollouts.counted(engine, self._loop.now_s))

    # --- nodes

    def engine(self) -> RolloutEngine:
        return RolloutEngine(self._scenario.bad, self.evidence, self, self.note)

    def watched(self, db: database.Database) -> database.Database:
        return StruckDatabase(db, self)

    async def welcome(self, node: Incarnation) -> None:
        if self._wanted is not None:
            await self._begin(node, self._wanted, judged_anew=False)
        await node.store.directory.refresh()

    async def _keep_a_node(self) -> None:
        """Start another one whenever the last has ended, as an init system does."""
        while True:
            self._node = node = Incarnation(self, next(self._incarnations))
            living = node.start()
            await asyncio.wait([living])
            error = None if living.cancelled() else living.exception()
            if error is not None and not isinstance(error, errors.StoreUnavailable):  # at its start
                self._broken = self._broken or error
            await node.die()
            self.note("%s is down", node.id)
            await asyncio.sleep(DOWN_S)

    async def _asked(self, ask: Callable[[Incarnation], Awaitable[T]]) -> T:
        """Ask the node that there is, again and again until it answers."""
        while True:
            node = self._node
            if node is not None and node.is_up:
                with contextlib.suppress(TimeoutError, errors.StoreUnavailable):
                    async with asyncio.timeout(ANSWER_S):
                        return await ask(node)
            await asyncio.sleep(LOOK_EVERY_S)

    # --- users

    async def _load(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                if self._is_closing:
                    return
                group.create_task(self._submit(number))
                await asyncio.sleep(TASK_EVERY_S)

    async def _submit(self, number: int) -> None:
        """Submit one task; every second is of a session, of which there are two at a time for three seconds."""
        session = f"s{number // 16}{'ab'[number // 2 % 2]}" if number % 2 == 0 else None

        async def submit(node: Incarnation) -> str:
            task = submissions.new_task(
                AGENT,
                node.store.directory.get(AGENT).spec,
                now=self.clock.now(),
                tenant=TENANT,
                input=b"%d" % number,
                submitted_by="user",
                session=session,
                idempotency_key=f"k{number}",
            )
            return (await node.store.tasks.submit(task)).id

        await self._until_deployed()
        id = await self._asked(submit)
        self._judge(lambda: self.checks.accepted(id))

    async def _until_deployed(self) -> None:
        while not (self._node is not None and self._node.is_up and AGENT in self._node.store.directory.entries):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_EVERY_S)

    # --- people

    async def _act(self) -> None:
        scenario = self._scenario
        await self._deploy(1)
        if not scenario.has_first:
            return
        await self._until(lambda last: last is not None and not last.is_open)
        await self._until_serving()
        await asyncio.sleep(WARM_S)
        self._is_armed = True
        if scenario.plot is Plot.TWO_AT_ONCE:
            await asyncio.gather(self._deploy(2), self._deploy(3))
            return
        await self._deploy(2)
        if scenario.stage is not None:
            await self._until_at(scenario.stage)
            await asyncio.sleep(SLOW_S)
        await self._meddle()

    async def _meddle(self) -> None:
        match self._scenario.plot:
            case Plot.ABORTED:
                await asyncio.gather(self._abort(), self._abort(), self._ask_for(rollouts.pause))
                before = self.rollouts.view.rollouts
                await self._abort()
                if [row.record for row in self.rollouts.view.rollouts] != [row.record for row in before]:
                    raise Violation("I37", "a further abort has changed something")
            case Plot.PAUSED:
                await self._ask_for(rollouts.pause)
                await asyncio.sleep(WARM_S)
                await self._ask_for(rollouts.resume)
            case Plot.PROMOTED:
                await self._promote_all()
            case Plot.UNDONE:
                await self._undo(to=1)
            case Plot.REDONE:
                await self._undo(to=1)
                await self._undo(to=2)
            case Plot.SUPERSEDED | Plot.SUPERSEDED_BY_BAD:
                await self._deploy(3)
            case _:
                pass

    async def _until(self, is_so: Callable[[RolloutRow | None], bool]) -> None:
        while not is_so(next(iter(self.rollouts.view.rollouts), None)):  # noqa: ASYNC110 - of the file, whoever wrote it
            await asyncio.sleep(LOOK_EVERY_S)

    async def _until_serving(self) -> None:
        while not (self._node and self._node.is_up and self._has_all_of(self._node, self.rollouts.view.serving or 0)):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_EVERY_S)

    async def _until_at(self, stage: int) -> None:
        """Wait for a stage that has proven itself, and is watched; -1: for nothing."""
        await self._until(
            lambda last: (
                last is not None and (not last.is_open or stage < 0 or (last.stage >= stage and last.is_proven))
            )
        )

    async def _begin(self, node: Incarnation, revision: int, *, judged_anew: bool) -> None:
        item = Deployment(agent=AGENT, digest=f"d{revision}", spec=self._spec, by="somebody", judged_anew=judged_anew)
        await node.store.deployments.deploy(item)
        await node.store.directory.refresh()
        node.host.wakeup.set()
        node.reconciler.wakeup.set()

    async def _deploy(self, revision: int) -> None:
        self.note("revision %d is deployed", revision)
        if self._scenario.in_manifest:
            self._wanted = revision
        await self._asked(lambda node: self._begin(node, revision, judged_anew=not self._scenario.in_manifest))

    @staticmethod
    async def _move(node: Incarnation, *, act: Callable[[rollouts.Rollout], rollouts.Rollout]) -> None:
        """Do what somebody wants to the last rollout, unless it has ended."""
        while (last := await _last(node)) is not None:
            try:
                state = act(last.state)
            except rollouts.Refused:
                return
            if state == last.state or await node.store.rollouts.put(last, state):
                return

    async def _abort(self) -> None:
        self.note("somebody aborts")
        await self._ask_for(lambda state: rollouts.abort(state, "somebody wants it"))

    async def _ask_for(self, act: Callable[[rollouts.Rollout], rollouts.Rollout]) -> None:
        await self._asked(functools.partial(self._move, act=act))

    async def _promote_all(self) -> None:
        while True:
            await self._until(lambda last: last is not None and last.phase != "progressing")
            if not self.rollouts.view.rollouts[0].is_open:
                return
            await self._ask_for(rollouts.promote)

    async def _undo(self, *, to: int) -> None:
        """Go back as `greenroom.deployments` does, when what is on its way is complete: at once where *to* stands."""
        await self._until(lambda last: last is not None and not last.is_open)
        self.note("somebody goes back to revision %d", to)
        await self._asked(functools.partial(self._go_back, to=to))

    async def _go_back(self, node: Incarnation, *, to: int) -> None:
        entry = (await node.store.directory.refresh())[AGENT]
        if entry.agent.revision == to:
            return
        ready = [each for each in await node.store.agents.replicas() if (each.revision, each.state) == (to, "ready")]
        stands = entry.rollout is not None and to in entry.rollout.state.standing and len(ready) >= entry.agent.replicas
        if stands:
            await node.store.rollouts.switch(
                AGENT, generation=entry.agent.generation, to=to, reason="somebody wants it", by="somebody"
            )
        else:
            await self._begin(node, to, judged_anew=True)


async def _last(node: Incarnation) -> Rollout | None:
    return (await node.store.directory.refresh())[AGENT].rollout


def _raise(error: Exception) -> None:
    raise error


@dataclass(frozen=True, slots=True)
class Run:
    scenario: Scenario
    blow: Blow | None
    points: Sequence[Point]
    has_struck: bool
    tasks: int
    violation: Violation | None
    trace: list[str]


def run(scenario: Scenario, blow: Blow | None = None, *, is_traced: bool = False) -> Run:
    """Run one scenario, struck once or not at all; what is not a violation is raised."""
    bits = random.Random(scenario.name)
    violation = None
    with contextlib.ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="greenroom-", dir=memory.place())
        loop = VirtualLoop(lambda: DISK_S)
        loop.set_task_factory(incarnations.in_its_node)
        world = World(scenario, blow, Path(stack.enter_context(folder)), loop, is_traced=is_traced)
        draw = mock.patch.object(random_bits, "token_hex", lambda count: f"{bits.getrandbits(8 * count):0{2 * count}x}")
        stack.enter_context(draw)
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            try:
                runner.run(world.run())
            except Violation as broken:
                violation = broken
                world.note("%s", broken)
    tasks = len(world.checks.tasks)
    return Run(scenario, blow, world.points, world.has_struck, tasks, violation, world.trace)
