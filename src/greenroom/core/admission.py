"""Admission: who may do what. Roles are sets of permissions; what is not granted is denied. Pure."""

from __future__ import annotations

import enum
from collections import OrderedDict


class Permission(enum.StrEnum):
    SUBMIT = "submit"  # submit, cancel and retry tasks, remove sessions
    READ = "read"  # see tasks, sessions, agents, replicas and the status
    OPERATE = "operate"  # scale, restart and drain; see and make backups
    DEPLOY = "deploy"  # change agents: as powerful as a shell
    KEYS = "keys"  # create and revoke keys


_VIEWER = frozenset({Permission.READ})
_USER = _VIEWER | {Permission.SUBMIT}
_OPERATOR = _USER | {Permission.OPERATE}
_ADMIN = _OPERATOR | {Permission.DEPLOY, Permission.KEYS}

ROLES: dict[str, frozenset[Permission]] = {
    "viewer": _VIEWER,
    "user": _USER,
    "operator": _OPERATOR,
    "admin": _ADMIN,
}


def allows(role: str, permission: Permission) -> bool:
    return permission in ROLES.get(role, frozenset())


class Rejections:
    """Counts rejected credentials by source in a sliding minute; bounded, the quietest source is forgotten first."""

    LIMIT_PER_MINUTE = 30
    MAX_SOURCES = 10_000
    PERIOD_S = 60.0

    def __init__(self) -> None:
        self._times: OrderedDict[str, list[float]] = OrderedDict()

    def note(self, source: str, now_s: float) -> None:
        times = self._times.setdefault(source, [])
        times.append(now_s)
        del times[: -self.LIMIT_PER_MINUTE]
        self._times.move_to_end(source)
        if len(self._times) > self.MAX_SOURCES:
            self._times.popitem(last=False)

    def wait_s(self, source: str, now_s: float) -> float:
        """Return the seconds for which *source* has to wait; 0 if it may try."""
        times = self._times.get(source)
        if times is None or len(times) < self.LIMIT_PER_MINUTE:
            return 0.0
        return max(0.0, times[0] + self.PERIOD_S - now_s)
