"""What an agent's settings say to who decides: `core.scaling`'s policy."""

from __future__ import annotations

from greenroom.core import scaling
from greenroom.settings.schema import AgentSettings


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
