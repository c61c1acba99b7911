"""The rules of what an agent's tasks cost and may cost: half a price is none, and a budget needs one."""

from __future__ import annotations

from collections.abc import Callable

from greenroom.settings.problems import KeyPath
from greenroom.settings.schema import AgentSettings

_PAIR = ("input_usd_per_million_tokens", "output_usd_per_million_tokens")
_PRICES = (*_PAIR, "usd_per_task")
_BUDGETS = ("budget_usd_per_day", "budget_tokens_per_day")


def _has_its_other(key: str, other: str) -> Callable[[AgentSettings], str | None]:
    def broken(agent: AgentSettings) -> str | None:
        if getattr(agent.cost, key) is None or getattr(agent.cost, other) is not None:
            return None
        return f"{getattr(agent.cost, key):g} needs {other}, too: no price is not 0; give 0 if those tokens are free"

    return broken


def _dollars_have_a_price(agent: AgentSettings) -> str | None:
    cost = agent.cost
    if cost.budget_usd_per_day is None or any(getattr(cost, key) is not None for key in _PRICES):
        return None
    return (
        f"{cost.budget_usd_per_day:g} cannot be kept: without a price nobody knows what is spent; give {_PAIR[0]} and "
        f"{_PAIR[1]}, or usd_per_task, or have budget_tokens_per_day instead"
    )


def _refusing_needs_a_budget(agent: AgentSettings) -> str | None:
    cost = agent.cost
    if cost.on_budget == "alert" or cost.budget_usd_per_day is not None or cost.budget_tokens_per_day is not None:
        return None
    return f'is "{cost.on_budget}", and there is no budget; give budget_usd_per_day or budget_tokens_per_day'


RULES: tuple[tuple[tuple[KeyPath, ...], Callable[[AgentSettings], str | None]], ...] = (
    *(((("cost", key), ("cost", other)), _has_its_other(key, other)) for key, other in (_PAIR, _PAIR[::-1])),
    (tuple(("cost", key) for key in ("budget_usd_per_day", *_PRICES)), _dollars_have_a_price),
    (tuple(("cost", key) for key in ("on_budget", *_BUDGETS)), _refusing_needs_a_budget),
)
"""The keys that each needs, and what is wrong with them: see `rules`."""
