"""The reconciler: moves rollouts on, by what is seen of their new revisions. The only one that does so unasked.

Every step reads the agents and their replicas from the store, has the replicas of a new revision tried, asks
`core.rollouts` for at most one move after another, and writes each down before it asks for the next one. So a node that
is killed at any point goes on from what is written. How long a stage has waited or held is counted here while the node
lives, and written now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from greenroom import clock as clocks
from greenroom import settings, telemetry
from greenroom.control.evidence import Evidence
from greenroom.control.trials import ReplicaGone, Trials
from greenroom.core import rollouts
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


@dataclass(slots=True)
class _Course:
    """A rollout on its way, as this node knows it beyond what is stored."""

    version: int  # that *state* goes on from
    state: rollouts.Rollout
    at_s: float
    written_s: float
    wanted: settings.AgentSettings
    probes: dict[str, asyncio.Task[str | None]] = field(default_factory=dict)  # by replica
    check: asyncio.Task[str | None] | None = None
    checked_stage: int = -1  # the stage whose checks *check* are

    def close(self) -> None:
        for trial in (*self.probes.values(), *([self.check] if self.check is not None else [])):
            trial.cancel()


class Reconciler:
    name = "reconciler"

    def __init__(self, store: Store, engine: Engine, clock: clocks.Clock, facts: telemetry.Telemetry) -> None:
        self._store, self._clock, self._facts = store, clock, facts
        self.wakeup = asyncio.Event()
        self.trials = Trials(engine, clock)
        self._evidence = Evidence(facts)
        self._courses: dict[int, _Course] = {}
        store.hub.subscribe(self._hear)

    async def step(self) -> float:
        entries = await self._store.directory.refresh()
        moving = {
            entry.rollout.id: entry for entry in entries.values() if entry.rollout and _is_moving(entry.rollout.state)
        }
        for gone in self._courses.keys() - moving.keys():
            self._courses.pop(gone).close()
        self._evidence.keep(entries.keys(), watched={entry.agent.name for entry in moving.values()})
        if not moving:
            return IDLE_S
        replicas = await self._store.agents.replicas()
        delays_s = [await self._move(entry, replicas) for entry in moving.values()]
        return min(STEP_EVERY_S, *delays_s)

    async def close(self) -> None:
        """End all trials."""
        for course in self._courses.values():
            course.close()

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
            if not _has_moved(course.state, after):
                course.state = after
                if now_s >= course.written_s + WRITE_EVERY_S and after != rollout.state:
                    await self._write(entry, course, after)
                return STEP_EVERY_S if delay_s is None else delay_s
            if not await self._write(entry, course, after):
                return 0.0  # somebody else has moved it: the next step sees how
            entries = await self._store.directory.refresh()
            if (
                (current := entries.get(agent.name)) is None
                or current.rollout is None
                or current.rollout.id != rollout.id
            ):
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
            course = self._courses[rollout.id] = _Course(
                rollout.version, rollout.state, now_s, now_s, entry.spec_of(rollout.to_revision)
            )
        elif course.version != rollout.version:
            course.version, course.state, course.at_s = rollout.version, rollout.state, now_s
        return course

    async def _write(self, entry: Entry, course: _Course, after: rollouts.Rollout) -> bool:
        assert entry.rollout is not None
        is_put = await self._store.rollouts.put(entry.rollout, after)
        course.written_s = self._clock.monotonic_s()
        if is_put and _has_moved(entry.rollout.state, after):
            self._facts.emit(
                telemetry.RolloutMoved(
                    entry.agent.name,
                    entry.rollout.id,
                    after.phase,
                    revision=after.to_revision,
                    stage=after.stage + 1,
                    weight_pct=after.weight_pct,
                    reason=after.reason,
                )
            )
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
        ]
        failure = rollouts.doom([_death(each) for each in await self._deaths(entry)])
        proof = rollouts.Proof.PENDING
        if failure is None and not state.is_proven:
            proof, failure = self._try(course, ready, desired=agent.replicas)
        return rollouts.Seen(agent.replicas, len(ready), proof, failure)

    async def _deaths(self, entry: Entry) -> Sequence[Failure]:
        """Return how replicas of the new revision have died since the rollout began, first ones first."""
        rollout = entry.rollout
        assert rollout is not None
        latest = await self._store.recovery.failures(agent=entry.agent.name, limit=MAX_DEATHS)
        return [
            death
            for death in reversed(latest)
            if death.revision == rollout.to_revision and death.at >= rollout.created_at
        ]

    def _try(self, course: _Course, ready: Sequence[str], *, desired: int) -> tuple[rollouts.Proof, str | None]:
        """Have replicas tried that have not been; return what is proven, and what is wrong, if something is."""
        stage = course.state.stages[course.state.stage]
        for gone in course.probes.keys() - set(ready):
            course.probes.pop(gone).cancel()
        for replica in ready:
            if replica not in course.probes:
                course.probes[replica] = self._begin(self.trials.probe(replica), f"probe-{replica}")
        passed = []
        for replica, probe in list(course.probes.items()):
            if probe.done():
                wrong = _outcome(probe)
                if wrong is _GONE:
                    del course.probes[replica]
                elif wrong is not None:
                    return rollouts.Proof.PENDING, f"{replica}: {wrong}"
                else:
                    passed.append(replica)
        if len(passed) < rollouts.replicas(stage.capacity_pct, desired):
            return rollouts.Proof.PENDING, None
        return self._check(course, passed[-1]) if stage.has_checks else (rollouts.Proof.PASSED, None)

    def _check(self, course: _Course, replica: str) -> tuple[rollouts.Proof, str | None]:
        """Run the manifest's checks once for the stage."""
        wanted = course.wanted.rollout
        if not (wanted.checks or wanted.examples):
            return rollouts.Proof.PASSED, None
        if course.check is None or course.checked_stage != course.state.stage:
            timeout_s = min(course.wanted.timeout_s, wanted.progress_deadline_s)
            running = self.trials.check(replica, wanted, timeout_s=timeout_s)
            course.check, course.checked_stage = self._begin(running, f"check-{replica}"), course.state.stage
        if not course.check.done():
            return rollouts.Proof.PENDING, None
        wrong = _outcome(course.check)
        if wrong is _GONE:
            course.check = None  # once more, on one that is there
            self.wakeup.set()
            return rollouts.Proof.PENDING, None
        return rollouts.Proof.PASSED if wrong is None else rollouts.Proof.PENDING, wrong

    def _begin(self, trial: Coroutine[Any, Any, str | None], name: str) -> asyncio.Task[str | None]:
        task = asyncio.create_task(trial, name=name)
        task.add_done_callback(lambda _: self.wakeup.set())
        return task


_GONE = "its replica has gone"


def _outcome(trial: asyncio.Task[str | None]) -> str | None:
    """Return what is wrong, None if nothing is, or `_GONE` where nothing is known."""
    if trial.cancelled() or isinstance(trial.exception(), ReplicaGone):
        return _GONE
    return trial.result()


def _is_moving(state: rollouts.Rollout) -> bool:
    return state.is_open or not state.is_retired


def _has_moved(before: rollouts.Rollout, after: rollouts.Rollout) -> bool:
    """Whether more has changed than what waiting and counting change."""
    if (before.held_s is None) != (after.held_s is None):
        return True
    same = replace(after, waited_s=before.waited_s, held_s=before.held_s, evidence=before.evidence)
    return same != before


def _death(failure: Failure) -> rollouts.Death:
    return rollouts.Death(failure.kind, failure.reason)
