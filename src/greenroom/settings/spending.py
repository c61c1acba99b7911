"""The rules of what an agent's tasks cost: half a price is none."""

from __future__ import annotations

from collections.abc import Callable

from greenroom.settings.problems import KeyPath
from greenroom.settings.schema import AgentSettings

_PAIR = ("input_usd_per_million_tokens", "output_usd_per_million_tokens")


def _has_its_other(key: str, other: str) -> Callable[[AgentSettings], str | None]:
    def broken(agent: AgentSettings) -> str | None:
        if getattr(agent.cost, key) is None or getattr(agent.cost, other) is not None:
            return None
        return f"{getattr(agent.cost, key):g} needs {other}, too: no price is not 0; give 0 if those tokens are free"

    return broken


RULES: tuple[tuple[tuple[KeyPath, ...], Callable[[AgentSettings], str | None]], ...] = tuple(
    ((("cost", key), ("cost", other)), _has_its_other(key, other)) for key, other in (_PAIR, _PAIR[::-1])
)
"""The keys that each needs, and what is wrong with them: see `rules`."""
