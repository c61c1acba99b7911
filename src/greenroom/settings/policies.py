"""What an agent's settings say to who decides: policies of scaling, grades and SLOs, prices and budgets (`core`)."""

from __future__ import annotations

import math

from greenroom.core import budgets, costs, grades, scaling, slo
from greenroom.settings.schema import DAY_S, AgentSettings


def scaling_policy(spec: AgentSettings, *, most: int) -> scaling.Policy:
    """Return how an agent is scaled; *most* replicas where it does not say."""
    found = spec.scaling
    return scaling.Policy(
        min_replicas=found.min_replicas,
        max_replicas=most if found.max_replicas is None else found.max_replicas,
        slots=spec.concurrency,
        target_queue=found.target_queue_per_replica,
        target_busy_pct=found.target_busy_pct,
        stable_window_s=found.stable_window_s,
        burst_window_s=found.burst_window_s,
        stabilisation_s=found.stabilisation_s,
        cooldown_s=found.cooldown_s,
        idle_s=found.idle_s,
        max_running=spec.max_running,
    )


def health_bounds(spec: AgentSettings) -> grades.Bounds:
    """Return what an agent is graded by."""
    found = spec.health
    return grades.Bounds(
        window_s=found.window_s,
        min_samples=found.min_samples,
        response_s=_pair(found.response_s, found.unhealthy_response_s),
        error_pct=_pair(found.error_pct, found.unhealthy_error_pct, most=100.0),
    )


def _pair(degraded: float | str, unhealthy: float | None, *, most: float = math.inf) -> tuple[float, float] | None:
    if isinstance(degraded, str):  # off
        return None
    return degraded, min(grades.UNHEALTHY_TIMES * degraded, most) if unhealthy is None else unhealthy


def slo_policy(spec: AgentSettings) -> slo.Policy | None:
    """Return what an agent is to achieve; None: nothing in particular."""
    found = spec.slo
    goals = []
    if found.success_pct is not None:
        goals.append(slo.Goal(found.success_pct))
    if found.latency_s is not None and found.latency_pct is not None:
        goals.append(slo.Goal(found.latency_pct, found.latency_s))
    return slo.Policy(tuple(goals), found.window_days * DAY_S, found.min_tasks) if goals else None


def prices(spec: AgentSettings) -> costs.Prices | None:
    """Return what an agent's tasks cost; None: nobody knows."""
    found = spec.cost
    if found.input_usd_per_million_tokens is None and found.usd_per_task is None:  # those of tokens are a pair
        return None
    given = found.input_usd_per_million_tokens, found.output_usd_per_million_tokens, found.usd_per_task
    return costs.Prices(*(costs.nano_usd(usd or 0.0) for usd in given))


def budget(spec: AgentSettings) -> budgets.Budget | None:
    """Return what an agent may spend in a day; None: as much as it takes."""
    usd, tokens = spec.cost.budget_usd_per_day, spec.cost.budget_tokens_per_day
    if usd is None and tokens is None:
        return None
    return budgets.Budget(None if usd is None else max(1, costs.nano_usd(usd)), tokens)
