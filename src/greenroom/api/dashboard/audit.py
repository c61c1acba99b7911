"""The page of the audit log: who did what to which, with filters."""

from __future__ import annotations

from greenroom.api import audit
from greenroom.api.dashboard.frame import Page, address, asking
from greenroom.api.request import Call

FILTERS = ("actor", "action", "object", "since")


async def show(call: Call) -> Page:
    """Show the entries that `audit.list_entries` lists, newest first; its filters are the page's."""
    given = {name: text for name in FILTERS if (text := call.query(name))}
    page = (await audit.list_entries(asking(call, **given, cursor=call.query("cursor")))).document
    further = page["next_cursor"]
    older = None if further is None else address("/audit", **given, cursor=further)
    context = {"entries": page["items"], "given": given, "older": older, "is_on": call.store.audit.is_on}
    return Page("audit.html", context)
