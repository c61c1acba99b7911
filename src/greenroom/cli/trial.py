"""Starts each agent of a manifest once, in an engine that is thrown away, to say what it is taken for.

Called by `doctor` where no node runs. A node's data directory is not touched: snapshots and whatever the engine keeps
are in a folder that is removed again.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from greenroom import clock as clocks
from greenroom import deployments, errors, settings
from greenroom.core.isolation import Decision
from greenroom.engine import contract, local, protocol, said, snapshots
from greenroom.node import isolation

READY_WITHIN_S = 120.0  # as a node has it; the import has a bound of its own
STOP_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """*found* is what the agent was taken for or, where it *cannot* be, why."""

    agent: str
    cannot: bool
    found: str


def try_agents(found: settings.Settings, folder: Path) -> list[Verdict]:
    """Start one replica of each agent of *found*, whose code is in *folder*, as many at once as there are CPUs."""
    with tempfile.TemporaryDirectory(prefix="greenroom-doctor-") as data_dir:
        decision = isolation.decide(found)
        return asyncio.run(_Trial(folder, Path(data_dir), decision).of(found.agents))


class _Trial:
    """An engine, and its listener: replicas have the names of their agents."""

    def __init__(self, folder: Path, data_dir: Path, decision: Decision) -> None:
        self._folder, self._data_dir, self._decision = folder, data_dir, decision
        self._verdicts: dict[str, asyncio.Future[Verdict]] = {}
        self._cpus = asyncio.Semaphore(os.cpu_count() or 1)

    async def of(self, agents: Mapping[str, settings.AgentSettings]) -> list[Verdict]:
        engine = local.LocalEngine(
            self._data_dir, clocks.SystemClock(), tier=self._decision.tier, means=self._decision.means
        )
        engine.subscribe(self)
        try:
            async with asyncio.TaskGroup() as group:
                tried = [group.create_task(self._try(engine, name, spec)) for name, spec in agents.items()]
            return [each.result() for each in tried]
        finally:
            await engine.close()

    async def _try(self, engine: contract.Engine, agent: str, spec: settings.AgentSettings) -> Verdict:
        async with self._cpus:
            verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
            self._verdicts[agent] = verdict
            try:
                await engine.start(agent, await asyncio.to_thread(self._revision, agent, spec))
                async with asyncio.timeout(READY_WITHIN_S):
                    return await verdict
            except errors.AgentInvalid as error:
                return Verdict(agent, cannot=True, found=str(error))
            except TimeoutError:
                return Verdict(agent, cannot=True, found=f"it was not ready within {READY_WITHIN_S:g} s")
            finally:
                await engine.stop(agent, grace_s=STOP_GRACE_S)

    def _revision(self, agent: str, spec: settings.AgentSettings) -> contract.Revision:
        snapshot = snapshots.take(self._folder, include=spec.include, into=self._data_dir / "snapshots")
        return deployments.revision_of(agent, 1, spec, snapshot=snapshot.path, folder=self._folder)

    # --- what the engine says (engine.contract.Listener)

    def on_ready(self, replica: str, ready: protocol.Ready) -> None:
        self._settle(Verdict(replica, cannot=False, found=ready.took))

    def on_message(self, replica: str, message: protocol.OfAttempt) -> None:
        """It is given no task."""

    def on_log(self, replica: str, line: said.Line) -> None:
        """Why an agent cannot be is in its exit."""

    def on_alive(self, replica: str, number: int) -> None:
        """No progress is asked for."""

    def on_exit(self, replica: str, exit: contract.Exit) -> None:
        self._settle(Verdict(replica, cannot=True, found=exit.detail or exit.reason))

    def _settle(self, verdict: Verdict) -> None:
        if not self._verdicts[verdict.agent].done():
            self._verdicts[verdict.agent].set_result(verdict)
