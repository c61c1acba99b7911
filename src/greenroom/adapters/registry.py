"""Which adapter knows an agent: a built-in one, or one of the entry points ``greenroom.adapters``.

Entry points are looked up only for objects that no built-in adapter knows, so that a replica does not pay for
them. Any other callable object is taken last, so that an adapter may claim agents that happen to be callable.
"""

from __future__ import annotations

import functools

from greenroom.adapters import autogen_agentchat, autogen_classic, callables, contract

ENTRY_POINT_GROUP = "greenroom.adapters"

_FIRST: tuple[contract.Adapter, ...] = (
    autogen_agentchat.AgentChat(),
    autogen_classic.Classic(),
    callables.Functions(),
)
_LAST: tuple[contract.Adapter, ...] = (callables.CallableObjects(),)


def find(agent: object) -> contract.Adapter | None:
    """Return the adapter that knows *agent*, or None."""
    for adapter in _FIRST:
        if adapter.recognises(agent):
            return adapter
    for adapter in (*_installed(), *_LAST):
        if adapter.recognises(agent):
            return adapter
    return None


@functools.cache
def _installed() -> tuple[contract.Adapter, ...]:
    from importlib import metadata  # dear to import, and seldom needed

    return tuple(entry_point.load()() for entry_point in metadata.entry_points(group=ENTRY_POINT_GROUP))
