"""Budgets of a day out of the store's history: what fires, what is refused, and until when."""

from __future__ import annotations

import doctest
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from greenroom import errors, settings, telemetry
from greenroom.control.budgets import LOOK_EVERY_S, Budgets
from greenroom.core import budgets, costs, history
from greenroom.store import database
from greenroom.store.deployments import Deployment
from greenroom.store.history import Part
from greenroom.store.store import Store
from greenroom.testing import databases


@dataclass
class Kept:
    """A store with agents' budgets over it, of a node that may be another one soon."""

    scratch: databases.Scratch
    store: Store
    parts: int = 0

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.loop = Budgets(self.store, self.scratch.clock, telemetry.Telemetry())

    async def deploy(self, **of_cost: Any) -> None:
        parsed = settings.parse_agent("agent", {"factory": "module:agent", "cost": of_cost})
        await self.store.deployments.deploy(Deployment(agent="agent", digest="d", spec=parsed, by="ann"))
        await self.store.directory.refresh()

    async def spend(self, usd: float = 0, tokens: int = 0) -> None:
        counts = history.Counts(cost=costs.nano_usd(usd), tokens=tokens)
        self.parts += 1
        at_us = history.begin_us(database.microseconds(self.scratch.clock.now()), history.HOUR_S)
        await self.store.history.put([Part("agent", history.HOUR_S, at_us, f"n{self.parts}", history.encode(counts))])

    async def look(self) -> list[tuple[str, str]]:
        """Return the alerts that fire after a look, and why."""
        assert await self.loop.step() <= LOOK_EVERY_S
        return [(row.id, row.reason) for row in await self.store.alerts.list() if row.is_firing]

    def left_of_the_day(self) -> timedelta:
        now_us = database.microseconds(self.scratch.clock.now())
        return timedelta(microseconds=budgets.day_end_us(now_us) - now_us)


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> databases.Server | None:
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_server")


@pytest.fixture
async def kept(server: databases.Server | None, tmp_path: Path) -> AsyncIterator[Kept]:
    async with databases.sqlite(tmp_path) if server is None else server.scratch() as scratch:
        kept = Kept(scratch, await scratch.open())
        if kept.left_of_the_day() < timedelta(hours=1):
            await scratch.advance(3600)
        yield kept


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(budgets).failed == 0


async def test_most_of_a_budget_is_a_warning_and_all_of_it_is_critical_until_the_day_ends(kept: Kept) -> None:
    await kept.deploy(usd_per_task=1, budget_usd_per_day=10)
    await kept.spend(7.99)
    assert await kept.look() == []
    await kept.spend(0.01)
    warning = ("budget-agent-warning", "agent has used 80 % of its budget of today ($10.00), or more")
    assert await kept.look() == [warning]
    await kept.spend(1)
    assert await kept.look() == [warning], "numbers that change are no news"
    await kept.spend(1)
    assert await kept.look() == [
        ("budget-agent-critical", "agent has spent its budget of today ($10.00); its tasks go on")
    ]
    kept.loop.check("agent")
    await kept.scratch.advance(kept.left_of_the_day().total_seconds())
    assert await kept.look() == []


async def test_a_spent_budget_refuses_until_the_day_ends_also_after_a_restart(kept: Kept) -> None:
    await kept.deploy(budget_tokens_per_day=1000, on_budget="refuse")
    await kept.spend(tokens=999)
    await kept.look()
    kept.loop.check("agent")
    await kept.spend(tokens=1)
    kept.restart()
    assert await kept.look() == [
        (
            "budget-agent-critical",
            "agent has spent its budget of today (1,000 tokens); new tasks are refused until midnight UTC",
        )
    ]
    with pytest.raises(
        errors.BudgetSpent, match=r"has spent its budget of today \(1,000 tokens\).*\[agents\.agent\.cost\]"
    ) as caught:
        kept.loop.check("agent")
    assert caught.value.retry_after_s == kept.left_of_the_day().total_seconds()
    kept.loop.check("another")
    await kept.scratch.advance(kept.left_of_the_day().total_seconds())
    kept.loop.check("agent")  # before anybody has looked again


async def test_a_higher_budget_and_none_end_the_refusal(kept: Kept) -> None:
    await kept.deploy(budget_tokens_per_day=1000, on_budget="refuse")
    await kept.spend(tokens=2000)
    await kept.look()
    await kept.deploy(budget_tokens_per_day=10_000, on_budget="refuse")
    assert await kept.look() == []
    kept.loop.check("agent")
    await kept.spend(tokens=8000)
    assert len(await kept.look()) == 1
    await kept.deploy()
    assert await kept.look() == []
    kept.loop.check("agent")


async def test_the_step_after_midnight_comes_at_midnight(kept: Kept) -> None:
    await kept.scratch.advance(kept.left_of_the_day().total_seconds() - 2)
    assert await kept.loop.step() == pytest.approx(2.0)
