"""Deployments: what the manifest names when a node starts, and what the API and programs ask for.

Takes the snapshot of the code, and has the store begin the rollout. The store does not know where an agent came from. A
file in the data directory does: it names those that a manifest deployed; who deploys an agent last is where it comes
from. Without the file none came from a manifest. Held by `node`.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import msgspec

from greenroom import errors, settings, telemetry
from greenroom.core import agents, rollouts
from greenroom.engine import contract, origins, snapshots
from greenroom.sdk import models
from greenroom.security import secret_file
from greenroom.store.agents import Revision
from greenroom.store.deployments import Action, Decision, Deployed, Deployment, Limits
from greenroom.store.directory import Entry
from greenroom.store.rollouts import Rollout, spec_of
from greenroom.store.store import Store

BY_MANIFEST = "the manifest"
MANIFEST = "greenroom.toml"
_DIGEST = re.compile("[0-9a-f]{64}")
OF_CHAOS = "greenroom.testing.chaos.agent:perform"  # what `greenroom chaos` deploys: harmless, whoever does


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
        self._folder, self.snapshots = folder, data_dir / "snapshots"
        self._list = data_dir / "manifest-agents.json"
        self._listed: frozenset[str] = frozenset()
        self._limits = Limits.of(found.cluster)
        self._autoscaled = found.cluster.autoscaling

    async def start(self) -> list[int]:
        """Deploy the manifest's agents, and drop those that have left it: their tasks stay, their replicas do not.

        Return the rollouts that were begun. Raises `errors.StartRefused`, and has changed nothing, if there would be
        more replicas than there may be.
        """
        manifest = self._settings.agents
        others = [entry for name, entry in (await self._store.directory.refresh()).items() if name not in manifest]
        listed = self._read()
        dropped = [entry for entry in others if entry.agent.name in listed]
        self._check_room([entry for entry in others if entry.agent.name not in listed])
        taken = {name: await self._snapshot(spec, self._folder) for name, spec in manifest.items()}
        for name, spec in manifest.items():
            _check_names(name, spec, taken[name])
        self._write(manifest.keys() | {entry.agent.name for entry in dropped})
        for entry in dropped:
            await self._drop(entry)
        for entry in others:
            await self._wake_for_good(entry)
        begun = [
            await self._store.deployments.deploy(
                Deployment(
                    agent=name,
                    digest=taken[name].digest,
                    spec=spec,
                    by=BY_MANIFEST,
                    judged_anew=False,
                    autoscaled=self._autoscaled,
                )
            )
            for name, spec in manifest.items()
        ]
        for each in begun:
            if each.action is Action.BEGIN:
                self._tell(await self._store.rollouts.get(each.rollout))
        await self._store.directory.refresh()
        return [each.rollout for each in begun if each.is_under_way]

    async def add(
        self,
        name: str,
        spec: settings.AgentSettings,
        *,
        by: str,
        folder: Path | None = None,
        code: str | None = None,
        rollout: settings.Rollout | None = None,
        is_remote: bool = False,
    ) -> Deployed:
        """Begin to move an agent to *spec*, with the code in *folder* or that of the digest *code*.

        *is_remote*: it comes by API, and has to be code of the agent's folder unless the node accepts any. *rollout*,
        if given, goes before the spec's for this time. From here on it is no more the manifest's. Raises
        `errors.Conflict` where there is no room, `errors.NotFound` for a digest that nobody has brought, and
        `errors.AgentInvalid` for code or names that cannot be.
        """
        self.check_bounds(name, spec)
        snapshot = await self.snapshot(spec, folder=folder, code=code)
        _check_names(name, spec, snapshot)
        if is_remote:
            self._check_origin(name, spec, snapshot)
        deployed = await self._store.deployments.deploy(
            Deployment(
                agent=name,
                digest=snapshot.digest,
                spec=spec,
                by=by,
                limits=self._limits,
                rollout=rollout,
                autoscaled=self._autoscaled,
            )
        )
        if name in self._listed:
            self._write(self._listed - {name})
        await self._store.directory.refresh()
        if deployed.action is Action.BEGIN:
            self._tell(await self._store.rollouts.get(deployed.rollout))
        return deployed

    async def decide(
        self,
        name: str,
        spec: settings.AgentSettings,
        *,
        code: str | None = None,
        rollout: settings.Rollout | None = None,
    ) -> tuple[Decision, snapshots.Snapshot]:
        """Return what `add` would do with what comes by API, and the code that it would run."""
        self.check_bounds(name, spec)
        snapshot = await self.snapshot(spec, code=code)
        _check_names(name, spec, snapshot)
        self._check_origin(name, spec, snapshot)
        item = Deployment(
            agent=name,
            digest=snapshot.digest,
            spec=spec,
            by="",
            limits=self._limits,
            rollout=rollout,
            autoscaled=self._autoscaled,
        )
        return await self._store.deployments.decide(item), snapshot

    def check_bounds(self, name: str, spec: settings.AgentSettings) -> None:
        """Raise `errors.Conflict` for bounds that this node cannot keep to, before anything is begun."""
        least, most = spec.scaling.min_replicas, spec.scaling.max_replicas
        if not least and not self._autoscaled:
            raise errors.Conflict(
                f"cannot deploy {name}: scaling.min_replicas is 0 and cluster.autoscaling is off: nothing would start "
                "a replica again; switch it on, or have at least 1"
            )
        if max(least, most or 0) > self._limits.replicas:
            key = "min_replicas" if least > self._limits.replicas else "max_replicas"
            raise errors.Conflict(
                f"cannot deploy {name}: scaling.{key} is more than cluster.max_replicas ({self._limits.replicas}); "
                "lower it, or raise cluster.max_replicas"
            )
        if message := settings.longer_than_kept(spec.slo, self._settings.history):
            raise errors.Conflict(f"cannot deploy {name}: slo.window_days: {message}")

    def _check_origin(self, name: str, spec: settings.AgentSettings, snapshot: snapshots.Snapshot) -> None:
        """Raise `errors.AgentInvalid` for names of code that neither the folder nor the manifest has.

        Who may deploy chooses among what the operator has written or named. Anything installed would be more: a loader
        that makes code of its arguments, or ``os:system``.
        """
        if self._settings.server.accept_code:
            return
        named = references(self._settings) | {OF_CHAOS}
        for key, reference in (("factory", spec.factory), *(("rollout.checks", each) for each in spec.rollout.checks)):
            why = None if reference in named else origins.foreign(snapshot.path, reference)
            if why is not None and reference not in _named_now(self._folder):
                raise errors.AgentInvalid(
                    f"cannot deploy {name}: {key} names {reference}, and {why}; define it in a file there, name it in "
                    "the node's manifest, or let the node accept any code (server.accept_code)"
                )

    async def bring(self, archive: bytes) -> models.Code:
        """Store the code of an archive, to be deployed by its digest; raises `errors.AgentInvalid` for a bad one."""
        return await asyncio.to_thread(_unpacked, archive, self.snapshots)

    async def snapshot(
        self, spec: settings.AgentSettings, *, folder: Path | None = None, code: str | None = None
    ) -> snapshots.Snapshot:
        """Return the code of *folder* (default: the node's own), or what was brought as *code*."""
        if code is None:
            return await self._snapshot(spec, folder or self._folder)
        path = self.snapshots / code
        if not (_DIGEST.fullmatch(code) and path.is_dir()):
            raise errors.NotFound(f"cannot find the code {code[:64]}: bring it first (POST /v1/code)")
        return snapshots.Snapshot(code, path)

    async def undo(self, name: str, *, to: int | None, by: str) -> Rollout | None:
        """Let a revision serve again that is kept: the one before, or *to*; None where nothing has to be done.

        At once while it stands with all its replicas after its rollout, else by a rollout: without questions to one
        that has succeeded with a task before, as the agent's strategy has it to any other. A rollout that is on its way
        from it is aborted.
        """
        store = self._store
        await store.directory.refresh()
        entry = store.directory.get(name)
        last = entry.rollout
        if last is not None and last.state.is_open and to in (None, last.from_revision):
            aborted = await store.rollouts.move(last.id, lambda state: rollouts.abort(state, f"{by} undid it"))
            if aborted.phase != rollouts.Phase.COMPLETE:
                self._tell(aborted)
                return aborted
            await store.directory.refresh()
            entry, last = store.directory.get(name), aborted  # it was faster
        target = to if to is not None else await self._before(entry)
        if target == entry.agent.revision:
            return None
        if last is not None and last.state.is_open and target == last.to_revision:
            raise errors.Conflict(
                f"cannot undo {name}: rollout {last.id} is on its way to revision {target}, which has to prove itself; "
                f"promote it when it has (`greenroom rollout promote {name}`)"
            )
        revision = await store.agents.revision(name, target)
        if await self._stands(entry, target):
            reason = f"{by} went back from revision {entry.agent.revision}"
            id = await store.rollouts.switch(name, generation=entry.agent.generation, to=target, reason=reason, by=by)
            if id is None:
                raise errors.Conflict(f"cannot undo {name}: somebody has changed it meanwhile; look at it again")
            switched = await store.rollouts.get(id)
            self._tell(switched)
            return switched
        if not (self.snapshots / revision.digest).is_dir():
            raise errors.Conflict(f"cannot undo {name}: the code of revision {target} is gone; deploy it again")
        return await self._go_back(entry, revision, by=by)

    async def _go_back(self, entry: Entry, revision: Revision, *, by: str) -> Rollout:
        """Begin a rollout to a revision of before; one that is proven needs no more evidence, and no leave for room."""
        proven = settings.Rollout(strategy="blue-green", scale_down_delay_s=entry.spec.rollout.scale_down_delay_s)
        is_proven = revision.proven_at is not None
        deployed = await self._store.deployments.deploy(
            Deployment(
                agent=revision.agent,
                digest=revision.digest,
                spec=settings.with_revision_part(entry.spec, spec_of(revision.spec)),
                by=by,
                limits=None if is_proven else self._limits,
                rollout=proven if is_proven else None,
                autoscaled=self._autoscaled,
            )
        )
        begun = await self._store.rollouts.get(deployed.rollout)
        if deployed.action is Action.BEGIN:
            self._tell(begun)
        return begun

    def _tell(self, moved: Rollout) -> None:
        self._facts.emit(telemetry.RolloutMoved.to(moved.state, agent=moved.agent, rollout=moved.id))

    async def _before(self, entry: Entry) -> int:
        """Return the revision that served before the one that does."""
        name, serving = entry.agent.name, entry.agent.revision
        for rollout in await self._store.rollouts.history(name):
            is_it = rollout.to_revision == serving and rollout.phase == rollouts.Phase.COMPLETE
            if is_it and rollout.from_revision is not None:
                return rollout.from_revision
        raise errors.Conflict(
            f"cannot undo {name}: nothing is known to have served before revision {serving}; name one of "
            f"`greenroom rollout history {name}` with --to"
        )

    async def _stands(self, entry: Entry, revision: int) -> bool:
        """Whether *revision* has all the replicas, ready, that the agent should have."""
        last = entry.rollout
        if last is None or last.state.is_open or revision not in last.state.standing:
            return False
        replicas = await self._store.agents.replicas()
        board = self._store.board
        its = [each for each in replicas if (each.agent, each.revision) == (entry.agent.name, revision)]
        ready = sum(each.state == "ready" and not board.runs_alone(each.id) for each in its)
        return ready >= entry.agent.replicas

    async def _snapshot(self, spec: settings.AgentSettings, folder: Path) -> snapshots.Snapshot:
        return await asyncio.to_thread(  # it reads a whole folder
            snapshots.take, folder, include=spec.include, into=self.snapshots
        )

    async def _drop(self, entry: Entry) -> None:
        if entry.is_dropped:
            return
        name = entry.agent.name
        if entry.rollout is not None and entry.rollout.state.is_open:
            await self._store.rollouts.put(entry.rollout, rollouts.abort(entry.rollout.state, "it left the manifest"))
        await self._store.agents.scale(name, 0)
        reason = (
            "it is not in the manifest: it has no replicas and its tasks stay queued; "
            f"put it back and start the node again, or remove it (DELETE /v1/agents/{name})"
        )
        await self._store.agents.observe(name, state=agents.State.DROPPED, reason=reason)
        self._facts.emit(telemetry.AgentDropped(name, reason))

    async def _wake_for_good(self, entry: Entry) -> None:
        """Have an agent awake that sleeps since scaling was automatic: now nothing would wake it."""
        is_asleep = not (entry.agent.replicas or entry.is_dropped or entry.agent.name in self._listed)
        if is_asleep and not self._autoscaled:
            await self._store.agents.scale(entry.agent.name, max(1, entry.spec.scaling.min_replicas))

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
        secrets=spec.secrets,
        read_paths=tuple(folder / path for path in spec.read_paths),
        write_paths=tuple(folder / path for path in spec.write_paths),
        egress=spec.egress,
        concurrency=spec.concurrency,
        sessions=spec.sessions,
        memory_mb=spec.memory_mb,
        python=None if spec.python is None else str(folder / spec.python),
        retry_on=spec.retry_on,
    )


def files_of(snapshot: Path) -> dict[str, Path]:
    """Return the files of a snapshot by name. Blocks."""
    found = {path.relative_to(snapshot): path for path in snapshot.rglob("*") if path.is_file()}
    return {name.as_posix(): path for name, path in found.items() if "__pycache__" not in name.parts}


def _unpacked(archive: bytes, into: Path) -> models.Code:
    snapshot = snapshots.unpack(archive, into=into)
    files = files_of(snapshot.path).values()
    return models.Code(digest=snapshot.digest, files=len(files), bytes=sum(path.stat().st_size for path in files))


def references(found: settings.Settings) -> set[str]:
    """Return all that *found* names of agents' code."""
    return {each for spec in found.agents.values() for each in (spec.factory, *spec.rollout.checks)}


def _named_now(folder: Path) -> set[str]:
    """Return what the manifest in the node's folder names by now: it may have changed since the node began."""
    try:
        return references(settings.load(folder / MANIFEST, os.environ))
    except (settings.SettingsInvalid, OSError):
        return set()


def _check_names(name: str, spec: settings.AgentSettings, snapshot: snapshots.Snapshot) -> None:
    """Raise `errors.AgentInvalid` for checks that are certainly not in the code, before anything is begun.

    What another interpreter than the node's is to read may be of another Python: there nothing is certain.
    """
    for check in spec.rollout.checks if spec.python is None else ():
        if (wrong := snapshots.missing(snapshot.path, check)) is not None:
            raise errors.AgentInvalid(f"cannot deploy {name}: rollout.checks names {check}, and {wrong}")
