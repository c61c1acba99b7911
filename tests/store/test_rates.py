"""Rates that nodes share: two limiters on one store."""

from __future__ import annotations

import pytest

from greenroom import errors, settings, telemetry
from greenroom.api.limits import Limits
from greenroom.core.permissions import Principal, rights
from greenroom.store.store import Store
from greenroom.testing import databases, fakes

CALLER = Principal("key-1", "key", "acme", "n", "user", rights("user", tenant="acme"))
QUIET = Principal("key-2", "key", "other", "n", "user", rights("user", tenant="acme"))


def _limits(store: Store | None, clock: fakes.FakeClock) -> Limits:
    security = settings.load(None, {}, overrides={"security": {"rate_limit_per_minute": 100}}).security
    return Limits(security, clock, telemetry.Telemetry(), ledger=None if store is None else store.rates)


def _taken(limits: Limits, count: int, *, by: Principal = CALLER) -> int:
    taken = 0
    for _ in range(count):
        try:
            limits.spend(by)
        except errors.RateLimited:
            continue
        taken += 1
    return taken


async def test_what_is_spent_on_one_node_counts_on_the_other(postgres_scratch: databases.Scratch) -> None:
    stores = [await postgres_scratch.open(owner) for owner in ("node-1", "node-2")]
    await postgres_scratch.stop_clock()
    clock = fakes.FakeClock()  # of the limits; the debts are measured by the database's
    one, other = (_limits(store, clock) for store in stores)
    assert stores[0].rates.is_shared
    assert _taken(one, 70) == 70
    await one.step()
    assert _taken(other, 1) == 1
    await other.step()
    assert _taken(other, 100) == 29
    await other.step()
    assert _taken(one, 1) == 1  # it has not heard yet
    await one.step()
    assert _taken(one, 100) == 0


async def test_what_nodes_take_before_they_hear_of_each_other_is_paid_off(postgres_scratch: databases.Scratch) -> None:
    stores = [await postgres_scratch.open(owner) for owner in ("node-1", "node-2")]
    await postgres_scratch.stop_clock()
    clock = fakes.FakeClock()
    one, other = (_limits(store, clock) for store in stores)
    assert _taken(one, 200) + _taken(other, 200) == 200  # at most the quota on each
    for limits in (one, other, one):
        await limits.step()
    assert _taken(other, 1) == 0
    clock.advance(59.0)
    assert _taken(other, 1) == 0
    clock.advance(1.6)
    assert _taken(other, 100) == 1


async def test_what_is_paid_off_is_forgotten(postgres_scratch: databases.Scratch) -> None:
    store = await postgres_scratch.open()
    await postgres_scratch.stop_clock()
    await store.rates.settle({"x": 30.0, "y": 60.0})
    await postgres_scratch.advance(40.0)
    await store.rates.forget()
    assert [name for (name,) in await store.db.read("select name from rate", {})] == ["y"]
    assert await store.rates.settle({"x": 1.0, "y": 1.0}) == {"x": 1.0, "y": 21.0}


async def test_a_store_that_is_away_loses_nothing_that_was_spent() -> None:
    clock = fakes.FakeClock()

    class Away:
        def __init__(self) -> None:
            self.told: list[dict[str, float]] = []

        async def settle(self, made_s: dict[str, float]) -> dict[str, float]:
            self.told.append(made_s)
            raise errors.StoreUnavailable("away")

        async def forget(self) -> None: ...

    ledger = Away()
    limits = Limits(
        settings.load(None, {}, overrides={"security": {"rate_limit_per_minute": 100}}).security,
        clock,
        telemetry.Telemetry(),
        ledger=ledger,
    )
    for _ in range(2):
        assert _taken(limits, 10) == 10
        with pytest.raises(errors.StoreUnavailable):
            await limits.step()
    assert [round(made["principal key-1"], 3) for made in ledger.told] == [6.0, 12.0]


async def test_a_file_has_one_node_and_nobody_to_tell(sqlite_scratch: databases.Scratch) -> None:
    store = await sqlite_scratch.open()
    assert not store.rates.is_shared
