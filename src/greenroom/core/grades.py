"""Grades of agents and of the system. Pure; `control.grades` and the API ask.

An agent is as good as its replicas (`core.health`) and as what became of its tasks in the last minutes: what all its
replicas share, an error of its code or a slow model behind it, makes no replica unhealthy, but the agent. Nothing is
stopped for such a grade. The system is as good as the worst of its agents and the node itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from greenroom.core import history
from greenroom.core.health import Finding, Grade

UNHEALTHY_TIMES = 3.0  # the chapter's 10 and 30, of seconds as of percent
_SEVERITY = {grade: place for place, grade in enumerate(Grade)}


class Graded(msgspec.Struct, frozen=True):
    """A ready replica, or an agent."""

    id: str
    grade: Grade
    reason: str


def of_replicas(desired: int, ready: Sequence[Graded], *, failure: str = "") -> tuple[Grade, str]:
    """Grade an agent from its replicas; *failure* is why it has failed, if it has.

    As good as its worst replica, but that one which is unhealthy only degrades it while others serve.
    """
    if not desired:
        return (Grade.UNHEALTHY, failure) if failure else (Grade.UNKNOWN, "it should have no replicas")
    if not ready:
        return (Grade.UNHEALTHY, failure) if failure else (Grade.UNKNOWN, f"none of its {desired} replicas is ready")
    worst = max(ready, key=lambda replica: _SEVERITY[replica.grade])
    grades = {replica.grade for replica in ready}
    if grades == {Grade.UNKNOWN}:
        return Grade.UNKNOWN, worst.reason
    if worst.grade in (Grade.DEGRADED, Grade.UNHEALTHY):
        grade = Grade.UNHEALTHY if grades == {Grade.UNHEALTHY} else Grade.DEGRADED
        return grade, f"{worst.id}: {worst.reason}"
    if len(ready) < desired:
        return Grade.DEGRADED, f"{len(ready)} of {desired} replicas are ready" + (f": {failure}" if failure else "")
    return worst.grade, worst.reason if worst.grade is Grade.HEALTHY else f"{worst.id}: {worst.reason}"


# --- what became of its tasks


class Bounds(msgspec.Struct, frozen=True):
    """From where on an agent is degraded, and unhealthy; None: it is not graded by that. *min_samples* of each."""

    window_s: float = 300.0
    min_samples: int = 10
    response_s: tuple[float, float] | None = (10.0, 30.0)
    error_pct: tuple[float, float] | None = (10.0, 30.0)


class Recent(msgspec.Struct, frozen=True):
    """An agent's last minutes: of *judged* attempts *errors* speak against it; *tasks* that were drawn took
    *response_s* on average, of which they waited *wait_s* for a slot.
    """

    judged: int = 0
    errors: int = 0
    tasks: int = 0
    response_s: float = 0.0
    wait_s: float = 0.0

    @classmethod
    def of(cls, counts: history.Counts) -> Recent:
        response, wait = counts.response.spread(), counts.wait.spread()
        return cls(
            counts.judged,
            counts.errors,
            0 if response is None else response.count,
            0.0 if response is None else response.mean,
            0.0 if wait is None else wait.mean,
        )

    @property
    def error_pct(self) -> float:
        return 100 * self.errors / self.judged if self.judged else 0.0


TOO_FEW = Finding(Grade.UNKNOWN, "too few of its tasks have ended lately", "too few")
WELL = Finding(Grade.HEALTHY, "its tasks end well", "well")


def judge(agent: str, recent: Recent, bounds: Bounds, *, is_graded: bool = False) -> Finding:
    """Grade *agent* by what became of its tasks; where neither errors nor times are known of enough, it is unknown.

    Of one that *is_graded* half as many are enough: where just about so many end, its grade is not to come and go.
    """
    if is_graded:
        bounds = msgspec.structs.replace(bounds, min_samples=math.ceil(bounds.min_samples / 2))
    found = [*_errors(agent, recent, bounds), *_response(agent, recent, bounds)]
    return max(found, key=lambda finding: _SEVERITY[finding.grade], default=TOO_FEW)


def _errors(agent: str, recent: Recent, bounds: Bounds) -> Iterable[Finding]:
    if bounds.error_pct is None or recent.judged < bounds.min_samples:
        return
    grade, bound = _graded(recent.error_pct, bounds.error_pct)
    yield (
        WELL
        if grade is Grade.HEALTHY
        else Finding(
            grade,
            f"{recent.errors} of the last {recent.judged} attempts ({recent.error_pct:.0f} %) ended with an error in "
            f"{_minutes(bounds.window_s)}; from {bound:g} % on it is {grade}; see greenroom tasks ls --agent {agent} "
            "--state failed",
            "errors",
        )
    )


def _response(agent: str, recent: Recent, bounds: Bounds) -> Iterable[Finding]:
    if bounds.response_s is None or recent.tasks < bounds.min_samples:
        return
    grade, bound = _graded(recent.response_s, bounds.response_s)
    if grade is Grade.HEALTHY:
        yield WELL
        return
    is_queue = recent.wait_s > recent.response_s / 2
    advice = (
        f"it waits for a slot most of the time: see greenroom scale explain {agent}"
        if is_queue
        else f"if that is its work, raise agents.{agent}.health.response_s"
    )
    yield Finding(
        grade,
        f"its tasks took {recent.response_s:.1f} s on average in {_minutes(bounds.window_s)}, {recent.wait_s:.1f} s of "
        f"it waiting; from {bound:g} s on it is {grade}; {advice}",
        "waiting" if is_queue else "slow",
    )


def _graded(value: float, bounds: tuple[float, float]) -> tuple[Grade, float]:
    degraded, unhealthy = bounds
    if value >= unhealthy:
        return Grade.UNHEALTHY, unhealthy
    return (Grade.DEGRADED if value >= degraded else Grade.HEALTHY), degraded


def _minutes(window_s: float) -> str:
    return f"{window_s / 60:.3g} min"


def of_agent(replicas: tuple[Grade, str], tasks: Finding) -> tuple[Grade, str]:
    """Return the worse of what an agent's replicas and its tasks say. Tasks that end well are no sign of life of who
    has none now: they make nothing better.
    """
    is_worse = tasks.grade is not Grade.UNKNOWN and _SEVERITY[tasks.grade] > _SEVERITY[replicas[0]]
    return (tasks.grade, tasks.reason) if is_worse else replicas


# --- the system


DISK_DEGRADED_MB, DISK_UNHEALTHY_MB = 2048, 512  # free: a database that meets the end of its disk takes nothing
ENVELOPE_PCT = 95.0  # as the rule GreenroomEnvelopeFull has it


def of_node(
    *, troubles: Mapping[str, str], failure: str | None, disk_free_mb: float | None, envelope_pct: Mapping[str, float]
) -> Finding:
    """Grade the node itself. *troubles* are those that it has with the store, by who met them."""
    if failure is not None:
        return Finding(Grade.UNHEALTHY, f"the node: {failure}", "failed")
    if troubles:
        where, error = next(iter(troubles.items()))
        return Finding(Grade.UNHEALTHY, f"the store: {error} (told by {where})", "store")
    if disk_free_mb is not None and disk_free_mb < DISK_DEGRADED_MB:
        grade = Grade.UNHEALTHY if disk_free_mb < DISK_UNHEALTHY_MB else Grade.DEGRADED
        told = f"the disk of the data directory has {disk_free_mb:.0f} MB left; make room, or keep fewer backups"
        return Finding(grade, told, "disk")
    for resource, used_pct in envelope_pct.items():
        if used_pct >= ENVELOPE_PCT:
            told = f"replicas use {used_pct:.0f} % of cluster.{resource}; raise it, or have fewer replicas"
            return Finding(Grade.DEGRADED, told, "envelope")
    return Finding(Grade.HEALTHY, "the node is well", "well")


def of_system(node: Finding, agents: Iterable[Graded]) -> tuple[Grade, str]:
    """Return the worst of the node and its *agents*; of equally bad ones, the first. Leave out who sleeps: an agent
    without replicas that is to have none.
    """
    found = [Graded("", node.grade, node.reason), *agents]
    worst = max(found, key=lambda each: _SEVERITY[each.grade])
    if worst.grade is Grade.HEALTHY:
        return Grade.HEALTHY, "the node and its agents are well" if len(found) > 1 else "the node is well"
    others = sum(each.grade is worst.grade for each in found) - 1
    more = f"; and {others} more" if others else ""
    return worst.grade, (f"{worst.id}: {worst.reason}" if worst.id else worst.reason) + more
