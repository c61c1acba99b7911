"""Puts what happens to the tasks into words, and knows when the victim is in the middle of its answer.

Called by `following` with each event, and by `story`, which does the killing.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from greenroom.cli import render
from greenroom.cli.demo.following import Followed
from greenroom.cli.demo.screen import Screen
from greenroom.sdk.models import Event

SPARED_PIECES = 8  # of the victim's answer


class Narration:
    """*victim* is the agent whose replica is to be killed; *killed_at* is when `tell_kill` was called."""

    def __init__(self, screen: Screen, *, victim: str) -> None:
        self.victim_writes = asyncio.Event()
        self.killed_at: datetime | None = None
        self._screen, self._victim = screen, victim
        self._pieces = 0

    def tell(self, task: Followed, event: Event) -> None:
        match event.type:
            case "output" if task.agent == self._victim:
                self._pieces += 1
                if self._pieces == SPARED_PIECES:
                    self.victim_writes.set()
            case "message":
                self._say(task.agent, f"{event.data['source']}: {event.data['content']}")
            case "state":
                self._tell_state(task, event)
            case _:
                pass

    def tell_kill(self, pid: int) -> None:
        """To be called just before the kill: the time since is counted from here."""
        self._say(self._victim, f"kill -9 {pid}, in the middle of its answer", style="bold red")
        self.killed_at = datetime.now(UTC)

    def _tell_state(self, task: Followed, event: Event) -> None:
        match event.data:
            case {"state": "running", "attempt": int(attempt), "replica": str(replica)}:
                self._tell_start(task, event, attempt=attempt, replica=replica)
            case {"state": "running"}:
                self._say(task.agent, "goes on", style="cyan")
            case {"state": "waiting"}:
                text = "waits for the next agent; its replica is free for other tasks meanwhile"
                self._say(task.agent, text, style="cyan")
            case {"state": "queued", "reason": reason}:
                self._say(task.agent, f"is queued again: {reason}", style="yellow")
            case {"state": str(state)} if state != "queued":
                self._say(task.agent, state, style=render.STYLES.get(state))
            case _:
                pass

    def _tell_start(self, task: Followed, event: Event, *, attempt: int, replica: str) -> None:
        if attempt == 1 or self.killed_at is None or event.at is None:
            self._say(task.agent, f"runs on {replica}", style="cyan")
        else:
            later_ms = (event.at - self.killed_at).total_seconds() * 1000
            self._say(task.agent, f"runs again, on {replica}, {later_ms:.0f} ms after the kill", style="bold green")

    def _say(self, agent: str, text: str, *, style: str | None = None) -> None:
        self._screen.say(f"{agent:<9} {text}", style=style)
