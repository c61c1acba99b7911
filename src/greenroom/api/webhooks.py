"""The routes of webhooks: where a tenant is told how its tasks have ended."""

from __future__ import annotations

from typing import Any

from greenroom import errors, random_bits, telemetry
from greenroom.api import schemas
from greenroom.api.request import Answer, Call
from greenroom.core import addresses
from greenroom.sdk import models
from greenroom.store import database
from greenroom.store import webhooks as stored
from greenroom.store.webhooks import Change, Delivery, Endpoint, NewEndpoint, Rotation


async def create(call: Call) -> Answer:
    """Add a webhook; its secret is shown this once."""
    wanted = schemas.read(call.body, schemas.NewWebhook)
    _check_url(call, wanted.url)
    id, tenant = f"wh_{random_bits.token_hex(8)}", call.principal.tenant
    shown, sealed = call.services.webhook_secrets.new(tenant=tenant, id=id)
    row = await call.store.webhooks.create(
        NewEndpoint(
            id=id,
            tenant=tenant,
            url=wanted.url,
            events=stored.events_text(wanted.events),
            description=wanted.description,
            include_output=wanted.include_output,
            secret=sealed,
            created_by=call.principal.id,
        )
    )
    return Answer(_shown(row) | {"secret": shown}, status=201)


def _check_url(call: Call, url: str) -> None:
    """Raise `errors.BodyInvalid` for a URL that nothing would be sent to. Its name is resolved when something is."""
    server = call.services.settings.server
    target = addresses.judge(url, addresses.Policy(server.webhook_ports, server.webhook_hosts))
    if isinstance(target, str):
        host = addresses.host_of(url)
        call.services.facts.emit(telemetry.UrlRefused(call.principal.id, call.principal.tenant, host))
        raise errors.BodyInvalid(f"cannot take the URL: {target}")


async def list_all(call: Call) -> Answer:
    """List the webhooks, without their secrets."""
    rows = await call.store.webhooks.all(tenant=call.principal.tenant)
    return Answer({"items": [_shown(row) for row in rows], "next_cursor": None})


async def show(call: Call) -> Answer:
    """Show a webhook, without its secret."""
    return Answer(_shown(await _row(call)))


async def change(call: Call) -> Answer:
    """Enable or disable a webhook, or choose other events. Another URL is another webhook."""
    wanted = schemas.read(call.body, schemas.WebhookChange)
    row = await call.store.webhooks.change(
        Change(
            id=call.path("id"),
            tenant=call.principal.tenant,
            state=None if wanted.enabled is None else "enabled" if wanted.enabled else "disabled",
            events=None if wanted.events is None else stored.events_text(wanted.events),
            description=wanted.description,
            include_output=wanted.include_output,
        )
    )
    return Answer(_shown(row))


async def rotate(call: Call) -> Answer:
    """Give a webhook another secret, shown this once. For a day the old one signs, too."""
    tenant = call.principal.tenant
    shown, sealed = call.services.webhook_secrets.new(tenant=tenant, id=call.path("id"))
    row = await call.store.webhooks.rotate(Rotation(call.path("id"), tenant, sealed))
    return Answer(_shown(row) | {"secret": shown})


async def remove(call: Call) -> Answer:
    """Remove a webhook, and with it what it was not told yet."""
    await call.store.webhooks.remove(call.path("id"), tenant=call.principal.tenant)
    return Answer(None, status=204)


async def test(call: Call) -> Answer:
    """Send a webhook something, once; its deliveries tell how that went."""
    row = await _row(call)
    if row.state != "enabled":
        raise errors.Conflict(f"cannot test {row.id}: it is disabled ({row.reason}); enable it first")
    item = stored.Test(f"msg_{random_bits.token_hex(16)}", row.id, row.tenant)
    return Answer(_delivery(await call.store.webhooks.test(item)), status=202)


async def deliveries(call: Call) -> Answer:
    """List what a webhook was sent, or is to be, latest first; ``?limit= &cursor=``. Kept for three days."""
    limit = call.number("limit", default=50, least=1, most=200)
    row = await _row(call)
    rows = await call.store.webhooks.deliveries(
        row.id, tenant=row.tenant, before_seq=call.number("cursor", default=0, most=2**62) or None, limit=limit
    )
    cursor = str(rows[-1].seq) if len(rows) == limit else None
    return Answer({"items": [_delivery(each) for each in rows], "next_cursor": cursor})


async def _row(call: Call) -> Endpoint:
    return await call.store.webhooks.get(call.path("id"), tenant=call.principal.tenant)


def _shown(row: Endpoint) -> dict[str, Any]:
    return {
        "id": row.id,
        "url": row.url,
        "events": row.types,
        "description": row.description,
        "include_output": bool(row.include_output),
        "state": row.state,
        "reason": row.reason,
        "failing_since": database.instant_or_none(row.failing_since),
        "old_secret_until": database.instant_or_none(row.old_until),
        "created_at": database.instant(row.created_at),
    }


def _delivery(row: Delivery) -> models.Delivery:
    return models.Delivery(
        id=row.id,
        type=row.type,
        task=row.task,
        state=row.state,
        attempts=row.attempts,
        status=row.status,
        error=row.error,
        created_at=database.instant(row.created_at),
        next_at=database.instant(row.due_at) if row.state == "pending" else None,
        ended_at=database.instant_or_none(row.ended_at),
    )
