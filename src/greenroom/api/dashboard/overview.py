"""The overview: how the system is in one sentence, and what there is to look at first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from greenroom.api import agents, operations, recovery, schemas
from greenroom.api import alerts as all_alerts
from greenroom.api.dashboard import series
from greenroom.api.dashboard.frame import Page
from greenroom.api.request import Call
from greenroom.core import health
from greenroom.core.permissions import Action

MOST = 6  # of what has a page of its own

_WORSE = (health.Grade.UNHEALTHY, health.Grade.DEGRADED, health.Grade.UNKNOWN)
_PARTS = {  # what of the page needs which right, in the words that tell who lacks it
    Action.STATUS_READ: "the system's state",
    Action.AGENT_READ: "agents",
    Action.AGENT_OBSERVE: "replicas, latencies and failures",
    Action.ALERT_READ: "alerts",
}


class Health(msgspec.Struct, frozen=True):
    """How the system is: a grade, and the sentence that says why."""

    grade: str
    sentence: str


async def show(call: Call) -> Page:
    """Show what whoever looks may see, and name what they may not."""
    rights = call.principal.rights
    status = await _status(call) if rights.allows(Action.STATUS_READ) else None
    found = (await agents.list_agents(call)).document["items"] if rights.allows(Action.AGENT_READ) else []
    observed = [agent["name"] for agent in found if rights.on_agent(Action.AGENT_OBSERVE, agent["name"])]
    alerts = (await all_alerts.list_all(call)).document["items"] if rights.allows(Action.ALERT_READ) else []
    firing = [alert for alert in alerts if alert["state"] == "firing"]
    failures: list[dict[str, Any]] = []
    replicas: list[dict[str, Any]] = []
    if rights.allows(Action.AGENT_OBSERVE):
        failures = (await recovery.failures_of(call, None, limit=MOST)).document["items"]
        replicas = (await agents.list_replicas(call)).document["items"]
    seen = await call.services.scrapes.look()
    waits = {} if seen is None else {name: seen.queue[name] for name in observed if name in seen.queue}
    return Page(
        "overview.html",
        {
            "health": None if status is None else health_of(status, firing=len(firing)),
            "status": status,
            "agents": sorted(found, key=_badness)[: 2 * MOST],
            "agent_count": len(found),
            "rollouts": [agent["rollout"] for agent in found if agent["rollout"] and agent["rollout"].is_open],
            "alerts": firing[:MOST],
            "alert_count": len(firing),
            "failures": failures,
            "by_state": Counter(replica["state"] for replica in replicas),
            "by_grade": Counter(replica["grade"] for replica in replicas if replica["state"] == "ready"),
            "memory_mb": sum(replica["memory_mb"] or 0 for replica in replicas),
            "queued": sum(agent["queued"] for agent in found),
            "running": sum(agent["running"] for agent in found),
            "oldest_s": max((wait_s for _, wait_s in waits.values()), default=0.0),
            "hour": (await series.read(call, observed))[""] if observed else None,
            "hidden": [told for action, told in _PARTS.items() if not rights.allows(action)],
        },
    )


async def _status(call: Call) -> schemas.Status:
    status: schemas.Status = (await operations.status(call)).document
    return status


def health_of(status: schemas.Status, *, firing: int) -> Health:
    """Say how the system is: as its node, else as its worst agent, else as its alerts. Pure."""
    node = status.node
    if node.state != "ready":
        grade = health.Grade.UNHEALTHY if node.state == "failed" else health.Grade.DEGRADED
        return Health(grade, f"The node is {node.state}" + (f": {node.reason}" if node.reason else "."))
    if not status.agents:
        return Health(health.Grade.UNKNOWN, "The node is ready, and no agent is deployed yet.")
    if status.grade in _WORSE and all(agent.grade != status.grade for agent in status.agents):
        return Health(status.grade, status.grade_reason)  # it is the node
    for grade in _WORSE:
        named = [agent for agent in status.agents if agent.grade == grade and agent.replicas.desired]
        if named:
            return Health(grade, _sentence(grade, named[0], len(named), len(status.agents)))
    if firing:
        told = "1 alert fires" if firing == 1 else f"{firing} alerts fire"
        return Health(health.Grade.DEGRADED, f"The agents are well, but {told}.")
    awake = sum(agent.replicas.desired > 0 for agent in status.agents)
    if not awake:
        return Health(health.Grade.HEALTHY, f"Ready: {_agents(len(status.agents))} asleep until a task comes.")
    ready = sum(agent.replicas.ready for agent in status.agents)
    replicas = "1 replica" if ready == 1 else f"{ready} replicas"
    return Health(health.Grade.HEALTHY, f"All is well: {_agents(awake)} on {replicas}.")


def _sentence(grade: str, first: schemas.AgentStatus, count: int, total: int) -> str:
    reason = f": {first.grade_reason}" if first.grade_reason else "."
    if count == 1:
        return f"{first.name} is {_WORDS[grade]}{reason}"
    return f"{count} of {_agents(total)} are {_WORDS[grade]}, {first.name} among them{reason}"


_WORDS: Mapping[str, str] = {
    health.Grade.UNHEALTHY: "unhealthy",
    health.Grade.DEGRADED: "degraded",
    health.Grade.UNKNOWN: "not judged yet",
}


def _agents(count: int) -> str:
    return "1 agent" if count == 1 else f"{count} agents"


def _badness(agent: Mapping[str, Any]) -> tuple[int, int, str]:
    """Order agents so that those come first that somebody should look at."""
    order: Sequence[str] = _WORSE
    place = order.index(agent["grade"]) if agent["grade"] in order else len(order)
    return (place, -agent["queued"], agent["name"])
