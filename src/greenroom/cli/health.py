"""`greenroom health`: how the system is, or an agent: its grade and what it comes from, and how its SLO stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from greenroom import errors
from greenroom.cli import options, render
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from greenroom.sdk.client import Client
    from greenroom.sdk.health import AgentHealth, BurnRate, Objective, RecentTasks

AGENTS = (
    Column("AGENT"),
    Column("GRADE"),
    Column("ERRORS", right=True),
    Column("RESPONSE", right=True),
    Column("BUDGET LEFT", right=True),
    Column("BECAUSE", whole=False, wraps=True),
)
GOALS = (
    Column("GOAL", whole=False, wraps=True),
    *(Column(title, right=True) for title in ("MET", "TASKS", "MISSED", "BUDGET LEFT")),
)
BURNS = (
    Column("GOAL"),
    *(Column(title, right=True) for title in ("BURNS", "OVER", "AND", "OVER", "ALERTS FROM")),
    Column("STATE"),
)


def health(agent: str | None = None, /, *, given: options.Options = options.DEFAULT) -> None:
    """Show how the system and its agents are; or how an agent is, why, and what is left of its error budget.

    Parameters
    ----------
    agent
        The agent's name; without it, all of them.
    """
    with given.connect() as node:
        if agent is not None:
            _one(node.agent_health(agent), is_json=given.json)
        else:
            _all(node, is_json=given.json)


def _all(node: Client, *, is_json: bool) -> None:
    system = node.status()
    found = list(filter(None, (_observed(node, each["name"]) for each in system.get("agents") or [])))
    if is_json:
        render.json({"grade": system.get("grade"), "reason": system.get("grade_reason"), "agents": found})
        return
    reason = f": {system['grade_reason']}" if system.get("grade_reason") else ""
    render.line(f"{system.get('grade')}{reason}", style=render.STYLES.get(str(system.get("grade"))))
    render.table(AGENTS, map(_row, found), empty="no agents that you may observe")


def _observed(node: Client, name: str) -> AgentHealth | None:
    """Return how an agent is, if the caller may know; it may be gone meanwhile."""
    try:
        return node.agent_health(name)
    except (errors.Forbidden, errors.NotFound):
        return None


def _row(found: AgentHealth) -> tuple[object, ...]:
    recent = found.recent
    left = [objective.budget_left_pct for objective in found.slo.objectives] if found.slo else []
    return (
        found.agent,
        found.grade,
        "" if recent.error_pct is None else f"{recent.error_pct:.3g} %",
        _duration(recent.response_s),
        f"{min(left):.0f} %" if left else "",
        "" if found.grade == "healthy" else found.reason,
    )


def _one(found: AgentHealth, *, is_json: bool) -> None:
    if is_json:
        render.json(found)
        return
    render.facts(_facts(found))
    if found.slo is None:
        render.say(f"{found.agent} has no SLO; next: give it one, in [agents.{found.agent}.slo]")
        return
    render.line("")
    objectives = found.slo.objectives
    empty = "its SLO has not been looked at yet; come again in a minute"
    render.table(GOALS, map(_goal, objectives), empty=empty)
    if not objectives:
        return
    render.line("")
    render.table(BURNS, (_burn(each, rate) for each in objectives for rate in each.burn_rates), empty="")
    render.say(
        f"a goal is met or missed over {found.slo.window_days:g} days; a budget that burns at 1 lasts for as long. "
        f"It alerts where it burns faster over both times, and {found.slo.min_tasks} tasks ended in the longer"
    )


def _facts(found: AgentHealth) -> Iterator[tuple[str, object]]:
    recent = found.recent
    yield "agent", found.agent
    yield "grade", found.grade
    yield "because", found.reason
    for replica in found.replicas:
        yield replica.id, replica.grade if replica.grade == "healthy" else f"{replica.grade}: {replica.reason}"
    yield "its tasks", recent.grade if recent.grade == "healthy" else f"{recent.grade}: {recent.reason}"
    yield "errors", _errors(recent)
    yield "response", _response(recent)


def _errors(recent: RecentTasks) -> str:
    window = render.span(recent.window_s)
    bounds = _bounds(recent.degraded_error_pct, recent.unhealthy_error_pct, " %")
    if recent.error_pct is None:
        return f"no attempt has ended in {window}{bounds}"
    return f"{recent.error_pct:.3g} % of {recent.judged} attempts in {window}{bounds}"


def _response(recent: RecentTasks) -> str:
    bounds = _bounds(recent.degraded_response_s, recent.unhealthy_response_s, " s")
    if recent.response_s is None:
        return f"no task has ended in {render.span(recent.window_s)}{bounds}"
    return (
        f"{_duration(recent.response_s)} on average of {recent.measured} tasks, {_duration(recent.wait_s)} of it "
        f"waiting{bounds}"
    )


def _bounds(degraded: float | None, unhealthy: float | None, unit: str) -> str:
    if degraded is None or unhealthy is None:
        return "; not graded by it"
    return f"; degraded from {degraded:g}{unit} on, unhealthy from {unhealthy:g}{unit}"


def _goal(objective: Objective) -> tuple[object, ...]:
    met = "" if objective.met_pct is None else f"{objective.met_pct:.4g} %"
    return _named(objective), met, objective.tasks, objective.missed, f"{objective.budget_left_pct:.0f} %"


def _named(objective: Objective) -> str:
    if objective.latency_s is None:
        return f"{objective.target_pct:g} % succeed"
    near = "" if objective.measured_s == objective.latency_s else f" (measured as {objective.measured_s:.3g} s)"
    return f"{objective.target_pct:g} % within {objective.latency_s:g} s{near}"


def _burn(objective: Objective, rate: BurnRate) -> tuple[object, ...]:
    return (
        objective.name,
        f"{rate.long_rate:.3g}",
        render.span(rate.long_s),
        f"{rate.short_rate:.3g}",
        render.span(rate.short_s),
        f"{rate.threshold:g}",
        f"alerts: {rate.severity}" if rate.alerts else "",
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{1000 * seconds:.3g}ms" if 0 < seconds < 1 else render.span(seconds)
