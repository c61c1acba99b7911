"""Who is acting: set once for each request, read by whatever is written in its course, for the audit log.

What no request asked for is done by the node itself.
"""

from __future__ import annotations

from contextvars import ContextVar

import msgspec


class Actor(msgspec.Struct, frozen=True):
    """*principal* is the id of who is proven, *source* the address that the request came from, *request* its id."""

    principal: str
    tenant: str
    source: str
    request: str


actor: ContextVar[Actor | None] = ContextVar("greenroom_actor", default=None)
