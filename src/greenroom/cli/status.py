"""`greenroom status`: how the node and its agents are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from greenroom.cli import options, render, rollout_report, summary
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from greenroom.sdk import models

COLUMNS = (
    Column("AGENT"),
    Column("STATE"),
    Column("GRADE"),
    Column("REVISION", right=True),
    Column("READY", right=True),
    Column("TASKS", whole=False),
)


def status(*, given: options.Options = options.DEFAULT) -> None:
    """Show how the node and its agents are."""
    with given.connect() as node:
        document = node.status()
        asks = not given.json and any((document.get("alerts") or {}).values())
        alerts = [alert for alert in node.alerts() if alert.state == "firing"] if asks else []
    if given.json:
        render.json(document)
        return
    for sentence in summary.sentences(document, alerts):
        render.paragraph(sentence, indent=0)
    render.line("")
    agents = document.get("agents") or []
    render.facts(_facts({name: value for name, value in document.items() if name != "agents"}))
    render.line("")
    render.table(COLUMNS, map(_row, agents), empty="no agents; next: add one to greenroom.toml, and restart the node")
    for agent in agents:
        grade = agent.get("grade")
        if reason := render.trouble(agent.get("reason"), grade=grade, grade_reason=agent.get("grade_reason")):
            render.say(f"{agent['name']}: {reason}")
        if reason := render.waiting(_breaker(agent)):
            render.say(f"{agent['name']}: {reason}")
        rollout_report.tell_if_open(agent["name"], _rollout(agent))


def _rollout(agent: Mapping[str, Any]) -> models.Rollout | None:
    """The agent's rollout, of which the status says less than all."""
    import msgspec

    from greenroom.sdk import models

    if not (said := agent.get("rollout")):
        return None
    return msgspec.convert({"agent": agent["name"], "strategy": "", **said}, models.Rollout)


def _breaker(agent: Mapping[str, Any]) -> models.BreakerState:
    import msgspec

    from greenroom.sdk import models

    return msgspec.convert(agent.get("breaker") or {}, models.BreakerState)


def _row(agent: Mapping[str, Any]) -> tuple[object, ...]:
    replicas = agent.get("replicas", {})
    ready = f"{replicas.get('ready', 0)}/{replicas.get('desired', 0)}"
    return (
        agent.get("name"),
        agent.get("state"),
        agent.get("grade"),
        agent.get("revision"),
        ready,
        _counts(agent.get("tasks", {})),
    )


def _facts(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """All that the node says, also what this client does not know, a line each."""
    for name, value in document.items():
        if (prefix, name) == ("", "grade"):
            why = document.get("grade_reason")
            yield "health", f"{value}: {why}" if why else value
        elif (prefix, name) == ("", "grade_reason"):
            continue
        elif name == "alert_delivery":
            if value:  # else it is nothing that the caller may see
                yield "alert delivery", value
        elif name == "resources" and isinstance(value, Mapping):
            yield name, _resources(value)
        elif (prefix, name) == ("replicas ", "memory_mb"):
            yield "replicas memory", f"{value:g} MB, pages that they share counted for each of them"
        elif name == "advice" and value:
            yield name, f"{value} open; next: greenroom advice"
        elif isinstance(value, Mapping) and all(isinstance(count, int) for count in value.values()):
            yield f"{prefix}{name}", _counts(value) or "none"
        elif isinstance(value, Mapping):
            yield from _facts(value, f"{name} ")
        elif value is not None:
            yield f"{prefix}{name}", render.text_of(value)


def _resources(held: Mapping[str, Any]) -> str:
    """What all replicas use of what they may, and what holds that; a line each for what does not hold."""
    told = []
    for name, unit in (("cpu", "CPUs"), ("memory_mb", "MB")):
        resource = held.get(name) or {}
        used, limit = resource.get("used"), resource.get("limit")
        amount = "?" if used is None else f"{used:g}"
        told.append(f"{amount} {unit}" if limit is None else f"{amount} of {limit:g} {unit} ({resource['enforced']})")
    return "\n".join([", ".join(told), *(f"warning: {warning}" for warning in held.get("warnings") or ())])


def _counts(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items())
