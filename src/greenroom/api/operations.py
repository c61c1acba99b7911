"""The node's own routes: health, status, metrics, backups, and its end."""

from __future__ import annotations

from collections import Counter

from greenroom import errors, telemetry
from greenroom.api import agents, grading, schemas, views
from greenroom.api.request import Answer, Call
from greenroom.api.services import Services
from greenroom.core.permissions import Action
from greenroom.sdk import models
from greenroom.store import database


async def status(call: Call) -> Answer:
    """Show the system: environment, agents, replicas and tasks.

    Of the agents those that the caller may read. What others do is for those who may observe all agents, or may read
    what else is told: for the rest it is left out.
    """
    services, store, rights = call.services, call.store, call.principal.rights
    observes = rights.on_all(Action.AGENT_OBSERVE)
    rows = await store.agents.replicas()
    open_counts = await agents.OpenCounts.of(call)
    end_counts = await store.tasks.end_counts(tenant=call.principal.tenant)
    entries = {
        name: entry
        for name, entry in (await store.directory.refresh()).items()
        if rights.on_agent(Action.AGENT_READ, name)
    }
    tasks = {name: open_counts.seen_of(name) for name in {*entries, *open_counts.agents}}
    for (agent, state), count in end_counts.items():
        if rights.on_agent(Action.AGENT_READ, agent):
            tasks.setdefault(agent, {})[state] = count
    totals: Counter[str] = Counter()
    for counts in tasks.values():
        totals.update(counts)
    ready = views.ready(rows, store.board)
    full = views.full(store.directory.entries, services.settings.cluster.max_replicas)
    alerts = await store.alerts.list(agents=rights.agents(Action.ALERT_READ))
    graded = [grading.agent(entry, ready, services.health.finding(name)) for name, entry in entries.items()]
    system = grading.system(services.health.node(), entries.values(), graded)
    replicas = [row for row in rows if rights.on_agent(Action.AGENT_OBSERVE, row.agent)]
    return Answer(
        schemas.Status(
            environment=services.settings.environment,
            grade=system.grade,
            grade_reason=system.reason if observes else "",
            node=schemas.NodeStatus(
                id=services.node,
                state=_state(services),
                reason=services.failure,
                started_at=database.instant(services.started_at_us),
                store=store.db.dialect,
                isolation=services.isolation,
                tracing=services.tracing_state() if observes else "",
            ),
            agents=[
                views.agent_status(
                    entry,
                    ready=ready,
                    tasks=tasks[name],
                    breaker=services.breakers.state(name),
                    full=full,
                    finding=services.health.finding(name),
                    is_observed=rights.on_agent(Action.AGENT_OBSERVE, name),
                )
                for name, entry in entries.items()
            ],
            replicas=schemas.ReplicasStatus(
                total=len(replicas),
                by_state=Counter(row.state for row in replicas),
                memory_mb=round(sum(row.memory_mb or 0 for row in replicas), 1),
                limit=services.settings.cluster.max_replicas,
            ),
            resources=services.resources() if observes else models.Resources(),
            tasks=totals,
            alerts=Counter(alert.severity for alert in alerts if alert.is_firing),
            alert_delivery=services.receivers.summary if observes else "",
            advice=await store.advice.open_count() if observes else 0,
            backups=services.backups.state() if observes else models.Backups(),
            encryption=store.vault.mode,
        )
    )


def _state(services: Services) -> str:
    if services.failure is not None:
        return "failed"
    if services.stopping.is_set():
        return "draining"
    return "ready" if services.is_ready() else "starting"


async def metrics(call: Call) -> Answer:
    """Metrics in Prometheus' text format."""
    services = call.services
    if not services.settings.cluster.metrics:
        raise errors.Conflict("cannot tell metrics: they are off (cluster.metrics)")
    return Answer(
        services.metrics.render(await services.scrapes.look()), media_type="text/plain; version=0.0.4; charset=utf-8"
    )


async def list_backups(call: Call) -> Answer:
    """List the backups, newest first."""
    return Answer({"items": await call.services.backups.all(), "next_cursor": None})


async def create_backup(call: Call) -> Answer:
    """Have a backup made; the status tells how it goes. One at a time."""
    backups = call.services.backups
    if not backups.state().is_running:
        await call.audit("backup.ask", "backup")
    if not backups.ask():
        raise errors.Conflict("cannot make a backup now: another one is being made; GET /v1/status tells how it goes")
    return Answer(call.services.backups.state(), status=202)


async def shut_down(call: Call) -> Answer:
    """Have the node that answers drain and stop, as after SIGTERM: running tasks may end, the rest is handed back."""
    services = call.services
    if services.ask_to_stop is None:
        raise errors.Conflict("cannot stop this node: it lives in a program, which stops it when that ends")
    await call.audit("node.shutdown", f"node:{services.node}")
    services.facts.emit(telemetry.NodeChanged(services.node, "asked to stop", f"by {call.principal.name}"))
    services.ask_to_stop()
    return Answer(models.Shutdown(node=services.node), status=202)
