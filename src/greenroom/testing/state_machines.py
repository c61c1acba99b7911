"""Draws docs/state-machines.md from the tables that run: ``python -m greenroom.testing.state_machines``."""

from __future__ import annotations

from pathlib import Path

from greenroom.core import tasks

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


def page() -> str:
    """Return the page, as Markdown with a Mermaid diagram."""
    lines = [
        "# State machines",
        "",
        "Drawn from `greenroom.core.tasks.TRANSITIONS` by `python -m greenroom.testing.state_machines`.",
        "",
        "## Tasks",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {tasks.State.QUEUED}: submit",
        *(f"    {state} --> {after}: {by}" for (state, by), after in tasks.TRANSITIONS.items()),
        *(f"    {state} --> [*]" for state in tasks.State if state in tasks.TERMINAL),
        "```",
        "",
        "| state | means | moves |",
        "|---|---|---|",
        *(f"| {state} | {_PURPOSE[state]} | {_moves(state)} |" for state in tasks.State),
        "",
        "A move is one statement that compares the task's state and the attempt's epoch and sets them; a stale",
        "attempt moves nothing. The database itself refuses to leave a terminal state.",
        "",
    ]
    return "\n".join(lines)


def _moves(state: tasks.State) -> str:
    moves = [f"{by} → {after}" for (before, by), after in tasks.TRANSITIONS.items() if before is state]
    return ", ".join(moves) or "none: terminal"


if __name__ == "__main__":
    PAGE.write_text(page())
