"""The routes of keys: who may call, and what each key may do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from greenroom import errors
from greenroom.api import keys, schemas
from greenroom.api.request import Answer, Call
from greenroom.api.roles import require_known
from greenroom.core import permissions, spelling, tenancy
from greenroom.core.permissions import Action, Grant
from greenroom.sdk import models
from greenroom.store import database
from greenroom.store.principals import Principal


async def list_all(call: Call) -> Answer:
    """List keys, never their text; ``?tenant=`` those of another tenant."""
    rows = call.services.keys.rows(tenant=_tenant(call, call.query("tenant")))
    return Answer({"items": [_document(row) for row in rows], "next_cursor": None})


async def show(call: Call) -> Answer:
    """Show a key, and all that it may do."""
    row = _row(call)
    rights = call.services.keys.principal(row).rights
    return Answer(_document(row) | {"rights": _told(rights)})


async def can(call: Call) -> Answer:
    """Tell whether a key may do ``?action=`` (on ``?resource=``), and what decides it."""
    row, action = _row(call), _action(call)
    resource = _resource(call, action)
    rights = call.services.keys.principal(row).rights
    allowed, why = rights.allows(action, resource), rights.why(action, resource)
    if not call.services.keys.is_live(row.key_id):
        allowed, why = False, "the key is revoked or has expired"
    return Answer(models.Verdict(allowed=allowed, action=action, resource=resource, reason=why))


async def create(call: Call) -> Answer:
    """Create a key; its text is shown this once. Nobody grants more than they have, nor for longer."""
    wanted = schemas.read(call.body, schemas.NewKey)
    services, cannot = call.services, "cannot create a key"
    tenant = _tenant(call, wanted.tenant)
    require_known(services.keys.roles, wanted.role, cannot=cannot)
    scopes = None if wanted.scopes is None else [_scope(text, place) for place, text in enumerate(wanted.scopes)]
    granted = services.keys.roles.rights(wanted.role, tenant=tenant, scopes=scopes)
    _require_no_more(call, granted, cannot=cannot)
    _require_no_later(call, wanted.expires_in_s, cannot=cannot)
    is_open = services.settings.security.tenants_below_t2 or tenancy.tenants_allowed(services.tier)
    if tenant != call.principal.tenant and not is_open:
        raise errors.BodyInvalid(f"{cannot} of the tenant {tenant}: {tenancy.refusal(services.tier)}")
    key = await services.keys.create(
        tenant=tenant,
        name=wanted.name,
        role=wanted.role,
        word=services.key_word,
        expires_in_s=wanted.expires_in_s,
        scopes=scopes,
        created_by=call.principal.id,
    )
    (row,) = (row for row in services.keys.rows(tenant=tenant) if row.key_id == key.id)
    return Answer(_document(row) | {"key": key.text}, status=201)


async def revoke(call: Call) -> Answer:
    """Revoke a key: here at once, on every node within a second; ``?tenant=`` one of another tenant.

    One's own, and those that may do no more; never the last one that may do everything.
    """
    row, services = _row(call), call.services
    if row.key_id != call.principal.id and services.keys.is_live(row.key_id):
        _require_no_more(call, services.keys.principal(row).rights, cannot="cannot revoke the key")
    await services.keys.revoke(row.key_id, tenant=row.tenant, spare_last=True)
    return Answer(None, status=204)


def _require_no_more(call: Call, rights: permissions.Rights, *, cannot: str) -> None:
    if lacks := call.principal.rights.lacks(rights):
        more = f" and {len(lacks) - 3} more" if len(lacks) > 3 else ""
        raise errors.Forbidden(f"{cannot}: it could do more than you may ({', '.join(lacks[:3])}{more})")


def _require_no_later(call: Call, expires_in_s: float | None, *, cannot: str) -> None:
    """Raise `errors.Forbidden` where a key would outlive the credential that makes it."""
    end_s = call.services.auth.end_s(call.principal)
    if end_s is None:
        return
    left_s = end_s - call.services.clock.now().timestamp()
    if expires_in_s is None or expires_in_s > left_s:
        at = datetime.fromtimestamp(end_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        raise errors.Forbidden(
            f"{cannot}: it would outlive your own credential, which ends at {at}; give an end before that "
            f"(expires_in_s of at most {max(0, int(left_s))})"
        )


def _tenant(call: Call, wanted: str | None) -> str:
    """Return the tenant whose keys are meant; raises `errors.Forbidden` where they are not the caller's to manage."""
    own = call.principal.tenant
    if wanted is None or wanted == own:
        return own
    if not call.principal.rights.allows(Action.TENANT_MANAGE):
        why = call.principal.rights.why(Action.TENANT_MANAGE)
        raise errors.Forbidden(f"cannot manage keys of another tenant: {why}")
    return wanted


def _row(call: Call) -> Principal:
    id, tenant = call.path("id"), _tenant(call, call.query("tenant"))
    row = next((row for row in call.services.keys.rows(tenant=tenant) if row.key_id == id), None)
    if row is None:
        raise errors.NotFound(f"cannot find the key {id[:64]}")
    return row


def _scope(text: str, place: int) -> Grant:
    try:
        return permissions.parse(text)
    except ValueError as error:
        raise errors.BodyInvalid(f"cannot create a key: scopes[{place}]: {error}") from None


def _action(call: Call) -> Action:
    text = call.query("action") or ""
    try:
        return Action(text)
    except ValueError:
        told = spelling.suggestion(text[:100], Action)
        raise errors.QueryInvalid(f"cannot take ?action={text[:40]}: {told}") from None


def _resource(call: Call, action: Action) -> str | None:
    text = call.query("resource")
    if text is None:
        return None
    if not permissions.is_agent(text):
        raise errors.QueryInvalid(f"cannot take ?resource={text[:60]}: give agent:NAME")
    if action not in permissions.ON_AGENTS:
        raise errors.QueryInvalid(f"cannot take ?resource={text[:60]}: {action} is done on no agent")
    return text


def _told(rights: permissions.Rights) -> list[str]:
    """Return what may be done, as grants."""
    found = []
    for action in Action:
        for each in rights.agents(action) or ([("*",)] if rights.on_all(action) else ()):
            named = " and ".join(f"{permissions.AGENT}{one}" for one in each)
            found.append(str(action) if each == ("*",) else f"{action} on {named}")
    return found


def _document(row: Principal) -> dict[str, Any]:
    return {
        "id": row.key_id,
        "name": row.name,
        "role": row.role,
        "tenant": row.tenant,
        "scopes": keys.shown_scopes(row),
        "created_by": row.created_by,
        "created_at": database.instant(row.created_at),
        "expires_at": database.instant_or_none(row.expires_at),
        "last_used_at": database.instant_or_none(row.last_used_at),
        "revoked_at": database.instant_or_none(row.revoked_at),
    }
