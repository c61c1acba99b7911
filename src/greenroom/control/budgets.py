"""The budgets of agents: alerts where most of a day's is spent, and what is refused until the next day begins.

Reads the history in the store, so that what is spent is known after a restart, too. Agents without a budget are not
looked at.
"""

from __future__ import annotations

import asyncio

import msgspec

from greenroom import clock as clocks
from greenroom import errors, settings, telemetry
from greenroom.control.alerts import Alerts
from greenroom.core import budgets, history
from greenroom.core.budgets import Budget, Use
from greenroom.store import database
from greenroom.store.alerts import Raised
from greenroom.store.store import Store

KIND = "budget"
LOOK_EVERY_S = 5.0  # as the history is written


class _Spent(msgspec.Struct, frozen=True):
    """A budget that is spent until *until_us*: the agent takes nothing more."""

    told: str
    until_us: int


class Budgets:
    name = "budgets"

    def __init__(self, store: Store, clock: clocks.Clock, facts: telemetry.Telemetry) -> None:
        self._store, self._clock = store, clock
        self.wakeup = asyncio.Event()
        self._alerts = Alerts(store, facts, KIND)
        self._spent: dict[str, _Spent] = {}

    async def step(self) -> float:
        now_us = database.microseconds(self._clock.now())
        until_us = budgets.day_end_us(now_us)
        spent, raised = dict[str, _Spent](), list[Raised]()
        for agent, entry in self._store.directory.entries.items():
            if (budget := settings.budget(entry.spec)) is None:
                continue
            worst = await self._used(agent, budget, since_us=until_us - budgets.DAY_US)
            refuses = entry.spec.cost.on_budget == "refuse"
            if worst.severity == "critical" and refuses:
                spent[agent] = _Spent(worst.told, until_us)
            if worst.severity is not None:
                told = _told(agent, worst, refuses=refuses)
                raised.append(Raised(f"{KIND}-{agent}-{worst.severity}", KIND, agent, worst.severity, told))
        self._spent = spent  # first, for the store may not take the alerts
        await self._alerts.only(raised)
        return min(LOOK_EVERY_S, (until_us - now_us) / 1e6)

    def check(self, agent: str) -> None:
        """Let a task of *agent* in, or raise `errors.BudgetSpent`."""
        spent = self._spent.get(agent)
        if spent is None:
            return
        left_s = (spent.until_us - database.microseconds(self._clock.now())) / 1e6
        if left_s > 0:
            raise errors.BudgetSpent(
                f"cannot accept the task: {agent} has spent its budget of today ({spent.told}); try again when the next"
                f" day begins (UTC), or raise it in [agents.{agent}.cost]",
                retry_after_s=left_s,
            )

    async def _used(self, agent: str, budget: Budget, *, since_us: int) -> Use:
        """Return what is used of the budget that is the nearest to its end."""
        records = await self._store.history.read(agent, history.HOUR_S, since_us=since_us)
        today = history.rolled(records, history.DAY_S).get(since_us, history.Counts())
        return budget.used(today)[0]


def _told(agent: str, use: Use, *, refuses: bool) -> str:
    """Return why the alert fires, without what changes all the time: that would be news each time."""
    if use.severity == "warning":
        return f"{agent} has used {budgets.WARN_PCT} % of its budget of today ({use.told}), or more"
    then = "new tasks are refused until midnight UTC" if refuses else "its tasks go on"
    return f"{agent} has spent its budget of today ({use.told}); {then}"
