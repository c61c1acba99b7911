"""SQLite: one file, one process, one writing connection with ``synchronous=FULL``.

Statements run on the event loop's own thread (a few microseconds each, no lock handed between threads); the commit,
which waits for the disk, runs on one writer thread without the GIL. Reads that may take long have a thread and a
read-only connection of their own. The only module that imports apsw, which brings its own SQLite: interpreters ship
versions with a WAL corruption bug (before 3.51.3).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw

from greenroom import clock as clocks
from greenroom import errors
from greenroom.store import database, migrations, sqlite_checks

BUSY_TIMEOUT_MS = 2_000  # another process (a backup, a curious shell) may hold the file for a moment
CHECKED_AT_START_BYTES = 64 * 1024 * 1024  # read in less than a second, from a slow disk too
INTERRUPT_EVERY_S = 0.01
RESTORING = ".restoring"
Connection = apsw.Connection
ERRORS = (apsw.Error,)
DAMAGE = (apsw.CorruptError, apsw.NotADBError, sqlite_checks.Damaged)
_BROKEN = (
    apsw.IOError,
    apsw.CantOpenError,
    apsw.ReadOnlyError,
    *DAMAGE,
    apsw.ConnectionClosedError,  # opening it again has failed
    apsw.ThreadingViolationError,  # once in fifty thousand commits under faults; what the collector closes, perhaps
)
_APPLICATION_ID = 0x47524E52  # "GRNR": marks the file as ours
_SIDES = ("-wal", "-shm", "")


def version() -> str:
    """Return the version of SQLite itself."""
    return apsw.sqlite_lib_version()


@contextlib.contextmanager
def holding_lock(path: Path) -> Iterator[None]:
    """Let nobody write to the store at *path* for the length of the block.

    Called in a process that is not its node's.
    """
    with weather():
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        with weather():
            connection.execute("begin immediate")
        yield
    finally:
        connection.close()


class Sqlite:
    dialect = "sqlite"

    def __init__(self, path: Path, clock: clocks.Clock) -> None:
        """Open *path*, made if missing (mode 0600).

        Raises `StoreInUse`, `StoreDamaged`, `StoreOfAnotherRelease` or `StartRefused`.
        """
        self._path, self._clock = path, clock
        self._lock_fd = take_file(path)
        try:
            with _start_refusals(path), _without_new_sides(path):
                self._is_checked = _refuse_damaged(path, had_store=_had_store(self._lock_fd))
                self._connect()
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._writer_thread = ThreadPoolExecutor(1, "store-writer")
        self._reader_thread = ThreadPoolExecutor(1, "store-reader")
        self._turn = asyncio.Lock()
        self._is_broken = False

    async def migrate(self) -> None:
        connection = self._writer
        for migration in migrations.missing(self.dialect, connection.pragma("user_version")):
            with weather():
                connection.execute("begin immediate")
            with connection:
                connection.execute(f"{migration.script}; pragma user_version={migration.number}")
            connection.execute("commit")
        _write_holder(self._lock_fd, has_store=True)

    async def claim_alone(self) -> None:
        """Its file was claimed when it was opened."""

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[_Transaction]:
        async with self._turn:
            if self._is_broken:
                await self._reopen()
            try:
                await self._begin()
                yield _Transaction(self._writer, database.microseconds(self._clock.now()))
                await self._in_writer_thread(self._writer.execute, "commit")
            except BaseException as error:
                self._is_broken = isinstance(error.__cause__, apsw.Error)
                self._roll_back()
                raise

    async def lookup(self, sql: str, params: database.Params) -> Sequence[database.Row]:
        with weather():
            return self._reader.execute(_ours(sql), params).fetchall()

    async def read(self, sql: str, params: database.Params) -> Sequence[database.Row]:
        def run() -> Sequence[database.Row]:
            with weather():
                return self._slow_reader.execute(_ours(sql), params).fetchall()

        return await asyncio.get_running_loop().run_in_executor(self._reader_thread, run)

    async def check(self) -> None:
        if self._is_checked:
            return

        try:  # with a connection and a thread of its own: it reads the whole file
            with contextlib.closing(read_only(self._path)) as connection:
                await _interruptible(connection, functools.partial(sqlite_checks.look_through, connection))
        except DAMAGE as error:
            raise errors.StoreDamaged(f"cannot go on with {self._path}: it is damaged: {error}") from None
        except apsw.Error:
            return  # weather: whoever reads or writes next tells of it
        self._is_checked = True

    async def truncate_log(self) -> None:
        async with self._turn:
            await self._in_writer_thread(self._writer.execute, "pragma wal_checkpoint(truncate)")

    async def close(self) -> None:
        async with self._turn:
            self._writer_thread.shutdown(wait=True)
            self._reader_thread.shutdown(wait=True)
            for connection in (self._slow_reader, self._reader, self._writer):
                connection.close()
            os.close(self._lock_fd)

    async def _begin(self) -> None:
        """Begin at once; where another process holds the file, wait for it, on the writer thread."""
        with weather():
            self._writer.set_busy_timeout(0)
            try:
                self._writer.execute("begin immediate")
                return
            except apsw.BusyError:
                self._writer.set_busy_timeout(BUSY_TIMEOUT_MS)
        await self._in_writer_thread(self._writer.execute, "begin immediate")

    async def _in_writer_thread(self, act: Callable[..., object], *arguments: str) -> None:
        execution = asyncio.get_running_loop().run_in_executor(self._writer_thread, act, *arguments)
        try:
            with weather():
                await asyncio.shield(execution)
        except asyncio.CancelledError:
            # The statement goes on in its thread: nobody may touch the connection until it is done.
            await asyncio.wait([execution])
            raise

    def _roll_back(self) -> None:
        # SQLITE_FULL and IOERR have rolled back already: a further rollback would raise.
        try:
            if self._writer.in_transaction:
                self._writer.execute("rollback")
        except apsw.Error:
            self._is_broken = True

    async def _reopen(self) -> None:
        """Start again from the disk: after an I/O error it alone knows what is stored.

        A failed fsync must not be tried again on the same pages, which the kernel may hold for clean ("fsyncgate").
        """
        await asyncio.get_running_loop().run_in_executor(self._reader_thread, self._slow_reader.close)
        await self._in_writer_thread(self._connect_again)
        self._is_broken = False

    def _connect_again(self) -> None:
        self._reader.close()
        self._writer.close()
        self._connect()

    def _connect(self) -> None:
        self._writer = _connection(self._path, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
        self._path.chmod(0o600)
        _prepare(self._writer)
        self._reader, self._slow_reader = read_only(self._path), read_only(self._path)


class _Transaction:
    __slots__ = ("_connection", "now_us")

    def __init__(self, connection: apsw.Connection, now_us: int) -> None:
        self._connection, self.now_us = connection, now_us

    async def fetch(self, sql: str, params: database.Params) -> Sequence[database.Row]:
        with weather():
            return self._connection.execute(_ours(sql), params).fetchall()

    async def fetch_many(self, sql: str, rows: Iterable[database.Params]) -> Sequence[database.Row]:
        with weather():
            return self._connection.executemany(_ours(sql), rows).fetchall()

    async def execute_many(self, sql: str, rows: Iterable[database.Params]) -> None:
        with weather():
            self._connection.executemany(_ours(sql), rows)


@functools.lru_cache(maxsize=512)
def _ours(sql: str) -> str:
    sql = sql.replace(" for update skip locked", "").replace(" for update", "")
    # What breaks a rule of the schema undoes the whole transaction, which ends it anyway. By default SQLite would undo
    # the statement alone, and keep a journal for each one in case: 3 µs, or 30 where malloc gives its 64 KiB back.
    return sql.replace("update task set", "update or rollback task set")


@contextlib.contextmanager
def weather() -> Iterator[None]:
    """Turn what the disk or another process did into `StoreUnavailable`; mistakes of ours pass through."""
    try:
        yield
    except (apsw.BusyError, apsw.LockedError):
        raise errors.StoreUnavailable("cannot write to the store: another process holds its file; try again") from None
    except apsw.FullError:
        raise errors.StoreUnavailable("cannot write to the store: the disk is full; free some space") from None
    except _BROKEN as error:
        raise errors.StoreUnavailable(f"cannot use the store: {error}") from error
    except UnicodeDecodeError as error:
        raise errors.StoreUnavailable(
            "cannot read this from the store: its text is damaged; stop the node, and see greenroom backup restore"
        ) from error


def take_file(path: Path) -> int:
    """Take the file's lock (`lock`), and complete its exchange for a restored one, if that was interrupted."""
    fd = lock(path)
    complete_restore(path)
    return fd


def lock(path: Path) -> int:
    """Make this process the file's only user; the lock goes with the descriptor that is returned."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.StartRefused(
            f"cannot write to {path.parent}: {error.strerror}; choose another folder with --data-dir"
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder, *_ = [*os.pread(fd, 32, 0).decode(errors="replace").split(), ""]
        os.close(fd)
        raise errors.StoreInUse(
            f"cannot open {path}: another node has it open (process {holder or 'unknown'}); stop that node, "
            "or give this one its own --data-dir"
        ) from None
    _write_holder(fd, has_store=_had_store(fd) and path.exists())
    return fd


def is_exchanging(path: Path) -> bool:
    """Return whether a restored file is there that has not taken the place of the old one yet."""
    return _restored(path).exists()


_STORE = b"store"


def _had_store(lock_fd: int) -> bool:
    """Whether there was a store in the file: one that is empty now has lost it."""
    return _STORE in os.pread(lock_fd, 32, 0)


def _write_holder(lock_fd: int, *, has_store: bool) -> None:
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, b"%d\n%b" % (os.getpid(), _STORE if has_store else b""), 0)


def complete_restore(path: Path) -> None:
    """Put the restored file, where there is one, in the place of the old, which is moved aside with all that is its.

    A log that stayed would be played into the new file. Whatever of this was done before a crash is not done again.
    """
    restored = _restored(path)
    if not restored.exists():
        return
    made_at = datetime.fromtimestamp(restored.stat().st_mtime, UTC)
    for side in _SIDES:
        old = path.with_name(f"{path.name}{side}")
        if old.exists():
            old.rename(path.with_name(f"{path.name}.replaced-{made_at:%Y%m%dT%H%M%SZ}{side}"))
    restored.rename(path)
    fd = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _restored(path: Path) -> Path:
    return path.with_name(f"{path.name}{RESTORING}")


@contextlib.contextmanager
def _start_refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise errors.StoreDamaged(f"cannot open {path}: {error}; it was left untouched") from None
    except (apsw.BusyError, apsw.LockedError):
        raise errors.StoreUnavailable(f"cannot open {path}: another process holds it; end that one first") from None
    except apsw.Error as error:
        raise errors.StartRefused(f"cannot open {path}: {error}; choose another folder with --data-dir") from None


async def _interruptible(connection: apsw.Connection, act: Callable[[], None]) -> None:
    """Run *act*, which uses *connection*, in a thread; when this is cancelled, it has ended."""
    acting = asyncio.ensure_future(asyncio.to_thread(act))
    try:
        await asyncio.shield(acting)
    except asyncio.CancelledError:
        while not acting.done():  # again and again: between two of its statements nothing is interrupted
            connection.interrupt()
            with contextlib.suppress(asyncio.CancelledError):  # the connection cannot be closed before
                await asyncio.wait([acting], timeout=INTERRUPT_EVERY_S)
        acting.exception()  # which is that it was interrupted
        raise


def _connection(path: Path, flags: int) -> apsw.Connection:
    connection = apsw.Connection(str(path), flags=flags, statementcachesize=512)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    # Without it, a statement with a parameter in its LIMIT is compiled again each time: 70 µs for the claim.
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    return connection


def read_only(path: Path) -> apsw.Connection:
    return _connection(path, apsw.SQLITE_OPEN_READONLY)


def new_file(path: Path) -> apsw.Connection:
    """Open a file that nobody sees before it is whole and synced: without a journal, and mode 0600."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = _connection(path, apsw.SQLITE_OPEN_READWRITE)
    for name, value in (("journal_mode", "off"), ("synchronous", "off"), ("application_id", _APPLICATION_ID)):
        connection.pragma(name, value)
    return connection


def _refuse_damaged(path: Path, *, had_store: bool) -> bool:
    """Refuse, before anything is written, a file that is damaged or not ours; tell whether all of it was looked at.

    A large one would make a start slow: `Sqlite.check` looks at the rest of it while the node serves.
    """
    if not path.exists():
        return True
    if not path.stat().st_size:
        if had_store:
            raise sqlite_checks.Damaged(_EMPTY)
        return True
    _refuse_cut(path)
    is_small = path.stat().st_size <= CHECKED_AT_START_BYTES
    try:
        with contextlib.closing(read_only(path)) as connection:
            sqlite_checks.look_at(connection, _schema_of, application_id=_APPLICATION_ID)
            if had_store and not connection.pragma("user_version"):
                raise sqlite_checks.Damaged(_EMPTY)
            if is_small:
                sqlite_checks.look_through(connection)
    except (apsw.ReadOnlyError, apsw.CantOpenError):
        return False  # it died in the moment in which it was made; who may write sets that right
    return is_small


@contextlib.contextmanager
def _without_new_sides(path: Path) -> Iterator[None]:
    """Leave no file beside *path* that was not there, where it cannot be opened: even a reader makes them."""
    sides = [side for name in _SIDES if not (side := path.with_name(f"{path.name}{name}")).exists()]
    try:
        yield
    except BaseException:
        for side in sides:
            side.unlink(missing_ok=True)
        raise


_EMPTY = "it is empty, and was not: it was cut off, or its -wal was removed"


def _refuse_cut(path: Path) -> None:
    """Raise for a file that ends within a page, which SQLite would fill up with zeros.

    Only a checkpoint that was interrupted leaves one, and then all that it copied is still in the log.
    """
    log = path.with_name(f"{path.name}-wal")
    if not path.is_file() or (log.exists() and log.stat().st_size):
        return
    with path.open("rb") as file:
        page_bytes = int.from_bytes(file.read(18)[16:], "big")
    if page_bytes >= 512 and path.stat().st_size % page_bytes:  # 1 means 65536, which is no page size of ours
        raise sqlite_checks.Damaged("it ends within a page: it was cut off")


@functools.cache
def _schema_of(number: int) -> frozenset[tuple[str, str]]:
    with contextlib.closing(apsw.Connection(":memory:")) as connection:
        for migration in migrations.scripts("sqlite"):
            if migration.number <= number:
                connection.execute(migration.script)
        return frozenset(connection.execute(sqlite_checks.SCHEMA))


def _prepare(connection: apsw.Connection) -> None:
    settings: list[tuple[str, Any]] = [
        ("journal_mode", "wal"),
        ("synchronous", "full"),
        ("foreign_keys", True),
        ("application_id", _APPLICATION_ID),
        ("journal_size_limit", 64 * 1024 * 1024),
        ("cache_size", -32 * 1024),  # KiB
        ("secure_delete", "on"),  # what was overwritten or deleted is not left in the file; it costs nothing measurable
        ("wal_checkpoint", "truncate"),  # what an interrupted life left: written anew, nothing goes on after it
    ]
    for name, value in settings:
        connection.pragma(name, value)
