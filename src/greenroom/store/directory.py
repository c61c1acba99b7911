"""The directory: every agent's row and validated spec, in memory, for the paths that cannot wait for a read.

Refreshed after each write by this node and, for what other nodes write, by the host's every step.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import msgspec

from greenroom import errors, settings
from greenroom.core import agents, routing
from greenroom.store.agents import Agent, Agents


@dataclass(frozen=True, slots=True)
class Entry:
    agent: Agent
    spec: settings.AgentSettings


class Directory:
    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self.entries: Mapping[str, Entry] = {}

    async def refresh(self) -> Mapping[str, Entry]:
        rows = await self._agents.list()
        known = self.entries
        entries = {}
        for row in rows:
            entry = known.get(row.name)
            is_same = entry is not None and entry.agent.spec == row.spec
            entries[row.name] = Entry(row, entry.spec if entry and is_same else _decode(row.spec))
        if _routable(known) != _routable(entries):
            self.__dict__.pop("index", None)
        self.entries = entries
        return entries

    def get(self, name: str) -> Entry:
        """Return the agent's entry; raises `errors.NotFound` naming those that there are."""
        entry = self.entries.get(name)
        if entry is None:
            known = ", ".join(sorted(self.entries)) or "none is deployed"
            raise errors.NotFound(f"cannot find the agent {name[:64]!r}; there are: {known}")
        return entry

    def replicas(self, *, besides: AbstractSet[str]) -> int:
        """Return how many replicas the agents should have together, those of *besides* not counted."""
        return sum(entry.agent.replicas for name, entry in self.entries.items() if name not in besides)

    @functools.cached_property
    def index(self) -> routing.Index:
        """What requests that name no agent are routed by."""
        return routing.Index.build(
            [
                routing.Candidate(name, spec.description, spec.skills, spec.examples)
                for name, spec in _routable(self.entries).items()
            ]
        )


def _routable(entries: Mapping[str, Entry]) -> dict[str, settings.AgentSettings]:
    return {name: entry.spec for name, entry in entries.items() if entry.agent.state != agents.State.DROPPED}


_decode = msgspec.json.Decoder(settings.AgentSettings).decode
