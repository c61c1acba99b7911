"""Agents: how one stands. Written by `control.host`, and by `deployments` when a node starts."""

from __future__ import annotations

import enum

from greenroom.core import recovery, rollouts


class State(enum.StrEnum):
    STARTING = "starting"  # replicas are on their way
    READY = "ready"  # it has the replicas that it should have
    FAILED = "failed"  # its replicas die, or cannot be started; it is tried again
    QUARANTINED = "quarantined"  # they died too often: nothing is started until somebody deploys or releases it
    DROPPED = "dropped"  # it has left the manifest, and has no replicas


SETTLED = frozenset({State.READY, State.FAILED, State.QUARANTINED, State.DROPPED})


ASLEEP = "it is asleep: the first task starts a replica"
FALLING_ASLEEP = "it goes to sleep when its last replicas have done what they have; a task that waits wakes it"


def checking(rollout: rollouts.Rollout) -> tuple[State, str] | None:
    """Return how an agent stands whose first revision gets no tasks before it has passed its checks; else None."""
    if rollout.from_revision is not None or rollout.weight_pct:
        return None
    return (State.STARTING, "its checks run") if rollout.is_open else (State.FAILED, rollout.reason)


def standing(name: str, record: recovery.Record, *, ready: int, wanted: int, draining: int = 0) -> tuple[State, str]:
    """Return how the agent *name* stands, and why, with *ready* of the replicas that are *wanted*."""
    if ready >= wanted and (wanted or not record.deaths):
        return State.READY, "" if wanted else FALLING_ASLEEP if draining else ASLEEP
    if record.is_given_up:
        remedy = f"mend it and deploy it again, or run: greenroom agents release {name}"
        return State.QUARANTINED, f"{record.reason} (quarantined; {remedy})"
    if record.deaths:
        return State.FAILED, record.reason
    return State.STARTING, f"{ready} of {wanted} replicas are ready"
