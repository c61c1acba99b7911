"""Follows a request through all its tasks: those that agents call are found in their parent's events.

Called by `story`, which is told of each event as it comes. Knows the API and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from greenroom.sdk.async_client import AsyncClient
from greenroom.sdk.models import Event, Task


@dataclass(slots=True)
class Followed:
    """A task as its events tell. *text* is what its agent is writing just now."""

    id: str
    agent: str
    state: str = "queued"
    attempt: int = 0
    replica: str = ""
    text: str = ""


class Following:
    """*tasks* are in the order in which they began."""

    def __init__(self, client: AsyncClient, on_event: Callable[[Followed, Event], None]) -> None:
        self.tasks: list[Followed] = []
        self._client, self._on_event = client, on_event

    async def to_the_end(self, task: Task) -> None:
        """Return when *task* and all that it called have ended."""
        followed = Followed(task.id, task.agent)
        self.tasks.append(followed)
        async with asyncio.TaskGroup() as called:
            known: set[str] = set()
            async for event in self._client.events(task.id):
                _take(followed, event)
                self._on_event(followed, event)
                child = event.data.get("for") if event.type == "state" else None
                if child is not None and child not in known:
                    known.add(child)
                    called.create_task(self.to_the_end(await self._client.task(child)))


def _take(followed: Followed, event: Event) -> None:
    data = event.data if isinstance(event.data, dict) else {}
    match event.type:
        case "state":
            followed.state = data["state"]
            if "attempt" in data:
                followed.attempt, followed.replica = data["attempt"], data["replica"]
                followed.text = ""
        case "output":
            followed.text += str(data.get("content", ""))
        case "message":
            followed.text = ""
        case _:
            pass
