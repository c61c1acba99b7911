"""The directory: every agent's row, spec and last rollout, in memory, for the paths that cannot wait for a read.

Refreshed after each write by this node and, for what other nodes write, by the host's every step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import msgspec

from greenroom import errors, settings
from greenroom.core import agents, rollouts, routing
from greenroom.store import database
from greenroom.store.agents import Agent
from greenroom.store.board import Traffic
from greenroom.store.rollouts import Rollout, spec_of

MAX_INDEXES = 32  # of callers who may submit to some agents only


class Entry(msgspec.Struct, frozen=True):
    agent: Agent
    spec: settings.AgentSettings
    rollout: Rollout | None = None

    @property
    def is_dropped(self) -> bool:
        """Whether it has left the manifest; else one without replicas sleeps."""
        return self.agent.state == agents.State.DROPPED and not self.agent.replicas

    @property
    def wanted(self) -> int:
        """How many replicas there should be, what a rollout needs beside them apart: it keeps a sleeper awake."""
        return self.agent.replicas if self.rollout is None else rollouts.wanted(self.rollout.state, self.agent.replicas)

    @property
    def capacity(self) -> dict[int, int]:
        """How many replicas each revision should have."""
        if self.rollout is None:
            return {self.agent.revision: self.agent.replicas}
        return rollouts.capacity(self.rollout.state, self.agent.replicas)

    def spec_of(self, revision: int) -> settings.AgentSettings:
        """Return the spec that replicas of *revision*, one of those that stand, are run by."""
        if self.rollout is None or revision == self.agent.revision:
            return self.spec
        return spec_of(self.rollout.spec if revision == self.rollout.to_revision else self.rollout.from_spec)


_AGENTS = Agent.__struct_fields__
_READ = f"""
select {", ".join(f"agent.{name}" for name in _AGENTS)},
    {", ".join(f"rollout.{name}" for name in Rollout.__struct_fields__)}
from agent left join rollout on rollout.id = agent.rollout order by agent.name"""


class Directory:
    """*route* is told of the traffic of each agent that is read."""

    def __init__(self, db: database.Database, *, route: Callable[[str, Traffic], None]) -> None:
        self._db, self._route = db, route
        self.entries: Mapping[str, Entry] = {}
        self._indexes: dict[frozenset[str], routing.Index] = {}

    async def refresh(self) -> Mapping[str, Entry]:
        rows = await self._db.lookup(_READ, {})
        known = self.entries
        entries = {}
        for columns in rows:
            row, rest = Agent(*columns[: len(_AGENTS)]), columns[len(_AGENTS) :]
            entry = known.get(row.name)
            is_same = entry is not None and entry.agent.spec == row.spec
            rollout = None if rest[0] is None else Rollout(*rest)
            try:
                entries[row.name] = Entry(row, entry.spec if entry and is_same else spec_of(row.spec), rollout)
                if rollout is not None:
                    self._route(row.name, rollout.traffic)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise errors.StoreDamaged(f"cannot read how {row.name[:64]!r} is to be: {error}") from None
        if _routable(known) != _routable(entries):
            self.__dict__.pop("index", None)
            self._indexes.clear()
        self.entries = entries
        return entries

    def get(self, name: str) -> Entry:
        """Return the agent's entry; raises `errors.NotFound` naming those that there are."""
        entry = self.entries.get(name)
        if entry is None:
            known = ", ".join(sorted(self.entries)) or "none is deployed"
            raise errors.NotFound(f"cannot find the agent {name[:64]!r}; there are: {known}")
        return entry

    @functools.cached_property
    def index(self) -> routing.Index:
        """What requests that name no agent are routed by."""
        return _index(_routable(self.entries))

    def index_of(self, names: frozenset[str]) -> routing.Index:
        """Return the index of the agents *names* alone: what else there is must not show in a score."""
        if (found := self._indexes.get(names)) is None:
            routable = _routable(self.entries)
            found = _index({name: routable[name] for name in names & routable.keys()})
            if len(self._indexes) >= MAX_INDEXES:
                self._indexes.clear()
            self._indexes[names] = found
        return found


def _index(specs: Mapping[str, settings.AgentSettings]) -> routing.Index:
    return routing.Index.build(
        [routing.Candidate(name, spec.description, spec.skills, spec.examples) for name, spec in specs.items()]
    )


def _routable(entries: Mapping[str, Entry]) -> dict[str, settings.AgentSettings]:
    return {name: entry.spec for name, entry in entries.items() if entry.agent.state != agents.State.DROPPED}
