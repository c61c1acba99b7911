"""The page of the audit log: who did what to which, with filters."""

from __future__ import annotations

from greenroom.api import audit
from greenroom.api.dashboard import queries
from greenroom.api.dashboard.frame import Page
from greenroom.api.request import Call

FILTERS = ("actor", "action", "object", "since")


async def show(call: Call) -> Page:
    """Show the entries that `audit.list_entries` lists, newest first; its filters are the page's."""
    page = (await audit.list_entries(queries.without_blanks(call))).document
    given = {name: call.query(name) or "" for name in FILTERS}
    older = None if page["next_cursor"] is None else queries.link(call, given | {"cursor": page["next_cursor"]})
    context = {"entries": page["items"], "given": given, "older": older, "is_on": call.store.audit.is_on}
    return Page("audit.html", context)
