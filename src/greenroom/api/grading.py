"""Grades of agents and of the system, from what the store and the node say of them now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Protocol

from greenroom.core import agents, grades, health, slo
from greenroom.core.grades import Graded
from greenroom.store.directory import Entry

Ready = defaultdict[tuple[str, int], list[Graded]]  # replicas, by agent and revision


class Objectives(Protocol):
    """How the goals of an agent's SLO stood."""

    @property
    def at(self) -> datetime: ...
    @property
    def policy(self) -> slo.Policy: ...
    @property
    def states(self) -> tuple[slo.State, ...]: ...


class Health(Protocol):
    """What the node knows of its agents' health and its own, for the API: it knows no loop."""

    def finding(self, agent: str) -> health.Finding:
        """Return what an agent's tasks say of it."""

    def recent(self, agent: str) -> grades.Recent:
        """Return what that was found by."""

    def objectives(self, agent: str) -> Objectives | None:
        """Return how an agent's SLO stands; None where it has none, or was not looked at yet."""

    def node(self) -> health.Finding:
        """Grade the node itself."""


def replicas(entry: Entry, ready: Ready) -> list[Graded]:
    """Return the replicas that are ready of those revisions that get the agent's tasks."""
    shares = {} if entry.rollout is None else entry.rollout.state.shares
    used = {entry.agent.revision, *(revision for revision, share in shares.items() if share)}
    return [replica for revision in sorted(used) for replica in ready[entry.agent.name, revision]]


def agent(entry: Entry, ready: Ready, found: health.Finding) -> Graded:
    """Grade an agent by its replicas, and by what its tasks say of it, which was *found*."""
    row = entry.agent
    failure = row.reason if row.state in (agents.State.FAILED, agents.State.QUARANTINED) else ""
    of_replicas = grades.of_replicas(entry.wanted, replicas(entry, ready), failure=failure)
    return Graded(row.name, *grades.of_agent(of_replicas, found))


def system(node: health.Finding, entries: Iterable[Entry], graded: Iterable[Graded]) -> Graded:
    """Grade the system by its node and its agents; who sleeps, as it should, says nothing."""
    asleep = {entry.agent.name for entry in entries if not entry.wanted}
    awake = [each for each in graded if each.id not in asleep or each.grade is not health.Grade.UNKNOWN]
    return Graded("", *grades.of_system(node, awake))
