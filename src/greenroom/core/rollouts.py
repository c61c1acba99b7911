"""Rollouts: how capacity and traffic move from one revision of an agent to the next. Pure.

Each stage of its strategy brings up replicas of the new revision, has them proven, gives them traffic, and watches them
for a while; the revision before stays until the last of them has passed, so that whatever fails is undone by one write.
`control.reconciler` asks `step` what to do and writes the answer down; the API asks for what people want; nobody else
moves a rollout.

Time is given as what has passed since the last step: a clock that jumps, or a node that was down, ends no rollout.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from greenroom.core import analysis, strategies
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


class Moment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a rollout was from *at_us* on, and why. The store notes it, which has the time."""

    at_us: int
    phase: Phase
    stage: int = 0
    weight_pct: int = 0
    reason: str = ""


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout as the store has it. *from_revision* is what served when it began; None: nothing did."""

    from_revision: int | None
    to_revision: int
    stages: tuple[strategies.Stage, ...] = ()
    progress_deadline_s: float = 120.0
    scale_down_delay_s: float = 5.0
    phase: Phase = Phase.PROGRESSING
    stage: int = 0
    weight_pct: int = 0
    waited_s: float = 0.0  # for this stage's capacity and proof; after the end: for what is to go
    held_s: float | None = None  # since the proof, while the capacity was there; None: there is no proof yet
    awaits_promotion: bool = False  # its stage has done all but be promoted
    replicas_after: int | None = None  # how many the agent should have when it is complete; None: as many as now
    deaths_after: int = 0  # the number of the last death that says nothing about this stage
    is_retired: bool = False  # what the rollout has left behind is gone, or goes
    reason: str = ""
    evidence: tuple[analysis.Stage, ...] = ()  # one for each weight that there was
    moments: tuple[Moment, ...] = ()  # after its beginning

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


class Seen(msgspec.Struct, frozen=True):
    """What there is of the new revision. *failure* says why it can never be promoted, if something does."""

    desired: int  # replicas that the agent should have
    ready: int
    proof: Proof = Proof.PENDING  # of as many replicas as this stage has
    failure: str | None = None
    last_death: int = 0  # the number of the latest death of a replica


# --- beginnings


def first(
    to_revision: int, *, has_checks: bool, is_served: bool = False, progress_deadline_s: float = 120.0
) -> Rollout:
    """Return the rollout of an agent's first revision: nothing else serves, so it does at once, or after its checks.

    *is_served*: it serves already, and has failed as the first one before; that it goes on doing.
    """
    stage = strategies.Stage(weight_pct=100, capacity_pct=100, has_checks=has_checks)
    return Rollout(
        from_revision=None,
        to_revision=to_revision,
        stages=(stage,),
        progress_deadline_s=progress_deadline_s,
        weight_pct=0 if has_checks and not is_served else 100,
    )


def adopted(revision: int) -> Rollout:
    """Return the rollout that an agent has behind it which has none, for it is from before there were any."""
    return Rollout(from_revision=None, to_revision=revision, phase=Phase.COMPLETE, weight_pct=100, is_retired=True)


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


def wanted(rollout: Rollout, desired: int) -> int:
    """Return how many replicas there should be of an agent that should have *desired*: one at least while it moves.

    An agent at zero sleeps; its new revision has to be awake to prove itself.
    """
    return max(1, desired) if rollout.is_open else desired


def capacity(rollout: Rollout, desired: int) -> dict[int, int]:
    """Return how many replicas each revision should have, of an agent that should have *desired*."""
    desired = wanted(rollout, desired)
    if not desired or rollout.from_revision is None or rollout.is_retired:
        return {rollout.serving: desired}
    stage = rollout.stages[rollout.stage]
    if rollout.phase is Phase.COMPLETE:
        return {rollout.to_revision: desired, rollout.from_revision: strategies.replicas(stage.old_pct, desired)}
    return {
        rollout.from_revision: strategies.replicas(stage.old_pct, desired),
        rollout.to_revision: strategies.replicas(stage.capacity_pct, desired),
    }


def beside(rollout: Rollout, desired: int) -> int:
    """Return how many replicas more than *desired* there may be, until what *rollout* leaves behind is gone."""
    if rollout.from_revision is None or rollout.is_retired:
        return wanted(rollout, desired) - desired
    if rollout.is_open:
        awake = wanted(rollout, desired)
        return strategies.surge(rollout.stages, awake) + awake - desired
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
    has_capacity = seen.ready >= strategies.replicas(stage.capacity_pct, seen.desired)
    has_proof = rollout.is_proven or seen.proof is Proof.PASSED
    if not (has_capacity and has_proof):
        return _wait(rollout, seen, elapsed_s)
    if rollout.held_s is None:
        return _weighted(rollout, stage.weight_pct), 0.0
    return _hold(replace(rollout, waited_s=0.0, held_s=rollout.held_s + elapsed_s), finding, seen)


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
    wanted = strategies.replicas(rollout.stages[rollout.stage].capacity_pct, seen.desired)
    what = f"{seen.ready} of {wanted} replicas were ready" if seen.ready < wanted else "its checks were not through"
    waited_s = rollout.waited_s + elapsed_s
    left_s = rollout.progress_deadline_s - waited_s
    if left_s <= 0:
        deadline = f"{rollout.progress_deadline_s:g} s (progress_deadline_s)"
        return roll_back(rollout, f"no progress within {deadline}: {what}"), 0.0
    return replace(rollout, waited_s=waited_s), left_s


def _hold(rollout: Rollout, finding: analysis.Finding, seen: Seen) -> tuple[Rollout, float | None]:
    """Watch a stage that is proven, and leave it when that is over and there is evidence."""
    assert rollout.held_s is not None
    stage = rollout.stages[rollout.stage]
    if rollout.held_s < stage.hold_s:
        return rollout, stage.hold_s - rollout.held_s
    if stage.needs_samples and finding.verdict is not analysis.Verdict.PASS:
        left_s = stage.hold_s + rollout.progress_deadline_s - rollout.held_s
        if left_s <= 0 and _is_untried(rollout):
            waited = f"{rollout.held_s:.0f} s (hold_s, and progress_deadline_s after it)"
            return roll_back(rollout, f"no evidence: no task has run on it within {waited}"), 0.0
        return replace(rollout, reason=finding.reason), left_s if left_s > 0 else None
    if stage.needs_promotion:
        return _moved(replace(rollout, awaits_promotion=True), Move.PAUSE, reason="it waits for promotion"), None
    return replace(_advanced(rollout), deaths_after=seen.last_death), 0.0


def left_s(rollout: Rollout) -> float | None:
    """Return the seconds after which time alone moves it, as `step` does while its capacity stays as it is.

    None where only something else can. For people: who moves it asks `step`.
    """
    if rollout.phase is not Phase.PROGRESSING:
        return None
    stage = rollout.stages[rollout.stage]
    if rollout.held_s is None:
        return max(0.0, rollout.progress_deadline_s - rollout.waited_s)
    if rollout.held_s < stage.hold_s:
        return stage.hold_s - rollout.held_s
    if stage.needs_samples and _is_untried(rollout):
        return max(0.0, stage.hold_s + rollout.progress_deadline_s - rollout.held_s)
    return None


def _is_untried(rollout: Rollout) -> bool:
    """Whether no user's task has ended or runs on the new revision."""
    return not any(stage.candidate.tasks or stage.candidate.running for stage in rollout.evidence)


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


def has_moved(before: Rollout, after: Rollout) -> bool:
    """Whether more has changed than what waiting and counting change."""
    if (before.held_s is None) != (after.held_s is None):
        return True
    counted = replace(after, waited_s=before.waited_s, held_s=before.held_s, evidence=before.evidence)
    if after.phase is before.phase is Phase.PROGRESSING:
        counted = replace(counted, reason=before.reason)  # it tells what was counted
    return counted != before


def _moved(rollout: Rollout, by: Move, *, reason: str) -> Rollout:
    awaits_promotion = rollout.awaits_promotion and by is Move.PAUSE
    return replace(rollout, phase=TRANSITIONS[rollout.phase, by], reason=reason, awaits_promotion=awaits_promotion)


def _undone(rollout: Rollout, by: Move, reason: str) -> Rollout:
    """Give everything back to the revision before, at once; it has all its capacity again as soon as that can be.

    Where there is none before, it is left as it is.
    """
    if rollout.from_revision is None and by is not Move.SUPERSEDE:
        by = Move.FAIL if by is Move.ROLL_BACK else by
        return replace(_moved(rollout, by, reason=reason), is_retired=True)
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
    if rollout.awaits_promotion:
        return promote(rollout)
    return _moved(replace(rollout, waited_s=0.0), Move.RESUME, reason="")


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


class Death(msgspec.Struct, frozen=True):
    """A replica that died, as a word of `core.failures`, and for people."""

    kind: str
    reason: str


MOST_DEATHS = 3  # by itself: one may be an accident, and two are what one task that kills its replicas causes
_FROM_OUTSIDE = frozenset({Failure.KILLED, Failure.EVICTED})
_AT_ONCE = frozenset({Failure.REFUSED, Failure.LATE})  # it would be the same again


def doom(deaths: Sequence[Death], others: Sequence[Death] = ()) -> str | None:
    """Say why a revision whose replicas have died so can never be promoted; None while it may be.

    *others* are the deaths of the serving one meanwhile: who dies no more often than that is no worse.

    >>> doom([Death("killed", "by SIGKILL")] * 10)
    >>> doom([Death("refused", "cannot import agents")])
    'cannot import agents'
    """
    for death in deaths:
        if death.kind in _AT_ONCE:
            return death.reason
    own, usual = ([death for death in those if death.kind not in _FROM_OUTSIDE] for those in (deaths, others))
    if len(own) >= MOST_DEATHS and len(own) > len(usual):
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
