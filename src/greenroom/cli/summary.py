"""Says in plain words how a node is: the first lines of `greenroom status` and `greenroom top`. Pure.

What is read is the answer of ``GET /v1/status``, of a node that may be older or newer than this command: what it does
not say is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from greenroom.cli import render

if TYPE_CHECKING:
    from greenroom.sdk import models

MOST_REASON = 120  # characters; `greenroom alerts ls` says more


def sentences(document: Mapping[str, Any], alerts: Sequence[models.Alert] = ()) -> list[str]:
    """Return how the node is, and of *alerts*, those that fire, the most severe.

    >>> sentences({"environment": "production", "node": {"id": "n1", "state": "ready"}, "agents": []})
    ['production node n1 is ready: no agents.']
    """
    told = ", ".join(filter(None, (_agents(document), _replicas(document), *_tasks(document))))
    said = [f"{_node(document)}: {told}."]
    if alerts:
        said.append(_alerts(alerts))
    return said


def _node(document: Mapping[str, Any]) -> str:
    node = document.get("node") or {}
    who = " ".join(filter(None, (document.get("environment"), "node", node.get("id"))))
    why = f" ({node['reason']})" if node.get("reason") else ""
    return f"{who} is {node.get('state') or 'there'}{why}"


def _agents(document: Mapping[str, Any]) -> str:
    agents = document.get("agents") or []
    if not agents:
        return "no agents"
    grades = Counter(str(agent.get("grade") or "unknown") for agent in agents)
    others = ", ".join(f"{count} {grade}" for grade, count in sorted(grades.items()) if grade != "healthy")
    return f"{grades['healthy']} of {_count(len(agents), 'agent')} healthy" + (f" ({others})" if others else "")


def _replicas(document: Mapping[str, Any]) -> str:
    total = (document.get("replicas") or {}).get("total")
    return "" if total is None else _count(total, "replica")


def _tasks(document: Mapping[str, Any]) -> tuple[str, ...]:
    """What is open; "queued" is always said where something is, as somebody waits for it."""
    tasks = document.get("tasks") or {}
    if not document.get("agents") and not tasks:
        return ()
    running, queued, waiting = (tasks.get(state, 0) for state in ("running", "queued", "waiting"))
    return (
        f"{_count(running, 'task')} running",
        f"{queued} queued",
        f"{waiting} waiting for what they asked others" if waiting else "",
    )


def _alerts(alerts: Sequence[models.Alert]) -> str:
    first = min(alerts, key=lambda alert: (alert.severity != "critical", alert.acknowledged_at is not None))
    count = "1 alert is firing" if len(alerts) == 1 else f"{len(alerts)} alerts are firing, the first"
    return f"{count}: {render.shortened(first.reason or first.id, MOST_REASON)}; next: greenroom alerts ls"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
