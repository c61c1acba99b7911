"""The audit log of a store as it stands, read beside the node that writes it, or without one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import msgspec

from greenroom import errors
from greenroom.security import audit, audit_checks
from greenroom.security.audit import Checkpoint, Entry
from greenroom.store import dumps
from greenroom.store.database import Row

_ENTRIES = dumps.Table("audit_entry", Entry.__struct_fields__, ("seq",))
_CHECKPOINTS = dumps.Table("audit_checkpoint", Checkpoint.__struct_fields__, ("number",))
_HEAD = dumps.Table("audit_head", audit_checks.Head.__struct_fields__, ("seq",))
_TABLES = (_ENTRIES, _CHECKPOINTS, _HEAD)

SINCE_SCHEMA = 12
"""Each store of this schema or a later one has these tables."""


async def check(url: str, keys: Iterable[bytes], anchor: audit_checks.Anchor | None) -> audit_checks.Check:
    """Look at the whole log of the store at *url*, and return what was found."""
    async with dumps.snapshot(url) as snapshot:
        missing = _missing(snapshot, anchor)
        checkpoints = [audit.read(Checkpoint, row) async for row in _rows(snapshot, _CHECKPOINTS)]
        heads = [audit.read(audit_checks.Head, row) async for row in _rows(snapshot, _HEAD)]
        found = audit_checks.Check(keys, checkpoints=checkpoints, anchor=anchor)
        try:
            async for row in _rows(snapshot, _ENTRIES):
                found.add(audit.read(Entry, row))
        except errors.StoreUnavailable as error:
            if not isinstance(error.__cause__, UnicodeDecodeError):
                raise
            found.unreadable()
    for table in missing:
        found.missing(table)
    found.end(heads[0] if heads else audit_checks.Head())
    return found


async def lines(url: str) -> AsyncIterator[bytes]:
    """Yield the log as it is exported: each entry, and each checkpoint behind the last entry that it signs."""
    async with dumps.snapshot(url) as snapshot:
        if missing := _missing(snapshot, None):
            raise errors.AuditBroken(
                f"cannot export the audit log: the store has no table {missing[0]}; see greenroom audit verify"
            )
        checkpoints = [audit.read(Checkpoint, row) async for row in snapshot.rows(_CHECKPOINTS)]
        by_last = {checkpoint.last: checkpoint for checkpoint in checkpoints}
        async for row in snapshot.rows(_ENTRIES):
            entry = audit.read(Entry, row)
            try:
                yield audit.line_of(entry)
            except (msgspec.MsgspecError, ValueError):
                raise errors.AuditBroken(f"cannot export entry {entry.seq}: it is not what was written") from None
            if (checkpoint := by_last.get(entry.seq)) is not None:
                yield audit.line_of_checkpoint(checkpoint)


def _missing(snapshot: dumps.Snapshot, anchor: audit_checks.Anchor | None) -> list[str]:
    """Return the tables that were dropped; raises `errors.NotFound` where there was no log yet."""
    there = {table.name: table for table in snapshot.tables}
    missing = [table.name for table in _TABLES if not set(table.columns) <= _columns(there.get(table.name))]
    if missing and snapshot.schema < SINCE_SCHEMA and (anchor is None or not anchor.last):
        raise errors.NotFound(
            "cannot find an audit log: the store is of a release that had none; start a node of this one on it"
        )
    return missing


def _columns(table: dumps.Table | None) -> set[str]:
    return set() if table is None else set(table.columns)


def _rows(snapshot: dumps.Snapshot, table: dumps.Table) -> AsyncIterator[Row]:
    there = next((each for each in snapshot.tables if each.name == table.name), None)
    return snapshot.rows(table) if set(table.columns) <= _columns(there) else _nothing()


async def _nothing() -> AsyncIterator[Row]:
    nothing: tuple[Row, ...] = ()
    for row in nothing:
        yield row
