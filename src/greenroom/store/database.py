"""The database port: transactions with one dialect of SQL, named parameters and the database's clock.

Statements are written once, with ``:name`` parameters, and run on SQLite and PostgreSQL alike (the one fragment that
SQLite lacks, `` for update skip locked``, is dropped there: it has a single writer). Transactions are asynchronous on
both; on SQLite the statements themselves never suspend, only begin and commit do.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

Params = Mapping[str, Any] | tuple[Any, ...]  # by name, or in the order in which the names first appear
Row = Sequence[Any]


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class RetryTransaction(Exception):
    """The transaction was rolled back, certainly, for a reason that has passed: run it again."""


class Transaction(Protocol):
    now_us: int
    """The database's clock when the transaction began; lagging behind it only ever makes a lease shorter."""

    async def fetch(self, sql: str, params: Params) -> Sequence[Row]: ...

    async def fetch_many(self, sql: str, rows: Iterable[Params]) -> Sequence[Row]:
        """Run *sql* once for each of *rows*; return what all of them return, in order."""

    async def execute_many(self, sql: str, rows: Iterable[Params]) -> None: ...


class Database(Protocol):
    dialect: str

    async def migrate(self) -> None:
        """Bring the schema to this release; raises `errors.StoreOfAnotherRelease` if it is newer, or too old."""

    async def claim_alone(self) -> None:
        """Keep other nodes out until it is closed; raises `errors.StoreInUse` if one is in."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Open the one write transaction; durable (fsynced) when the block has ended without an exception.

        Raises `errors.StoreUnavailable` when the database is locked, full, broken or away, `RetryTransaction` when
        another node's transaction was in the way.
        """

    async def lookup(self, sql: str, params: Params) -> Sequence[Row]:
        """Read a few rows by key, outside any transaction: the cheapest read there is."""

    async def read(self, sql: str, params: Params) -> Sequence[Row]:
        """Read what may take long (lists, sums) without holding up the event loop."""

    async def check(self) -> None:
        """Look at all that is stored, however long it takes; raises `errors.StoreDamaged` if something cannot be read.

        PostgreSQL looks after its own files: there it is nothing.
        """

    async def truncate_log(self) -> None:
        """Leave nothing of what was overwritten in files beside the store's own, as far as nobody reads just now.

        PostgreSQL recycles its own: there it is nothing.
        """

    async def close(self) -> None: ...


def microseconds(instant: datetime) -> int:
    return (instant - EPOCH) // _MICROSECOND


def instant(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)


# What one commit stores has one instant, which is shown for each task and each of its attempts.
@functools.lru_cache(maxsize=4096)
def instant_or_none(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else instant(microseconds)
