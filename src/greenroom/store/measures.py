"""Measures of intrusion detection in the store: whom it has locked or slowed down, why, and until when."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from greenroom.store import database
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.news import News


class Measure(msgspec.Struct, frozen=True):
    """*subject* is ``source:ADDRESS`` or ``principal:ID``; *kind* is throttle or lock. Instants in microseconds."""

    subject: str
    kind: str
    rule: str
    reason: str
    since_us: int
    until_us: int


class Lift(msgspec.Struct, frozen=True):
    subject: str


_COLUMNS = Measure.__struct_fields__
_TAKE = f"""
insert into security_measure ({", ".join(_COLUMNS)}) values ({", ".join(f":{name}" for name in _COLUMNS)})
on conflict (subject) do update set {", ".join(f"{name} = :{name}" for name in _COLUMNS[1:])}"""
_LIFT = "delete from security_measure where subject = :subject returning subject"
_EXPIRE = "delete from security_measure where until_us <= :now"
_ALL = f"select {', '.join(_COLUMNS)} from security_measure order by subject"


async def take(tx: Transaction, news: News, items: Sequence[Measure]) -> list[None]:
    await tx.execute_many(_TAKE, [msgspec.structs.asdict(item) for item in items])
    return [None] * len(items)


async def lift(tx: Transaction, news: News, items: Sequence[Lift]) -> list[bool]:
    return [bool(await tx.fetch(_LIFT, {"subject": item.subject})) for item in items]


async def expire(tx: Transaction, news: News, items: Sequence[int]) -> list[None]:
    """Forget what is over at these instants."""
    await tx.execute_many(_EXPIRE, [{"now": now_us} for now_us in items])
    return [None] * len(items)


class Measures:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def take(self, measure: Measure) -> None:
        await self._commits.write(take, measure)

    async def lift(self, subject: str) -> bool:
        """End a measure before its time; False where there is none."""
        is_lifted: bool = await self._commits.write(lift, Lift(subject))
        return is_lifted

    async def expire(self, now_us: int) -> None:
        await self._commits.write(expire, now_us)

    async def all(self) -> Sequence[Measure]:
        return [Measure(*row) for row in await self._db.lookup(_ALL, {})]


ORDER = (take, lift, expire)
