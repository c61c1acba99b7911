"""`greenroom backup`: copies of the whole store, encrypted, and back.

`create` and `ls` ask the node where one runs; `restore` and `drill`, and the others without a node, work on the data
directory and the place themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from greenroom import clock, errors
from greenroom.cli import config, options, pace, render
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from greenroom import settings
    from greenroom.backups import archive, creating
    from greenroom.sdk import client, models
    from greenroom.security import key_sources

app = cyclopts.App(name="backup")

COLUMNS = (
    Column("ID"),
    Column("ROWS", right=True),
    Column("SIZE", right=True),
    Column("NEW", right=True),
    Column("RELEASE"),
    Column("PROBLEM", whole=False),
)
DRILL_COLUMNS = (Column("TABLE"), Column("BACKED UP", right=True), Column("RESTORED", right=True), Column("RESULT"))
LOOK_EVERY_S = 0.2
_KEEP = "keep a copy of {} on another machine: without it no backup can be restored"


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Where:
    """Where the store, the backups and their key are; what is not named here says the manifest."""

    manifest: config.Manifest = config.MANIFEST
    place: Annotated[
        str | None,
        Parameter(
            help="Where backups are kept: a folder or s3://BUCKET/PREFIX, else backups.to, else the data directory's."
        ),
    ] = None
    key_file: Annotated[
        Path | None, Parameter(help="The key of the backups, else backups.key_file, else the data directory's.")
    ] = None
    store: Annotated[
        str | None, Parameter(help="sqlite:///PATH or postgresql://…, else the SQLite file in the data directory.")
    ] = None

    def wanted(self, given: options.Options) -> creating.Wanted:
        from greenroom.backups import listing
        from greenroom.sdk import discovery

        place = self.place if self.place is None or self.place.startswith("s3://") else str(Path(self.place).resolve())
        key_file = None if self.key_file is None else str(self.key_file.resolve())
        overrides = {"backups": {"to": place, "key_file": key_file}}
        return listing.wanted(
            self._settings(overrides).backups,
            folder=self.manifest.resolve().parent,
            data_dir=discovery.data_dir(given.data_dir).resolve(),
            store_url=self.store,
        )

    def keys(self, given: options.Options) -> key_sources.Sources:
        """Where the key is that rows of an encrypted store need to be read."""
        from greenroom.sdk import discovery
        from greenroom.security import key_sources

        security = self._settings({}).security
        data_dir = discovery.data_dir(given.data_dir).resolve()
        return key_sources.named(security, folder=self.manifest.resolve().parent, data_dir=data_dir)

    def _settings(self, overrides: dict[str, Any]) -> settings.Settings:
        from greenroom import settings

        manifest = self.manifest if self.manifest != config.MANIFEST or self.manifest.exists() else None
        return settings.load(manifest, os.environ, overrides=overrides, is_for_node=False)

    @property
    def is_here(self) -> bool:
        """Whether something was named that a running node would not know of."""
        return (self.place, self.key_file, self.store) != (None, None, None)


ELSEWHERE = Where()


@app.command
def create(*, where: Where = ELSEWHERE, given: options.Options = options.DEFAULT) -> None:
    """Make a backup now, by the node where one runs."""
    with _node(where, given) as node:
        made = _made_by(node) if node is not None else None
    wanted, has_new_key, deleted, not_deleted = where.wanted(given), False, 0, None
    if made is None:
        from greenroom.backups import creating

        with render.spinner("backing up"):
            report = asyncio.run(creating.create(wanted, now=clock.SystemClock().now()))
        made, has_new_key = report.backup, report.has_new_key
        deleted, not_deleted = len(report.deleted), report.not_deleted
    if given.json:
        render.json(made)
        return
    render.line(
        f"backup {made.id}: {made.rows:,} rows, {_size(made.stored_bytes)}, of which {_size(made.new_bytes)} new"
    )
    if deleted:
        render.say(f"{deleted} old backup{'' if deleted == 1 else 's'} deleted")
    if not_deleted is not None:
        render.failure(not_deleted)
    if has_new_key:
        render.say(_KEEP.format(wanted.key_file))
    render.say("next: greenroom backup drill")


@app.command(name="ls")
def list_backups(*, where: Where = ELSEWHERE, given: options.Options = options.DEFAULT) -> None:
    """List the backups, newest first."""
    with _node(where, given) as node:
        found = node.backups() if node is not None else None
    if found is None:
        from greenroom.backups import listing

        found = listing.backups(where.wanted(given))
    if given.json:
        render.json({"items": found})
        return
    render.table(COLUMNS, map(_row, found), empty="no backups; next: greenroom backup create")


@app.command
def restore(
    id: str = "latest",
    /,
    *,
    replace: Annotated[bool, Parameter(show_default=False)] = False,
    where: Where = ELSEWHERE,
    given: options.Options = options.DEFAULT,
) -> None:
    """Bring a backup back, into the data directory or into --store. Stop the node first.

    Parameters
    ----------
    id
        The backup's id, or latest.
    replace
        Let what is in the store go. A SQLite file is moved aside, PostgreSQL's rows are gone.
    """
    from greenroom.backups import restoring

    wanted = where.wanted(given)
    with render.spinner("restoring"):
        kept = _archive(wanted)
        inventory = kept.find(id)
        data_dir = Path(wanted.data_dir)
        asyncio.run(restoring.refuse_without_key(kept, inventory, where.keys(given)))
        asyncio.run(restoring.restore(kept, inventory, store_url=wanted.store_url, data_dir=data_dir, replace=replace))
        restoring.keep_key(Path(wanted.key_file), data_dir)
    backup = inventory.described()
    if given.json:
        render.json(backup)
        return
    render.line(f"restored {backup.id}, made {render.moment(backup.created_at)}: {backup.rows:,} rows")
    aside = sorted(path.name for path in data_dir.glob("*.replaced-*") if not path.name.endswith(("-wal", "-shm")))
    if aside:
        render.say(f"what was there is in {data_dir}: {', '.join(aside)}")
    render.say("next: greenroom up; the tasks that ran at that time run again")


@app.command
def drill(id: str = "latest", /, *, where: Where = ELSEWHERE, given: options.Options = options.DEFAULT) -> int:
    """Rehearse a restore: into a scratch store, read again and compared with the backup; if it differs, exit with 1.

    The scratch store is a file that is removed, or the empty database that --store names.

    Parameters
    ----------
    id
        The backup's id, or latest.
    """
    from greenroom.backups import restoring

    wanted = where.wanted(given)
    begun_s = time.monotonic()
    with render.spinner("rehearsing"), restoring.scratch(Path(wanted.data_dir)) as scratch_url:
        kept = _archive(wanted)
        inventory = kept.find(id)
        asyncio.run(restoring.refuse_without_key(kept, inventory, where.keys(given)))
        found = asyncio.run(restoring.drill(kept, inventory, scratch_url=where.store or scratch_url))
    if given.json:
        render.json({"id": found.id, "good": found.is_good, "tables": found.tables, "faults": found.faults})
        return 0 if found.is_good else 1
    rows = ((table.table, table.rows, table.found, "ok" if table.is_equal else "failed") for table in found.tables)
    render.table(DRILL_COLUMNS, rows, empty="")
    for fault in found.faults:
        render.failure(f"the restored store is damaged: {fault}")
    if not found.is_good:
        render.failure(
            f"cannot restore backup {found.id} as it was: see the table; make another: greenroom backup create"
        )
        return 1
    render.line(f"backup {found.id} restores whole: read again and equal, in {render.span(time.monotonic() - begun_s)}")
    return 0


def _archive(wanted: creating.Wanted) -> archive.Archive:
    from greenroom.backups import archive, places, sealing

    return archive.Archive(places.open(wanted.to), sealing.load(Path(wanted.key_file)))


@contextlib.contextmanager
def _node(where: Where, given: options.Options) -> Iterator[client.Client | None]:
    """The node that is named or runs in the data directory; None: there is none, and what is here can be used."""
    if where.is_here:
        yield None
        return
    is_named = given.url or os.environ.get("GREENROOM_URL")
    with given.connect() as node:
        try:
            node.health()
        except errors.NodeUnreachable:
            if is_named:
                raise
            node_here = None
        else:
            node_here = node
        yield node_here


def _made_by(node: client.Client) -> models.Backup:
    """Have the node make one, and wait for it."""
    state, paced = node.create_backup(), pace.Pace()
    with render.spinner("backing up"):
        while state.is_running:
            time.sleep(paced.delay_s(1, least_s=LOOK_EVERY_S))
            state = _state(node)
    if state.error is not None or state.last is None:
        raise errors.BackupFailed(state.error or "cannot back up")
    return state.last


def _state(node: client.Client) -> models.Backups:
    import msgspec

    from greenroom.sdk import models

    return msgspec.convert(node.status().get("backups"), models.Backups)


def _row(backup: models.Backup) -> tuple[object, ...]:
    return (
        backup.id,
        f"{backup.rows:,}",
        _size(backup.stored_bytes),
        _size(backup.new_bytes),
        backup.greenroom,
        backup.problem,
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
