"""The SLOs of agents: how much of each error budget is left, and alerts where one is spent too fast: see `core.slo`.

Reads the history in the store, so that budgets outlive the node. What of it is old does not change, and is kept
judged: each look reads what may be new, and now and then all of it anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime

import msgspec

from greenroom import clock as clocks
from greenroom import settings, telemetry
from greenroom.control.alerts import Alerts
from greenroom.core import history, slo
from greenroom.store import database
from greenroom.store.alerts import Raised
from greenroom.store.store import Store

KIND = "slo"
LOOK_EVERY_S = 60.0
ANEW_EVERY_S = 3600.0  # a node that could not write for long writes into buckets that are not new
_SEVERITIES = {slo.Severity.PAGE: "critical", slo.Severity.TICKET: "warning"}


class Look(msgspec.Struct, frozen=True):
    """How an agent's goals stood."""

    at: datetime
    policy: slo.Policy
    states: tuple[slo.State, ...]


class Slos:
    name = "slos"

    def __init__(self, store: Store, clock: clocks.Clock, facts: telemetry.Telemetry) -> None:
        self._store, self._clock = store, clock
        self.wakeup = asyncio.Event()
        self._alerts = Alerts(store, facts, KIND)
        self._pasts: dict[str, slo.Past] = {}
        self._looks: dict[str, Look] = {}
        self._anew_at_s = clock.monotonic_s()

    async def step(self) -> float:
        if self._clock.monotonic_s() >= self._anew_at_s:
            self._pasts = {}
            self._anew_at_s = self._clock.monotonic_s() + ANEW_EVERY_S
        policies = {name: settings.slo_policy(entry.spec) for name, entry in self._store.directory.entries.items()}
        looks = {name: await self._look(name, policy) for name, policy in policies.items() if policy is not None}
        self._pasts = {name: past for name, past in self._pasts.items() if name in looks}
        self._looks = looks
        firing = await self._alerts.firing()
        await self._alerts.only(
            _raised(agent, burn, firing)
            for agent, look in looks.items()
            for state in look.states
            if (burn := state.alert) is not None
        )
        return LOOK_EVERY_S

    def look(self, agent: str) -> Look | None:
        """Return how the goals of *agent* stood a minute ago at most; None where it has none, or had none then."""
        return self._looks.get(agent)

    async def _look(self, agent: str, policy: slo.Policy) -> Look:
        past = self._pasts.get(agent)
        if past is None or past.policy != policy:
            past = slo.Past(policy)
        now = self._clock.now()
        now_us = database.microseconds(now)
        for step_s in history.KEPT_S:
            records = await self._store.history.read(agent, step_s, since_us=past.to_read(step_s, now_us))
            buckets = await asyncio.to_thread(history.rolled, records, step_s)  # a month of hours takes a while
            past.put(step_s, buckets, now_us=now_us)
        past.read_us = now_us
        self._pasts[agent] = past
        return Look(now, policy, tuple(past.states(now_us)))


def _raised(agent: str, burn: slo.Burn, firing: Mapping[str, str]) -> Raised:
    """Return the alert; one that fires keeps its reason: numbers that change each minute are no news."""
    severity = burn.tier.severity
    id = f"{KIND}-{agent}-{burn.goal.name}-{severity}"
    return Raised(id, KIND, agent, _SEVERITIES[severity], firing.get(id) or burn.told(agent))
