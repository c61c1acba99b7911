"""Rollouts: how capacity and traffic move from one revision of an agent to the next. Pure.

A strategy is a tuple of stages, so that blue-green, rolling and canary are one machine. Each stage brings up replicas
of the new revision, has them proven, gives them traffic, and watches them for a while; the revision before stays until
the last of them has passed, so that whatever fails is undone by one write. `control.reconciler` asks `step` what to do
and writes the answer down; the API asks for what people want; nobody else moves a rollout.

Time is given as what has passed since the last step: a clock that jumps, or a node that was down, ends no rollout.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from greenroom.core import analysis
from greenroom.core.failures import Failure


class Phase(enum.StrEnum):
    PROGRESSING = "progressing"
    PAUSED = "paused"  # a person has stopped it, or has to promote it
    COMPLETE = "complete"  # the new revision serves everything
    ROLLED_BACK = "rolled_back"  # it did not prove itself: the revision before serves everything
    ABORTED = "aborted"  # a person has undone it
    SUPERSEDED = "superseded"  # another one was begun before it was complete
    FAILED = "failed"  # it did not prove itself, and there was no revision before


class Move(enum.StrEnum):
    ADVANCE = "advance"  # into the next stage, by what was seen or by a person's promotion
    FINISH = "finish"
    PAUSE = "pause"
    RESUME = "resume"
    ROLL_BACK = "roll back"
    ABORT = "abort"
    SUPERSEDE = "supersede"
    FAIL = "fail"


TRANSITIONS: dict[tuple[Phase, Move], Phase] = {
    (Phase.PROGRESSING, Move.ADVANCE): Phase.PROGRESSING,
    (Phase.PROGRESSING, Move.PAUSE): Phase.PAUSED,
    (Phase.PROGRESSING, Move.FINISH): Phase.COMPLETE,
    (Phase.PROGRESSING, Move.ROLL_BACK): Phase.ROLLED_BACK,
    (Phase.PROGRESSING, Move.ABORT): Phase.ABORTED,
    (Phase.PROGRESSING, Move.SUPERSEDE): Phase.SUPERSEDED,
    (Phase.PROGRESSING, Move.FAIL): Phase.FAILED,
    (Phase.PAUSED, Move.RESUME): Phase.PROGRESSING,
    (Phase.PAUSED, Move.ADVANCE): Phase.PROGRESSING,
    (Phase.PAUSED, Move.FINISH): Phase.COMPLETE,
    (Phase.PAUSED, Move.ROLL_BACK): Phase.ROLLED_BACK,
    (Phase.PAUSED, Move.ABORT): Phase.ABORTED,
    (Phase.PAUSED, Move.SUPERSEDE): Phase.SUPERSEDED,
    (Phase.PAUSED, Move.FAIL): Phase.FAILED,
}
OPEN = frozenset({Phase.PROGRESSING, Phase.PAUSED})
UNDONE = frozenset({Phase.ROLLED_BACK, Phase.ABORTED, Phase.SUPERSEDED})


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """*capacity_pct* and *old_pct* are shares of the replicas that the agent should have: of the new revision, and of
    the one before. *weight_pct* is the traffic that the new one gets as soon as that capacity is ready and proven.
    """

    weight_pct: int
    capacity_pct: float
    old_pct: float = 100.0
    hold_s: float = 0.0  # how long it is watched then
    has_checks: bool = True  # beside the probe of each replica
    needs_samples: bool = False  # it goes on only with evidence from users' tasks
    needs_promotion: bool = False


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout as the store has it. *from_revision* is what served when it began; None: nothing did."""

    from_revision: int | None
    to_revision: int
    stages: tuple[Stage, ...] = ()
    progress_deadline_s: float = 120.0
    scale_down_delay_s: float = 5.0
    phase: Phase = Phase.PROGRESSING
    stage: int = 0
    weight_pct: int = 0
    waited_s: float = 0.0  # for this stage's capacity and proof; after the end: for what is to go
    held_s: float | None = None  # since the proof, while the capacity was there; None: there is no proof yet
    is_retired: bool = False  # what the rollout has left behind is gone, or goes
    reason: str = ""
    evidence: tuple[analysis.Stage, ...] = ()  # one for each weight that there was

    @property
    def is_open(self) -> bool:
        return self.phase in OPEN

    @property
    def is_proven(self) -> bool:
        """Whether this stage's capacity was ready and passed its checks."""
        return self.held_s is not None

    @property
    def serving(self) -> int:
        """The revision that is the agent's: it has full capacity, and whatever goes to no other."""
        has_switched = self.weight_pct == 100 and self.phase not in UNDONE
        return self.to_revision if has_switched or self.from_revision is None else self.from_revision

    @property
    def standing(self) -> frozenset[int]:
        """The revisions that keep replicas, and the sessions that began on them."""
        if self.is_retired or self.from_revision is None:
            return frozenset({self.serving})
        return frozenset({self.from_revision, self.to_revision})

    @property
    def shares(self) -> dict[int, int]:
        """How many of a hundred tasks each revision gets."""
        if self.from_revision is None:
            return {self.to_revision: self.weight_pct}
        if self.phase in UNDONE:
            return {self.from_revision: 100}
        shares = {self.from_revision: 100 - self.weight_pct, self.to_revision: self.weight_pct}
        return {revision: share for revision, share in shares.items() if share}


class Proof(enum.Enum):
    """What is known of the new revision's replicas beside that they are ready."""

    PENDING = enum.auto()
    PASSED = enum.auto()


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is of the new revision. *failure* says why it can never be promoted, if something does."""

    desired: int  # replicas that the agent should have
    ready: int
    proof: Proof = Proof.PENDING  # of as many replicas as this stage has
    failure: str | None = None


# --- strategies


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """What is wanted of a rollout. *surge* and *unavailable* are numbers of replicas."""

    kind: str  # "rolling", "blue-green" or "canary"
    hold_s: float = 0.0
    weights: tuple[int, ...] = (5, 25, 50, 100)
    surge: int = 1
    unavailable: int = 0
    needs_promotion: bool = False


def bound(given: int | str, desired: int) -> int:
    """Return a number of replicas that is given as one, or as a percentage of *desired*, rounded up.

    >>> bound(2, 10), bound("25%", 10), bound("0%", 10)
    (2, 3, 0)
    """
    if isinstance(given, int):
        return given
    return math.ceil(desired * int(given.removesuffix("%")) / 100)


def stages(strategy: Strategy, desired: int) -> tuple[Stage, ...]:
    """Return what *strategy* does with *desired* replicas.

    >>> [(stage.weight_pct, stage.capacity_pct, stage.old_pct) for stage in stages(Strategy(kind="rolling"), 4)]
    [(25, 25.0, 100.0), (50, 50.0, 75.0), (75, 75.0, 50.0), (100, 100.0, 25.0)]
    """
    gate = strategy.needs_promotion
    match strategy.kind:
        case "blue-green":
            return (
                Stage(weight_pct=0, capacity_pct=100, needs_promotion=gate),
                Stage(weight_pct=100, capacity_pct=100, hold_s=strategy.hold_s, has_checks=False),
            )
        case "canary":
            return tuple(
                Stage(
                    weight_pct=weight_pct,
                    capacity_pct=weight_pct,
                    hold_s=strategy.hold_s,
                    has_checks=place == 0,
                    needs_samples=weight_pct < 100,
                    needs_promotion=gate and weight_pct < 100,
                )
                for place, weight_pct in enumerate(strategy.weights)
            )
        case "rolling":
            return _batches(strategy, desired)
        case _:
            raise ValueError(f"no strategy is called {strategy.kind!r}")


def _batches(strategy: Strategy, desired: int) -> tuple[Stage, ...]:
    """Return one stage for each batch: at most *surge* replicas too many, and *unavailable* too few, at any time.

    One replica of the revision before stays to the end, whatever the bounds: the agent is always served.
    """
    surge = strategy.surge or (0 if strategy.unavailable else 1)  # or nothing could move
    batch = surge + strategy.unavailable
    found, moved = [], 0
    while moved < desired:
        new = min(desired, moved + batch)
        old = max(1, desired - moved - max(0, new - moved - surge))
        found.append(
            Stage(
                weight_pct=100 * new // desired,
                capacity_pct=100 * new / desired,
                old_pct=100 * old / desired,
                hold_s=strategy.hold_s,
                needs_promotion=strategy.needs_promotion and new < desired,
            )
        )
        moved = new
    return tuple(found)


def first(to_revision: int, *, has_checks: bool, progress_deadline_s: float = 120.0) -> Rollout:
    """Return the rollout of an agent's first revision: nothing else serves, so it does at once, or after its checks."""
    stage = Stage(weight_pct=100, capacity_pct=100, has_checks=has_checks)
    return Rollout(
        from_revision=None,
        to_revision=to_revision,
        stages=(stage,),
        progress_deadline_s=progress_deadline_s,
        weight_pct=0 if has_checks else 100,
    )


def switched(from_revision: int, to_revision: int, reason: str) -> Rollout:
    """Return the rollout that gives everything to a revision that stands, in one write."""
    return Rollout(
        from_revision=from_revision,
        to_revision=to_revision,
        phase=Phase.COMPLETE,
        weight_pct=100,
        is_retired=True,
        reason=reason,
    )


# --- capacity


def replicas(pct: float, desired: int) -> int:
    """Return *pct* percent of *desired* replicas, rounded up, and one at least.

    >>> replicas(5, 10), replicas(100 / 3, 3), replicas(0, 3)
    (1, 1, 1)
    """
    return max(1, math.ceil(desired * pct / 100 - 1e-9))


def capacity(rollout: Rollout, desired: int) -> dict[int, int]:
    """Return how many replicas each revision should have, of an agent that should have *desired*."""
    if not desired or rollout.from_revision is None or rollout.is_retired:
        return {rollout.serving: desired}
    stage = rollout.stages[rollout.stage]
    if rollout.phase is Phase.COMPLETE:
        return {rollout.to_revision: desired, rollout.from_revision: replicas(stage.old_pct, desired)}
    return {
        rollout.from_revision: replicas(stage.old_pct, desired),
        rollout.to_revision: replicas(stage.capacity_pct, desired),
    }


def surge(stages: Sequence[Stage], desired: int) -> int:
    """Return how many replicas more than *desired* there are when it is most."""
    if not desired:
        return 0
    return max(
        (replicas(stage.old_pct, desired) + replicas(stage.capacity_pct, desired) - desired for stage in stages),
        default=0,
    )


def beside(rollout: Rollout, desired: int) -> int:
    """Return how many replicas more than *desired* there may be from here on, until what *rollout* leaves is gone."""
    if rollout.from_revision is None or rollout.is_retired:
        return 0
    if rollout.is_open:
        return surge(rollout.stages, desired)
    return max(0, sum(capacity(rollout, desired).values()) - desired)


# --- the machine


def step(rollout: Rollout, seen: Seen, elapsed_s: float) -> tuple[Rollout, float | None]:
    """Make at most one move; return the rollout, and the seconds after which time alone can move it on.

    None where only something else can. *elapsed_s* is what has passed since the step before.
    """
    if not rollout.is_open:
        return _wind_up(rollout, elapsed_s)
    finding = analysis.judge(rollout.evidence)
    if seen.failure is not None:
        return roll_back(rollout, seen.failure), 0.0
    if finding.verdict is analysis.Verdict.FAIL:
        return roll_back(rollout, finding.reason), 0.0
    if rollout.phase is Phase.PAUSED:
        return rollout, None
    stage = rollout.stages[rollout.stage]
    if seen.ready < replicas(stage.capacity_pct, seen.desired) or not (rollout.is_proven or seen.proof is Proof.PASSED):
        return _wait(rollout, seen, elapsed_s)
    if rollout.held_s is None:
        return _weighted(rollout, stage.weight_pct), 0.0
    return _hold(replace(rollout, waited_s=0.0, held_s=rollout.held_s + elapsed_s), finding)


def _wind_up(rollout: Rollout, elapsed_s: float) -> tuple[Rollout, float | None]:
    """Let what the rollout leaves behind go: at once where it was undone, after the delay where it is complete."""
    if rollout.is_retired:
        return rollout, None
    waited_s = rollout.waited_s + elapsed_s
    left_s = rollout.scale_down_delay_s - waited_s
    if left_s <= 0:
        return replace(rollout, is_retired=True, waited_s=waited_s), None
    return replace(rollout, waited_s=waited_s), left_s


def _wait(rollout: Rollout, seen: Seen, elapsed_s: float) -> tuple[Rollout, float | None]:
    """Wait for the stage's capacity and proof, for as long as it may take."""
    wanted = replicas(rollout.stages[rollout.stage].capacity_pct, seen.desired)
    what = f"{seen.ready} of {wanted} replicas were ready" if seen.ready < wanted else "its checks were not through"
    waited_s = rollout.waited_s + elapsed_s
    left_s = rollout.progress_deadline_s - waited_s
    if left_s <= 0:
        deadline = f"{rollout.progress_deadline_s:g} s (progress_deadline_s)"
        return roll_back(rollout, f"no progress within {deadline}: {what}"), 0.0
    return replace(rollout, waited_s=waited_s), left_s


def _hold(rollout: Rollout, finding: analysis.Finding) -> tuple[Rollout, float | None]:
    """Watch a stage that is proven, and leave it when that is over and there is evidence."""
    assert rollout.held_s is not None
    stage = rollout.stages[rollout.stage]
    if rollout.held_s < stage.hold_s:
        return rollout, stage.hold_s - rollout.held_s
    if stage.needs_samples and finding.verdict is not analysis.Verdict.PASS:
        left_s = stage.hold_s + rollout.progress_deadline_s - rollout.held_s
        if not finding.samples and left_s <= 0:
            deadline = f"{rollout.progress_deadline_s:g} s (progress_deadline_s)"
            return roll_back(rollout, f"no evidence: no task ended on it within {deadline}"), 0.0
        return replace(rollout, reason=finding.reason), left_s if left_s > 0 else None
    if stage.needs_promotion:
        return _moved(rollout, Move.PAUSE, reason="it waits for promotion"), None
    return _advanced(rollout), 0.0


def _weighted(rollout: Rollout, weight_pct: int) -> Rollout:
    """Give the new revision the traffic of its stage; what comes to it from here on is evidence of its own."""
    evidence = rollout.evidence
    if not evidence or evidence[-1].weight_pct != weight_pct:
        evidence = (*evidence, analysis.Stage(weight_pct=weight_pct))
    return replace(rollout, weight_pct=weight_pct, held_s=0.0, waited_s=0.0, evidence=evidence, reason="")


def _advanced(rollout: Rollout) -> Rollout:
    if rollout.stage + 1 == len(rollout.stages):
        done = _moved(rollout, Move.FINISH, reason="")
        return replace(done, waited_s=0.0, is_retired=rollout.from_revision is None)
    moved = _moved(rollout, Move.ADVANCE, reason="")
    return replace(moved, stage=rollout.stage + 1, waited_s=0.0, held_s=None)


def _moved(rollout: Rollout, by: Move, *, reason: str) -> Rollout:
    return replace(rollout, phase=TRANSITIONS[rollout.phase, by], reason=reason)


def _undone(rollout: Rollout, by: Move, reason: str) -> Rollout:
    """Give everything back to the revision before, at once; it has all its capacity again as soon as that can be."""
    if rollout.from_revision is None and by is not Move.SUPERSEDE:
        return replace(_moved(rollout, Move.FAIL, reason=reason), is_retired=True)
    return replace(_moved(rollout, by, reason=reason), weight_pct=0, is_retired=True, waited_s=0.0)


# --- what is asked for


class Refused(Exception):
    """The rollout cannot do this now: the message says why."""


def roll_back(rollout: Rollout, reason: str) -> Rollout:
    """Undo it because its revision has failed; where there is none before, it stays as it is, and has failed."""
    return _undone(rollout, Move.ROLL_BACK, reason)


def abort(rollout: Rollout, reason: str) -> Rollout:
    """Undo it because somebody wants to; one that has ended stays as it is."""
    return _undone(rollout, Move.ABORT, reason) if rollout.is_open else rollout


def supersede(rollout: Rollout, reason: str) -> Rollout:
    """End it because another one begins: what it has left behind goes."""
    if rollout.is_open:
        return _undone(rollout, Move.SUPERSEDE, reason)
    return replace(rollout, is_retired=True)


def pause(rollout: Rollout) -> Rollout:
    """Stop it where it is; what fails is undone all the same. Raises `Refused` if it has ended."""
    if not rollout.is_open:
        raise Refused(f"it is {rollout.phase} already")
    if rollout.phase is Phase.PAUSED:
        return rollout
    return _moved(rollout, Move.PAUSE, reason="it was paused")


def resume(rollout: Rollout) -> Rollout:
    """Go on; where it waits for a person this is the promotion. Raises `Refused` if it has ended."""
    if not rollout.is_open:
        raise Refused(f"it is {rollout.phase} already")
    if rollout.phase is not Phase.PAUSED:
        return rollout
    if is_waiting_for_promotion(rollout):
        return promote(rollout)
    return _moved(replace(rollout, waited_s=0.0), Move.RESUME, reason="")


def is_waiting_for_promotion(rollout: Rollout) -> bool:
    """Whether it is paused because its stage has done all but be promoted."""
    if rollout.phase is not Phase.PAUSED or rollout.held_s is None:
        return False
    stage = rollout.stages[rollout.stage]
    return stage.needs_promotion and rollout.held_s >= stage.hold_s


def promote(rollout: Rollout) -> Rollout:
    """Leave the stage now, however long it was to be watched.

    Raises `Refused` if the rollout has ended, or its new replicas have not proven themselves: nobody promotes those.
    """
    if not rollout.is_open:
        raise Refused(f"it is {rollout.phase} already")
    if not rollout.is_proven:
        raise Refused(
            f"revision {rollout.to_revision} has not proven itself in this stage yet: its replicas have to be ready "
            "and to pass their checks"
        )
    return _advanced(rollout)


# --- evidence


@dataclass(frozen=True, slots=True)
class Death:
    """A replica of the new revision that died."""

    kind: str  # of `core.failures`
    reason: str
    was_asked_for: bool = False  # somebody killed it from outside


MOST_DEATHS = 3  # by itself: one may be an accident, and two are what one task that kills its replicas causes
_AT_ONCE = frozenset({Failure.REFUSED, Failure.LATE})  # it would be the same again


def doom(deaths: Sequence[Death]) -> str | None:
    """Say why a revision whose replicas have died so can never be promoted; None while it may be.

    >>> doom([Death("killed", "by SIGKILL")] * 10)
    >>> doom([Death("refused", "cannot import agents")])
    'cannot import agents'
    """
    for death in deaths:
        if death.kind in _AT_ONCE:
            return death.reason
    own = [death for death in deaths if death.kind != Failure.KILLED]
    if len(own) >= MOST_DEATHS:
        return f"{len(own)} of its replicas have died; the last one: {own[-1].reason}"
    return None


def with_tallies(rollout: Rollout, tallies: Mapping[int, analysis.Tally]) -> Rollout:
    """Put what has been counted since the weight changed, by revision, in the place of what was."""
    if not rollout.evidence or rollout.from_revision is None:
        return rollout
    none = analysis.Tally()
    last = replace(
        rollout.evidence[-1],
        serving=tallies.get(rollout.from_revision, none),
        candidate=tallies.get(rollout.to_revision, none),
    )
    if last == rollout.evidence[-1]:
        return rollout
    return replace(rollout, evidence=(*rollout.evidence[:-1], last))
