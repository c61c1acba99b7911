"""Copies of a PostgreSQL store. A schema may hold tables of others: ours are those that the migrations make."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from greenroom import errors
from greenroom.store import dumps, migrations, postgres
from greenroom.store.database import Row

PREFETCH = 100  # rows, of which each may be tens of megabytes

_TABLES = """
select c.relname,
    array(select attname::text from pg_attribute a where a.attrelid = c.oid and attnum > 0 and not attisdropped
        order by attnum),
    array(select a.attname::text from pg_index i, unnest(i.indkey) with ordinality as k (attnum, place)
        join pg_attribute a on a.attnum = k.attnum
        where i.indrelid = c.oid and i.indisprimary and a.attrelid = c.oid order by place),
    array(select attname::text from pg_attribute a where a.attrelid = c.oid and attnum > 0
        and atttypid = 'text'::regtype),
    (select pg_sequence_last_value(pg_get_serial_sequence(quote_ident(c.relname), attname)::regclass)
        from pg_attribute a where a.attrelid = c.oid and attidentity <> '' and not attisdropped limit 1)
from pg_class c where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r' and c.relname = any ($1)
order by c.relname collate "C"
"""


@contextlib.asynccontextmanager
async def snapshot(url: str) -> AsyncIterator[_Snapshot]:
    async with _connected(url) as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        if await connection.fetchval("select to_regclass('greenroom_schema')") is None:
            raise errors.NotFound("cannot back up the PostgreSQL store: there is none in this database")
        if (schema := await connection.fetchval("select max(number) from greenroom_schema")) is None:
            raise errors.NotFound("cannot back up the PostgreSQL store: it is empty")
        found = await connection.fetch(_TABLES, list(migrations.tables("postgresql")))
        yield _Snapshot(connection, schema, found)


class _Snapshot:
    dialect = "postgresql"

    def __init__(self, connection: postgres.Connection, schema: int, found: Sequence[Row]) -> None:
        self._connection, self.schema = connection, schema
        self.tables: Sequence[dumps.Table] = [
            dumps.Table(name, tuple(columns), tuple(key or columns), sequence)
            for name, columns, key, _, sequence in found
        ]
        self._texts = {name: frozenset(texts) for name, _, _, texts, _ in found}

    async def rows(self, table: dumps.Table) -> AsyncIterator[Row]:
        texts = self._texts[table.name]
        key = ", ".join(f'{name} collate "C"' if name in texts else name for name in table.key)  # the order of SQLite
        query = f"select {', '.join(table.columns)} from {table.name} order by {key}"
        with postgres.weather():
            async for record in self._connection.cursor(query, prefetch=PREFETCH):
                yield tuple(record)


@contextlib.asynccontextmanager
async def loading(
    url: str, *, schema: int, replace: bool, upgrade: bool, publish: Callable[[], None]
) -> AsyncIterator[_Load]:
    before, after = dumps.steps("postgresql", schema)
    async with _connected(url) as connection:
        await postgres.claim(connection)
        async with connection.transaction():
            if not replace:
                await _refuse_rows(connection)
            await _drop(connection)
            await postgres.apply(connection, before)
            yield _Load(connection)
            if upgrade:
                await postgres.apply(connection, after)
        publish()


class _Load:
    def __init__(self, connection: postgres.Connection) -> None:
        self._connection = connection

    async def put(self, table: dumps.Table, rows: Sequence[Row]) -> None:
        # COPY writes identities as they are given.
        await self._connection.copy_records_to_table(
            table.name, columns=table.columns, records=[tuple(row) for row in rows]
        )

    async def continue_behind(self, table: dumps.Table) -> None:
        if table.sequence is not None:
            (column,) = table.key
            await self._connection.execute(
                f"select setval(pg_get_serial_sequence('{table.name}', '{column}'), "
                f"greatest($1::bigint, (select max({column}) from {table.name})))",
                table.sequence,
            )


async def erase(url: str) -> None:
    async with _connected(url) as connection:
        await postgres.claim(connection)
        async with connection.transaction():
            await _drop(connection)


@contextlib.asynccontextmanager
async def _connected(url: str) -> AsyncIterator[postgres.Connection]:
    with postgres.weather():
        # A whole table may have to be sorted before its first row comes.
        connection = await postgres.connect(url, {"statement_timeout": "0"}, command_timeout_s=None)
        try:
            yield connection
        finally:
            await connection.close()


async def _refuse_rows(connection: postgres.Connection) -> None:
    found = await connection.fetch(_TABLES, list(migrations.tables("postgresql")))
    full = [row[0] for row in found if await connection.fetchval(f"select exists (select 1 from {row[0]})")]
    if full:
        dumps.refuse_to_replace("the PostgreSQL store", full)


async def _drop(connection: postgres.Connection) -> None:
    for kind, names in (("table", migrations.tables("postgresql")), ("function", migrations.functions("postgresql"))):
        if names:
            await connection.execute(f"drop {kind} if exists {', '.join(names)} cascade")
    if await connection.fetchval("select to_regclass('greenroom_schema')") is not None:
        await connection.execute("delete from greenroom_schema")
