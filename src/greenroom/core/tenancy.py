"""Whether a node may serve several tenants. Pure."""

from __future__ import annotations

from greenroom.core.isolation import Tier


def tenants_allowed(tier: Tier) -> bool:
    """Tell whether agents are kept apart so far that several tenants may share a node whose tier is *tier*.

    An agent runs the tasks of all tenants, and below T2 it may read what the node's user may: also what another agent
    keeps of another tenant.
    """
    return tier == Tier.T2


def refusal(tier: Tier) -> str:
    """Say why there may be no second tenant in *tier*, and what to do."""
    return (
        f"agents run in isolation tier {tier}, and only T2 keeps what they hold of one tenant from another's; "
        "run them so, or set security.tenants_below_t2 = true"
    )
