"""Permissions: who may do what, on what. Pure. What is not granted is denied.

An *action* is done on a *resource*: ``task:submit`` on ``agent:research``, or on ``*`` where it concerns the system. A
*role* is a set of grants; a credential may narrow its role by *scopes*, never widen it.
"""

from __future__ import annotations

import enum
import fnmatch
from collections.abc import Iterable, Mapping, Sequence

import msgspec

HOME = "default"
"""The tenant of the node's owner. Only its principals may do what concerns all tenants (`SYSTEM`)."""


class Action(enum.StrEnum):
    """What may be done. Those of tasks, sessions and agents are done on an agent (``agent:NAME``)."""

    TASK_SUBMIT = "task:submit"  # also to retry
    TASK_READ = "task:read"
    TASK_CANCEL = "task:cancel"
    SESSION_READ = "session:read"
    SESSION_DELETE = "session:delete"
    AGENT_READ = "agent:read"  # agents, their replicas, revisions, rollouts, scaling, failures and advice
    AGENT_OPERATE = "agent:operate"  # scale, release, roll out, restart and drain
    AGENT_DEPLOY = "agent:deploy"  # put and delete: as powerful as a shell
    STATUS_READ = "status:read"
    METRICS_READ = "metrics:read"
    ALERT_READ = "alert:read"
    ALERT_ACKNOWLEDGE = "alert:acknowledge"
    LOGIN_MANAGE = "login:manage"  # make one of one's own, see its page and end it
    WEBHOOK_MANAGE = "webhook:manage"
    BACKUP_READ = "backup:read"
    BACKUP_CREATE = "backup:create"
    KEY_READ = "key:read"
    KEY_CREATE = "key:create"
    KEY_REVOKE = "key:revoke"
    TENANT_MANAGE = "tenant:manage"  # keys of other tenants
    AUDIT_READ = "audit:read"
    SECURITY_READ = "security:read"
    SECURITY_OPERATE = "security:operate"  # unlock who was locked, rotate encryption keys
    SYSTEM_SHUTDOWN = "system:shutdown"


SYSTEM = frozenset(
    {
        Action.AGENT_OPERATE,
        Action.AGENT_DEPLOY,
        Action.METRICS_READ,
        Action.ALERT_READ,
        Action.ALERT_ACKNOWLEDGE,
        Action.BACKUP_READ,
        Action.BACKUP_CREATE,
        Action.TENANT_MANAGE,
        Action.SECURITY_READ,
        Action.SECURITY_OPERATE,
        Action.SYSTEM_SHUTDOWN,
    }
)
"""What concerns all tenants: for principals of the home tenant alone."""


class Grant(msgspec.Struct, frozen=True):
    """Leave to do *action* on *resource*; both may be patterns (``task:*``, ``agent:research-*``)."""

    action: str
    resource: str = "*"

    def covers(self, action: str, resource: str | None) -> bool:
        """Tell whether it allows *action* on *resource*; None: on any at all."""
        if not fnmatch.fnmatchcase(action, self.action):
            return False
        return resource is None or fnmatch.fnmatchcase(resource, self.resource)


class Rights(msgspec.Struct, frozen=True):
    """What a principal may do: what each of *layers* (its role, the scopes of its credential) grants."""

    layers: tuple[tuple[Grant, ...], ...]

    def allows(self, action: Action, resource: str | None = None) -> bool:
        return all(any(grant.covers(action, resource) for grant in layer) for layer in self.layers)


class Principal(msgspec.Struct, frozen=True):
    """The caller, as proven: *id* is a key's id, or a token's issuer and subject; *kind* is key, token or login."""

    id: str
    kind: str
    tenant: str
    name: str
    role: str
    rights: Rights


def _role(base: Sequence[Grant], *actions: Action) -> tuple[Grant, ...]:
    return (*base, *(Grant(action) for action in actions))


_VIEWER = _role(
    (),
    Action.TASK_READ,
    Action.SESSION_READ,
    Action.AGENT_READ,
    Action.STATUS_READ,
    Action.METRICS_READ,
    Action.ALERT_READ,
    Action.LOGIN_MANAGE,
)
_USER = _role(_VIEWER, Action.TASK_SUBMIT, Action.TASK_CANCEL, Action.SESSION_DELETE)
_OPERATOR = _role(
    _USER,
    Action.AGENT_OPERATE,
    Action.ALERT_ACKNOWLEDGE,
    Action.WEBHOOK_MANAGE,
    Action.BACKUP_READ,
    Action.BACKUP_CREATE,
    Action.SECURITY_READ,
)
_ADMIN = _role((), *Action)

ROLES: Mapping[str, tuple[Grant, ...]] = {"viewer": _VIEWER, "user": _USER, "operator": _OPERATOR, "admin": _ADMIN}


def rights(role: str, scopes: Iterable[Grant] | None = None) -> Rights:
    """Return what *role* may do, narrowed by *scopes*; an unknown role may do nothing."""
    layers = [ROLES.get(role, ())]
    if scopes is not None:
        layers.append(tuple(scopes))
    return Rights(tuple(layers))
