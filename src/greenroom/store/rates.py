"""What callers have spent of their rates, all nodes together: for each name the instant at which it is paid off.

Told in the background and in amounts, never in a request's path. On one node nobody needs it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from greenroom.store import database
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.news import News


class Debt(msgspec.Struct, frozen=True):
    name: str
    made_us: int


_SETTLE = """
insert into rate (name, full_at) values (:name, :fresh)
on conflict (name) do update
set full_at = case when rate.full_at > :now then rate.full_at + :made else :fresh end
returning full_at"""
_FORGET = "delete from rate where full_at < :now"


async def settle(tx: Transaction, news: News, items: Sequence[Debt]) -> list[int]:
    """Return what each name is in debt with now, in microseconds."""
    rows = [
        {"name": item.name, "fresh": tx.now_us + item.made_us, "now": tx.now_us, "made": item.made_us} for item in items
    ]
    return [full_at - tx.now_us for (full_at,) in await tx.fetch_many(_SETTLE, rows)]


async def forget(tx: Transaction, news: News, items: Sequence[None]) -> list[None]:
    await tx.fetch(_FORGET, {"now": tx.now_us})
    return [None] * len(items)


class Rates:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._commits = commits
        self.is_shared = db.dialect == "postgresql"  # a SQLite file has one node

    async def settle(self, made_s: dict[str, float]) -> dict[str, float]:
        names = sorted(made_s)  # in one order: else two nodes could wait for each other
        debts_us = await self._commits.write_all(settle, [Debt(name, int(made_s[name] * 1e6)) for name in names])
        for debt in debts_us:
            if isinstance(debt, BaseException):
                raise debt
        return {name: debt_us / 1e6 for name, debt_us in zip(names, debts_us, strict=True)}

    async def forget(self) -> None:
        await self._commits.write(forget, None)


ORDER = (settle, forget)
