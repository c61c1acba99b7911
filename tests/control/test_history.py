"""The history's loop, step by step: what it writes, and what it loses when the node, its store or its clock fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from greenroom import errors, settings, telemetry
from greenroom.control import history as loops_history
from greenroom.control.history import History
from greenroom.core import history
from greenroom.store import database
from greenroom.store.store import Store
from greenroom.testing import databases
from greenroom.testing.fakes import Fault, FaultyDatabase

if TYPE_CHECKING:
    from control.conftest import Loops

MINUTE_US = 60_000_000
KEPT = settings.History()


@dataclass
class Kept:
    """A store with the history's loop, of a node that may be another one soon."""

    scratch: databases.Scratch
    store: Store
    told: telemetry.Telemetry = field(default_factory=telemetry.Telemetry)
    lives: int = 0

    def __post_init__(self) -> None:
        self.loop = self.begin()

    def begin(self) -> History:
        """A node that knows nothing but what the store does."""
        self.lives, self.told = self.lives + 1, telemetry.Telemetry()
        self.loop = History(self.store, self.scratch.clock, self.told, KEPT, node=f"node-{self.lives}")
        return self.loop

    def end(self, count: int = 1, *, agent: str = "agent", state: str = "succeeded", reason: str = "ok") -> None:
        for _ in range(count):
            self.told.emit(telemetry.AttemptEnded(agent, state, reason, 0.5, "r1", task="nobody", tokens=3))

    async def buckets(self, step_s: int = history.MINUTE_S, agent: str = "agent") -> dict[int, history.Counts]:
        found = await self.store.history.read(agent, history.source_s(step_s), since_us=0)
        return history.rolled(found, step_s)

    async def attempts(self, step_s: int = history.MINUTE_S, agent: str = "agent") -> list[int]:
        return [counts.attempts for counts in (await self.buckets(step_s, agent)).values()]


@pytest.fixture
async def kept(loops: Loops) -> Kept:
    return Kept(loops.scratch, loops.store)


@pytest.fixture
async def faulty(tmp_path: Path) -> AsyncIterator[tuple[Kept, FaultyDatabase]]:
    wrapped: list[FaultyDatabase] = []

    def wrap(db: Any) -> FaultyDatabase:
        wrapped.append(FaultyDatabase(db))
        return wrapped[0]

    async with databases.sqlite(tmp_path) as scratch:
        yield Kept(scratch, await scratch.open(wrap=wrap)), wrapped[0]


async def test_attempts_are_in_the_minute_and_the_hour_in_which_their_step_began(kept: Kept) -> None:
    kept.end(2)
    kept.end(reason="agent_error", state="queued")
    assert await kept.loop.step() == loops_history.WRITE_EVERY_S
    await kept.scratch.advance(58.0)
    kept.end(4)
    assert await kept.loop.step() == pytest.approx(2.0), "the next step is to begin with the next minute"
    await kept.scratch.advance(2.0)
    kept.end(1)
    await kept.loop.step()
    await kept.scratch.advance(5.0)
    kept.end(8)
    await kept.loop.step()
    assert await kept.attempts() == [8, 8]
    assert await kept.attempts(history.HOUR_S) == [16]
    first = next(iter((await kept.buckets()).values()))
    assert (first.errors, first.retries, first.tokens) == (1, 1, 24)
    spread = first.run.spread()
    assert spread is not None
    assert (spread.mean, spread.count) == (0.5, 8)


async def test_a_step_without_attempts_writes_nothing_and_agents_are_apart(kept: Kept) -> None:
    await kept.loop.step()
    assert await kept.attempts() == []
    kept.end(1)
    kept.end(2, agent="other")
    await kept.loop.step()
    assert (await kept.attempts(), await kept.attempts(agent="other")) == ([1], [2])


async def test_response_and_wait_are_what_the_rows_of_tasks_that_were_drawn_say(loops: Loops) -> None:
    kept = Kept(loops.scratch, loops.store)
    loop = History(loops.store, loops.scratch.clock, loops.told, KEPT, node="node-1")
    await loops.deploy()
    first, second = await loops.submit(), await loops.submit()
    for number, task in enumerate((first, second)):
        await loops.scratch.advance(4.0)
        loops.engine.succeed(loops.replica_of(task))
        await loops.settle()
        await loop.step()
        assert sum(await kept.attempts()) == number + 1
    (bucket,) = (await kept.buckets()).values()
    assert (bucket.run.sum_s, bucket.wait.sum_s, bucket.response.sum_s) == (8.0, 4.0, 12.0)


async def test_a_restart_keeps_it_and_goes_on_in_the_same_bucket(kept: Kept) -> None:
    kept.end(2)
    await kept.loop.close()
    kept.begin()
    kept.end(3)
    await kept.loop.step()
    kept.end(1)
    await kept.loop.close()
    assert await kept.attempts() == [6]
    assert await kept.attempts(history.DAY_S) == [6]


async def test_a_crash_loses_what_was_told_since_the_last_step(kept: Kept) -> None:
    kept.end(2)
    await kept.loop.step()
    kept.end(5)
    kept.begin()  # nobody has closed the one before
    kept.end(1)
    await kept.loop.step()
    assert await kept.attempts() == [3]


async def test_a_clock_that_goes_back_takes_nothing_from_what_is_stored(kept: Kept) -> None:
    kept.end(2)
    await kept.loop.step()
    await kept.scratch.advance(120.0)
    await kept.loop.step()
    kept.scratch.clock.advance(-120.0)
    kept.end(3)
    await kept.loop.step()
    kept.end(4)
    await kept.loop.step()
    assert await kept.attempts() == [9]
    assert await kept.attempts(history.HOUR_S) == [9]


async def test_what_the_store_did_not_take_is_written_once_it_does(faulty: tuple[Kept, FaultyDatabase]) -> None:
    kept, db = faulty
    for fault in (Fault.AT_COMMIT, Fault.AFTER_COMMIT):  # not stored; stored, and nobody knows
        db.faults = [fault]
        kept.end(2)
        with pytest.raises(errors.StoreUnavailable):
            await kept.loop.step()
    await kept.loop.step()
    assert await kept.attempts() == [4]
    await kept.scratch.advance(60.0)
    await kept.loop.step()
    kept.end(1)
    await kept.loop.step()
    assert await kept.attempts() == [4, 1]


async def test_while_the_store_takes_none_it_holds_the_newest_up_to_a_bound(
    faulty: tuple[Kept, FaultyDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, db = faulty
    monkeypatch.setattr(loops_history, "MOST", 6)
    for number in range(6):
        db.faults = [Fault.AT_COMMIT]
        kept.end(1, agent=f"agent-{number}")
        kept.end(1, agent="busy")
        with pytest.raises(errors.StoreUnavailable):
            await kept.loop.step()
    await kept.loop.step()
    assert [await kept.attempts(agent=f"agent-{number}") for number in range(6)] == [[], [], [], [], [1], [1]]
    assert await kept.attempts(agent="busy") == [6]


async def test_buckets_go_when_they_were_kept_for_long_enough(kept: Kept) -> None:
    kept.end(1)
    await kept.loop.step()
    await kept.scratch.advance(KEPT.keep_minutes_days * 86_400 + 61.0)
    await kept.loop.step()
    assert await kept.attempts() == []
    assert await kept.attempts(history.HOUR_S) == [1]
    await kept.scratch.advance(KEPT.keep_hours_days * 86_400)
    await kept.loop.step()
    assert await kept.attempts(history.HOUR_S) == []


async def test_it_holds_only_buckets_that_may_grow(kept: Kept) -> None:
    for _ in range(5):
        kept.end(1)
        await kept.loop.step()
        await kept.scratch.advance(60.0)
    await kept.loop.step()
    assert len(kept.loop._held) == 1, "the hour's"
    kept.end(1)
    await kept.loop.step()
    now_us = database.microseconds(kept.scratch.clock.now())
    held = {(agent, step_s, at) for agent, step_s, at, _ in kept.loop._held}
    assert held == {("agent", step_s, history.begin_us(now_us, step_s)) for step_s in history.KEPT_S}


PRICES = {"input_usd_per_million_tokens": 1, "output_usd_per_million_tokens": 10, "usd_per_task": 0.5}


async def test_attempts_cost_what_their_agents_prices_say_when_the_step_is_taken(loops: Loops) -> None:
    kept, spent = Kept(loops.scratch, loops.store), list[tuple[str, float]]()
    tell = lambda agent, usd: spent.append((agent, usd))  # noqa: E731
    loop = History(loops.store, loops.scratch.clock, loops.told, KEPT, node="node-1", spent=tell)

    async def costs() -> list[int | None]:
        for state in ("succeeded", "queued"):  # that is tried again: its tokens count, and its task when it has ended
            ended = telemetry.AttemptEnded(
                "agent", state, "ok", 0.5, "r1", task="t", tokens=300_000, input_tokens=100_000
            )
            loops.told.emit(ended)
        await loop.step()
        return [counts.cost for counts in (await kept.buckets()).values()]

    await loops.deploy(cost=PRICES)
    assert await costs() == [2 * 2_100_000_000 + 500_000_000]
    await loops.deploy(cost={})
    assert await costs() == [4_700_000_000], "without a price nobody knows what it cost"
    await loops.deploy(cost={"usd_per_task": 0})
    assert await costs() == [4_700_000_000]
    assert spent == [("agent", 4.7), ("agent", 0.0)]
    (bucket,) = (await kept.buckets()).values()
    assert (bucket.tokens, bucket.input_tokens) == (1_800_000, 600_000)


async def test_another_price_replaces_no_replica(loops: Loops) -> None:
    await loops.deploy()
    before = [replica.id for replica in await loops.store.agents.replicas()]
    await loops.deploy(cost=PRICES)
    assert [replica.id for replica in await loops.store.agents.replicas()] == before
    assert loops.store.directory.get("agent").agent.revision == 1
