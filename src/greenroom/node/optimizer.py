"""The node's optimizer: where its measurements come from, and what it may do."""

from __future__ import annotations

from greenroom.api.services import Services
from greenroom.control import supervisor, user_rules
from greenroom.control.host import Host
from greenroom.control.measurements import Collector, Sources
from greenroom.control.optimizer import Actions, Optimizer, scaled
from greenroom.core import measurements
from greenroom.engine.local import LocalEngine
from greenroom.node.resources import NodeResources
from greenroom.store.deployments import Limits
from greenroom.store.store import Store


def loops(
    store: Store, engine: LocalEngine, host: Host, held: NodeResources, services: Services
) -> tuple[supervisor.Loop, ...]:
    """Return the optimizer's loop; none where ``cluster.performance_rules`` is off."""
    found = services.settings
    if not found.cluster.performance_rules:
        return ()
    sources = Sources(
        replicas=lambda: _replicas(store, host, held),
        cpu_pct=lambda: held.state().cpu.pct,
        memory_pct=lambda: held.state().memory_mb.pct,
        spares=lambda: engine.spares,
    )
    optimizer = Optimizer(
        store,
        services.clock,
        services.facts,
        collector=Collector(store, services.clock, services.facts, found, sources),
        actions=_actions(store, host, held, services),
        is_applying=found.optimizer.apply,
        rules_of_users=user_rules.installed(),
    )
    return (optimizer,)


def _replicas(store: Store, host: Host, held: NodeResources) -> list[measurements.Replica]:
    return [
        measurements.Replica(
            id=each.id,
            agent=each.agent,
            memory_mb=held_now.share_mb if (held_now := held.loop.held_by(each.id)) is not None else 0.0,
            successor_mb=held.loop.successor_mb(each.id, each.agent),
            cpu=held.loop.cpu_of(each.id),
            busy=store.board.busy(each.id),
            slots=each.slots,
        )
        for each in host.hosted
        if each.state == "ready" and not each.for_suspects
    ]


def _actions(store: Store, host: Host, held: NodeResources, services: Services) -> Actions:
    cluster = services.settings.cluster

    async def scale(agent: str, count: int) -> bool:
        return await scaled(store, agent, count, room=Limits.of(cluster))

    return Actions(
        restart=host.recycle,
        scale=None if cluster.autoscaling else scale,  # there the autoscaler decides, and it is advice
        lower_spares=held.lower_spares,
        limit_admission=services.backlog.limit_admission,
    )
