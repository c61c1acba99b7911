"""PostgreSQL: durable on every commit; one writing connection, a few readers. Only this module imports asyncpg.

Connection loss is weather: the transaction in flight fails with `StoreUnavailable` (its fate is unknown: the same
Idempotency-Key resolves it) and the next one connects again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from greenroom import clock as clocks
from greenroom import errors
from greenroom.store import database, migrations

try:
    import asyncpg
except ImportError as error:  # the extra is not installed; said where a PostgreSQL URL is used
    raise errors.StartRefused(
        "cannot use PostgreSQL: asyncpg is not installed; run: pip install 'greenroom[postgresql]'"
    ) from error

Connection: TypeAlias = "asyncpg.Connection[Any]"

READERS = 4
MAX_BYTES_AT_ONCE = 32 * 1024 * 1024
CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 30.0
_LOST = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server's last words came between two statements
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
)
CLAIM_TIMEOUT_S = 3.0  # a server may need a moment to notice that a killed node's connection has ended
_APPLICATION_NAME = "greenroom"
_MIGRATION_LOCK = 0x47524E52  # an advisory lock's number: "GRNR"
# Two-part numbers are a space of their own; the second part tells apart stores in schemas of one database.
_CLAIM = f"select pg_advisory_lock({_MIGRATION_LOCK}, hashtext(current_schema()))"

# What is written finds its rows by index, always: tables grow faster than their statistics, and a plan that was made
# when they were empty would read them whole. And each statement has one plan: planning takes longer than running.
_PLANS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}

# The database's clock behind one function, so that tests can move it.
_CLOCK = """
create table if not exists greenroom_clock (offset_us bigint not null);
create or replace function greenroom_now_us() returns bigint language sql volatile as $$
    select (extract(epoch from clock_timestamp()) * 1000000)::bigint
        + coalesce((select offset_us from greenroom_clock limit 1), 0) $$;
create table if not exists greenroom_schema (
    number integer primary key, name text not null, at timestamptz default now());
"""


@contextlib.asynccontextmanager
async def holding_lock(url: str) -> AsyncIterator[None]:
    """Let nobody write tasks to the store at *url* for the length of the block; reading goes on."""
    async with _visit(url) as connection, connection.transaction():
        await connection.execute("lock table task in exclusive mode")
        yield


async def end_connections(url: str) -> int:
    """End all connections that nodes have to the store at *url*; return how many."""
    async with _visit(url) as connection:
        ended: int = await connection.fetchval(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity "
            "where datname = current_database() and application_name = $1",
            _APPLICATION_NAME,
        )
    return ended


@contextlib.asynccontextmanager
async def _visit(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    with weather():
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S, command_timeout=CONNECT_TIMEOUT_S)
        try:
            yield connection
        finally:
            await connection.close()


class Postgres:
    dialect = "postgresql"

    def __init__(self, url: str, clock: clocks.Clock) -> None:
        self._url, self._clock = url, clock
        self._writer: asyncpg.Connection[Any] | None = None
        self._readers: asyncpg.Pool[Any] | None = None
        self._turn = asyncio.Lock()
        self._is_alone = False  # claim_alone was called: no transaction without the claim
        self._claim: asyncpg.Connection[Any] | None = None
        self._types: dict[str, list[str]] = {}

    async def migrate(self) -> None:
        connection = await self._connected()
        with weather():
            async with connection.transaction():
                await connection.execute("select pg_advisory_xact_lock($1)", _MIGRATION_LOCK)
                await connection.execute(_CLOCK)
                done = await connection.fetchval("select coalesce(max(number), 0) from greenroom_schema")
                await apply(connection, migrations.missing(self.dialect, done))
            durability = await connection.fetchval("show synchronous_commit")
        if durability not in ("on", "remote_apply", "remote_write"):
            raise errors.StartRefused(
                f"cannot promise durability: synchronous_commit is {durability}; set it to on for this database"
            )

    async def claim_alone(self) -> None:
        """Keep other nodes out: a session lock, on a connection of its own, that ends with this process.

        Raises `errors.StoreInUse` if another node holds it. Where the connection is lost, the next transaction
        claims again and is `StoreUnavailable` while somebody else holds the lock.
        """
        async with self._turn:
            try:
                await self._hold_claim()
            except asyncpg.LockNotAvailableError:
                raise errors.StoreInUse(
                    "cannot open the PostgreSQL store: another node has it open; stop that node, "
                    "or give this one its own database"
                ) from None
            self._is_alone = True

    async def _hold_claim(self) -> None:
        if self._claim is not None and not self._claim.is_closed():
            return
        with weather():
            connection = await connect(self._url, {"lock_timeout": f"{CLAIM_TIMEOUT_S:g}s"})
            try:
                await connection.execute(_CLAIM)
            except BaseException:
                connection.terminate()
                raise
        self._claim = connection

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[_Transaction]:
        async with self._turn:
            connection = await self._connected()
            try:
                with weather():
                    async with connection.transaction():
                        now_us = await connection.fetchval("select greenroom_now_us()")
                        yield _Transaction(connection, now_us, self._types)
            except errors.StoreUnavailable:
                connection.terminate()  # its state is unknown: the next transaction connects again
                raise

    async def lookup(self, sql: str, params: database.Params) -> Sequence[database.Row]:
        return await self.read(sql, params)

    async def read(self, sql: str, params: database.Params) -> Sequence[database.Row]:
        with weather():
            if self._readers is None:
                self._readers = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=READERS,
                    reset=_nothing_to_reset,
                    timeout=CONNECT_TIMEOUT_S,
                    command_timeout=COMMAND_TIMEOUT_S,
                )
            text, names = _positional(sql)
            arguments = _arguments(params, names)
            try:
                return await self._readers.fetch(text, *arguments)  # type: ignore[no-any-return]
            except _LOST:
                await self._readers.expire_connections()  # the server that cut one has mostly cut all
            return await self._readers.fetch(text, *arguments)  # type: ignore[no-any-return] # a read changes nothing

    async def check(self) -> None:
        """PostgreSQL looks after its own files."""

    async def truncate_log(self) -> None:
        """PostgreSQL recycles its own."""

    async def close(self) -> None:
        async with self._turn:
            if self._readers is not None:
                await self._readers.close()
            for connection in (self._writer, self._claim):
                if connection is not None and not connection.is_closed():
                    await connection.close()

    async def _connected(self) -> asyncpg.Connection[Any]:
        is_lost = self._writer is None or self._writer.is_closed()
        if is_lost and self._claim is not None and self._is_alone:
            self._claim.terminate()  # what cut the writer has mostly cut the claim, too: nothing is written on a guess
            self._claim = None
        if self._is_alone:
            try:
                await self._hold_claim()
            except asyncpg.LockNotAvailableError as error:
                raise errors.StoreUnavailable("cannot use the PostgreSQL store: another node holds it") from error
        if self._writer is None or self._writer.is_closed():
            with weather():
                self._writer = await connect(self._url, _PLANS)
        return self._writer


async def connect(
    url: str, server_settings: Mapping[str, str], *, command_timeout_s: float | None = COMMAND_TIMEOUT_S
) -> Connection:
    return await asyncpg.connect(
        url,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=command_timeout_s,
        server_settings={"application_name": _APPLICATION_NAME, "jit": "off", **server_settings},
    )


async def claim(connection: Connection) -> None:
    """Keep nodes out for as long as *connection* lives; raises `errors.StoreInUse` if one is in."""
    await connection.execute(f"set lock_timeout = '{CLAIM_TIMEOUT_S:g}s'")
    try:
        await connection.execute(_CLAIM)
    except asyncpg.LockNotAvailableError:
        raise errors.StoreInUse(
            "cannot write to the PostgreSQL store: a node has it open; stop that node first"
        ) from None


async def apply(connection: Connection, missing: Iterable[migrations.Migration]) -> None:
    """Run migrations inside the transaction that is open."""
    await connection.execute(_CLOCK)
    for migration in missing:
        await connection.execute(migration.script)
        await connection.execute(
            "insert into greenroom_schema (number, name) values ($1, $2)", migration.number, migration.name
        )


async def _nothing_to_reset(_connection: object) -> None:
    """Spare each read the round trip that asyncpg's pool makes after it: reads here leave nothing in a session."""


class _Transaction:
    """Statements on the writing connection; *types* are those of the parameters of statements that ran before."""

    __slots__ = ("_connection", "_types", "now_us")

    def __init__(self, connection: asyncpg.Connection[Any], now_us: int, types: dict[str, list[str]]) -> None:
        self._connection, self.now_us, self._types = connection, now_us, types

    async def fetch(self, sql: str, params: database.Params) -> Sequence[database.Row]:
        text, names = _positional(sql)
        return await self._connection.fetch(text, *_arguments(params, names))  # type: ignore[no-any-return]

    async def fetch_many(self, sql: str, rows: Iterable[database.Params]) -> Sequence[database.Row]:
        text, names = _positional(sql)
        arguments = [_arguments(row, names) for row in rows]
        if len(arguments) == 1:
            return await self._connection.fetch(text, *arguments[0])  # type: ignore[no-any-return]
        if arguments and (at_once := await self._at_once(sql)) is not None:
            return [
                row
                for rows_at_once in _bounded(arguments)
                for row in await self._connection.fetch(at_once, *zip(*rows_at_once, strict=True))
            ]
        return await self._connection.fetchmany(text, arguments)  # type: ignore[no-any-return]

    async def execute_many(self, sql: str, rows: Iterable[database.Params]) -> None:
        text, names = _positional(sql)
        arguments = [_arguments(row, names) for row in rows]
        if len(arguments) > 1 and (at_once := await self._at_once(sql)) is not None:
            for rows_at_once in _bounded(arguments):
                await self._connection.execute(at_once, *zip(*rows_at_once, strict=True))
        elif arguments:
            await self._connection.executemany(text, arguments)

    async def _at_once(self, sql: str) -> str | None:
        """Return the statement that does for columns of values what *sql* does for one of each; None if none can."""
        if not _has_form(sql):
            return None
        if sql not in self._types:
            prepared = await self._connection.prepare(_positional(sql)[0])
            self._types[sql] = [kind.name for kind in prepared.get_parameters()]
        return _for_columns(sql, tuple(self._types[sql]))


@functools.lru_cache(maxsize=512)
def _positional(sql: str) -> tuple[str, tuple[str, ...]]:
    """Turn ``:name`` into ``$n``; the same name is the same number."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    return re.sub(r"(?<![:\w]):([a-z_]+)", number, sql), tuple(names)


def _arguments(params: database.Params, names: tuple[str, ...]) -> tuple[Any, ...]:
    return params if isinstance(params, tuple) else tuple(params[name] for name in names)


# The forms of statements that can be asked for many rows at once. Per row, PostgreSQL takes two to three times as long.
_INSERT_FORM = re.compile(r"\s*(insert into \w+ \([^)]*\)) values \(([^)]*)\)([^:]*)")
_UPDATE_FORM = re.compile(r"\s*(update task set .*?)\s(where seq = :seq\b.*)", re.DOTALL)
_SELECT_FORM = re.compile(r"\s*(select .* from task)\s(where id = :id\b.*) for update", re.DOTALL)


def _bounded(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Split *rows* where they grow over `MAX_BYTES_AT_ONCE`: a message to the server has at most a gigabyte."""
    if sum(len(value) for column in zip(*rows, strict=True) for value in _blobs(column)) <= MAX_BYTES_AT_ONCE:
        yield rows
        return
    size, start = 0, 0
    for end, row in enumerate(rows, 1):
        size += sum(len(value) for value in _blobs(row))
        if size > MAX_BYTES_AT_ONCE:
            yield rows[start:end]
            size, start = 0, end
    if start < len(rows):
        yield rows[start:]


def _blobs(values: Iterable[Any]) -> Iterator[bytes]:
    return (value for value in values if type(value) is bytes)


@functools.lru_cache(maxsize=512)
def _has_form(sql: str) -> bool:
    return any(form.fullmatch(sql) for form in (_INSERT_FORM, _UPDATE_FORM, _SELECT_FORM))


@functools.lru_cache(maxsize=64)
def _for_columns(sql: str, types: tuple[str, ...]) -> str:
    names = _positional(sql)[1]
    columns = ", ".join(f"${number}::{type}[]" for number, type in enumerate(types, 1))
    given = f"unnest({columns}) as given ({', '.join(f'_{name}' for name in names)})"
    if insert := _INSERT_FORM.fullmatch(sql):
        into, values, rest = insert.groups()
        text = f"{into} select {values} from {given} {rest}"
    elif update := _UPDATE_FORM.fullmatch(sql):
        text = f"{update[1]} from {given} {update[2]}"
    else:
        select = _SELECT_FORM.fullmatch(sql)
        assert select is not None
        text = f"{select[1]}, {given} {select[2]} for update of task"
    return re.sub(r"(?<![:\w]):([a-z_]+)", r"given._\1", text)


@contextlib.contextmanager
def weather() -> Iterator[None]:
    """Turn what the network or the server did into `StoreUnavailable`; mistakes of ours pass through."""
    try:
        yield
    except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as error:
        raise database.RetryTransaction(str(error)) from error
    except (
        *_LOST,
        TimeoutError,
        asyncpg.InsufficientResourcesError,
        asyncpg.CannotConnectNowError,
        asyncpg.ReadOnlySQLTransactionError,
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.PostgresSystemError,
    ) as error:
        raise errors.StoreUnavailable(f"cannot use the PostgreSQL store: {error or type(error).__name__}") from error
