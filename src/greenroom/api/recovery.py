"""The routes of what supervision remembers, failures, and of what the optimizer advises."""

from __future__ import annotations

from greenroom.api import views
from greenroom.api.request import Answer, Call
from greenroom.core.permissions import Action


async def list_failures(call: Call) -> Answer:
    """List how replicas failed and what was done about it, latest first; ``?agent= &limit= &cursor=``."""
    limit = call.number("limit", default=50, least=1, most=200)
    before = call.number("cursor", default=0, most=2**62) or None
    return await failures_of(call, call.query("agent"), limit=limit, before_seq=before)


async def failures_of(call: Call, agent: str | None, *, limit: int, before_seq: int | None = None) -> Answer:
    """Show the latest failures of *agent*, None: of all, as far as the caller may observe them."""
    rows = await call.store.recovery.failures(
        agent=agent,
        before_seq=before_seq,
        limit=limit,
        agents=call.principal.rights.agents(Action.AGENT_OBSERVE),
    )
    cursor = str(rows[-1].seq) if len(rows) == limit else None
    return Answer({"items": [views.failure(row) for row in rows], "next_cursor": cursor})


async def list_advice(call: Call) -> Answer:
    """List what the optimizer advises, open ones first, then the latest; ``?limit= &cursor=``."""
    limit = call.number("limit", default=50, least=1, most=200)
    rows = await call.store.advice.list(
        before=call.number("cursor", default=0, most=2**62) or None,
        limit=limit,
        agents=call.principal.rights.agents(Action.AGENT_OBSERVE),
    )
    cursor = str(rows[-1].cursor) if len(rows) == limit else None
    return Answer({"items": [views.advice(row) for row in rows], "next_cursor": cursor})
