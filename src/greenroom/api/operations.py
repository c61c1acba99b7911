"""The node's own routes: health, status, metrics, keys."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from greenroom import errors, settings
from greenroom.api import schemas, views
from greenroom.api.request import Answer, Call
from greenroom.api.services import Services
from greenroom.core import permissions
from greenroom.store import database
from greenroom.store.principals import Principal


async def status(call: Call) -> Answer:
    """Show the system: environment, agents, replicas, tasks, and which switches are not yet built."""
    services, store = call.services, call.store
    replicas = await store.agents.replicas()
    tasks: dict[str, dict[str, int]] = defaultdict(dict)
    for (agent, state), count in (await store.tasks.open_counts()).items():
        tasks[agent][state] = count
    for (agent, state), count in (await store.tasks.end_counts(tenant=call.principal.tenant)).items():
        tasks[agent][state] = count
    totals: Counter[str] = Counter()
    for counts in tasks.values():
        totals.update(counts)
    entries = (await store.directory.refresh()).values()
    ready = views.ready(replicas, store.board)
    full = views.full(store.directory.entries, services.settings.cluster.max_replicas)
    return Answer(
        schemas.Status(
            environment=services.settings.environment,
            node=schemas.NodeStatus(
                id=services.node,
                state=_state(services),
                reason=services.failure,
                started_at=database.instant(services.started_at_us),
                store=store.db.dialect,
                isolation="T0: replicas run as this user, without a sandbox",
            ),
            agents=[
                views.agent_status(
                    entry,
                    ready=ready,
                    tasks=tasks.get(entry.agent.name, {}),
                    breaker=services.breakers.state(entry.agent.name),
                    full=full,
                )
                for entry in entries
            ],
            replicas=schemas.ReplicasStatus(
                total=len(replicas),
                by_state=Counter(row.state for row in replicas),
                memory_mb=round(sum(row.memory_mb or 0 for row in replicas), 1),
                limit=services.settings.cluster.max_replicas,
            ),
            resources=services.resources(),
            tasks=totals,
            alerts=Counter(alert.severity for alert in await store.recovery.alerts() if alert.state == "firing"),
            advice=await store.advice.open_count(),
            backups=services.backups.state(),
            not_yet_built=settings.NOT_YET_BUILT,
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
    return Answer(call.services.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


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


async def list_keys(call: Call) -> Answer:
    """List keys; never their text."""
    rows = call.services.auth.rows(tenant=call.principal.tenant)
    return Answer({"items": [_key(row) for row in rows], "next_cursor": None})


async def create_key(call: Call) -> Answer:
    """Create a key; its text is shown this once. Nobody grants more than they have."""
    wanted = schemas.read(call.body, schemas.NewKey)
    granted = permissions.ROLES.get(wanted.role)
    if granted is None:
        raise errors.BodyInvalid(f"cannot create a key: role is one of {', '.join(permissions.ROLES)}")
    if not set(granted) <= set(permissions.ROLES[call.principal.role]):
        raise errors.Forbidden(f"cannot create a key: {wanted.role} may do more than you may")
    auth, tenant = call.services.auth, call.principal.tenant
    key = await auth.create(
        tenant=tenant,
        name=wanted.name,
        role=wanted.role,
        word=call.services.key_word,
        expires_in_s=wanted.expires_in_s,
    )
    (row,) = (row for row in auth.rows(tenant=tenant) if row.key_id == key.id)
    return Answer(_key(row) | {"key": key.text}, status=201)


async def revoke_key(call: Call) -> Answer:
    """Revoke a key, at once."""
    await call.services.auth.revoke(call.path("id"), tenant=call.principal.tenant)
    return Answer(None, status=204)


def _key(row: Principal) -> dict[str, Any]:
    return {
        "id": row.key_id,
        "name": row.name,
        "role": row.role,
        "created_at": database.instant(row.created_at),
        "expires_at": database.instant_or_none(row.expires_at),
        "revoked_at": database.instant_or_none(row.revoked_at),
    }
