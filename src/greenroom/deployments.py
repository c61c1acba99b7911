"""Deployments: what the manifest names when a node starts, and what the API and programs add to it.

The store does not know where an agent came from. A file in the data directory does: it names those that a manifest
deployed; who deploys an agent last is where it comes from. Without the file none came from a manifest. Held by `node`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import msgspec

from greenroom import errors, settings, telemetry
from greenroom.core import agents
from greenroom.engine import contract, snapshots
from greenroom.security import secret_file
from greenroom.store.directory import Entry
from greenroom.store.store import Store


class Deployments:
    """*folder* holds the agents' code, the snapshots and the list of names go into *data_dir*."""

    def __init__(
        self,
        store: Store,
        found: settings.Settings,
        facts: telemetry.Telemetry,
        *,
        folder: Path,
        data_dir: Path,
    ) -> None:
        self._store, self._settings, self._facts = store, found, facts
        self._folder, self._snapshots = folder, data_dir / "snapshots"
        self._list = data_dir / "manifest-agents.json"
        self._listed: frozenset[str] = frozenset()

    async def start(self) -> None:
        """Deploy the manifest's agents, and drop those that have left it: their tasks stay, their replicas do not.

        Raises `errors.StartRefused`, and has changed nothing, if there would be more replicas than there may be.
        """
        manifest = self._settings.agents
        others = [entry for name, entry in (await self._store.directory.refresh()).items() if name not in manifest]
        listed = self._read()
        dropped = [entry for entry in others if entry.agent.name in listed]
        self._check_room([entry for entry in others if entry.agent.name not in listed])
        self._write(manifest.keys() | {entry.agent.name for entry in dropped})
        for entry in dropped:
            await self._drop(entry)
        for name, spec in manifest.items():
            await self._deploy(name, spec, folder=self._folder, judged_anew=False)
        await self._store.directory.refresh()

    async def add(self, name: str, spec: settings.AgentSettings, *, folder: Path | None = None) -> int:
        """Deploy an agent that no manifest names, or no more; return the number of its serving revision."""
        number = await self._deploy(name, spec, folder=folder or self._folder)
        if name in self._listed:
            self._write(self._listed - {name})
        await self._store.directory.refresh()
        return number

    async def _deploy(self, name: str, spec: settings.AgentSettings, *, folder: Path, judged_anew: bool = True) -> int:
        before = self._store.directory.entries.get(name)
        snapshot = await asyncio.to_thread(  # it reads a whole folder
            snapshots.take, folder, include=spec.include, into=self._snapshots
        )
        number = await self._store.agents.deploy(
            name,
            digest=snapshot.digest,
            spec=msgspec.json.encode(spec),
            replicas=spec.scaling.min_replicas,
            judged_anew=judged_anew,
        )
        if before is not None and _is_dropped(before):  # where nothing else has changed it would stay as it is
            await self._store.agents.scale(name, spec.scaling.min_replicas)
            await self._store.agents.observe(name, state=agents.State.STARTING, reason="")
        return number

    async def _drop(self, entry: Entry) -> None:
        if _is_dropped(entry):
            return
        name = entry.agent.name
        await self._store.agents.scale(name, 0)
        reason = (
            "it is not in the manifest: it has no replicas and its tasks stay queued; "
            f"put it back and start the node again, or remove it (DELETE /v1/agents/{name})"
        )
        await self._store.agents.observe(name, state=agents.State.DROPPED, reason=reason)
        self._facts.emit(telemetry.AgentDropped(name, reason))

    def _check_room(self, others: Sequence[Entry]) -> None:
        most = self._settings.cluster.max_replicas
        named = sum(spec.scaling.min_replicas for spec in self._settings.agents.values())
        added = sum(min(entry.agent.replicas, entry.spec.scaling.min_replicas) for entry in others)
        if added and named + added > most:
            names = ", ".join(entry.agent.name for entry in others)
            raise errors.StartRefused(
                f"cannot start: cluster.max_replicas is {most}, the manifest's agents need {named} replicas, and those "
                f"that were deployed without it need {added} ({names}); raise it, or shorten the manifest until they "
                "are removed (DELETE /v1/agents/NAME)"
            )

    def _read(self) -> frozenset[str]:
        try:
            return msgspec.json.decode(self._list.read_bytes(), type=frozenset[str])
        except FileNotFoundError:
            return frozenset()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise errors.StartRefused(
                f"cannot read {self._list}, which names the agents that came from the manifest: {error}; "
                "remove it, and those that have left the manifest live on"
            ) from None

    def _write(self, listed: AbstractSet[str]) -> None:
        self._listed = frozenset(listed)
        secret_file.write_private(self._list, msgspec.json.encode(sorted(listed)))


def revision_of(
    agent: str, number: int, spec: settings.AgentSettings, *, snapshot: Path, folder: Path
) -> contract.Revision:
    """Return what an engine needs to run an agent as *spec* says; *folder* is where a relative interpreter is found."""
    return contract.Revision(
        agent=agent,
        number=number,
        snapshot=snapshot,
        factory=spec.factory,
        arguments=spec.arguments,
        env=spec.env,
        concurrency=spec.concurrency,
        sessions=spec.sessions,
        memory_mb=spec.memory_mb,
        python=None if spec.python is None else str(folder / spec.python),
        retry_on=spec.retry_on,
    )


def _is_dropped(entry: Entry) -> bool:
    return entry.agent.state == agents.State.DROPPED and not entry.agent.replicas
