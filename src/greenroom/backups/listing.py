"""What backups there are, for people and programs; and what to run when a store is damaged."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path

from greenroom import errors, settings
from greenroom.backups import archive, creating, places, sealing
from greenroom.sdk import models

DEFAULT_PLACE, DEFAULT_KEY = "backups", "backup.key"


def wanted(found: settings.Backups, *, folder: Path, data_dir: Path, store_url: str | None) -> creating.Wanted:
    """Return the backups that the settings want; what they name relatively is seen from the manifest's *folder*."""
    to = found.to or str(data_dir / DEFAULT_PLACE)
    return creating.Wanted(
        store_url=store_url or f"sqlite:///{data_dir / 'greenroom.db'}",
        data_dir=str(data_dir),
        to=to if to.startswith("s3://") else str(folder / to),
        key_file=str(folder / found.key_file if found.key_file else data_dir / DEFAULT_KEY),
        keep_last=found.keep_last,
        keep_days=found.keep_days,
    )


def backups(of: creating.Wanted) -> list[models.Backup]:
    """Return all backups, newest first; one that cannot be read says why. Blocks."""
    place = places.open(of.to)
    if not place.stored(archive.INVENTORIES):
        return []
    kept = archive.Archive(place, sealing.load(Path(of.key_file)))
    return [found for id in reversed(kept.ids()) if (found := _listed(kept, id)) is not None]


def newest(of: creating.Wanted) -> models.Backup | None:
    """Return the newest backup; None: there is none. Blocks."""
    return next(iter(backups(of)), None)


def _listed(kept: archive.Archive, id: str) -> models.Backup | None:
    try:
        return kept.inventory(id).described()
    except errors.NotFound:
        return None  # it went meanwhile
    except errors.BackupInvalid as error:
        return models.Backup(id=id, created_at=archive.time_of(id), problem=str(error))


def advice(of: creating.Wanted, store_url: str | None) -> str:
    """Return what to do about a damaged store: the command that restores the newest backup, or that there is none."""
    try:
        ids = archive.ids(places.open(of.to))
    except errors.BackupFailed as error:
        return f"nobody knows whether there is a backup: {error}"
    if not ids:
        return (
            f"there is no backup at {of.to}: put a good copy in its place, or move it away to begin with an empty store"
        )
    return f"the newest backup is of {_moment(archive.time_of(ids[-1]))}; to restore it, run: {_command(of, store_url)}"


def _command(of: creating.Wanted, store_url: str | None) -> str:
    data_dir = Path(of.data_dir)
    words = ["greenroom", "backup", "restore", "latest", "--data-dir", of.data_dir]
    if store_url:
        words += ["--store", store_url]
    if of.to != str(data_dir / DEFAULT_PLACE):
        words += ["--place", of.to]
    if of.key_file != str(data_dir / DEFAULT_KEY):
        words += ["--key-file", of.key_file]
    return shlex.join([*words, "--replace"])


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
