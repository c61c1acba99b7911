"""Permissions: who may do what, on what. Pure. What is not granted is denied.

An *action* is done on a *resource*: ``task:submit`` on ``agent:research``, or on ``*`` where it concerns no agent. A
*role* is a set of grants. What a principal may do is what every *layer* grants: its role, the scopes of its credential,
and, outside of the home tenant, what concerns that tenant alone. So a layer narrows, and none widens.
"""

from __future__ import annotations

import enum
import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from greenroom.core import spelling

HOME = "default"
"""The tenant of the node's owner. Only its principals may do what concerns all tenants (`SYSTEM`)."""

NO_ROLE = "-"  # of a token that names none that is known here; no role can be named so: it may do nothing
MAX_SCOPES = 32  # of a credential: each is looked at beside each grant of its role
MAX_GRANTS = 100  # of a role


class Action(enum.StrEnum):
    """What may be done. Those of `ON_AGENTS` are done on an agent (``agent:NAME``)."""

    TASK_SUBMIT = "task:submit"  # also to retry
    TASK_READ = "task:read"
    TASK_CANCEL = "task:cancel"
    SESSION_READ = "session:read"
    SESSION_DELETE = "session:delete"
    AGENT_READ = "agent:read"  # what it is for, and whether it works
    AGENT_OBSERVE = "agent:observe"  # replicas, revisions, rollouts, scaling, failures, advice: of what all tenants do
    AGENT_OPERATE = "agent:operate"  # scale, release, roll out, restart and drain
    AGENT_DEPLOY = "agent:deploy"  # put and delete: as powerful as a shell
    STATUS_READ = "status:read"
    METRICS_READ = "metrics:read"
    ALERT_READ = "alert:read"
    ALERT_ACKNOWLEDGE = "alert:acknowledge"
    RECEIVER_MANAGE = "receiver:manage"  # see who is told of alerts, and send them a test
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

    __hash__ = str.__hash__  # that of enumerations is Python's, and each check looks one up


SYSTEM = frozenset(
    {
        Action.AGENT_OBSERVE,
        Action.AGENT_OPERATE,
        Action.AGENT_DEPLOY,
        Action.METRICS_READ,
        Action.ALERT_READ,
        Action.ALERT_ACKNOWLEDGE,
        Action.RECEIVER_MANAGE,
        Action.BACKUP_READ,
        Action.BACKUP_CREATE,
        Action.TENANT_MANAGE,
        Action.SECURITY_READ,
        Action.SECURITY_OPERATE,
        Action.SYSTEM_SHUTDOWN,
    }
)
"""What concerns all tenants: for principals of the home tenant alone."""

ON_AGENTS = frozenset(action for action in Action if action.partition(":")[0] in {"task", "session", "agent", "alert"})
"""What is done on an agent; of the rest there is no more than one thing that it could be done on."""

EVERYTHING, AGENT = "*", "agent:"
_ACTION_FORM = re.compile(r"[a-z*]+(?::[a-z*]+)?\Z")
_AGENT_FORM = re.compile(r"agent:[a-z0-9_*-]{1,63}\Z")


class Grant(msgspec.Struct, frozen=True):
    """Leave to do *action* on *resource*; in both, ``*`` stands for any text (``task:*``, ``agent:research-*``)."""

    action: str
    resource: str = EVERYTHING

    def __str__(self) -> str:
        return self.action if self.resource == EVERYTHING else f"{self.action} on {self.resource}"

    def actions(self) -> list[Action]:
        """Return what it grants; on an agent, only what is done on agents."""
        found = [action for action in Action if matches(self.action, action)]
        return found if self.resource == EVERYTHING else [action for action in found if action in ON_AGENTS]


def parse(text: str) -> Grant:
    """Read a grant as people write it: ``ACTION`` or ``ACTION on agent:NAME``; raises ValueError with what is wrong.

    >>> parse("task:submit on agent:research-*")
    Grant(action='task:submit', resource='agent:research-*')
    """
    match text.split():
        case [action]:
            grant = Grant(action)
        case [action, "on", resource]:
            grant = Grant(action, _resource(resource))
        case _:
            raise ValueError('expected an action, or "ACTION on agent:NAME"')
    if _ACTION_FORM.match(action) is None or not Grant(action).actions():
        raise ValueError(f"there is no action {_quoted(action)}; {spelling.suggestion(action[:100], Action)}")
    if not grant.actions():
        raise ValueError(f"{action} is done on no agent; leave out {_quoted(f'on {grant.resource}')}")
    return grant


def _resource(text: str) -> str:
    if text == EVERYTHING or _AGENT_FORM.match(text) is not None:
        return EVERYTHING if text == f"{AGENT}*" else text
    meant = f'; did you mean "agent:{text}"?' if _AGENT_FORM.match(f"{AGENT}{text}") is not None else ""
    raise ValueError(f'there is no resource {_quoted(text)}; expected "*" or "agent:" and a name or pattern{meant}')


def is_agent(resource: str) -> bool:
    """Tell whether *resource* is an agent: one, no pattern."""
    return "*" not in resource and _AGENT_FORM.match(resource) is not None


def _quoted(text: str) -> str:
    printable = "".join(letter if letter.isprintable() else "�" for letter in text[:60])
    return f'"{printable}"'


def matches(pattern: str, text: str) -> bool:
    """Tell whether *pattern* stands for *text*.

    And where *text* is a pattern itself: whether it stands for all that this one does, for a ``*`` is matched by
    nothing but a ``*``.

    >>> matches("agent:research-*", "agent:research-1"), matches("agent:*", "agent:research-*"), matches("a*", "*")
    (True, True, False)
    """
    if "*" not in pattern:
        return pattern == text
    first, *middle, last = pattern.split("*")
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:  # the first place is the best one: what is left for the others is longest
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


Conjunction = tuple[str, ...]  # patterns, all of which a resource has to match


class Layer(msgspec.Struct, frozen=True):
    """Grants, and whose they are: for people."""

    name: str
    grants: tuple[Grant, ...]


class Reach:
    """The resources that an action is granted on: those that match all patterns of one of *conjunctions*."""

    MAX_KNOWN = 1_000

    __slots__ = ("_known", "conjunctions", "is_all")

    def __init__(self, conjunctions: Iterable[Conjunction]) -> None:
        found = tuple(dict.fromkeys(conjunctions))
        self.is_all = (EVERYTHING,) in found
        self.conjunctions: tuple[Conjunction, ...] = ((EVERYTHING,),) if self.is_all else found
        self._known: dict[str, bool] = {}  # resources, because patterns cost each task microseconds

    def holds(self, resource: str) -> bool:
        if self.is_all:
            return True
        known = self._known.get(resource)
        if known is None:
            known = any(all(matches(one, resource) for one in each) for each in self.conjunctions)
            if len(self._known) >= self.MAX_KNOWN:
                self._known.clear()
            self._known[resource] = known
        return known

    def covers(self, other: Reach) -> bool:
        """Tell whether every resource of *other* is certainly one of these: a proof, which may fail to be found."""
        return all(
            any(all(any(matches(mine, its) for its in theirs) for mine in each) for each in self.conjunctions)
            for theirs in other.conjunctions
        )

    def narrowed_to(self, patterns: Sequence[str]) -> Reach:
        """Return the resources that are also of one of *patterns*."""
        pairs = itertools.product(self.conjunctions, patterns)
        return Reach(both for each, pattern in pairs if (both := _both(each, pattern)) is not None)


def _both(conjunction: Conjunction, pattern: str) -> Conjunction | None:
    """Return what matches both, as few patterns as can be; None where nothing does."""
    kept = []
    for one in conjunction:
        if matches(one, pattern):
            continue  # it says no more than the pattern does
        if matches(pattern, one):
            return conjunction
        if "*" not in one or "*" not in pattern:
            return None
        kept.append(one)
    return (*sorted(kept), pattern)


class Rights:
    """What a principal may do: what each of *layers* grants."""

    __slots__ = ("_everywhere", "_reach", "layers")

    def __init__(self, layers: Iterable[Layer]) -> None:
        self.layers = tuple(layers)
        self._reach: dict[Action, Reach] = {}
        patterns = [_patterns(layer) for layer in self.layers]
        for action in Action if patterns else ():
            reach = Reach([(EVERYTHING,)])
            for each in patterns:
                reach = reach.narrowed_to(each.get(action, ()))
            if reach.conjunctions:
                self._reach[action] = reach
        self._everywhere = frozenset(action for action, reach in self._reach.items() if reach.is_all)

    def allows(self, action: Action, resource: str | None = None) -> bool:
        """Tell whether *action* may be done on *resource*; None: on any at all."""
        reach = self._reach.get(action)
        return reach is not None and (resource is None or reach.holds(resource))

    def on_agent(self, action: Action, name: str) -> bool:
        """Tell whether *action* may be done on the agent *name*."""
        return action in self._everywhere or self.allows(action, AGENT + name)

    def on_all(self, action: Action) -> bool:
        """Tell whether *action* may be done on whatever there is."""
        return action in self._everywhere

    def agents(self, action: Action) -> tuple[Conjunction, ...] | None:
        """Return the agents that *action* may be done on, as patterns of their names: each has to match all of one of
        these. None: all of them.
        """
        reach = self._reach.get(action)
        if reach is None:
            return ()
        if reach.is_all:
            return None
        return tuple(tuple(one.removeprefix(AGENT) for one in each) for each in reach.conjunctions)

    def covers(self, other: Rights) -> bool:
        """Tell whether who has these may grant *other*: it is certain that they allow no more."""
        return not self.lacks(other)

    def lacks(self, other: Rights) -> list[Action]:
        """Return the actions that *other* may reach further with than these do, as far as can be seen."""
        mine = self._reach
        return [action for action, its in other._reach.items() if action not in mine or not mine[action].covers(its)]

    def why(self, action: Action, resource: str | None = None) -> str:
        """Return which grants allow it, or which layer does not, for people."""
        if not self.layers:
            return "nothing is granted"
        found = []
        for layer in self.layers:
            granted = [grant for grant in layer.grants if action in grant.actions()]
            grant = next((each for each in granted if resource is None or matches(each.resource, resource)), None)
            if grant is None:
                return f"{layer.name} does not grant {action}" + (f" on {resource}" if resource and granted else "")
            found.append(f'"{grant}" of {layer.name}')
        return " and ".join(found)


def _patterns(layer: Layer) -> dict[Action, list[str]]:
    found: dict[Action, list[str]] = {}
    for grant in layer.grants:
        for action in grant.actions():
            found.setdefault(action, []).append(grant.resource)
    return found


class Principal(msgspec.Struct, frozen=True):
    """The caller, as proven: *id* is a key's id, or a token's issuer and subject; *kind* is key, token or login."""

    id: str
    kind: str
    tenant: str
    name: str
    role: str
    rights: Rights
    expires_at_s: int | None = None  # of a token, since 1970; what a key does is known where keys are


Roles = Mapping[str, tuple[Grant, ...]]


def _role(base: Sequence[Grant], *actions: Action) -> tuple[Grant, ...]:
    return (*base, *(Grant(action) for action in actions))


_VIEWER = _role(
    (),
    Action.TASK_READ,
    Action.SESSION_READ,
    Action.AGENT_READ,
    Action.AGENT_OBSERVE,
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
    Action.RECEIVER_MANAGE,
    Action.WEBHOOK_MANAGE,
    Action.BACKUP_READ,
    Action.BACKUP_CREATE,
    Action.SECURITY_READ,
)
_ADMIN = _role((), *Action)

ROLES: Roles = {"viewer": _VIEWER, "user": _USER, "operator": _OPERATOR, "admin": _ADMIN}

_NOT_HOME = tuple(Grant(action) for action in Action if action not in SYSTEM)


@functools.lru_cache(maxsize=1024)
def _rights(layers: tuple[Layer, ...]) -> Rights:
    return Rights(layers)


def rights(role: str, *, tenant: str, scopes: Iterable[Grant] | None = None, roles: Roles = ROLES) -> Rights:
    """Return what *role* may do in *tenant*, narrowed by *scopes*; an unknown role may do nothing."""
    layers = [Layer(_called(role, roles), roles.get(role, ()))]
    if scopes is not None:
        layers.append(Layer("the key's scope list", tuple(scopes)))
    if tenant != HOME:
        layers.append(Layer(f"the tenant {tenant} (not the node's own)", _NOT_HOME))
    return _rights(tuple(layers))


def _called(role: str, roles: Roles) -> str:
    if role == NO_ROLE:
        return "the token, which names no role that is known here,"
    return f"the role {role}" if role in roles else f"the unknown role {role}"
