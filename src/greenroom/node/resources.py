"""The node's envelope: its limits out of the settings, the loop that watches over them, and what is told of it."""

from __future__ import annotations

from greenroom import clock as clocks
from greenroom import settings, telemetry
from greenroom.control.host import Host
from greenroom.control.resources import Resources
from greenroom.core import resources
from greenroom.engine import envelope
from greenroom.engine.local import LocalEngine
from greenroom.sdk import models
from greenroom.store.store import Store


def limits(cluster: settings.Cluster) -> envelope.Limits:
    return envelope.Limits(
        cpu=None if cluster.cpu == "off" else cluster.cpu,
        memory_mb=None if cluster.memory_mb == "off" else cluster.memory_mb,
    )


class NodeResources:
    def __init__(
        self, store: Store, engine: LocalEngine, host: Host, clock: clocks.Clock, facts: telemetry.Telemetry
    ) -> None:
        self._engine, self._host, self._facts = engine, host, facts
        held = engine.limits
        self.loop = Resources(
            engine,
            clock,
            facts,
            limits=resources.Limits(
                held.cpu,
                held.memory_mb,
                kernel_holds_memory=engine.enforcement.memory in (envelope.How.CGROUP_V1, envelope.How.CGROUP_V2),
            ),
            hosted=lambda: host.hosted,
            entries=lambda: store.directory.entries,
            recycle=host.recycle,
            lower_spares=self.lower_spares,
        )

    def lower_spares(self) -> bool:
        """Keep fewer interpreters warm, and let those go that are not needed; False where there are none."""
        dropped = self._engine.drop_spares()
        return self._host.lower_spares() or dropped > 0

    def use(self) -> resources.Use | None:
        """Return what all replicas use together; None before the first look."""
        return self.loop.use() if self.loop.is_known else None

    def use_pct(self) -> dict[str, float]:
        """Return how much of each limit is used, in percent, as far as there is one and it is known."""
        state = self.state()
        return {name: each.pct for name, each in (("cpu", state.cpu), ("memory_mb", state.memory_mb)) if each.pct}

    def announce(self) -> None:
        """Say what holds the limits, and what does not."""
        limits, how = self._engine.limits, self._engine.enforcement
        cpu = "off" if limits.cpu is None else f"{limits.cpu:g} ({how.cpu})"
        memory = "off" if limits.memory_mb is None else f"{limits.memory_mb} MB ({how.memory})"
        self._facts.emit(telemetry.EnvelopeHeld(cpu, memory))
        for warning in how.warnings:
            self._facts.emit(telemetry.EnvelopeWeak(warning))

    def state(self) -> models.Resources:
        limits, how, use = self._engine.limits, self._engine.enforcement, self.loop.use()
        is_known = self.loop.is_known
        return models.Resources(
            cpu=models.Resource(
                limit=limits.cpu,
                enforced=how.cpu,
                used=round(use.cpu, 2) if is_known else None,
                pct=resources.pct(use.cpu, limits.cpu) if is_known else None,
            ),
            memory_mb=models.Resource(
                limit=limits.memory_mb,
                enforced=how.memory,
                used=round(use.memory_mb, 1) if is_known else None,
                pct=resources.pct(use.memory_mb, limits.memory_mb) if is_known else None,
            ),
            warnings=how.warnings,
        )
