"""History in the store: the buckets of `core.history`, written by `control.history` alone.

Each life of a node has a part of a bucket of its own, and writes it whole, in one statement: nodes do not wait for one
another, and what is written again because nobody knows whether it was stored is not counted twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from greenroom.store import database
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.news import News

MAX_READ = 12_000  # parts: a week of minutes and what restarts add to them
MAX_DROPPED = 500  # of one commit


class Part(msgspec.Struct, frozen=True):
    """A row. *at* in microseconds; *record* is `core.history.Counts`."""

    agent: str
    step_s: int
    at: int
    part: str
    record: bytes


class Expiry(msgspec.Struct, frozen=True):
    step_s: int
    keep_s: float


_COLUMNS = Part.__struct_fields__
_PUT = f"""
insert into history ({", ".join(_COLUMNS)}) values ({", ".join(f":{name}" for name in _COLUMNS)})
on conflict (agent, step_s, at, part) do update set record = :record"""
_READ = """
select at, record from history where agent = :agent and step_s = :step_s and at >= :since and at < :until
order by at desc, part limit :most"""
_RECENT = """
select agent, at, record from history where step_s = :step_s and at >= :since order by at desc limit :most"""
_DROP = """
delete from history where (agent, step_s, at, part) in (
    select agent, step_s, at, part from history where step_s = :step_s and at < :before order by at limit :most)
returning at"""


async def put(tx: Transaction, news: News, items: Sequence[Part]) -> list[None]:
    await tx.execute_many(_PUT, [msgspec.structs.asdict(item) for item in items])
    return [None] * len(items)


async def expire(tx: Transaction, news: News, items: Sequence[Expiry]) -> list[bool]:
    """Drop some of what is older; whether there may be more."""
    return [await _expire(tx, item) for item in items]


async def _expire(tx: Transaction, item: Expiry) -> bool:
    before_us = tx.now_us - int(item.keep_s * 1e6)
    gone = await tx.fetch(_DROP, {"step_s": item.step_s, "before": before_us, "most": MAX_DROPPED})
    return len(gone) == MAX_DROPPED


class History:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def put(self, parts: Sequence[Part]) -> None:
        """Write *parts* in one commit, each over what was there of it."""
        for answer in await self._commits.write_all(put, parts):
            if isinstance(answer, BaseException):
                raise answer

    async def expire(self, step_s: int, *, keep_s: float) -> bool:
        """Drop buckets that began longer ago, the oldest first, a batch of them; return whether there may be more."""
        is_more: bool = await self._commits.write(expire, Expiry(step_s, keep_s))
        return is_more

    async def read(
        self, agent: str, step_s: int, *, since_us: int, until_us: int = 2**62
    ) -> Sequence[tuple[int, bytes]]:
        """Return the records of the kept buckets that began in that time, each with its begin: the latest, if they are
        more than `MAX_READ`. A bucket has one for each life of a node: see `core.history.rolled`.
        """
        params = {"agent": agent, "step_s": step_s, "since": since_us, "until": until_us, "most": MAX_READ}
        return [(at, bytes(record)) for at, record in await self._db.read(_READ, params)]

    async def recent(self, step_s: int, *, since_us: int) -> Sequence[tuple[str, int, bytes]]:
        """Return the records that began since then, each with its agent and begin: the latest, if they are more than
        `MAX_READ`.
        """
        params = {"step_s": step_s, "since": since_us, "most": MAX_READ}
        return [(agent, at, bytes(record)) for agent, at, record in await self._db.read(_RECENT, params)]


ORDER = (put, expire)
