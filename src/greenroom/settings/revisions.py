"""What of an agent's settings is part of a revision, and what is the agent's own, whichever revision serves.

A revision is code and these settings: what a replica is started with, and what becomes of the tasks on it. The rest
takes effect without a rollout. Called by who deploys, rolls back and shows what a deployment would change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import structs

from greenroom.settings import showing
from greenroom.settings.problems import dotted
from greenroom.settings.schema import STRATEGY_KEYS, AgentSettings
from greenroom.settings.showing import Change

OF_REVISION: Final = (
    "factory",
    "arguments",
    "env",
    "secrets",
    "include",
    "python",
    "concurrency",
    "sessions",
    "timeout_s",
    "max_attempts",
    "retry_backoff_s",
    "retry_on",
    "on_replica_loss",
    "hang_after_s",
    "memory_mb",
    "read_paths",
    "write_paths",
    "egress",
)
OF_AGENT: Final = (
    "description",
    "skills",
    "examples",
    "max_running",
    "scaling",
    "breaker",
    "cache",
    "recycling",
    "health",
    "slo",
    "cost",
    "rollout",
)


def revision_part(spec: AgentSettings) -> bytes:
    """The settings of a revision as canonical JSON: equal bytes are the same revision, where the code is the same."""
    return msgspec.json.encode({name: getattr(spec, name) for name in OF_REVISION}, order="sorted")


def with_revision_part(spec: AgentSettings, of: AgentSettings) -> AgentSettings:
    """*spec*, run as *of* says: what an agent is while a revision of before serves again."""
    return structs.replace(spec, **{name: getattr(of, name) for name in OF_REVISION})


def changes(before: AgentSettings, after: AgentSettings) -> list[Change]:
    """What a deployment of *after* would change; keys are those below the agent's (`scaling.min_replicas`).

    Secrets among the arguments are compared, but not shown.
    """
    prefix = ("agents", "*")
    found = showing.differences(*(showing.leaves_of_agent(prefix[1], spec) for spec in (before, after)))
    return [Change(dotted(path[len(prefix) :]), *values) for path, *values in found]


def with_strategy(rollout: Mapping[str, Any] | None, strategy: str) -> dict[str, Any]:
    """A given *rollout* table, not yet parsed, with another *strategy* for once: without the keys of the others.

    >>> with_strategy({"strategy": "canary", "weights": [10, 100], "hold_s": 5}, "blue-green")
    {'strategy': 'blue-green', 'hold_s': 5}
    """
    others = {key for other, keys in STRATEGY_KEYS.items() if other != strategy for key in keys}
    return {key: value for key, value in (rollout or {}).items() if key not in others} | {"strategy": strategy}
