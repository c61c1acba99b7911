"""The last hour of agents as series for charts: from the store's history, so that it goes over a node's restart."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from greenroom.api.request import Call
from greenroom.core import costs, history, measurements
from greenroom.store import database

MINUTES = 60
NOW_MINUTES = 5  # what figures without a chart are of
_MINUTE_US = history.MINUTE_S * 1_000_000


class Series(msgspec.Struct, frozen=True):
    """Minute by minute, oldest first: what ended, what of it was an error, latencies and tokens; and of the latest
    minutes together, *now*. A latency is None where nothing ended, the cost where nothing has a price.
    """

    ends: tuple[float, ...]
    errors: tuple[float, ...]
    p50_s: tuple[float | None, ...]
    p95_s: tuple[float | None, ...]
    tokens: tuple[float, ...]
    cost_usd: float | None
    now: history.Counts

    @property
    def per_minute(self) -> float:
        return self.now.attempts / NOW_MINUTES

    @property
    def latency(self) -> measurements.Spread | None:
        return self.now.response.spread()

    @property
    def total(self) -> float:
        return sum(self.ends)


async def read(call: Call, names: Iterable[str]) -> dict[str, Series]:
    """Return the last hour of each agent, and under ``""`` that of all of them."""
    now_us = database.microseconds(call.services.clock.now())
    since_us = history.begin_us(now_us, history.MINUTE_S) - (MINUTES - 1) * _MINUTE_US
    records = {
        name: await call.store.history.read(name, history.MINUTE_S, since_us=since_us) for name in sorted(set(names))
    }
    return await asyncio.to_thread(_drawn, records, since_us)  # it may be more than the loop may be held up for


def _drawn(records: Mapping[str, Sequence[tuple[int, bytes]]], since_us: int) -> dict[str, Series]:
    found = {name: series(history.rolled(each, history.MINUTE_S), since_us) for name, each in records.items()}
    all_records = [record for each in records.values() for record in each]
    return found | {"": series(history.rolled(all_records, history.MINUTE_S), since_us)}


def series(buckets: Mapping[int, history.Counts], since_us: int) -> Series:
    """Lay *buckets* out from *since_us* on; minutes without one are empty. Pure."""
    minutes = [buckets.get(since_us + place * _MINUTE_US, history.Counts()) for place in range(MINUTES)]
    spreads = [minute.response.spread() for minute in minutes]
    cost = functools.reduce(costs.added, (minute.cost for minute in minutes))
    now = history.Counts()
    for minute in minutes[-NOW_MINUTES:]:
        now.merge(minute)
    return Series(
        ends=tuple(minute.attempts for minute in minutes),
        errors=tuple(minute.errors for minute in minutes),
        p50_s=tuple(None if spread is None else spread.p50 for spread in spreads),
        p95_s=tuple(None if spread is None else spread.p95 for spread in spreads),
        tokens=tuple(minute.tokens for minute in minutes),
        cost_usd=None if cost is None else costs.usd(cost),
        now=now,
    )
