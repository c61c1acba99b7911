"""Copies the audit log to where its database's owner cannot rewrite it: entries and checkpoints as JSON lines, in
order, each at least once. What a place has is kept in the store, so that it goes on where it was.

One loop for each place: a place that is slow or away holds up nobody, not even the node's end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from greenroom import clock as clocks
from greenroom import telemetry
from greenroom.control.audit_places import Place, Undelivered
from greenroom.security import audit
from greenroom.security.audit import Checkpoint, Entry
from greenroom.store.audit import Cursor
from greenroom.store.news import News
from greenroom.store.store import Store

BATCH = 200
IDLE_S = 5.0
LONGEST_S = 60.0  # between two tries


class AuditExport:
    def __init__(self, store: Store, clock: clocks.Clock, facts: telemetry.Telemetry, place: Place) -> None:
        self._store, self._clock, self._facts, self._place = store, clock, facts, place
        self.name = f"audit-export {place.name}"
        self.wakeup = asyncio.Event()
        self.trouble: str | None = None
        self._cursor: Cursor | None = None
        self._failures = 0
        store.hub.subscribe(self._hear)

    def _hear(self, news: News) -> None:
        if news.audited and self.trouble is None:
            self.wakeup.set()

    async def step(self) -> float:
        if not self._store.audit.is_on:
            return LONGEST_S
        if self._cursor is None:
            self._cursor = await self._store.audit.cursor(self._place.name)
        entries = await self._store.audit.after(self._cursor.seq, most=BATCH)
        checkpoints = await self._store.audit.checkpoints(after=self._cursor.checkpoint, most=BATCH)
        lines, reached = merged(entries, checkpoints, self._cursor)
        if not lines:
            return IDLE_S  # a checkpoint wakes nobody
        try:
            await self._place.take(lines)
        except Undelivered as error:
            return self._failed(str(error))
        await self._store.audit.advance(reached)
        self._cursor, self._failures = reached, 0
        if self.trouble is not None:
            self.trouble = None
            self._facts.emit(telemetry.AuditRecovered(self._place.name))
        return 0.0

    def _failed(self, error: str) -> float:
        if self.trouble is None:
            self._facts.emit(telemetry.AuditTrouble(self._place.name, error))
        self.trouble = error
        self._failures += 1
        return float(min(LONGEST_S, 2.0 ** min(self._failures, 10)))


def merged(entries: Sequence[Entry], checkpoints: Sequence[Checkpoint], cursor: Cursor) -> tuple[list[bytes], Cursor]:
    """Return the lines to send next, and where that leads: a checkpoint comes after the entries that it signs."""
    last = entries[-1].seq if entries else cursor.seq
    due = [checkpoint for checkpoint in checkpoints if checkpoint.last <= last]
    placed = [((entry.seq, 0), audit.line_of(entry)) for entry in entries]
    placed += [((checkpoint.last, 1), audit.line_of_checkpoint(checkpoint)) for checkpoint in due]
    reached = Cursor(cursor.place, last, due[-1].number if due else cursor.checkpoint)
    return [line for _, line in sorted(placed)], reached
