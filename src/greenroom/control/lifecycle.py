"""What befell agents, replicas and tasks, as lines of the log: a sentence for each fact. Pure."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from greenroom import telemetry
from greenroom.core import tasks
from greenroom.core.permissions import HOME
from greenroom.store.logs import Line

_GRADES = {"healthy": logging.INFO, "unknown": logging.INFO, "degraded": logging.WARNING}
_ENDS = {tasks.State.QUEUED: logging.WARNING, tasks.State.CANCELLED: logging.INFO}


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _exited(fact: telemetry.ReplicaExited) -> tuple[int, str]:
    level = logging.INFO if fact.reason == "stopped" else logging.ERROR
    return level, f"its process is gone, {fact.reason}{_because(fact.detail)}"


def _ready(fact: telemetry.ReplicaReady) -> tuple[int, str]:
    place = ", in the place of one that died" if fact.is_restart else ""
    return logging.INFO, f"ready, {fact.start_s:.3g} s after its start{place}"


def _rollout(fact: telemetry.RolloutMoved) -> tuple[int, str]:
    to = f"revision {fact.revision}, stage {fact.stage}, {fact.weight_pct} % of the traffic"
    return logging.INFO, f"rollout {fact.rollout} is {fact.phase}: {to}{_because(fact.reason)}"


def _scaled(fact: telemetry.AgentScaled) -> tuple[int, str]:
    return logging.INFO, f"{fact.replicas} replicas instead of {fact.before}, by {fact.by}: {fact.reason}"


def _graded(fact: telemetry.ReplicaGraded) -> tuple[int, str]:
    return _GRADES.get(fact.grade, logging.ERROR), f"graded {fact.grade}{_because(fact.reason)}"


_SENTENCES: dict[type[Any], Callable[[Any], tuple[int, str]]] = {
    telemetry.ReplicaReady: _ready,
    telemetry.ReplicaExited: _exited,
    telemetry.ReplicaRecycled: lambda fact: (logging.INFO, f"to be replaced{_because(fact.reason)}"),
    telemetry.ReplicaGraded: _graded,
    telemetry.ReplicaEjected: lambda fact: (logging.WARNING, f"ejected{_because(fact.reason)}"),
    telemetry.AgentBlocked: lambda fact: (logging.WARNING, f"ran into a wall of its room: {fact.what}"),
    telemetry.AgentFailing: lambda fact: (logging.ERROR, f"the agent fails{_because(fact.reason)}"),
    telemetry.AgentDropped: lambda fact: (logging.WARNING, f"the agent was dropped{_because(fact.reason)}"),
    telemetry.AgentScaled: _scaled,
    telemetry.AgentRolledBack: lambda fact: (
        logging.ERROR,
        f"revision {fact.revision} did not work, {fact.to} serves again{_because(fact.reason)}",
    ),
    telemetry.BreakerMoved: lambda fact: (
        logging.INFO if fact.state == "closed" else logging.WARNING,
        f"the circuit breaker is {fact.state.replace('_', '-')}{_because(fact.reason)}",
    ),
    telemetry.RolloutMoved: _rollout,
}
KINDS: tuple[type[Any], ...] = tuple(_SENTENCES)


def line(fact: Any, *, at_us: int) -> Line:
    """Return what is told of an agent or a replica by one of `KINDS`."""
    level, text = _SENTENCES[type(fact)](fact)
    replica = getattr(fact, "replica", "")
    return Line(at=at_us, tenant=HOME, agent=fact.agent, replica=replica, level=level, source="greenroom", text=text)


def end(ended: telemetry.AttemptEnded, *, at_us: int) -> Line:
    """Return what is told of an attempt's end, to who may read its task."""
    return Line(
        at=at_us,
        tenant=ended.tenant,
        agent=ended.agent,
        replica=ended.replica,
        task=ended.task,
        epoch=ended.epoch,
        of_task=True,
        level=_ENDS.get(tasks.State(ended.state), logging.ERROR),
        source="greenroom",
        text=_end(ended),
    )


def _end(ended: telemetry.AttemptEnded) -> str:
    why = "" if ended.end is None else _why(ended.end)
    state = "is queued again" if ended.state == tasks.State.QUEUED else f"has {ended.state}"
    if ended.state == tasks.State.CANCELLED:
        state = "was cancelled"
    return f"the task {state} ({ended.reason}) after {ended.duration_s:.3g} s{_because(why)}"


def _why(end: tasks.End) -> str:
    """Return what the error of the task says, too."""
    match end:
        case tasks.AgentFailed(error_type, message):
            return f"{error_type}: {message}"
        case tasks.ReplicaGone(_, detail):
            return detail
        case _:
            return ""
