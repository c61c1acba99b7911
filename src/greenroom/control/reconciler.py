"""The reconciler: moves rollouts on, by what is seen of their new revisions. The only one that does so unasked.

Every step reads the agents and their replicas from the store, has the replicas of a new revision tried, asks
`core.rollouts` for at most one move after another, and writes each down before it asks for the next one. So a node that
is killed at any point goes on from what is written. How long a stage has waited or held is counted here while the node
lives, and written now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from greenroom import clock as clocks
from greenroom import telemetry
from greenroom.control.evidence import Evidence
from greenroom.control.proving import Proving, Wanted
from greenroom.control.trials import Trials
from greenroom.core import rollouts, strategies
from greenroom.engine.contract import Engine
from greenroom.store.agents import Replica
from greenroom.store.directory import Entry
from greenroom.store.news import News
from greenroom.store.recovery import Failure
from greenroom.store.store import Store

STEP_EVERY_S = 1.0
IDLE_S = 5.0  # wakeups are hints; this is the guarantee
WRITE_EVERY_S = 5.0  # what waiting and counting alone have changed
MAX_DEATHS = 50  # looked at, of one agent


class _Course(msgspec.Struct):
    """A rollout on its way, as this node knows it beyond what is stored."""

    proving: Proving
    version: int  # that *state* goes on from
    state: rollouts.Rollout
    at_s: float
    written_s: float


class Reconciler:
    name = "reconciler"

    def __init__(self, store: Store, engine: Engine, clock: clocks.Clock, facts: telemetry.Telemetry) -> None:
        self._store, self._clock, self._facts = store, clock, facts
        self.wakeup = asyncio.Event()
        self.trials = Trials(engine, clock)
        self._evidence = Evidence(facts)
        self._courses: dict[int, _Course] = {}
        self._is_stopping = False
        store.hub.subscribe(self._hear)

    async def step(self) -> float:
        if self._is_stopping:
            return IDLE_S
        entries = await self._store.directory.refresh()
        moving = {
            entry.rollout.id: entry for entry in entries.values() if entry.rollout and _is_moving(entry.rollout.state)
        }
        for gone in self._courses.keys() - moving.keys():
            self._courses.pop(gone).proving.close()
        self._evidence.keep(entries.keys(), watched={entry.agent.name for entry in moving.values()})
        if not moving:
            return IDLE_S
        replicas = await self._store.agents.replicas()
        delays_s = [await self._move(entry, replicas) for entry in moving.values()]
        return min(STEP_EVERY_S, *delays_s)

    def stop(self) -> None:
        """Move nothing more, and end all trials: what is drained from here on says nothing about its revision."""
        self._is_stopping = True
        for course in self._courses.values():
            course.proving.close()

    def _hear(self, news: News) -> None:
        if news.traffic or news.replicas:
            self.wakeup.set()

    # --- one rollout

    async def _move(self, entry: Entry, replicas: Sequence[Replica]) -> float:
        """Make the moves that are due; return after how many seconds to look again, at the latest."""
        assert entry.rollout is not None
        rollout, agent = entry.rollout, entry.agent
        while True:
            course = self._course(entry)
            now_s = self._clock.monotonic_s()
            self._evidence.watch(agent.name, rollout.id, course.state)
            before = rollouts.with_tallies(course.state, self._evidence.tallies(agent.name))
            seen = await self._see(entry, course, replicas)
            after, delay_s = rollouts.step(before, seen, now_s - course.at_s)
            course.at_s = now_s
            if not rollouts.has_moved(course.state, after):
                course.state = after
                if now_s >= course.written_s + WRITE_EVERY_S and after != rollout.state:
                    await self._write(entry, course, after)
                return STEP_EVERY_S if delay_s is None else delay_s
            if not await self._write(entry, course, after):
                return 0.0  # somebody else has moved it: the next step sees how
            entries = await self._store.directory.refresh()
            current = entries.get(agent.name)
            if current is None or current.rollout is None or current.rollout.id != rollout.id:
                return 0.0
            entry, rollout = current, current.rollout
            if not _is_moving(rollout.state):
                return 0.0

    def _course(self, entry: Entry) -> _Course:
        """Return what is known of the rollout's way: from here on by what the store says, if that is news."""
        rollout, now_s = entry.rollout, self._clock.monotonic_s()
        assert rollout is not None
        course = self._courses.get(rollout.id)
        if course is None:
            proving = Proving(self.trials, woken=self.wakeup.set)
            course = self._courses[rollout.id] = _Course(proving, rollout.version, rollout.state, now_s, now_s)
        elif course.version != rollout.version:
            course.version, course.state, course.at_s = rollout.version, rollout.state, now_s
        return course

    async def _write(self, entry: Entry, course: _Course, after: rollouts.Rollout) -> bool:
        assert entry.rollout is not None
        is_put = await self._store.rollouts.put(entry.rollout, after)
        course.written_s = self._clock.monotonic_s()
        if is_put and rollouts.has_moved(entry.rollout.state, after):
            self._facts.emit(telemetry.RolloutMoved.to(after, agent=entry.agent.name, rollout=entry.rollout.id))
        return is_put

    # --- what is seen

    async def _see(self, entry: Entry, course: _Course, replicas: Sequence[Replica]) -> rollouts.Seen:
        state, agent = course.state, entry.agent
        if not state.is_open:
            return rollouts.Seen(agent.replicas, 0)
        ready = [
            replica.id
            for replica in replicas
            if (replica.agent, replica.revision, replica.state) == (agent.name, state.to_revision, "ready")
            and not self._store.board.runs_alone(replica.id)
        ]
        deaths = await self._store.recovery.failures(agent=agent.name, limit=MAX_DEATHS)
        failure = rollouts.doom(*(_deaths(deaths, of, state) for of in (state.to_revision, state.from_revision)))
        proof = rollouts.Proof.PENDING
        if failure is None and not state.is_proven:
            proof, failure = course.proving.look(_wanted(entry, state), ready)
        return rollouts.Seen(agent.replicas, len(ready), proof, failure, max((each.seq for each in deaths), default=0))


def _wanted(entry: Entry, state: rollouts.Rollout) -> Wanted:
    """Return what the rollout's stage has to prove."""
    stage, spec = state.stages[state.stage], entry.spec_of(state.to_revision)
    return Wanted(
        state.stage,
        strategies.replicas(stage.capacity_pct, entry.agent.replicas),
        spec.rollout if stage.has_checks else None,
        min(spec.timeout_s, state.progress_deadline_s / 2),  # so that a check that hangs is named
    )


def _deaths(latest: Sequence[Failure], revision: int | None, state: rollouts.Rollout) -> list[rollouts.Death]:
    """Return how replicas of *revision* have died that speak of this stage, first ones first."""
    return [
        rollouts.Death(death.kind, death.reason)
        for death in reversed(latest)
        if death.revision == revision and death.seq > state.deaths_after
    ]


def _is_moving(state: rollouts.Rollout) -> bool:
    return state.is_open or not state.is_retired
