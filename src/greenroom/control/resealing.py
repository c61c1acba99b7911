"""Resealing: seals anew what is stored, a few rows at a time, after encryption was switched on or its keys rotated."""

from __future__ import annotations

import asyncio

from greenroom import telemetry
from greenroom.store.news import News
from greenroom.store.store import Store

PAUSE_S = 0.005  # between two steps: tasks go first
NAP_S = 60.0


class Resealing:
    name = "resealing"

    def __init__(self, store: Store, facts: telemetry.Telemetry) -> None:
        self._store, self._facts = store, facts
        self.wakeup = asyncio.Event()
        self._changes = store.vault.changes
        store.hub.subscribe(self._hear)

    async def step(self) -> float:
        resealing = self._store.resealing
        was_done = resealing.progress.is_done
        if await resealing.step():
            return PAUSE_S
        if not was_done:  # this was the last step
            self._tell()
        return NAP_S

    def _tell(self) -> None:
        vault, progress = self._store.vault, self._store.resealing.progress
        detail = f"all {progress.rows:,} rows are encrypted with today's keys"
        if progress.unreadable:
            detail = f"{progress.unreadable:,} values do not open, and are left as they are"
        self._facts.emit(telemetry.EncryptionChanged(vault.mode, vault.key, detail))

    def _hear(self, _: News) -> None:
        if self._store.vault.changes != self._changes:
            self._changes = self._store.vault.changes
            self.wakeup.set()
