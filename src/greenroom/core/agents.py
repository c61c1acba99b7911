"""Agents: how one stands. Written by `control.host`, and by `deployments` when a node starts."""

from __future__ import annotations

import enum


class State(enum.StrEnum):
    STARTING = "starting"  # replicas are on their way
    READY = "ready"  # it has the replicas that it should have
    FAILED = "failed"  # its replicas die, or cannot be started
    DROPPED = "dropped"  # it has left the manifest, and has no replicas


SETTLED = frozenset({State.READY, State.FAILED, State.DROPPED})
