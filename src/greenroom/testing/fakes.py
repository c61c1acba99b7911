"""Fakes that tests move by hand: a clock, a real database that fails on order, and keys that nobody else has."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import heapq
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta

from greenroom import errors
from greenroom.security import vault
from greenroom.security.key_sources import Found
from greenroom.security.vault import KeyEncryptionKey
from greenroom.store import database

START = datetime(2030, 1, 1, tzinfo=UTC)


class FakeClock:
    """A `greenroom.clock.Clock` that moves only by `advance`."""

    def __init__(self, start: datetime = START) -> None:
        self._now, self._monotonic_s = start, 0.0
        self._alarms: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    @property
    def sleepers(self) -> int:
        """How many sleep now."""
        return sum(not alarm.done() for _, _, alarm in self._alarms)

    def now(self) -> datetime:
        return self._now

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def advance(self, delay_s: float) -> None:
        """Let time pass; sleepers go on in the order of their alarms, once the caller awaits, and see the new time."""
        self._now += timedelta(seconds=delay_s)
        self._monotonic_s += delay_s
        while self._alarms and self._alarms[0][0] <= self._monotonic_s:
            _, _, alarm = heapq.heappop(self._alarms)
            if not alarm.done():
                alarm.set_result(None)

    async def sleep(self, delay_s: float, wakeup: asyncio.Event | None = None) -> None:
        alarm: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._alarms, (self._monotonic_s + delay_s, next(self._order), alarm))
        self.advance(0.0)
        if wakeup is None:
            await alarm
            return
        waiting = asyncio.create_task(wakeup.wait())
        try:
            await asyncio.wait((alarm, waiting), return_when=asyncio.FIRST_COMPLETED)
            if not alarm.done():
                wakeup.clear()
        finally:
            waiting.cancel()
            alarm.cancel()


class Fault(enum.Enum):
    """When a transaction fails: its caller cannot tell these apart."""

    AT_COMMIT = enum.auto()  # nothing is stored
    AFTER_COMMIT = enum.auto()  # all is stored, the answer is lost


class FaultyDatabase:
    """A real `database.Database` whose next transactions fail as *faults* says: a `Fault`, or part of a statement.

    When *faults* is used up, *draw* says what comes. *transactions* counts those begun. Of its next look-ups and reads
    those fail for which *read_faults* says True, and afterwards *draw_read*.
    """

    def __init__(
        self,
        db: database.Database,
        *,
        draw: Callable[[], Fault | None] = lambda: None,
        draw_read: Callable[[], bool] = lambda: False,
    ) -> None:
        self._db, self._draw, self._draw_read = db, draw, draw_read
        self.dialect = db.dialect
        self.faults: list[Fault | str | None] = []
        self.read_faults: list[bool] = []
        self.transactions = 0

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[database.Transaction]:
        self.transactions += 1
        fault = self.faults.pop(0) if self.faults else self._draw()
        async with self._db.transaction() as tx:
            yield _FaultyTransaction(tx, fault) if isinstance(fault, str) else tx
            if fault is Fault.AT_COMMIT:
                raise errors.StoreUnavailable("cannot commit: a test said so")
        if fault is Fault.AFTER_COMMIT:
            raise errors.StoreUnavailable("cannot tell whether it was committed: a test said so")

    async def claim_alone(self) -> None:
        await self._db.claim_alone()

    async def migrate(self) -> None:
        await self._db.migrate()

    async def lookup(self, sql: str, params: database.Params) -> Sequence[database.Row]:
        self._check_read()
        return await self._db.lookup(sql, params)

    async def read(self, sql: str, params: database.Params) -> Sequence[database.Row]:
        self._check_read()
        return await self._db.read(sql, params)

    def _check_read(self) -> None:
        if self.read_faults.pop(0) if self.read_faults else self._draw_read():
            raise errors.StoreUnavailable("cannot read: a test said so")

    async def check(self) -> None:
        await self._db.check()

    async def truncate_log(self) -> None:
        await self._db.truncate_log()

    async def close(self) -> None:
        await self._db.close()


class _FaultyTransaction:
    def __init__(self, tx: database.Transaction, fault: str) -> None:
        self._tx, self._fault = tx, fault
        self.now_us = tx.now_us

    async def fetch(self, sql: str, params: database.Params) -> Sequence[database.Row]:
        self._check(sql)
        return await self._tx.fetch(sql, params)

    async def fetch_many(self, sql: str, rows: Iterable[database.Params]) -> Sequence[database.Row]:
        self._check(sql)
        return await self._tx.fetch_many(sql, rows)

    async def execute_many(self, sql: str, rows: Iterable[database.Params]) -> None:
        self._check(sql)
        await self._tx.execute_many(sql, rows)

    def _check(self, sql: str) -> None:
        if self._fault in sql:
            raise errors.StoreUnavailable(f"cannot run {self._fault!r}: a test said so")


class FakeKeySource:
    """A `greenroom.security.key_sources.Source` in memory: it knows each key that it has ever given."""

    def __init__(self) -> None:
        self._keys = [KeyEncryptionKey(vault.new_secret())]

    async def first(self) -> Found:
        return Found(self._keys[-1], None)

    async def find(self, id: str, wrapped: bytes | None) -> KeyEncryptionKey:
        for key in self._keys:
            if key.id == id and wrapped is None:
                return key
        raise errors.StartRefused(f"cannot open the encrypted store: nobody here has its key {id}")

    async def next(self, current: str) -> Found:
        assert current in {key.id for key in self._keys}
        self._keys.append(KeyEncryptionKey(vault.new_secret()))
        return Found(self._keys[-1], None)
