"""The rules of an agent's health and SLO: what no agent can be measured by is refused, with what to write instead."""

from __future__ import annotations

from collections.abc import Callable

from greenroom.settings.problems import KeyPath
from greenroom.settings.schema import DAY_S, HOUR_S, AgentSettings, History, Slo


def _unhealthy_is_worse(measure: str) -> Callable[[AgentSettings], str | None]:
    def broken(agent: AgentSettings) -> str | None:
        degraded, unhealthy = getattr(agent.health, measure), getattr(agent.health, f"unhealthy_{measure}")
        if unhealthy is None:
            return None
        if degraded == "off":
            return f'is given, and {measure} is "off"; give {measure} a number below {unhealthy:g}, or remove the key'
        if unhealthy > degraded:
            return None
        return (
            f"{unhealthy:g} is not more than {measure}, {degraded:g}, from which on it is degraded; raise it, or "
            "remove the key: then it is three times that"
        )

    return broken


def _leaves_a_budget(key: str) -> Callable[[AgentSettings], str | None]:
    def broken(agent: AgentSettings) -> str | None:
        pct = getattr(agent.slo, key)
        if pct == 100:
            return "100 leaves no error budget: the first task that fails would break it for good; try 99.9 or less"
        if pct == 0:
            return "0 is no goal, for nothing could miss it; give one like 99, or remove the key"
        return None

    return broken


def _latency_has_its_share(agent: AgentSettings) -> str | None:
    slo = agent.slo
    if slo.latency_s is not None and slo.latency_pct is None:
        return f"{slo.latency_s:g} needs latency_pct, how many of the tasks have to meet it; for example 95"
    return None


def _share_has_its_latency(agent: AgentSettings) -> str | None:
    slo = agent.slo
    if slo.latency_pct is not None and slo.latency_s is None:
        return f"{slo.latency_pct:g} needs latency_s, within which so many tasks have to succeed; for example 30"
    return None


def _window_is_long_enough(agent: AgentSettings) -> str | None:
    if agent.slo.window_days * DAY_S >= HOUR_S:
        return None
    return f"{agent.slo.window_days:g} days are less than an hour, of which nobody has a budget; try 7 or 30"


RULES: tuple[tuple[tuple[KeyPath, ...], Callable[[AgentSettings], str | None]], ...] = (
    *(
        ((("health", f"unhealthy_{measure}"), ("health", measure)), _unhealthy_is_worse(measure))
        for measure in ("response_s", "error_pct")
    ),
    *(((("slo", key),), _leaves_a_budget(key)) for key in ("success_pct", "latency_pct")),
    ((("slo", "latency_s"), ("slo", "latency_pct")), _latency_has_its_share),
    ((("slo", "latency_pct"), ("slo", "latency_s")), _share_has_its_latency),
    ((("slo", "window_days"),), _window_is_long_enough),
)
"""The keys that each needs, and what is wrong with them: see `rules`."""


def longer_than_kept(slo: Slo, history: History) -> str | None:
    """Return what is wrong with an SLO over more than *history* keeps; None where nothing is."""
    if slo.success_pct is None and slo.latency_s is None:
        return None
    if slo.window_days <= history.keep_hours_days:
        return None
    return (
        f"{slo.window_days:g} days are more than the history is kept (history.keep_hours_days, "
        f"{history.keep_hours_days}); shorten the window, or keep more"
    )
