"""The routes of what supervision remembers: failures, alerts, and what the optimizer advises."""

from __future__ import annotations

from greenroom.api import access, views
from greenroom.api.request import Answer, Call
from greenroom.core.permissions import EVERYTHING, Action


async def list_failures(call: Call) -> Answer:
    """List how replicas failed and what was done about it, latest first; ``?agent= &limit= &cursor=``."""
    limit = call.number("limit", default=50, least=1, most=200)
    rows = await call.store.recovery.failures(
        agent=call.query("agent"),
        before_seq=call.number("cursor", default=0, most=2**62) or None,
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


async def list_alerts(call: Call) -> Answer:
    """List the alerts, firing ones first; those that are resolved stay for a month."""
    rows = await call.store.alerts.list(agents=call.principal.rights.agents(Action.ALERT_READ))
    return Answer({"items": [views.alert(row) for row in rows], "next_cursor": None})


async def acknowledge(call: Call) -> Answer:
    """Note that you look after an alert; it fires on until what it tells of is over."""
    id = call.path("id")
    seen = await call.store.alerts.get(id)
    # An alert of no agent is for those who may do it for all of them.
    access.check_object(
        call,
        seen.agent or EVERYTHING,
        read=Action.ALERT_READ,
        action=Action.ALERT_ACKNOWLEDGE,
        missing=f"cannot find the alert {id[:200]}",
    )
    row = await call.store.alerts.acknowledge(id, by=call.principal.name)
    return Answer(views.alert(row))
