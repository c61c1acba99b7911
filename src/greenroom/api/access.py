"""Whether a caller may do what a route does, on the object that it names.

What may not be read is answered as if it were not there, to the byte; what may be read but not done, with 403. So
nobody learns of an object by what they are refused.
"""

from __future__ import annotations

from greenroom import errors
from greenroom.api.request import Call
from greenroom.core.permissions import AGENT, Action
from greenroom.store.directory import Entry


def require(call: Call, action: Action, agent: str) -> None:
    """Raise `errors.Forbidden` unless *action* may be done on *agent*."""
    if not call.principal.rights.on_agent(action, agent):
        why = call.principal.rights.why(action, AGENT + agent)
        raise errors.Forbidden(f"cannot {action} on {AGENT}{agent}: {why}")


def find_agent(call: Call, name: str, action: Action) -> Entry:
    """Return the agent *name*, on which *action* is to be done.

    Raises `errors.NotFound` naming the agents that the caller may know of, or `errors.Forbidden`.
    """
    rights, directory = call.principal.rights, call.store.directory
    entry = directory.entries.get(name)
    if entry is not None and rights.on_agent(action, name):  # as nearly all are
        return entry

    def is_known(each: str) -> bool:
        return rights.on_agent(action, each) or rights.on_agent(Action.AGENT_READ, each)

    if entry is None or not is_known(name):
        known = ", ".join(filter(is_known, sorted(directory.entries))) or "none is deployed"
        raise errors.NotFound(f"cannot find the agent {name[:64]!r}; there are: {known}")
    require(call, action, name)
    return entry


def check_object(call: Call, agent: str, *, read: Action, action: Action, missing: str) -> None:
    """Check that *action* may be done on an object of *agent*: one that may be read by *read*.

    Raises `errors.NotFound`, saying *missing* as where there is no such object, or `errors.Forbidden`.
    """
    if not call.principal.rights.on_agent(read, agent):
        raise errors.NotFound(missing)
    if action != read:
        require(call, action, agent)
