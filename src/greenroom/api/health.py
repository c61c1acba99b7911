"""The route of an agent's health: its grade and what it comes from, and how its SLO stands."""

from __future__ import annotations

from greenroom import settings
from greenroom.api import access, grading, views
from greenroom.api.grading import Objectives
from greenroom.api.request import Answer, Call
from greenroom.core import grades, health, slo
from greenroom.core.permissions import Action
from greenroom.sdk import health as models
from greenroom.settings import AgentSettings
from greenroom.store.directory import Entry


async def show(call: Call) -> Answer:
    """Show how an agent is: its grade, its replicas', what became of its last tasks, and how its SLO stands."""
    await call.store.directory.refresh()
    entry = access.find_agent(call, call.path("name"), Action.AGENT_OBSERVE)
    name = entry.agent.name
    ready = views.ready(await call.store.agents.replicas(), call.store.board)
    known = call.services.health
    found = known.finding(name)
    graded = grading.agent(entry, ready, found)
    return Answer(
        models.AgentHealth(
            agent=name,
            grade=graded.grade,
            reason=graded.reason,
            replicas=tuple(map(_replica, grading.replicas(entry, ready))),
            recent=_recent(entry, found, known.recent(name)),
            slo=_slo(entry.spec, known.objectives(name)),
        )
    )


def _replica(found: grades.Graded) -> models.ReplicaHealth:
    return models.ReplicaHealth(id=found.id, grade=found.grade, reason=found.reason)


def _recent(entry: Entry, found: health.Finding, recent: grades.Recent) -> models.RecentTasks:
    bounds = settings.health_bounds(entry.spec)
    errors, response = bounds.error_pct or (None, None), bounds.response_s or (None, None)
    return models.RecentTasks(
        grade=found.grade,
        reason=found.reason,
        window_s=bounds.window_s,
        min_samples=bounds.min_samples,
        judged=recent.judged,
        errors=recent.errors,
        error_pct=round(recent.error_pct, 2) if recent.judged else None,
        degraded_error_pct=errors[0],
        unhealthy_error_pct=errors[1],
        measured=recent.tasks,
        response_s=round(recent.response_s, 6) if recent.tasks else None,
        wait_s=round(recent.wait_s, 6) if recent.tasks else None,
        degraded_response_s=response[0],
        unhealthy_response_s=response[1],
    )


def _slo(spec: AgentSettings, found: Objectives | None) -> models.AgentSlo | None:
    policy = settings.slo_policy(spec)
    if policy is None:
        return None
    if found is None:
        return models.AgentSlo(window_days=spec.slo.window_days, min_tasks=policy.min_tasks)
    return models.AgentSlo(
        window_days=found.policy.window_s / slo.DAY_S,
        min_tasks=found.policy.min_tasks,
        at=found.at,
        objectives=tuple(map(_objective, found.states)),
    )


def _objective(state: slo.State) -> models.Objective:
    goal, seen = state.goal, state.seen
    return models.Objective(
        name=goal.name,
        target_pct=goal.target_pct,
        latency_s=goal.latency_s,
        measured_s=None if goal.measured_s is None else round(goal.measured_s, 3),
        tasks=round(seen.tasks),
        missed=round(seen.bad),
        met_pct=round(100 * (1 - seen.bad_share), 4) if seen.tasks else None,
        budget_left_pct=round(100 * state.budget_left, 2),
        burn_rates=tuple(map(_burn_rate, state.burns)),
    )


def _burn_rate(burn: slo.Burn) -> models.BurnRate:
    return models.BurnRate(
        severity=burn.tier.severity,
        threshold=burn.tier.rate,
        long_s=burn.tier.long_s,
        long_rate=round(burn.long_rate, 3),
        short_s=burn.tier.short_s,
        short_rate=round(burn.short_rate, 3),
        alerts=burn.alerts,
    )
