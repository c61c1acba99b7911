"""The pages of agents: all of them, and each with its replicas, its last hour and what can be done about it."""

from __future__ import annotations

from greenroom import errors
from greenroom.api import agents, health, logs, recovery, scaling
from greenroom.api.dashboard import series
from greenroom.api.dashboard.forms import Act, Fields, with_body
from greenroom.api.dashboard.frame import Page, asking
from greenroom.api.request import Call
from greenroom.core.permissions import Action

FAILURES, LINES = 10, 50  # that are shown


async def show_all(call: Call) -> Page:
    """Show all agents that may be read; of those that may be observed, their last hour, too."""
    found = (await agents.list_agents(call)).document["items"]
    rights = call.principal.rights
    observed = [agent["name"] for agent in found if rights.on_agent(Action.AGENT_OBSERVE, agent["name"])]
    return Page("agents.html", {"agents": found, "hours": await series.read(call, observed)})


async def show(call: Call) -> Page:
    """Show an agent."""
    agent = (await agents.show_agent(call)).document
    name = agent["name"]
    replicas, failures, lines, hour, objectives = [], [], [], None, ()
    if call.principal.rights.on_agent(Action.AGENT_OBSERVE, name):
        rows = (await agents.list_replicas(call)).document["items"]
        replicas = [replica for replica in rows if replica["agent"] == name]
        failures = (await recovery.failures_of(call, name, limit=FAILURES)).document["items"]
        hour = (await series.read(call, [name]))[name]
        if call.principal.rights.on_agent(Action.TASK_READ, name):
            lines = (await logs.list_lines(asking(call, agent=name, limit=LINES))).document["items"][::-1]
        slo = (await health.show(call)).document.slo
        objectives = () if slo is None else slo.objectives
    context = {"agent": agent, "replicas": replicas, "failures": failures, "hour": hour, "objectives": objectives}
    context["lines"] = lines
    return Page("agent.html", context, title=name)


async def _scale(call: Call, fields: Fields) -> str:
    text = fields.get("replicas", "").strip()
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise errors.BodyInvalid("cannot scale: give a number of replicas")
    await scaling.scale(with_body(call, {"replicas": int(text)}))
    return f"{call.path('name')} is to have {text} replicas."


async def _release(call: Call, fields: Fields) -> str:
    await agents.release(call)
    return f"{call.path('name')} is judged anew."


async def _restart(call: Call, fields: Fields) -> str:
    await agents.restart_replica(call)
    return f"{call.path('id')} is being replaced; it ends its tasks first."


async def _drain(call: Call, fields: Fields) -> str:
    await agents.drain_replica(call)
    return f"{call.path('id')} ends its tasks and takes no more."


ACTS = (
    Act("/ui/agents/{name}/scale", _scale, Action.AGENT_OPERATE),
    Act("/ui/agents/{name}/release", _release, Action.AGENT_OPERATE),
    Act("/ui/replicas/{id}/restart", _restart, Action.AGENT_OPERATE),
    Act("/ui/replicas/{id}/drain", _drain, Action.AGENT_OPERATE),
)
