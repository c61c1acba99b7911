"""The session routes."""

from __future__ import annotations

from greenroom import errors
from greenroom.api import access, views
from greenroom.api.request import Answer, Call
from greenroom.core.permissions import Action
from greenroom.store import sessions


async def list_all(call: Call) -> Answer:
    """List sessions, those used last first; ``?limit= &cursor=``. One that is used meanwhile comes to the front."""
    limit = call.number("limit", default=50, least=1, most=200)
    cursor = call.query("cursor")
    behind = None if cursor is None else _place(cursor)
    agents = call.principal.rights.agents(Action.SESSION_READ)
    rows = await call.store.sessions.list(tenant=call.principal.tenant, behind=behind, limit=limit, agents=agents)
    last = rows[-1] if len(rows) == limit else None
    next_cursor = None if last is None else f"{last.updated_at}:{last.agent}:{last.id}"
    return Answer({"items": [views.session(row) for row in rows], "next_cursor": next_cursor})


def _place(cursor: str) -> sessions.Place:
    updated_at, _, rest = cursor.partition(":")
    agent, _, id = rest.partition(":")
    if not (updated_at.isascii() and updated_at.isdigit() and len(updated_at) < 19 and agent and id):
        raise errors.QueryInvalid(f"cannot take ?cursor={cursor[:40]}: give the next_cursor of a list of sessions")
    return sessions.Place(int(updated_at), agent, id)


async def show(call: Call) -> Answer:
    """Show a session's state; ``?agent=`` where several agents have one of this name."""
    return Answer(views.session(await _session(call)))


async def remove(call: Call) -> Answer:
    """Forget a session's state."""
    row = await _session(call)
    access.require(call, Action.SESSION_DELETE, row.agent)
    await call.store.sessions.remove(row.id, tenant=call.principal.tenant, agent=row.agent)
    return Answer(None, status=204)


async def _session(call: Call) -> sessions.Session:
    named = await call.store.sessions.find(call.path("id"), tenant=call.principal.tenant, agent=call.query("agent"))
    found = [row for row in named if call.principal.rights.on_agent(Action.SESSION_READ, row.agent)]
    if not found:
        raise errors.NotFound(f"cannot find the session {call.path('id')[:64]}")
    if len(found) > 1:
        names = ", ".join(row.agent for row in found)
        raise errors.Conflict(
            f"cannot choose the session {found[0].id}: several agents have it ({names}); give ?agent="
        )
    return found[0]
