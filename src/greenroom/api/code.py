"""The route that brings code to the node."""

from __future__ import annotations

import hashlib

from greenroom import errors
from greenroom.api.request import Answer, Call


async def upload(call: Call) -> Answer:
    """Bring an agent's code: a gzipped tar of its files. It runs when it is deployed by its digest."""
    if not call.services.settings.server.accept_code:
        raise errors.Forbidden(
            "cannot take code: this node runs what lies in its own folder; to let callers who may deploy bring theirs, "
            "set server.accept_code = true in its manifest and start it again"
        )
    await call.audit("code.upload", f"code:{hashlib.sha256(call.body).hexdigest()[:16]}", bytes=len(call.body))
    return Answer(await call.services.deployments.bring(call.body), status=201)
