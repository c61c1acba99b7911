"""The checks: finds hung replicas, and grades those that are not.

A loop of its own that reads and writes no row, so that a store that is slow or down delays nobody's rescue. It sends
the probes, asks `core.health`, and kills; `control.host` tells it of the replicas and writes the grades down. Evidence
comes from what the engine and the dispatcher say anyway.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable

import msgspec

from greenroom import clock as clocks
from greenroom import telemetry
from greenroom.core import failures, health
from greenroom.engine import contract, protocol, said


class _Watched(msgspec.Struct, eq=False):
    """A replica that is ready or drains."""

    id: str
    agent: str
    revision: int
    hang_after_s: float
    heard_s: float
    asked_s: float | None = None  # nothing was heard since a probe was sent then
    probe: int = 0  # the number that is out; 0: none, or its time says nothing any more
    probed_s: float = 0.0
    trips: deque[health.Trip] = msgspec.field(default_factory=lambda: deque(maxlen=health.MAX_TRIPS))
    outcomes: deque[health.Outcome] = msgspec.field(default_factory=lambda: deque(maxlen=health.MAX_OUTCOMES))
    standing: health.Standing = msgspec.field(default_factory=health.Standing)


class Checks:
    """*graded* is called with the id of a replica whose grade has changed: see `finding`.

    Without *is_grading* replicas are only watched for hangs.
    """

    name = "checks"

    def __init__(
        self,
        engine: contract.Engine,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        *,
        graded: Callable[[str], None],
        is_grading: bool = True,
    ) -> None:
        self._engine, self._clock, self._facts = engine, clock, facts
        self._graded, self._is_grading = graded, is_grading
        self.wakeup = asyncio.Event()
        self._watched: dict[str, _Watched] = {}
        self._numbers = itertools.count(1)
        self._looked_s = clock.monotonic_s()
        self._grade_at_s = 0.0
        engine.subscribe(self)
        if is_grading:
            facts.subscribe(self._note, telemetry.AttemptEnded)

    async def step(self) -> float:
        """Probe who is silent, kill who is hung, and now and then grade them all."""
        now_s = self._clock.monotonic_s()
        look = health.Look(now_s, self._looked_s)
        self._looked_s = now_s
        for watched in list(self._watched.values()):
            self._look_at(watched, look)
        if self._is_grading and now_s >= self._grade_at_s:
            self._grade_at_s = now_s + health.GRADE_EVERY_S
            self._grade_all(look)
        return health.LOOK_EVERY_S

    def open(self, replica: str, *, agent: str, revision: int, hang_after_s: float) -> None:
        """Watch *replica*, which is ready, until its exit."""
        watched = _Watched(replica, agent, revision, hang_after_s, self._clock.monotonic_s())
        self._watched[replica] = watched
        if self._is_grading:
            self._probe(watched)

    def finding(self, replica: str) -> health.Finding:
        """Return the grade of *replica*, with its reason."""
        if not self._is_grading:
            return health.OFF
        watched = self._watched.get(replica)
        return health.NO_EVIDENCE if watched is None else watched.standing.finding

    # --- what replicas say (engine.contract.Listener)

    def on_ready(self, replica: str, ready: protocol.Ready) -> None:
        """The host says who is to be watched, and how."""

    def on_log(self, replica: str, line: said.Line) -> None:
        """No progress: a pipe that is full speaks of the past."""

    def on_message(self, replica: str, message: protocol.OfAttempt) -> None:  # noqa: ARG002
        """Whatever it says, it is progress; after the look that asked it is all that has to be known of when."""
        if (watched := self._watched.get(replica)) is not None:
            watched.heard_s = self._looked_s

    def on_alive(self, replica: str, number: int) -> None:
        watched = self._watched.get(replica)
        if watched is None:
            return
        now_s = watched.heard_s = self._clock.monotonic_s()
        if number == 0 or number != watched.probe:
            return
        watched.probe = 0
        if health.Look(now_s, self._looked_s).is_late:
            return  # it is the node that took so long
        took_s = now_s - watched.probed_s
        watched.trips.append(health.Trip(now_s, took_s))
        self._facts.emit(telemetry.ProbeAnswered(watched.agent, took_s))
        if self._is_grading and watched.standing.finding.grade is health.Grade.UNKNOWN:
            own = health.summed(watched.outcomes, watched.trips, now_s=now_s)
            self._settle(watched, health.grade(own, (), hang_after_s=watched.hang_after_s))

    def on_exit(self, replica: str, exit: contract.Exit) -> None:  # noqa: ARG002 - however it ended
        self._watched.pop(replica, None)

    def _note(self, ended: telemetry.AttemptEnded) -> None:
        watched = self._watched.get(ended.replica)
        if watched is not None and (is_error := health.is_error(ended.reason)) is not None:
            watched.outcomes.append(health.Outcome(self._looked_s, is_error, ended.duration_s))

    # --- hangs

    def _look_at(self, watched: _Watched, look: health.Look) -> None:
        if look.is_late:
            watched.probe = 0  # the time that its answer takes is the node's own
        hang_after_s = watched.hang_after_s
        watched.asked_s, do = health.judge(watched.asked_s, watched.heard_s, look, hang_after_s=hang_after_s)
        match do:
            case health.Do.KILL:
                self._engine.kill(watched.id, failures.Failure.HUNG, health.why_hung(hang_after_s))
            case health.Do.PROBE:
                if not self._probe(watched):
                    watched.asked_s = None  # it is being stopped, or gone: no business of ours
            case health.Do.WAIT:
                # Also of one that talks all the time it is wanted to know how soon it answers.
                if (
                    self._is_grading
                    and look.now_s - watched.probed_s >= health.MOST_PROBE_EVERY_S
                    and not watched.probe
                ):
                    self._probe(watched)

    def _probe(self, watched: _Watched) -> bool:
        watched.probe, watched.probed_s = next(self._numbers), self._clock.monotonic_s()
        return self._engine.invoke(watched.id, protocol.Probe(watched.probe))

    # --- grades

    def _grade_all(self, look: health.Look) -> None:
        by_revision: dict[tuple[str, int], dict[str, health.Summary]] = {}
        for watched in self._watched.values():
            summary = health.summed(watched.outcomes, watched.trips, now_s=look.now_s)
            by_revision.setdefault((watched.agent, watched.revision), {})[watched.id] = summary
        for replicas in by_revision.values():
            working = [(id, summary) for id, summary in replicas.items() if summary.outcomes]
            for id, own in replicas.items():
                watched = self._watched[id]
                found = health.grade(
                    own,
                    [summary for other, summary in working if other != id],
                    unanswered_s=0.0 if watched.asked_s is None else look.before_s - watched.asked_s,
                    hang_after_s=watched.hang_after_s,
                )
                self._settle(watched, found)

    def _settle(self, watched: _Watched, found: health.Finding) -> None:
        before = watched.standing.finding
        watched.standing = health.settle(watched.standing, found)
        finding = watched.standing.finding
        if finding is before:
            return
        if finding.grade is not before.grade:
            self._facts.emit(telemetry.ReplicaGraded(watched.agent, watched.id, finding.grade, finding.reason))
        self._graded(watched.id)
