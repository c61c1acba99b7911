"""Agents: how one stands. Written by `control.host`, and by `deployments` when a node starts."""

from __future__ import annotations

import enum


class State(enum.StrEnum):
    STARTING = "starting"  # replicas are on their way
    READY = "ready"  # it has the replicas that it should have
    FAILED = "failed"  # its replicas die, or cannot be started; it is tried again
    QUARANTINED = "quarantined"  # they died too often: nothing is started until somebody deploys or releases it
    DROPPED = "dropped"  # it has left the manifest, and has no replicas


SETTLED = frozenset({State.READY, State.FAILED, State.QUARANTINED, State.DROPPED})
