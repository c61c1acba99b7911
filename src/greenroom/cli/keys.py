"""`greenroom keys`: the keys of those who may call, and what each may do."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter

from greenroom import clock
from greenroom.cli import config, options, render
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from greenroom.core.permissions import Roles
    from greenroom.sdk import models

app = cyclopts.App(name="keys", default_parameter=Parameter(negative=()))

COLUMNS = (
    Column("ID"),
    Column("NAME", whole=False),
    Column("ROLE"),
    Column("SCOPES", whole=False),
    Column("LAST USED", right=True),
    Column("EXPIRES", right=True),
    Column("STATE"),
)

Tenant = Annotated[str | None, Parameter(help="Of this tenant, else of your own.")]


@app.command
def create(
    name: str,
    /,
    *,
    role: str = "user",
    scope: Annotated[list[str] | None, Parameter(negative=(), consume_multiple=False)] = None,
    expires: str | None = None,
    tenant: Tenant = None,
    given: options.Options = options.DEFAULT,
) -> None:
    """Create a key; it is shown this once.

    Parameters
    ----------
    name
        Whose it is, for the list.
    role
        What it allows; a wrong one is answered with those there are.
    scope
        Narrows the role to this, for example "task:submit on agent:research"; may be given several times.
    expires
        When it stops to work: 30d, 12h, 90m; else never.
    """
    lifetime_s = None if expires is None else options.seconds(expires, of="--expires")
    with given.connect() as node:
        key = node.create_key(name, role, scopes=scope, expires_in_s=lifetime_s, tenant=tenant)
    if given.json:
        render.json(key)
        return
    narrowed = f", narrowed to {', '.join(key.scopes)}" if key.scopes else ""
    ends = f"; it expires {render.moment(key.expires_at)}" if key.expires_at else ""
    render.say(f"key {key.id} for {key.name}, {key.role}{narrowed}{ends}; keep it now, it is not shown again:")
    render.line(key.key or "")
    render.say("next: GREENROOM_KEY=… greenroom status")


@app.command(name="ls")
def list_keys(*, tenant: Tenant = None, given: options.Options = options.DEFAULT) -> None:
    """List the keys, without their secrets."""
    with given.connect() as node:
        keys = node.keys(tenant=tenant)
    if given.json:
        render.json({"items": keys})
        return
    now = clock.SystemClock().now()
    rows = (
        (
            key.id,
            key.name,
            key.role,
            "all" if key.scopes is None else ", ".join(key.scopes),
            "never" if key.last_used_at is None else f"{render.since(key.last_used_at, now)} ago",
            _expiry(key, now),
            _state(key, now),
        )
        for key in keys
    )
    render.table(COLUMNS, rows, empty="no keys; next: greenroom keys create NAME --role ROLE")


@app.command
def show(id: str, /, *, tenant: Tenant = None, given: options.Options = options.DEFAULT) -> None:
    """Show a key, and all that it may do.

    Parameters
    ----------
    id
        The key's id, as the list shows it.
    """
    with given.connect() as node:
        key = node.key(id, tenant=tenant)
    if given.json:
        render.json(key)
        return
    now = clock.SystemClock().now()
    render.facts(
        (
            ("id", key.id),
            ("name", key.name),
            ("tenant", key.tenant),
            ("role", key.role),
            ("scopes", "\n".join(key.scopes) if key.scopes else None),
            ("state", _state(key, now)),
            ("created", render.moment(key.created_at)),
            ("created by", key.created_by or "the node"),
            ("expires", render.moment(key.expires_at) or "never"),
            ("last used", render.moment(key.last_used_at) or "never"),
            ("revoked", render.moment(key.revoked_at)),
            ("may", "\n".join(key.rights or ()) or "nothing: its role is not known here"),
        )
    )


@app.command
def revoke(id: str, /, *, tenant: Tenant = None, given: options.Options = options.DEFAULT) -> None:
    """Make a key worthless: within a second, on every node.

    Parameters
    ----------
    id
        The key's id, as the list shows it.
    """
    with given.connect() as node:
        node.revoke_key(id, tenant=tenant)
    if not given.json:
        render.line(f"key {id}: revoked")


@app.command
def can(
    *words: str,
    role: str | None = None,
    manifest: config.Manifest = config.MANIFEST,
    policy: Path | None = None,
    tenant: Tenant = None,
    given: options.Options = options.DEFAULT,
) -> int:
    """Tell whether a key, or a role, may do something, and which grant or which lack decides it; exit with 1 if not.

    greenroom keys can KEY_ID ACTION [RESOURCE], or, without a node: greenroom keys can --role ROLE ACTION [RESOURCE].

    Parameters
    ----------
    words
        The key's id (not with --role), the action (task:submit), and the resource (agent:research), if on one only.
    role
        Ask about this role, of the manifest's policy file or a built-in one.
    policy
        With --role: a policy file in place of the manifest's.
    """
    id, action, resource = _asked(words, needs_id=role is None)
    if role is not None:
        verdict = _verdict(role, action, resource, roles=_roles(manifest, policy), tenant=tenant)
    else:
        with given.connect() as node:
            verdict = node.key_can(id, action, resource, tenant=tenant)
    if given.json:
        render.json(verdict)
    else:
        render.line(f"{'yes' if verdict.allowed else 'no'}: {verdict.reason}")
    return 0 if verdict.allowed else 1


def _asked(words: tuple[str, ...], *, needs_id: bool) -> tuple[str, str, str | None]:
    """Return the key's id, the action and the resource."""
    from greenroom.core import permissions, spelling

    id, *rest = words if needs_id else ("", *words)
    if not 1 <= len(rest) <= 2:
        whom = "KEY_ID" if needs_id else "--role ROLE"
        raise options.Usage(f"cannot tell: say greenroom keys can {whom} ACTION [RESOURCE]; an action is task:submit")
    action, resource = rest[0], rest[1] if len(rest) > 1 else None
    if action not in list(permissions.Action):
        told = spelling.suggestion(action, permissions.Action)
        raise options.Usage(f"cannot tell: there is no action {action}; {told}")
    if resource is not None and not permissions.is_agent(resource):
        raise options.Usage(f"cannot tell: there is no resource {resource}; give agent:NAME")
    if resource is not None and action not in permissions.ON_AGENTS:
        raise options.Usage(f"cannot tell: {action} is done on no agent; leave out {resource}")
    return id, action, resource


def _roles(manifest: Path, policy: Path | None) -> Roles:
    import os

    from greenroom import settings
    from greenroom.core import permissions

    if policy is None and manifest.exists():
        named = settings.load(manifest, os.environ, is_for_node=False).security.policy_file
        policy = None if named is None else manifest.parent / named
    return permissions.ROLES if policy is None else settings.read_roles(policy)


def _verdict(role: str, action: str, resource: str | None, *, roles: Roles, tenant: str | None) -> models.Verdict:
    from greenroom.core import permissions, spelling
    from greenroom.sdk import models

    if role not in roles:
        raise options.Usage(f"cannot tell: there is no role {role}; {spelling.suggestion(role, roles)}")
    asked = permissions.Action(action)
    rights = permissions.rights(role, tenant=tenant or permissions.HOME, roles=roles)
    return models.Verdict(
        allowed=rights.allows(asked, resource), action=action, resource=resource, reason=rights.why(asked, resource)
    )


def _expiry(key: models.Key, now: datetime) -> str:
    if key.expires_at is None:
        return "never"
    left_s = (key.expires_at - now).total_seconds()
    return f"in {render.span(left_s)}" if left_s > 0 else f"{render.span(-left_s)} ago"


def _state(key: models.Key, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "valid"
