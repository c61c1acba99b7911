"""Where a rollout is struck, and by what: at the commits that write what it consists of. For `rollouts`."""

from __future__ import annotations

import contextlib
import enum
import functools
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from greenroom import errors
from greenroom.store import database
from greenroom.testing import fakes

_MOVES = re.compile(r"\s*(?:insert into|update|delete from) (?:rollout|agent|revision|replica|failure)\b")


class Strike(enum.StrEnum):
    """What happens at a commit."""

    NODE_BEFORE = "node killed before a commit"
    NODE_AFTER = "node killed after a commit"
    COMMIT_FAILS = "commit fails"
    ANSWER_LOST = "commit's answer lost"
    NEW_KILLED = "new replicas killed"
    OLD_KILLED = "old replicas killed"


@dataclass(frozen=True, slots=True)
class Point:
    """A commit that moves something; whether there are replicas then that can be killed."""

    number: int
    has_new: bool
    has_old: bool

    @property
    def strikes(self) -> list[Strike]:
        given = {Strike.NEW_KILLED: self.has_new, Strike.OLD_KILLED: self.has_old}
        return [strike for strike in Strike if given.get(strike, True)]


@dataclass(frozen=True, slots=True)
class Blow:
    strike: Strike
    number: int  # the point's

    def __str__(self) -> str:
        return f"{self.strike.name.lower()}@{self.number}"


def parsed(blow: str) -> Blow:
    """Read what `str` has made of a blow."""
    strike, _, number = blow.partition("@")
    return Blow(Strike[strike.upper()], int(number))


class World(Protocol):
    """What happens to the node that commits."""

    def strike_now(self) -> Strike | None:
        """A commit that moves something is about to become durable: say what happens to it."""

    async def fell(self) -> None:
        """The node dies here and now: this does not return to who commits."""

    def kill(self, *, is_new: bool) -> None:
        """Kill all replicas of the revisions after the first, or of the first."""

    def look(self) -> None:
        """A transaction has ended: what it has stored is there to see."""


@functools.lru_cache(maxsize=512)
def _is_move(sql: str) -> bool:
    return _MOVES.match(sql) is not None


@dataclass
class _Noting:
    """A transaction; *is_move*: it has written what a rollout consists of."""

    tx: database.Transaction
    is_move: bool = False

    def __post_init__(self) -> None:
        self.now_us = self.tx.now_us

    async def fetch(self, sql: str, params: database.Params) -> Sequence[database.Row]:
        self.is_move |= _is_move(sql)
        return await self.tx.fetch(sql, params)

    async def fetch_many(self, sql: str, rows: Iterable[database.Params]) -> Sequence[database.Row]:
        self.is_move |= _is_move(sql)
        return await self.tx.fetch_many(sql, rows)

    async def execute_many(self, sql: str, rows: Iterable[database.Params]) -> None:
        self.is_move |= _is_move(sql)
        await self.tx.execute_many(sql, rows)


class StruckDatabase(fakes.FaultyDatabase):
    def __init__(self, db: database.Database, world: World) -> None:
        super().__init__(db)
        self._world = world

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[database.Transaction]:
        world, strike = self._world, None
        try:
            async with self._db.transaction() as tx:
                noting = _Noting(tx)
                yield noting
                strike = world.strike_now() if noting.is_move else None
                if strike is Strike.NODE_BEFORE:
                    await world.fell()
                if strike is Strike.COMMIT_FAILS:
                    raise errors.StoreUnavailable("cannot commit: a scenario said so")
        finally:
            world.look()
        if strike is Strike.NODE_AFTER:
            await world.fell()
        if strike is Strike.ANSWER_LOST:
            raise errors.StoreUnavailable("cannot tell whether it was committed: a scenario said so")
        if strike in (Strike.NEW_KILLED, Strike.OLD_KILLED):
            world.kill(is_new=strike is Strike.NEW_KILLED)
