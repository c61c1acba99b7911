"""Tells of requests that were refused: whoever watches (`control.intrusion`, `control.auditor`) hears of them here.

What is told of a rejected credential is told where it is counted (`limits`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from greenroom import errors, telemetry
from greenroom.core.permissions import Principal

TOLD = frozenset({403, 404, 429})
MAX_PATH = 200  # characters


def tell(
    facts: telemetry.Telemetry,
    scope: Mapping[str, Any],
    error: errors.GreenroomError,
    *,
    principal: Principal | None,
    source: str,
) -> None:
    """Tell that *error* answers the request of *scope*, which came from *source*; *principal* None: nobody is known."""
    if principal is None or error.status not in TOLD:
        return
    path = scope["path"][:MAX_PATH]
    method = scope["method"][:16]
    facts.emit(telemetry.RequestRefused(principal.id, principal.tenant, source, error.status, error.code, method, path))
    if error.status == 404 and _climbs(path):
        facts.emit(telemetry.RequestForged(source, "a path that climbs", principal.id))


def _climbs(path: str) -> bool:
    return "\0" in path or ".." in path.replace("\\", "/").split("/")
