"""The pages of sessions: all of them, and each with its tasks in order and the state that they share."""

from __future__ import annotations

from greenroom import errors
from greenroom.api import sessions, tasks
from greenroom.api.dashboard.forms import Act, Done, Fields
from greenroom.api.dashboard.frame import Page, asking
from greenroom.api.dashboard.payloads import preview, shown
from greenroom.api.request import Call
from greenroom.core.permissions import Action

PER_PAGE = 50


async def show_all(call: Call) -> Page:
    """Show sessions, those used last first."""
    cursor = call.query("cursor")
    page = (await sessions.list_all(asking(call, cursor=cursor, limit=PER_PAGE))).document
    context = {"sessions": page["items"], "next": page["next_cursor"], "is_first": cursor is None}
    return Page("sessions.html", context)


async def show(call: Call) -> Page:
    """Show a session; ``?agent=`` where several agents have one of this name."""
    try:
        session = (await sessions.show(call)).document
    except errors.Conflict as error:
        raise errors.QueryInvalid(str(error)) from None
    latest, has_more = [], False
    if call.principal.rights.on_agent(Action.TASK_READ, session["agent"]):
        query = asking(call, agent=session["agent"], session=session["id"], limit=PER_PAGE)
        found = (await tasks.list_tasks(query)).document
        latest, has_more = found["items"][::-1], found["next_cursor"] is not None
    context = {
        "session": session,
        "state": shown(session["state"]),
        "tasks": latest,
        "has_more": has_more,
        "is_used": any(task["finished_at"] is None for task in latest),
        "preview": preview,
    }
    return Page("session.html", context, title=f"Session {session['id']}")


async def _remove(call: Call, fields: Fields) -> Done:
    await sessions.remove(call)
    return Done(f"The session {call.path('id')} is forgotten.", "/sessions")


ACTS = (Act("/ui/sessions/{id}/delete", _remove, Action.SESSION_DELETE),)
