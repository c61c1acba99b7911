"""Copies of a SQLite store, and the exchange of its file for a restored one.

The restored file is written beside the old one. From the moment that it bears the name ``….restoring`` it is the
store: whoever opens the store next, this process or a node after a crash, completes the exchange (`sqlite.take_file`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from greenroom import errors
from greenroom.store import dumps, sqlite
from greenroom.store.database import Row

_TABLES = "select name from sqlite_schema where type = 'table' and name not glob 'sqlite_*' order by name"
_COLUMNS = "select name, type, pk from pragma_table_info(?) order by cid"


@contextlib.asynccontextmanager
async def snapshot(path: Path) -> AsyncIterator[_Snapshot]:
    if not path.is_file():  # noqa: ASYNC240 - it blocks, in a process of its own
        raise errors.NotFound(f"cannot back up {path}: there is no store")
    with _damage(path), contextlib.closing(sqlite.read_only(path)) as connection:
        connection.execute("begin")
        yield _Snapshot(connection, path)


class _Snapshot:
    dialect = "sqlite"

    def __init__(self, connection: sqlite.Connection, path: Path) -> None:
        self._connection, self._path = connection, path
        self.schema: int = connection.pragma("user_version")
        self._booleans: dict[str, frozenset[str]] = {}
        self.tables: Sequence[dumps.Table] = [self._table(name) for name in _tables(connection)]

    def _table(self, name: str) -> dumps.Table:
        columns: list[Any] = self._connection.execute(_COLUMNS, (name,)).fetchall()
        self._booleans[name] = frozenset(column for column, kind, _ in columns if kind.lower() == "boolean")
        names = tuple(column for column, _, _ in columns)
        key = tuple(column for place, column in sorted((pk, column) for column, _, pk in columns) if place)
        return dumps.Table(name, names, key or names, _sequence(self._connection, name))

    async def rows(self, table: dumps.Table) -> AsyncIterator[Row]:
        booleans = [place for place, column in enumerate(table.columns) if column in self._booleans[table.name]]
        query = f"select {_list(table.columns)} from {table.name} order by {_list(table.key)}"
        with _damage(self._path):
            for read in self._connection.execute(query):
                row: Row = read
                if booleans:  # SQLite keeps them as numbers
                    changed = list(read)
                    for place in booleans:
                        changed[place] = None if read[place] is None else bool(read[place])
                    row = changed
                yield row


@contextlib.asynccontextmanager
async def loading(
    path: Path, *, schema: int, replace: bool, upgrade: bool, publish: Callable[[], None]
) -> AsyncIterator[_Load]:
    before, after = dumps.steps("sqlite", schema)
    draft = path.with_name(f"{path.name}.draft")
    lock_fd = sqlite.take_file(path)
    try:
        if not replace:
            _refuse_rows(path)
        draft.unlink(missing_ok=True)  # of a restore that was killed
        with sqlite.weather(), contextlib.closing(sqlite.new_file(draft)) as connection:
            _migrate(connection, before)
            connection.execute("begin")
            yield _Load(connection)
            connection.execute("commit")
            if upgrade:
                _migrate(connection, after)
            if found := _faults(connection):
                raise errors.StoreDamaged(f"cannot restore: what was written to {draft} is damaged: {found[0]}")
        await asyncio.to_thread(_exchange, draft, path, publish)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock_fd)


class _Load:
    def __init__(self, connection: sqlite.Connection) -> None:
        self._connection = connection

    async def put(self, table: dumps.Table, rows: Sequence[Row]) -> None:
        places = ", ".join("?" * len(table.columns))
        self._connection.executemany(
            f"insert into {table.name} ({_list(table.columns)}) values ({places})", [tuple(row) for row in rows]
        )

    async def continue_behind(self, table: dumps.Table) -> None:
        reached = _sequence(self._connection, table.name)
        if table.sequence is not None and table.sequence > (reached or 0):
            self._connection.execute("delete from sqlite_sequence where name = ?", (table.name,))
            self._connection.execute("insert into sqlite_sequence values (?, ?)", (table.name, table.sequence))


def faults(path: Path) -> list[str]:
    with contextlib.closing(sqlite.read_only(path)) as connection:
        return _faults(connection)


def _faults(connection: sqlite.Connection) -> list[str]:
    found = [str(text) for (text,) in connection.execute("pragma integrity_check")]
    return [] if found == ["ok"] else found


def _migrate(connection: sqlite.Connection, steps: Sequence[Any]) -> None:
    for migration in steps:
        connection.execute(f"begin; {migration.script}; pragma user_version={migration.number}; commit")


def _tables(connection: sqlite.Connection) -> list[str]:
    return [str(name) for (name,) in connection.execute(_TABLES).fetchall()]


def _sequence(connection: sqlite.Connection, table: str) -> int | None:
    if not connection.execute("select count(*) from sqlite_schema where name = 'sqlite_sequence'").get:
        return None
    number: int | None = connection.execute("select max(seq) from sqlite_sequence where name = ?", (table,)).get
    return number


def _refuse_rows(path: Path) -> None:
    if not path.exists() or not path.stat().st_size:
        return
    try:
        with contextlib.closing(sqlite.read_only(path)) as connection:
            full = [
                name for name in _tables(connection) if connection.execute(f"select exists (select 1 from {name})").get
            ]
    except sqlite.ERRORS as error:
        raise errors.Conflict(
            f"cannot restore into {path}: it cannot be read ({error}); add --replace to move it aside"
        ) from None
    if full:
        dumps.refuse_to_replace(str(path), full)


def _exchange(draft: Path, path: Path, publish: Callable[[], None]) -> None:
    _sync(draft)
    draft.rename(path.with_name(f"{path.name}{sqlite.RESTORING}"))
    _sync(path.parent)
    publish()
    sqlite.complete_restore(path)


@contextlib.contextmanager
def interrupted(path: Path) -> Iterator[bool]:
    fd = sqlite.lock(path)
    try:
        yield sqlite.is_exchanging(path)
        sqlite.complete_restore(path)
    finally:
        os.close(fd)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        with sqlite.weather():
            yield
    except (UnicodeDecodeError, *sqlite.DAMAGE) as error:
        raise errors.StoreDamaged(f"cannot read {path}: {error}; it is damaged") from None
    except errors.StoreUnavailable as error:
        if isinstance(error.__cause__, sqlite.DAMAGE):
            raise errors.StoreDamaged(f"cannot read {path}: {error.__cause__}; it is damaged") from None
        raise


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
