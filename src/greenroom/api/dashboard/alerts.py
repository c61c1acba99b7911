"""The page of alerts: what somebody has to look after, who has taken it, and what is over."""

from __future__ import annotations

from typing import Any

from greenroom.api import recovery
from greenroom.api.dashboard.forms import Act, Fields
from greenroom.api.dashboard.frame import Page
from greenroom.api.request import Call
from greenroom.core.permissions import Action

RESOLVED = 50  # that are shown


async def show(call: Call) -> Page:
    """Show the alerts that may be read: those that fire, then the latest that are over."""
    found: list[dict[str, Any]] = (await recovery.list_alerts(call)).document["items"]
    over = [alert for alert in found if alert["state"] == "resolved"]
    firing = [alert for alert in found if alert["state"] != "resolved"]
    firing.sort(key=lambda alert: (alert["acknowledged_at"] is not None, alert["severity"] != "critical"))
    return Page("alerts.html", {"firing": firing, "resolved": over[:RESOLVED]})


async def _acknowledge(call: Call, fields: Fields) -> str:
    await recovery.acknowledge(call)
    return f"You look after {call.path('id')}; it fires on until what it tells of is over."


ACTS = (Act("/ui/alerts/{id}/ack", _acknowledge, Action.ALERT_ACKNOWLEDGE),)
