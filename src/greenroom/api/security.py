"""The routes of the node's security: the report, and the end of a lock."""

from __future__ import annotations

from greenroom.api import schemas
from greenroom.api.request import Answer, Call


async def report(call: Call) -> Answer:
    """Show each control with its state and why, what was found, who is locked, and a grade."""
    return Answer(await call.services.security.report())


async def unlock(call: Call) -> Answer:
    """End a lock or a throttle before its time; the subject is one of the report."""
    wanted = schemas.read(call.body, schemas.Unlock)
    await call.services.security.unlock(wanted.subject)
    return Answer(None, status=204)
