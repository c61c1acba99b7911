"""Looks at a node's replicas all the time, and remembers when which were ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from greenroom import errors
from greenroom.sdk.async_client import AsyncClient
from greenroom.testing.chaos.recovery import Sighting

LOOK_EVERY_S = 0.1


class Sightings:
    """*seen* has an entry for each change; while the node cannot be asked, none of its replicas is ready."""

    def __init__(self, client: AsyncClient, agents: Collection[str]) -> None:
        self._client, self._agents = client, agents
        self.seen: list[Sighting] = []

    async def run(self) -> None:
        while True:
            ready = await self._ready()
            if not self.seen or self.seen[-1].ready != ready:
                self.seen.append(Sighting(time.time(), ready))
            await asyncio.sleep(LOOK_EVERY_S)

    async def _ready(self) -> frozenset[str]:
        try:
            replicas = await self._client.replicas()
        except errors.GreenroomError:
            return frozenset()
        return frozenset(each.id for each in replicas if each.agent in self._agents and each.state == "ready")
