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


class NodeOptimizer:
    """*loops* is empty where ``cluster.performance_rules`` is off."""

    def __init__(
        self,
        store: Store,
        engine: LocalEngine,
        host: Host,
        held: NodeResources,
        services: Services,
    ) -> None:
        self.loops: tuple[supervisor.Loop, ...] = ()
        found, loop = services.settings, held.loop
        if not found.cluster.performance_rules:
            return

        def replicas() -> list[measurements.Replica]:
            return [
                measurements.Replica(
                    id=each.id,
                    agent=each.agent,
                    memory_mb=held_now.share_mb if (held_now := loop.held_by(each.id)) is not None else 0.0,
                    new_mb=loop.new_mb(each.agent),
                    cpu=loop.cpu_of(each.id),
                    busy=store.board.busy(each.id),
                    slots=each.slots,
                )
                for each in host.hosted
                if each.state == "ready" and not each.for_suspects
            ]

        async def scale(agent: str, count: int) -> bool:
            return await scaled(store, agent, count, room=Limits.of(found.cluster))

        collector = Collector(
            store,
            services.clock,
            services.facts,
            found,
            Sources(
                replicas=replicas,
                cpu_pct=lambda: held.state().cpu.pct,
                memory_pct=lambda: held.state().memory_mb.pct,
                spares=lambda: engine.spares,
            ),
        )
        actions = Actions(
            restart=host.recycle,
            scale=None if found.cluster.autoscaling else scale,  # there the autoscaler decides, and it is advice
            lower_spares=held.lower_spares,
            limit_admission=services.backlog.limit_admission,
        )
        loop_of_advice = Optimizer(
            store,
            services.clock,
            services.facts,
            collector=collector,
            actions=actions,
            is_applying=found.optimizer.apply,
            rules_of_users=user_rules.installed(),
        )
        self.loops = (loop_of_advice,)
