"""The page of alerts: what somebody has to look after, who has taken it, what is over, and who is told of it."""

from __future__ import annotations

from typing import Any

from greenroom import errors
from greenroom.api import alerts, receivers
from greenroom.api.dashboard.forms import Act, Fields, with_body
from greenroom.api.dashboard.frame import Page
from greenroom.api.request import Call
from greenroom.core.alerts import State
from greenroom.core.permissions import Action
from greenroom.sdk import models

RESOLVED = 50  # that are shown
HOURS = ("1", "4", "12", "24", "168")  # of a silence

_ORDER = {State.FIRING: 0, State.ACKNOWLEDGED: 1, State.PENDING: 2}


async def show(call: Call) -> Page:
    """Show the alerts that may be read: those that are open, then the latest that are over; the silences; and the
    receivers to who may manage them.
    """
    found: list[dict[str, Any]] = (await alerts.list_all(call)).document["items"]
    over = [alert for alert in found if alert["state"] == State.RESOLVED]
    standing = [alert for alert in found if alert["state"] in _ORDER]
    standing.sort(key=lambda alert: (_ORDER[alert["state"]], alert["severity"] != "critical"))
    silences = (await alerts.list_silences(call)).document["items"]
    told: list[models.Receiver] = []
    if call.principal.rights.allows(Action.RECEIVER_MANAGE):
        told = (await receivers.list_all(call)).document["items"]
    context = {"open": standing, "resolved": over[:RESOLVED], "silences": silences, "hours": HOURS, "receivers": told}
    return Page("alerts.html", context)


async def _acknowledge(call: Call, fields: Fields) -> str:
    await alerts.acknowledge(call)
    return f"You look after {call.path('id')}; it stands until what it tells of is over."


async def _silence(call: Call, fields: Fields) -> str:
    if (hours := fields.get("hours", "")) not in HOURS:
        raise errors.BodyInvalid(f"cannot add a silence: give one of {', '.join(HOURS)} hours")
    given = {name: fields[name].strip() for name in ("alert", "kind", "agent", "comment") if fields.get(name)}
    await alerts.silence(with_body(call, {"for_s": int(hours) * 3600, **given}))
    return f"Nobody is told of it for {hours} h; it is listed here all the same."


async def _unsilence(call: Call, fields: Fields) -> str:
    await alerts.unsilence(call)
    return "The silence is over."


async def _test(call: Call, fields: Fields) -> str:
    answer: models.ReceiverTest = (await receivers.test(call)).document
    if not answer.is_taken:
        why = answer.error or f"it answered {answer.status}"
        raise errors.Conflict(f"{answer.receiver} has not taken the test alert: {why}")
    return f"{answer.receiver} has taken the test alert: look whether it arrived."


ACTS = (
    Act("/ui/alerts/{id}/ack", _acknowledge, Action.ALERT_ACKNOWLEDGE),
    Act("/ui/silences", _silence, Action.ALERT_ACKNOWLEDGE),
    Act("/ui/silences/{id}/end", _unsilence, Action.ALERT_ACKNOWLEDGE),
    Act("/ui/receivers/{name}/test", _test, Action.RECEIVER_MANAGE),
)
