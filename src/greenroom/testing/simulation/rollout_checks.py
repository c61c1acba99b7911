"""What must hold at every instant of a rollout, and in the end: the promises, stated anew over rows and replicas.

Tasks and sessions are judged by `checks`; here it is what serves, what stands, who has proven what, and who got which
task. Nothing here asks the product what it meant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from greenroom.engine import protocol
from greenroom.testing.fake_engine import FakeReplica
from greenroom.testing.simulation import checks
from greenroom.testing.simulation.checks import Violation
from greenroom.testing.simulation.rollout_replicas import Evidence
from greenroom.testing.simulation.scenarios import Plot, Scenario

OPEN = frozenset({"progressing", "paused"})
UNDONE = frozenset({"rolled_back", "aborted", "superseded"})
STALE_S = 2.0  # a death is in the store by then
MIN_TASKS = 10  # that succeed, before a canary gets everything


class RolloutRow(msgspec.Struct, frozen=True):
    """A rollout as a commit has left it."""

    id: int
    from_revision: int | None
    to_revision: int
    phase: str
    version: int
    ended_at: int | None
    record: bytes

    @property
    def is_open(self) -> bool:
        return self.phase in OPEN

    @property
    def weight_pct(self) -> int:
        return int(self.known["weight_pct"])

    @property
    def stage(self) -> int:
        return int(self.known["stage"])

    @property
    def is_proven(self) -> bool:
        return self.known["held_s"] is not None

    @property
    def known(self) -> dict[str, Any]:
        known: dict[str, Any] = msgspec.json.decode(self.record)
        return known

    @property
    def shares(self) -> Set[int]:
        """The revisions that get tasks which no session keeps elsewhere."""
        if self.from_revision is not None and self.phase in UNDONE:
            return {self.from_revision}
        weights = {self.to_revision: self.weight_pct}
        if self.from_revision is not None:
            weights[self.from_revision] = 100 - self.weight_pct
        return {revision for revision, weight_pct in weights.items() if weight_pct}


class TaskRow(checks.Row, Protocol):
    @property
    def revision(self) -> int | None: ...
    @property
    def replica(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class View:
    """What a commit has left: *serving* is the agent's revision, None before there is one."""

    serving: int | None = None
    rollouts: Sequence[RolloutRow] = ()  # the latest first
    standing: Set[int] = frozenset()
    draining: Set[str] = frozenset()  # replicas

    @property
    def shares(self) -> Set[int]:
        return self.rollouts[0].shares if self.rollouts else frozenset()


class Fleet(Protocol):
    def serving(self, revision: int) -> set[str]:
        """Return the replicas of *revision* that are ready, and were not told to stop."""


@dataclass
class RolloutChecks:
    scenario: Scenario
    evidence: Evidence
    view: View = field(default_factory=View)
    _floor: int = 0  # of ready replicas of the serving revision; grows to what has to be
    _fleet_floor: int = 0  # of all revisions
    _struck_s: float = -math.inf
    _is_struck: bool = False  # by what takes replicas
    _served: set[int] = field(default_factory=set)
    _epochs: dict[str, int] = field(default_factory=dict)
    _homes: dict[str, int] = field(default_factory=dict)  # where a session's last task began
    _wrote: dict[str, int] = field(default_factory=dict)  # which revision has written a session's state
    _rows: dict[str, TaskRow] = field(default_factory=dict)

    # --- instants

    def struck(self, now_s: float) -> None:
        """Replicas were taken away from outside: from here on it has to recover."""
        self._floor = self._fleet_floor = 0
        self._struck_s, self._is_struck = now_s, True

    def saw(self, view: View, rows: Sequence[TaskRow], fleet: Fleet, now_s: float) -> None:
        """A commit has left *view*, and *rows* that are not what they were."""
        before, self.view = self.view, view
        self._judge_rollouts(before)
        for row in rows:
            self._judge_claim(row, before)
            self._rows[row.id] = row
        for gone in before.standing - view.standing:
            self._homes = {session: home for session, home in self._homes.items() if home != gone}
        if view.serving is not None and view.serving != before.serving:
            self._judge_switch(view.serving, fleet, now_s, is_first=before.serving is None)
        self.counted(fleet, now_s)

    def counted(self, fleet: Fleet, now_s: float) -> None:
        """Replicas have come or gone, or something else serves."""
        if self.view.serving is None:
            return
        ready = len(fleet.serving(self.view.serving) - self.view.draining)
        if ready < self._floor:
            raise Violation(
                "I34", f"revision {self.view.serving} serves, and {ready} of its replicas are ready, not {self._floor}"
            )
        self._floor = max(self._floor, min(ready, self.scenario.min_ready))
        known = set(self.evidence.revision_of.values())
        together = sum(len(fleet.serving(revision) - self.view.draining) for revision in known)
        if together < self._fleet_floor:
            raise Violation("I34", f"{together} replicas are ready, not {self._fleet_floor}")
        if now_s >= self._struck_s + STALE_S:  # somebody may promote what has just been killed
            self._fleet_floor = max(self._fleet_floor, min(together, self.scenario.desired))

    def _judge_switch(self, serving: int, fleet: Fleet, now_s: float, *, is_first: bool) -> None:
        if is_first:
            self._served.add(serving)
            return
        ready, needed = len(fleet.serving(serving) - self.view.draining), self.scenario.min_ready
        is_back = serving in self._served
        if serving not in self._served:
            self._judge_evidence(serving)
        self._served.add(serving)
        if self._is_struck and (is_back or now_s < self._struck_s + STALE_S):
            self._floor = 0  # whatever is there of it: nothing else may serve
        elif ready < needed:
            raise Violation("I34", f"revision {serving} serves from now on, with {ready} of {needed} replicas ready")
        else:
            self._floor = needed

    def _judge_evidence(self, serving: int) -> None:
        probed, desired = len(self.evidence.probed[serving]), self.scenario.desired
        if probed < desired:
            raise Violation("I36", f"revision {serving} serves, and {probed} of {desired} replicas have shown anything")
        if not self.evidence.checked[serving]:
            raise Violation("I36", f"revision {serving} serves, and its check has never passed")
        worked = self.evidence.worked[serving]
        if self.scenario.strategy == "canary" and worked < MIN_TASKS:
            raise Violation("I36", f"revision {serving} serves, and {worked} tasks have succeeded on it")

    def _judge_rollouts(self, before: View) -> None:
        rollouts, known = self.view.rollouts, {rollout.id: rollout for rollout in before.rollouts}
        if len([rollout for rollout in rollouts if rollout.is_open]) > 1:
            raise Violation("I37", "two rollouts of one agent are open")
        for rollout in rollouts:
            if rollout.is_open != (rollout.ended_at is None):
                raise Violation("I37", f"rollout {rollout.id} is {rollout.phase}, and its end is {rollout.ended_at}")
            earlier = known.get(rollout.id)
            if earlier is None:
                continue
            if rollout.version < earlier.version:
                raise Violation("I37", f"rollout {rollout.id} went back from version {earlier.version}")
            if rollout.phase != earlier.phase and not earlier.is_open and rollout.phase != "superseded":
                raise Violation("I37", f"rollout {rollout.id} was {earlier.phase} and is {rollout.phase}")
            if rollout.from_revision is not None and rollout.weight_pct > earlier.weight_pct:
                self._judge_weight(rollout)
        if rollouts and self.view.serving not in self.view.standing:
            raise Violation("I34", f"revision {self.view.serving} serves, and {set(self.view.standing)} stand")

    def _judge_weight(self, rollout: RolloutRow) -> None:
        needed = math.ceil(self.scenario.desired * rollout.weight_pct / 100)
        probed = len(self.evidence.probed[rollout.to_revision])
        if probed < needed:
            raise Violation(
                "I36",
                f"revision {rollout.to_revision} gets {rollout.weight_pct} %, and {probed} of {needed} are proven",
            )

    # --- tasks

    def _judge_claim(self, row: TaskRow, before: View) -> None:
        if row.state == "succeeded" and row.session is not None and row.revision is not None:
            self._wrote[row.session] = row.revision
        if row.epoch <= self._epochs.get(row.id, 0):
            return
        self._epochs[row.id] = row.epoch
        if row.revision is None or row.replica is None or row.state not in ("running", "waiting"):
            return  # it is over already
        if (own := self.evidence.revision_of.get(row.replica)) != row.revision:
            raise Violation("I35", f"{row.id} is bound to revision {row.revision}, and its replica is of {own}")
        if row.revision not in before.standing:
            raise Violation("I35", f"{row.id} was claimed by revision {row.revision}, which is retired")
        if not self.evidence.checked[row.revision]:
            raise Violation("I36", f"{row.id} was given to revision {row.revision}, whose check has never passed")
        home = None if row.session is None else self._homes.get(row.session)
        if home is not None and row.revision != home:
            raise Violation("I15", f"{row.id} of a session of revision {home} was claimed by revision {row.revision}")
        if home is None and row.revision not in before.shares | self.view.shares:
            raise Violation("I35", f"{row.id} was claimed by revision {row.revision}, which gets no tasks")
        if row.session is not None:
            self._homes[row.session] = row.revision

    def began(self, replica: FakeReplica, invoke: protocol.Invoke) -> None:
        """A replica was given a task."""
        row = self._rows[invoke.task]
        if row.epoch == invoke.epoch and row.revision != replica.revision.number:
            raise Violation("I35", f"{row.id} of revision {row.revision} runs on revision {replica.revision.number}")
        wrote = None if invoke.session is None else self._wrote.get(invoke.session)
        if invoke.state_revision != wrote:
            raise Violation(
                "I15", f"{row.id} was told of revision {invoke.state_revision}, and {wrote} wrote its state"
            )

    # --- in the end

    def finish(self, fleet: Fleet, replicas: Mapping[str, FakeReplica]) -> None:
        """It has come to rest."""
        end, last = self.scenario.end, self.view.rollouts[0]
        if last.phase != end.phase:
            raise Violation("I37", f"the last rollout is {last.phase}, not {end.phase}: {last.known['reason']}")
        if self.view.serving not in end.serving:
            broken = "I36" if self.view.serving in self.scenario.bad else "I37"
            raise Violation(broken, f"revision {self.view.serving} serves in the end, not {set(end.serving)}")
        assert self.view.serving is not None
        ready, desired = len(fleet.serving(self.view.serving)), self.scenario.desired
        if (ready, len(replicas)) != (desired, desired):
            raise Violation("I34", f"{ready} of {len(replicas)} replicas serve in the end, not {desired} of {desired}")
        if self.view.standing != {self.view.serving}:
            raise Violation("I37", f"{set(self.view.standing)} stand in the end")
        for row in self._rows.values():
            is_scripted = row.revision is not None and self.scenario.bad.get(row.revision) is Plot.ERRORS
            if row.state != "succeeded" and not (row.state == "failed" and is_scripted):
                raise Violation("I35", f"{row.id} is {row.state}, of revision {row.revision}")
