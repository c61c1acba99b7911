"""The page of the system: the node, its envelope, how it is protected, and its backups."""

from __future__ import annotations

from typing import Any

from greenroom.api import operations, security
from greenroom.api.dashboard.forms import Act, Fields
from greenroom.api.dashboard.frame import Page
from greenroom.api.request import Call
from greenroom.core.permissions import Action

BACKUPS = 10  # that are shown


async def show(call: Call) -> Page:
    """Show the node; its protection and its backups to who may read of them."""
    rights = call.principal.rights
    report: Any = None
    if rights.allows(Action.SECURITY_READ):
        report = (await security.report(call)).document
    backups: list[Any] = []
    if rights.allows(Action.BACKUP_READ):
        backups = (await operations.list_backups(call)).document["items"]
    status = (await operations.status(call)).document
    return Page("system.html", {"status": status, "report": report, "backups": backups[:BACKUPS]})


async def _back_up(call: Call, fields: Fields) -> str:
    await operations.create_backup(call)
    return "A backup is being made; this page tells when it is done."


ACTS = (Act("/ui/backups", _back_up, Action.BACKUP_CREATE),)
