"""The pages of scaling: how many replicas each agent has, should have and may have, and why."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from greenroom.api import scaling
from greenroom.api.dashboard.frame import Page
from greenroom.api.request import Call
from greenroom.sdk import models

MINUTES = 60
_MINUTE = timedelta(minutes=1)


class Hour(msgspec.Struct, frozen=True):
    """The last hour minute by minute, oldest first: *wanted* replicas at its end, the most tasks that *waited* and the
    most slots that were *busy*, and *arrivals*.
    """

    wanted: tuple[float, ...]
    waited: tuple[float, ...]
    busy: tuple[float, ...]
    arrivals: tuple[float, ...]


async def show_all(call: Call) -> Page:
    """Show all agents that may be observed; those first in which something waits."""
    found: list[models.AgentScaling] = (await scaling.list_all(call)).document["items"]
    return Page("scaling.html", {"agents": sorted(found, key=lambda each: (-each.waiting, each.agent))})


async def show(call: Call) -> Page:
    """Show an agent; ``?cursor=`` leads to earlier decisions."""
    found: models.AgentScaling = (await scaling.show(call)).document
    hour = None
    if call.query("cursor") is None:
        loads = (await scaling.loads_of(call, found.agent, hours=1)).document["items"]
        hour = laid_out(found, loads, call.services.clock.now())
    return Page("scaling_of.html", {"agent": found, "hour": hour}, title=f"Scaling of {found.agent}")


def laid_out(agent: models.AgentScaling, loads: Sequence[models.Load], now: datetime) -> Hour:
    """Lay the last hour out in minutes. Loads are kept of busy times only: in the others nothing waited. Pure."""
    since = now.replace(second=0, microsecond=0) - (MINUTES - 1) * _MINUTE
    by_minute: list[list[models.Load]] = [[] for _ in range(MINUTES)]
    for load in loads:
        if load.at is not None and 0 <= (place := (load.at - since) // _MINUTE) < MINUTES:
            by_minute[place].append(load)
    return Hour(
        wanted=tuple(wanted(agent, since + (place + 1) * _MINUTE) for place in range(MINUTES)),
        waited=tuple(max((load.waiting for load in minute), default=0) for minute in by_minute),
        busy=tuple(max((load.busy for load in minute), default=0.0) for minute in by_minute),
        arrivals=tuple(sum(load.arrivals for load in minute) for minute in by_minute),
    )


def wanted(agent: models.AgentScaling, at: datetime) -> int:
    """Return how many replicas it was to have at *at*: by the decision before, or what the next one after found."""
    later = [each for each in agent.items if each.at is not None and each.at > at]
    return later[-1].from_replicas if later else agent.replicas
