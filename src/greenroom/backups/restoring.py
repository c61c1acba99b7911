"""Brings a backup back into a store, and rehearses that: what was written is read again and compared."""

# ruff: noqa: ASYNC240 - it blocks, in a process of its own

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from datetime import datetime
from pathlib import Path, PurePosixPath

import msgspec

from greenroom import errors
from greenroom.backups import archive, chunks, creating, listing
from greenroom.security import secret_file
from greenroom.security.key_sources import Source
from greenroom.store import dumps

AUDITED_SINCE = 12  # the schema that the audit log came with
STAGED = "restoring-files"  # in the data directory: what belongs to a store that is about to take the old one's place


class Compared(msgspec.Struct, frozen=True):
    """A table of a drill: what the backup says, and what a restored store has."""

    table: str
    rows: int
    found: int
    is_equal: bool


class Drill(msgspec.Struct, frozen=True, kw_only=True):
    """What a drill found; *faults* are the database's own."""

    id: str
    created_at: datetime
    tables: tuple[Compared, ...]
    faults: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        return not self.faults and all(table.is_equal for table in self.tables)


async def restore(
    kept: archive.Archive, inventory: archive.Inventory, *, store_url: str, data_dir: Path, replace: bool
) -> None:
    """Fill the store and the node's files; nothing changes unless all of it could be read and written.

    What was there is moved aside, never deleted: files as ``NAME.replaced-…``. Raises as `dumps.loading` does. If it is
    killed, `complete` does the rest or undoes it.
    """
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if store_url.startswith("sqlite:///"):
        complete(store_url, data_dir)
    staged = data_dir / STAGED
    was_there, is_published = staged.exists(), False

    def publish() -> None:
        nonlocal is_published
        is_published = True
        _publish(staged, data_dir)

    with tempfile.TemporaryDirectory(prefix=".restore-", dir=data_dir) as drafts:
        files = Path(drafts, f"replaced-{inventory.id}-{secrets.token_hex(2)}")
        files.mkdir()
        try:
            async with dumps.loading(store_url, schema=inventory.schema, replace=replace, publish=publish) as load:
                with _looking_for_damage(kept, inventory):
                    await _fill(kept, inventory, load)
                    await _note(inventory, load)
                    _write_files(_rows(kept, inventory.files), files)
                _stage(files, staged)
        except BaseException:
            if not was_there and not is_published:  # what was there is of a restore that may have filled this store
                shutil.rmtree(staged, ignore_errors=True)
            raise


async def refuse_without_key(kept: archive.Archive, inventory: archive.Inventory, keys: Source) -> None:
    """Raise `errors.BackupInvalid` if the backup's rows are encrypted at rest, and *keys* does not have their key.

    Nobody could read what was restored.
    """
    for content in inventory.tables:
        if content.name == "vault":
            for chunk in content.chunks:
                for row in chunks.rows_of(kept.chunk(chunk)):
                    vault = dict(zip(content.columns, row, strict=True))
                    try:
                        await keys.find(vault["kek"], vault["wrapped"])
                    except errors.StartRefused as error:
                        raise errors.BackupInvalid(
                            f"cannot restore {inventory.id}: what was backed up is encrypted: {error}"
                        ) from None


def complete(store_url: str, data_dir: Path) -> None:
    """Put in place the files of a restore that was killed when its store had taken the old one's place.

    For whoever opens the store next, before it reads any of the files. Raises `errors.StartRefused` where nobody can
    know whether it was.
    """
    staged = data_dir / STAGED
    if not staged.exists():
        return
    if not store_url.startswith("sqlite:///"):
        raise errors.StartRefused(
            f"cannot start: a restore was killed in its last moment, and the files that belong to its store are still "
            f"in {staged}; run it again with --replace, or, if the store was not restored, remove that folder"
        )
    with dumps.interrupted(store_url) as is_filled:
        if is_filled:
            _publish(staged, data_dir)
        else:
            shutil.rmtree(staged, ignore_errors=True)


async def drill(kept: archive.Archive, inventory: archive.Inventory, *, scratch_url: str) -> Drill:
    """Restore into the empty store *scratch_url*, read it again, compare it table by table, and empty it."""
    async with dumps.loading(scratch_url, schema=inventory.schema, replace=False, upgrade=False) as load:
        with _looking_for_damage(kept, inventory):
            await _fill(kept, inventory, load)
    try:  # only from here on what is there is ours to erase
        tables = await _compare_tables(inventory, scratch_url)
        faults = await dumps.faults(scratch_url)
    finally:
        await dumps.erase(scratch_url)
    cutter = chunks.Cutter([0])
    with _looking_for_damage(kept, inventory):
        for row in _rows(kept, inventory.files):
            cutter.add(row)
    files = inventory.files
    tables.append(Compared("(files)", files.rows, cutter.rows, is_equal=cutter.sha256 == files.sha256))
    return Drill(id=inventory.id, created_at=inventory.created_at, tables=tuple(tables), faults=tuple(faults))


def keep_key(key_file: Path, data_dir: Path) -> None:
    """Put the key where a node looks for it, if none is there: it goes on with these backups."""
    target = data_dir / listing.DEFAULT_KEY
    if not target.exists():
        secret_file.write_private(target, key_file.read_bytes())


@contextlib.contextmanager
def scratch(data_dir: Path) -> Iterator[str]:
    """The URL of a SQLite store that is gone afterwards, on the disk that has room for a store."""
    with tempfile.TemporaryDirectory(prefix=".drill-", dir=data_dir if data_dir.is_dir() else None) as folder:
        yield f"sqlite:///{folder}/greenroom.db"


@contextlib.contextmanager
def _looking_for_damage(kept: archive.Archive, inventory: archive.Inventory) -> Iterator[None]:
    """Where one chunk cannot be read, look at all: one further backup, not one for each, sets right what it can."""
    try:
        yield
    except errors.BackupInvalid as error:
        if not (damaged := kept.note_damaged(inventory)):
            raise
        raise errors.BackupInvalid(
            f"cannot read the backup {inventory.id}: {damaged} of its {len(inventory.chunks)} chunks are missing or "
            f"damaged ({error}); make another, which stores them anew as far as the store has their rows: "
            "greenroom backup create"
        ) from None


async def _fill(kept: archive.Archive, inventory: archive.Inventory, load: dumps.Load) -> None:
    for content in inventory.tables:
        table = dumps.Table(content.name, content.columns, content.key, content.sequence)
        cutter = chunks.Cutter([0])
        for chunk in content.chunks:
            rows = chunks.rows_of(kept.chunk(chunk))
            for row in rows:
                cutter.add(row)
            await load.put(table, rows)
        if (cutter.rows, cutter.sha256) != (content.rows, content.sha256):
            raise errors.BackupInvalid(
                f"cannot restore {inventory.id}: the rows of {content.name} are not those that were backed up"
            )
        await load.continue_behind(table)


async def _note(inventory: archive.Inventory, load: dumps.Load) -> None:
    """Leave word for the audit log; the next node writes it there: a log that was set back says so itself."""
    if inventory.schema >= AUDITED_SINCE:
        detail = msgspec.json.encode({"made_at": inventory.created_at.isoformat(), "uid": os.getuid()}, order="sorted")
        columns = ("id", "action", "object", "detail")
        row = (secrets.token_hex(8), "backup.restore", f"backup:{inventory.id}", detail.decode())
        await load.put(dumps.Table("audit_pending", columns, ("id",)), [row])


async def _compare_tables(inventory: archive.Inventory, url: str) -> list[Compared]:
    async with dumps.snapshot(url) as snapshot:
        there = {table.name for table in snapshot.tables}
        named = {table.name for table in inventory.tables}
        tables = [await _compare(snapshot, table, there) for table in inventory.tables]
    return tables + [Compared(name, 0, 0, is_equal=False) for name in sorted(there - named)]


async def _compare(snapshot: dumps.Snapshot, content: archive.Content, there: AbstractSet[str]) -> Compared:
    if content.name not in there:
        return Compared(content.name, content.rows, 0, is_equal=False)
    cutter = chunks.Cutter([0])
    async for row in snapshot.rows(dumps.Table(content.name, content.columns, content.key)):
        cutter.add(row)
    is_equal = (cutter.rows, cutter.sha256) == (content.rows, content.sha256)
    return Compared(content.name, content.rows, cutter.rows, is_equal=is_equal)


def _rows(kept: archive.Archive, content: archive.Content) -> Iterator[tuple[str, int, bytes]]:
    for chunk in content.chunks:
        for row in chunks.rows_of(kept.chunk(chunk)):
            path, mode, file = row
            yield path, mode, file


def _check_path(path: str) -> None:
    parts = PurePosixPath(path).parts
    if ".." in parts or parts[0] not in (*creating.FILES, *creating.FOLDERS):
        raise errors.BackupInvalid(f"cannot restore the file {path[:200]!r}: it is none of a node's")


def _write_files(rows: Iterable[tuple[str, int, bytes]], drafts: Path) -> None:
    for path, mode, content in rows:
        _check_path(path)
        target = drafts / path
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with target.open("xb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _stage(files: Path, staged: Path) -> None:
    """Keep *files*, a folder, as what takes the place of the node's files with the store, also after a power cut."""
    if staged.exists():
        shutil.rmtree(staged)
    staged.mkdir(mode=0o700)
    files.rename(staged / files.name)
    for here, _, _ in os.walk(staged):
        _sync(Path(here))
    _sync(staged.parent)


def _publish(staged: Path, data_dir: Path) -> None:
    """Put the files in *staged* in place, in a folder by whose name what was there is called from now on.

    Whatever of this was done before a crash is not done again.
    """
    for files in staged.glob("*"):
        _exchange(files, data_dir, aside=files.name)
    _sync(data_dir)
    shutil.rmtree(staged, ignore_errors=True)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _exchange(files: Path, data_dir: Path, *, aside: str) -> None:
    for draft in files.iterdir():
        if draft.name in creating.FILES:
            target = data_dir / draft.name
            if target.exists() and target.read_bytes() != draft.read_bytes():
                target.rename(target.with_name(f"{target.name}.{aside}"))
            draft.rename(target)
            continue
        (data_dir / draft.name).mkdir(exist_ok=True, mode=0o700)
        for snapshot in draft.iterdir():  # named by what is in it: what is there is the same
            if not (data_dir / draft.name / snapshot.name).exists():
                target = snapshot.rename(data_dir / draft.name / snapshot.name)
                for here, _, _ in os.walk(target):
                    Path(here).chmod(0o555)
