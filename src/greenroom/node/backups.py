"""Backups of a node: the loop that makes them, and what the API asks for."""

from __future__ import annotations

import asyncio
from pathlib import Path

from greenroom import clock as clocks
from greenroom import settings, telemetry
from greenroom.backups import listing, process
from greenroom.control import backups
from greenroom.sdk import models


class NodeBackups:
    def __init__(
        self,
        found: settings.Settings,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        *,
        folder: Path,
        data_dir: Path,
        store_url: str | None,
    ) -> None:
        self._store_url = store_url
        self._wanted = listing.wanted(found.backups, folder=folder, data_dir=data_dir, store_url=store_url)
        self._clock, self._facts = clock, facts
        self._every_s = found.backups.every_s if found.cluster.scheduled_backups else None
        self.loop = backups.Backups(clock, facts, make=self._make, newest=self._newest, every_s=self._every_s)
        self.ask = self.loop.ask

    def state(self) -> models.Backups:
        state = self.loop.state
        age_s = None if state.last is None else (self._clock.now() - state.last.created_at).total_seconds()
        return models.Backups(
            to=self._wanted.to,
            every_s=self._every_s,
            is_running=state.is_running,
            last=state.last,
            age_s=age_s,
            error=state.error,
        )

    async def all(self) -> list[models.Backup]:
        return await asyncio.to_thread(listing.backups, self._wanted)

    def advice(self) -> str:
        """Return what to do about a damaged store. Blocks."""
        return listing.advice(self._wanted, self._store_url)

    async def _make(self) -> models.Backup:
        made = await process.create(self._wanted)
        if made.has_new_key:
            self._facts.emit(telemetry.BackupKeyMade(self._wanted.key_file))
        if made.not_deleted is not None:
            self._facts.emit(telemetry.BackupsNotDeleted(made.not_deleted))
        return made.backup

    async def _newest(self) -> models.Backup | None:
        return await asyncio.to_thread(listing.newest, self._wanted)
