"""What a node is told: environments, the manifest `greenroom.toml`, variables that override it, and one
validation.

`load` gives settings that can be trusted or raises `SettingsInvalid` with every mistake. Called by the node,
the command, the API and `system`; it knows nothing of what the settings are for.
"""

from greenroom.settings.addresses import is_loopback
from greenroom.settings.environments import DESIGNS, Design
from greenroom.settings.loading import load, parse_agent, rollout_for_once
from greenroom.settings.objectives import longer_than_kept
from greenroom.settings.policies import budget, health_bounds, prices, scaling_policy, slo_policy
from greenroom.settings.policy_file import read_roles
from greenroom.settings.problems import Problem, SettingsInvalid
from greenroom.settings.receiver_rules import policy as receiver_policy
from greenroom.settings.revisions import changes, revision_part, with_revision_part, with_strategy
from greenroom.settings.schema import (
    AgentSettings,
    AlertRule,
    Alerts,
    Backups,
    Breaker,
    Cache,
    Cluster,
    Cost,
    Environment,
    Example,
    Health,
    History,
    Intrusion,
    Issuer,
    Logs,
    Optimizer,
    Receiver,
    Recycling,
    Rollout,
    Scaling,
    Security,
    Server,
    Settings,
    Slo,
    Tracing,
)
from greenroom.settings.showing import Change, Row, diff, masked, rows
from greenroom.settings.starter import starter_manifest

__all__ = [
    "DESIGNS",
    "AgentSettings",
    "AlertRule",
    "Alerts",
    "Backups",
    "Breaker",
    "Cache",
    "Change",
    "Cluster",
    "Cost",
    "Design",
    "Environment",
    "Example",
    "Health",
    "History",
    "Intrusion",
    "Issuer",
    "Logs",
    "Optimizer",
    "Problem",
    "Receiver",
    "Recycling",
    "Rollout",
    "Row",
    "Scaling",
    "Security",
    "Server",
    "Settings",
    "SettingsInvalid",
    "Slo",
    "Tracing",
    "budget",
    "changes",
    "diff",
    "health_bounds",
    "is_loopback",
    "load",
    "longer_than_kept",
    "masked",
    "parse_agent",
    "prices",
    "read_roles",
    "receiver_policy",
    "revision_part",
    "rollout_for_once",
    "rows",
    "scaling_policy",
    "slo_policy",
    "starter_manifest",
    "with_revision_part",
    "with_strategy",
]
