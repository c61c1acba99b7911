"""Tells people of tasks that wait for a replica that may not be: one alert for each agent, until it wakes.

Of `control.autoscaler`. Waiting for a short while is usual where agents take turns.
"""

from __future__ import annotations

from collections.abc import Mapping

from greenroom import telemetry
from greenroom.store.recovery import Raised, Resolved
from greenroom.store.store import Store

KIND = "starved"
AFTER_S = 60.0


class Starving:
    def __init__(self, store: Store, facts: telemetry.Telemetry) -> None:
        self._store, self._facts = store, facts
        self._since_s: dict[str, float] = {}
        self._told: set[str] | None = None  # agents that have an alert; None: the store was not asked yet

    async def note(self, now_s: float, held: Mapping[str, str]) -> None:
        """Note the agents that are *held* asleep while tasks wait, and why."""
        told = await self._load()
        self._since_s = {agent: self._since_s.get(agent, now_s) for agent in held}
        for agent in told - held.keys():
            await self._store.recovery.tell(Resolved(_id(agent)))
            told.discard(agent)
            self._facts.emit(telemetry.AlertChanged(_id(agent), "resolved"))
        for agent in held.keys() - told:
            if now_s < self._since_s[agent] + AFTER_S:
                continue
            reason = f"tasks of {agent} have waited for {AFTER_S:g} s and no replica may be started: {held[agent]}"
            await self._store.recovery.tell(Raised(_id(agent), KIND, agent, "warning", reason))
            told.add(agent)
            self._facts.emit(telemetry.AlertChanged(_id(agent), "firing", "warning", reason))

    async def _load(self) -> set[str]:
        """Take up what was told before the node was started."""
        if self._told is None:
            alerts = await self._store.recovery.alerts()
            self._told = {each.agent for each in alerts if each.kind == KIND and each.state == "firing" and each.agent}
        return self._told


def _id(agent: str) -> str:
    return f"starved-{agent}"
