"""The routes of the audit log."""

from __future__ import annotations

import msgspec

from greenroom import errors
from greenroom.api import schemas
from greenroom.api.request import Answer, Call
from greenroom.core.permissions import HOME
from greenroom.sdk import security
from greenroom.security.audit import Entry
from greenroom.store import audit, database

MAX_SEQ = 2**62
MAX_PAGE = 200


async def list_entries(call: Call) -> Answer:
    """List the audit log, newest first; tenants see what is theirs, the home tenant all. With ``?after=`` oldest first:
    to follow it. ``?action=key.*`` stands for all that begin so.
    """
    limit = call.number("limit", default=50, least=1, most=MAX_PAGE)
    which = audit.Filter(
        tenant=None if call.principal.tenant == HOME else call.principal.tenant,
        actor=call.query("actor"),
        action=call.query("action"),
        object=call.query("object"),
        since=call.instant("since"),
    )
    after = call.query("after")
    entries = await call.store.audit.list(
        which,
        before=call.number("cursor", default=0, most=MAX_SEQ) or None,
        after=None if after is None else call.number("after", default=0, most=MAX_SEQ),
        limit=limit,
    )
    cursor = str(entries[-1].seq) if len(entries) == limit and after is None else None
    return Answer({"items": [_shown(entry) for entry in entries], "next_cursor": cursor})


async def list_checkpoints(call: Call) -> Answer:
    """List the signatures over the audit log, oldest first, behind number ``?cursor=``."""
    limit = call.number("limit", default=50, least=1, most=MAX_PAGE)
    after = call.number("cursor", default=0, most=MAX_SEQ)
    found = await call.store.audit.checkpoints(after=after, most=limit)
    return Answer({"items": found, "next_cursor": str(found[-1].number) if len(found) == limit else None})


async def erase(call: Call) -> Answer:
    """Erase what may be personal (who, from where, what, details) in the entries that an actor has made.

    The chain stays whole, and an entry says who has erased which.
    """
    wanted = schemas.read(call.body, schemas.AuditErasure)
    if not call.store.audit.is_on:
        raise errors.Conflict("cannot erase: the audit log is off, and nothing would say who did it")
    seqs = await call.store.audit.erase(wanted.actor, tenant=wanted.tenant)
    return Answer(security.Erased(entries=len(seqs), is_more=len(seqs) == audit.ERASE_MOST))


def _shown(entry: Entry) -> security.AuditEntry:
    return security.AuditEntry(
        seq=entry.seq,
        at=database.instant(entry.time),
        tenant=entry.tenant,
        actor=entry.actor,
        source=entry.source,
        action=entry.action,
        object=entry.object,
        outcome=entry.outcome,
        request_id=entry.request_id,
        detail=None if entry.detail is None else msgspec.json.decode(entry.detail),
        is_erased=bool(entry.erased),
        hash=entry.hash,
    )
