"""Draws docs/state-machines.md from the tables that run: ``python -m greenroom.testing.state_machines``."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from greenroom.core import alerts, breaker, rollouts, tasks

PAGE = Path("docs/state-machines.md")
_PURPOSE = {
    tasks.State.QUEUED: "accepted and stored; nobody runs it",
    tasks.State.RUNNING: "an attempt holds its lease and a slot of a replica",
    tasks.State.WAITING: "its attempt waits for a sub-task; the lease is held, the slot is free",
    tasks.State.SUCCEEDED: "its result is stored",
    tasks.State.FAILED: "the agent failed, or its replicas were lost too often",
    tasks.State.CANCELLED: "its caller, or the end of its parent, ended it; no result ever comes",
    tasks.State.EXPIRED: "its time was over, in the queue or while it ran",
}


_PHASES = {
    rollouts.Phase.PROGRESSING: "stage after stage, as its new revision proves itself",
    rollouts.Phase.PAUSED: "somebody has stopped it, or has to promote it; what fails is undone all the same",
    rollouts.Phase.COMPLETE: "the new revision serves everything",
    rollouts.Phase.ROLLED_BACK: "its new revision has failed: the one before serves everything",
    rollouts.Phase.ABORTED: "somebody has undone it",
    rollouts.Phase.SUPERSEDED: "another one was begun before it was complete",
    rollouts.Phase.FAILED: "its new revision has failed, and there was none before",
}


_BREAKER = {
    breaker.State.CLOSED: "tasks are run",
    breaker.State.OPEN: "too many attempts have failed: tasks wait",
    breaker.State.HALF_OPEN: "some tasks are tried, twice as many after each success",
}


_ALERTS = {
    alerts.State.PENDING: "its condition holds, but not for long enough yet",
    alerts.State.FIRING: "somebody has to look after it",
    alerts.State.ACKNOWLEDGED: "somebody does",
    alerts.State.RESOLVED: "it is over; one that never fired leaves no trace",
}


def page() -> str:
    """Return the page, as Markdown with Mermaid diagrams."""
    lines = [
        "# State machines",
        "",
        "Drawn from `TRANSITIONS` of `greenroom.core.tasks`, `greenroom.core.rollouts`, `greenroom.core.breaker` and",
        "`greenroom.core.alerts` by `python -m greenroom.testing.state_machines`.",
        "",
        "## Tasks",
        "",
        *_machine(tasks.TRANSITIONS, tasks.State.QUEUED, "submit", _PURPOSE),
        "",
        "A move is one statement that compares the task's state and the attempt's epoch and sets them; a stale",
        "attempt moves nothing. The database itself refuses to leave a terminal state.",
        "",
        "## Rollouts",
        "",
        *_machine(rollouts.TRANSITIONS, rollouts.Phase.PROGRESSING, "deploy", _PHASES),
        "",
        "A move is one commit: the rollout, what serves, which revisions stand and the traffic change together, or",
        "not at all. It compares the rollout's version; who has lost reads again.",
        "",
        "## Circuit breakers",
        "",
        *_machine(breaker.TRANSITIONS, breaker.State.CLOSED, "deploy", _BREAKER),
        "",
        "A move takes effect before another task is claimed; it is in memory, and a node that is started again begins",
        "with closed ones. [What counts](breaker.md).",
        "",
        "## Alerts",
        "",
        *_machine(alerts.TRANSITIONS, alerts.State.PENDING, "hold", _ALERTS),
        "",
        "A move is one statement that compares the alert's state, and an acknowledgement ends with the alert.",
        "[What moves them](alerts.md).",
        "",
    ]
    return "\n".join(lines)


def _machine(table: Mapping[Any, StrEnum], first: StrEnum, begin: str, purpose: Mapping[Any, str]) -> list[str]:
    moves: dict[StrEnum, list[str]] = {
        state: [f"{by} → {after}" for (before, by), after in table.items() if before is state] for state in purpose
    }
    return [
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {first}: {begin}",
        *(f"    {state} --> {after}: {by}" for (state, by), after in table.items()),
        *(f"    {state} --> [*]" for state in purpose if not moves[state]),
        "```",
        "",
        "| state | means | moves |",
        "|---|---|---|",
        *(f"| {state} | {purpose[state]} | {', '.join(moves[state]) or 'none: terminal'} |" for state in purpose),
    ]


if __name__ == "__main__":
    PAGE.write_text(page())
