"""Copies the audit log to where its database's owner cannot rewrite it: entries and checkpoints as JSON lines, in
order, each at least once. What a place has is kept in the store, so that it goes on where it was.

That the place has more than the log is evidence: the log's end was cut off, an older state restored, or the cursor set
by hand. It is told as a break of the log, and the whole log is sent again: what was sent first is the better witness.

One loop for each place: a place that is slow or away holds up nobody, not even the node's end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from greenroom import clock as clocks
from greenroom import errors, telemetry
from greenroom.control.audit_places import Place, Undelivered
from greenroom.security import audit
from greenroom.security.audit import Checkpoint, Entry
from greenroom.store.audit import Act, Cursor, Head
from greenroom.store.news import News
from greenroom.store.store import Store

BATCH = 200
IDLE_S = 5.0
LONGEST_S = 60.0  # between two tries


class AuditExport:
    """*tell* is told that the log is not what was exported."""

    def __init__(
        self,
        store: Store,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        place: Place,
        *,
        tell: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store, self._clock, self._facts, self._place, self._tell = store, clock, facts, place, tell
        self.name = f"audit-export {place.name}"
        self.wakeup = asyncio.Event()
        self.trouble: str | None = None
        self.mismatch: str | None = None  # what the place has and the log has not: for this life of the node
        self._cursor: Cursor | None = None
        self._failures = 0
        store.hub.subscribe(self._hear)

    def _hear(self, news: News) -> None:
        if news.audited and self.trouble is None:
            self.wakeup.set()

    async def step(self) -> float:
        if not self._store.audit.is_on:
            return LONGEST_S
        try:
            if self._cursor is None:
                self._cursor = await self._begin()
            page = await self._store.audit.after(self._cursor.seq, most=BATCH)
            entries = [entry for entry in page if entry.seq > self._cursor.seq]  # without rows that have no number
            checkpoints = await self._store.audit.checkpoints(after=self._cursor.checkpoint, most=BATCH)
            lines, reached = merged(entries, checkpoints, self._cursor)
            if not lines:
                return await self._idle(self._cursor)
            await self._place.take(lines)
        except Undelivered as error:
            return self._failed(str(error))
        await self._store.audit.advance(reached)
        self._cursor, self._failures = reached, 0
        if self.trouble is not None:
            self.trouble = None
            self._facts.emit(telemetry.AuditRecovered(self._place.name))
        return 0.0

    async def _begin(self) -> Cursor:
        """Return where to go on, by the store and by the place itself, which is the better witness."""
        cursor = await self._store.audit.cursor(self._place.name)
        last = await self._place.last()
        head = await self._store.audit.head()  # after the place's: what it has was in the log before
        if what := ahead(cursor, head):
            return await self._again(what)
        if last is None:
            return cursor
        there = await self._store.audit.after(last.seq - 1, most=1)
        if not there or (there[0].seq, there[0].hash) != last:
            return await self._again(f"entry {last.seq}, the last one there, is gone from the log or is another one")
        if last.seq < cursor.seq:  # which checkpoints it has nobody knows: all of them again
            return Cursor(cursor.place, last.seq)
        return cursor

    async def _idle(self, cursor: Cursor) -> float:
        what = ahead(cursor, await self._store.audit.head())
        if what is None:
            return IDLE_S  # a checkpoint wakes nobody
        self._cursor = await self._again(what)
        return 0.0

    async def _again(self, what: str) -> Cursor:
        self.mismatch = (
            f"the audit log is not what was exported to {self._place.name}: {what}; its end was cut off, an older "
            "state was restored, or the cursor was changed; all of the log is exported again, behind what is there; "
            "see greenroom audit verify --anchor"
        )
        await self._tell(self.mismatch)
        with contextlib.suppress(errors.AuditBroken):  # told already
            await self._store.audit.note(Act("audit.export", self._place.name, "found", {"what": what}))
        return Cursor(self._place.name)

    def _failed(self, error: str) -> float:
        if self.trouble is None:
            self._facts.emit(telemetry.AuditTrouble(self._place.name, error))
        self.trouble = error
        self._failures += 1
        return float(min(LONGEST_S, 2.0 ** min(self._failures, 10)))


def ahead(cursor: Cursor, head: Head) -> str | None:
    """Say in what *cursor* is ahead of the log, which only grows; None where it is not."""
    if cursor.seq > head.seq:
        return f"entry {cursor.seq} was exported, and the log ends at entry {head.seq}"
    if cursor.checkpoint > head.checkpoint:
        return f"checkpoint {cursor.checkpoint} was exported, and the log ends at checkpoint {head.checkpoint}"
    return None


def merged(entries: Sequence[Entry], checkpoints: Sequence[Checkpoint], cursor: Cursor) -> tuple[list[bytes], Cursor]:
    """Return the lines to send next, and where that leads: a checkpoint comes after the entries that it signs."""
    last = entries[-1].seq if entries else cursor.seq
    due = [checkpoint for checkpoint in checkpoints if checkpoint.last <= last]
    placed = [((entry.seq, 0), audit.line_of(entry)) for entry in entries]
    placed += [((checkpoint.last, 1), audit.line_of_checkpoint(checkpoint)) for checkpoint in due]
    reached = Cursor(cursor.place, last, due[-1].number if due else cursor.checkpoint)
    return [line for _, line in sorted(placed)], reached
