"""Tells people of tasks that wait for a replica that may not be: one alert for each agent, until it wakes.

Of `control.autoscaler`. Waiting for a short while is usual where agents take turns.
"""

from __future__ import annotations

from collections.abc import Mapping

from greenroom import telemetry
from greenroom.control.alerts import Alerts
from greenroom.store.alerts import Raised
from greenroom.store.store import Store

KIND = "starved"
AFTER_S = 60.0


class Starving:
    def __init__(self, store: Store, facts: telemetry.Telemetry) -> None:
        self._alerts = Alerts(store, facts, KIND)
        self._since_s: dict[str, float] = {}

    async def note(self, now_s: float, held: Mapping[str, str]) -> None:
        """Note the agents that are *held* asleep while tasks wait, and why."""
        self._since_s = {agent: self._since_s.get(agent, now_s) for agent in held}
        ids = {f"{KIND}-{agent}": agent for agent in held}
        firing = await self._alerts.firing()
        for id in firing.keys() - ids.keys():
            await self._alerts.resolve(id)
        for id in ids.keys() - firing.keys():  # told once: how many wait is another number each time
            agent = ids[id]
            if now_s < self._since_s[agent] + AFTER_S:
                continue
            reason = f"tasks of {agent} have waited for {AFTER_S:g} s and no replica may be started: {held[agent]}"
            await self._alerts.tell(Raised(id, KIND, agent, "warning", reason))
