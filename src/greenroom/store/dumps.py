"""Copies of a whole store: every row of every table out of one consistent moment, and back into an empty store.

What there is to copy says the database's own catalogue, so that a migration's new table cannot be forgotten. Rows come
in the order of their keys and with the same values from both databases: what is equal in them is equal in its copy.
Reading uses a connection of its own and holds up nobody who writes. Called by `greenroom.backups`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Protocol

import msgspec

from greenroom import errors
from greenroom.store import migrations
from greenroom.store.database import Row


class Table(msgspec.Struct, frozen=True):
    """A table to copy. *key* orders its rows; *sequence* is the last number that was given to one, if numbers are."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    sequence: int | None = None


class Snapshot(Protocol):
    """A store at one moment, for as long as it is open."""

    dialect: str
    schema: int
    tables: Sequence[Table]

    def rows(self, table: Table) -> AsyncIterator[Row]:
        """Yield the rows of *table*, which may name fewer columns than there are."""


class Load(Protocol):
    """An empty store that is being filled; nobody sees it before it is whole."""

    async def put(self, table: Table, rows: Sequence[Row]) -> None: ...

    async def continue_behind(self, table: Table) -> None:
        """Give no number of *table* out again; called when all its rows are in."""


def snapshot(url: str) -> AbstractAsyncContextManager[Snapshot]:
    """Open the store at *url* as it is now, also while a node writes to it.

    Raises `errors.NotFound` where there is no store, `errors.StoreDamaged` where one cannot be read.
    """
    if url.startswith("sqlite:///"):
        from greenroom.store import sqlite_dumps

        return sqlite_dumps.snapshot(file_of(url))
    from greenroom.store import postgres_dumps

    return postgres_dumps.snapshot(url)


def loading(
    url: str, *, schema: int, replace: bool, upgrade: bool = True, publish: Callable[[], None] = lambda: None
) -> AbstractAsyncContextManager[Load]:
    """Fill the store at *url* with rows of *schema*; with *upgrade* it ends with this release's schema.

    The whole is there when the block has ended without an exception, else nothing has changed. Raises
    `errors.StoreInUse` while a node has the store open, and `errors.Conflict` if it has rows and *replace* is false.
    With *replace* a SQLite file is moved aside, and PostgreSQL's tables are dropped.

    *publish* puts in place what belongs to the store: called from the moment on from which the new store is the store,
    before anybody can open it. `interrupted` tells whether a process died after that moment.
    """
    if url.startswith("sqlite:///"):
        from greenroom.store import sqlite_dumps

        return sqlite_dumps.loading(file_of(url), schema=schema, replace=replace, upgrade=upgrade, publish=publish)
    from greenroom.store import postgres_dumps

    return postgres_dumps.loading(url, schema=schema, replace=replace, upgrade=upgrade, publish=publish)


def interrupted(url: str) -> AbstractContextManager[bool]:
    """Keep everybody out, tell whether `loading` has died in its last moment, and complete it at the end of the block.

    Only for SQLite: PostgreSQL does not tell whether a commit of another's was the last thing that was done.
    """
    from greenroom.store import sqlite_dumps

    return sqlite_dumps.interrupted(file_of(url))


async def faults(url: str) -> list[str]:
    """Return what the database itself finds wrong with the store at *url*; PostgreSQL has no such check."""
    if url.startswith("sqlite:///"):
        from greenroom.store import sqlite_dumps

        return sqlite_dumps.faults(file_of(url))
    return []


async def erase(url: str) -> None:
    """Take everything of ours out of a scratch store; a SQLite file is its caller's to remove."""
    if not url.startswith("sqlite:///"):
        from greenroom.store import postgres_dumps

        await postgres_dumps.erase(url)


def file_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


def steps(dialect: str, schema: int) -> tuple[list[migrations.Migration], list[migrations.Migration]]:
    """Return the migrations that lead to *schema*, and those from there on; raises `errors.BackupInvalid`."""
    known = list(migrations.scripts(dialect))
    if schema not in {migration.number for migration in known}:
        raise errors.BackupInvalid(
            f"cannot restore: the backup's schema {schema} is not known to this release, whose newest is "
            f"{known[-1].number}; restore it with the release that made it, or a newer one"
        )
    before = [migration for migration in known if migration.number <= schema]
    return before, known[len(before) :]


def refuse_to_replace(where: str, names: Iterable[str]) -> None:
    raise errors.Conflict(
        f"cannot restore into {where}: it has rows ({', '.join(names)}); add --replace if they may go, "
        "or restore somewhere else, with --data-dir or --store"
    )
