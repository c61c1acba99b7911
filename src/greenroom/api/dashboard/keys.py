"""The page of keys: who may call, and the making of a key, whose text is shown this once."""

from __future__ import annotations

from typing import Any

from greenroom import errors
from greenroom.api import principals
from greenroom.api.dashboard.forms import Act, Fields, with_body
from greenroom.api.dashboard.frame import Page
from greenroom.api.request import Call
from greenroom.core.permissions import Action

DAY_S = 86_400.0
DAYS = ("1", "7", "30", "90", "365")


async def show(call: Call) -> Page:
    """Show the keys of the caller's tenant: those that live, then the others."""
    keys: list[dict[str, Any]] = (await principals.list_all(call)).document["items"]
    now = call.services.clock.now()
    live: list[dict[str, Any]] = []
    ended: list[dict[str, Any]] = []
    for key in sorted(keys, key=lambda key: key["created_at"], reverse=True):
        is_over = key["expires_at"] is not None and key["expires_at"] <= now
        (ended if key["revoked_at"] is not None or is_over else live).append(key)
    roles = sorted(call.services.keys.roles.names)
    return Page("keys.html", {"live_keys": live, "ended": ended, "roles": roles, "days": DAYS})


async def _create(call: Call, fields: Fields) -> Page:
    wanted: dict[str, Any] = {"name": fields.get("name", "").strip(), "role": fields.get("role", "user")}
    scopes = [scope.strip() for scope in fields.get("scopes", "").split(",")]
    wanted["scopes"] = list(filter(None, scopes)) or None
    if days := fields.get("days", ""):
        if days not in DAYS:
            raise errors.BodyInvalid(f"cannot create a key: give one of {', '.join(DAYS)} days, or none")
        wanted["expires_in_s"] = int(days) * DAY_S
    key = (await principals.create(with_body(call, wanted))).document
    return Page("key.html", {"key": key}, title="A new key")


async def _revoke(call: Call, fields: Fields) -> str:
    await principals.revoke(call)
    return f"The key {call.path('id')} is revoked."


ACTS = (
    Act("/ui/keys", _create, Action.KEY_CREATE),
    Act("/ui/keys/{id}/revoke", _revoke, Action.KEY_REVOKE),
)
