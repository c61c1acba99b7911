"""Makes a backup: reads the store at one moment, and writes what of it is not at the place yet."""

# ruff: noqa: ASYNC240 - it blocks, in a process of its own

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent import futures
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from greenroom import __version__, errors
from greenroom.backups import archive, chunks, places, sealing
from greenroom.core import backups
from greenroom.sdk import models
from greenroom.store import dumps

WRITERS = 4  # what is put at once; compressing and encrypting release the GIL
# What a new machine needs beside the store: the pepper of the keys, the names that came from a manifest, who ran last,
# and the agents' code. Neither the owner's key, which any node makes anew, nor the key of the backups.
FILES = ("secrets", "manifest-agents.json", "incarnation")
FOLDERS = ("snapshots",)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A backup to make: of the store at *store_url* and the node in *data_dir*, into the place *to*."""

    store_url: str
    data_dir: str
    to: str
    key_file: str
    keep_last: int
    keep_days: int


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that was made. *deleted* are the old ones that went; *has_new_key*: the key was made for it.

    *not_deleted* is why what may go is still there, if it is: this backup is none the worse.
    """

    backup: models.Backup
    new_chunks: int
    deleted: tuple[str, ...] = ()
    not_deleted: str | None = None
    has_new_key: bool = False


async def create(wanted: Wanted, *, now: datetime) -> Made:
    """Make a backup and delete the old ones that may go, if that can be done.

    Blocks for long: for a process of its own. Raises `errors.Conflict` while another one is being made.
    """
    key_file, data_dir = Path(wanted.key_file), Path(wanted.data_dir)
    with _alone(data_dir):
        has_new_key = not key_file.exists()
        if has_new_key:
            _refuse_without_key(wanted)
            sealing.make(key_file)
        kept = archive.Archive(places.open(wanted.to), sealing.load(key_file))
        ids = kept.ids()
        with _Writing(kept, kept.whole(_readable(kept, ids))) as writing:
            async with dumps.snapshot(wanted.store_url) as snapshot:
                kept.mark()
                tables = [await writing.store(table, snapshot.rows(table)) for table in snapshot.tables]
            # After the rows: what code they name is there.
            files = await writing.store(FILES_TABLE, _files(data_dir))
        inventory = archive.Inventory(
            id=archive.next_id(now, ids),
            created_at=now,
            greenroom=__version__,
            schema=snapshot.schema,
            dialect=snapshot.dialect,
            tables=tuple(tables),
            files=files,
            new_bytes=sum(chunk.size_bytes for chunk in writing.new),
        )
        kept.publish(inventory)
        every = [(id, archive.time_of(id)) for id in (*ids, inventory.id)]
        expired = backups.expired(every, backups.Retention(wanted.keep_last, wanted.keep_days))
        not_deleted = None
        try:
            kept.forget_damage(chunk.name for chunk in writing.new)
            kept.delete(expired, now=now)
        except errors.BackupFailed as error:
            not_deleted = f"cannot delete old backups: {error}"
    return Made(
        backup=inventory.described(),
        new_chunks=len(writing.new),
        deleted=() if not_deleted else tuple(expired),
        not_deleted=not_deleted,
        has_new_key=has_new_key,
    )


FILES_TABLE = dumps.Table("files", ("path", "mode", "content"), ("path",))


def _readable(kept: archive.Archive, ids: Iterable[str]) -> Iterator[archive.Inventory]:
    for id in ids:
        # One that is damaged, or went meanwhile, is no reason to make no new one.
        with contextlib.suppress(errors.BackupInvalid, errors.NotFound):
            yield kept.inventory(id)


class _Writing:
    """Writes chunks that are not *known* yet, several at a time, and never holds more than a few."""

    def __init__(self, kept: archive.Archive, known: dict[str, archive.Chunk]) -> None:
        self._archive, self._known = kept, known
        self._pool = futures.ThreadPoolExecutor(WRITERS, "backup-writer")
        self._pending: set[asyncio.Future[archive.Chunk]] = set()
        self.new: list[archive.Chunk] = []

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def store(self, table: dumps.Table, rows: AsyncIterator[Sequence[Any]]) -> archive.Content:
        cutter = chunks.Cutter([table.columns.index(name) for name in table.key])
        names: list[str] = []
        async for row in rows:
            if (chunk := cutter.add(row)) is not None:
                names += [await self._put(chunk)]
        if (chunk := cutter.end()) is not None:
            names += [await self._put(chunk)]
        while self._pending:
            await self._gather()
        return archive.Content(
            name=table.name,
            columns=table.columns,
            key=table.key,
            sequence=table.sequence,
            rows=cutter.rows,
            sha256=cutter.sha256,
            chunks=tuple(self._known[name] for name in names),
        )

    async def _put(self, content: bytes) -> str:
        name = self._archive.name_of(content)
        if name not in self._known:
            self._known[name] = archive.Chunk(name, 0)  # until its size is known
            loop = asyncio.get_running_loop()
            self._pending.add(loop.run_in_executor(self._pool, self._archive.put, name, content))
            if len(self._pending) >= 2 * WRITERS:
                await self._gather()
        return name

    async def _gather(self) -> None:
        done, self._pending = await asyncio.wait(self._pending, return_when=asyncio.FIRST_COMPLETED)
        for put in done:
            chunk = put.result()
            self._known[chunk.name] = chunk
            self.new.append(chunk)


async def _files(data_dir: Path) -> AsyncIterator[tuple[str, int, bytes]]:
    for path in sorted(_paths(data_dir), key=lambda path: path.as_posix()):
        yield path.as_posix(), (data_dir / path).stat().st_mode & 0o777, (data_dir / path).read_bytes()


def _paths(data_dir: Path) -> Iterator[Path]:
    yield from (Path(name) for name in FILES if (data_dir / name).is_file())
    for name in FOLDERS:
        for here, folders, names in os.walk(data_dir / name):
            folders[:] = [folder for folder in folders if not folder.startswith(".")]  # a copy that is being taken
            yield from (Path(here, each).relative_to(data_dir) for each in names)


def _refuse_without_key(wanted: Wanted) -> None:
    """Make no new key for a place that holds backups of an old one: nobody could tell them apart later."""
    if archive.ids(places.open(wanted.to)):
        raise errors.BackupInvalid(
            f"cannot add to the backups at {wanted.to}: their key, {wanted.key_file}, is missing; put your copy of it "
            "there, or name another place"
        )


@contextlib.contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Keep other backups of this node out: what one sweeps another may be about to use."""
    try:
        fd = os.open(data_dir / "backup.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.BackupFailed(f"cannot back up {data_dir}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise errors.Conflict("cannot make a backup now: another one is being made") from None
    finally:
        os.close(fd)
