"""The audit log of a store as it stands, read beside the node that writes it, or without one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import msgspec

from greenroom import errors
from greenroom.security import audit, audit_checks
from greenroom.security.audit import Checkpoint, Entry
from greenroom.store import dumps

_ENTRIES = dumps.Table("audit_entry", Entry.__struct_fields__, ("seq",))
_CHECKPOINTS = dumps.Table("audit_checkpoint", Checkpoint.__struct_fields__, ("number",))
_HEAD = dumps.Table("audit_head", audit_checks.Head.__struct_fields__, ("seq",))


async def check(url: str, keys: Iterable[bytes], anchor: audit_checks.Anchor | None) -> audit_checks.Check:
    """Look at the whole log of the store at *url*, and return what was found."""
    async with dumps.snapshot(url) as snapshot:
        _refuse_without(snapshot)
        checkpoints = [Checkpoint(*row) async for row in snapshot.rows(_CHECKPOINTS)]
        heads = [audit_checks.Head(*row) async for row in snapshot.rows(_HEAD)]
        found = audit_checks.Check(keys, checkpoints=checkpoints, anchor=anchor)
        async for row in snapshot.rows(_ENTRIES):
            found.add(Entry(*row))
    found.end(heads[0] if heads else audit_checks.Head())
    return found


async def lines(url: str) -> AsyncIterator[bytes]:
    """Yield the log as it is exported: each entry, and each checkpoint behind the last entry that it signs."""
    async with dumps.snapshot(url) as snapshot:
        _refuse_without(snapshot)
        checkpoints = [Checkpoint(*row) async for row in snapshot.rows(_CHECKPOINTS)]
        by_last = {checkpoint.last: checkpoint for checkpoint in checkpoints}
        async for row in snapshot.rows(_ENTRIES):
            entry = Entry(*row)
            try:
                yield audit.line_of(entry)
            except (msgspec.MsgspecError, ValueError):
                raise errors.AuditBroken(f"cannot export entry {entry.seq}: it is not what was written") from None
            if (checkpoint := by_last.get(entry.seq)) is not None:
                yield audit.line_of_checkpoint(checkpoint)


def _refuse_without(snapshot: dumps.Snapshot) -> None:
    if _ENTRIES.name not in {table.name for table in snapshot.tables}:
        raise errors.NotFound(
            "cannot find an audit log: the store is of a release that had none; start a node of this one on it"
        )
