"""Tells of requests that were refused: whoever watches (`control.intrusion`, `control.auditor`) hears of them here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from greenroom import errors, telemetry
from greenroom.security import keys
from greenroom.store import acting

TOLD = frozenset({401, 403, 404, 429})
MAX_PATH = 200  # characters


def tell(facts: telemetry.Telemetry, scope: Mapping[str, Any], error: errors.GreenroomError, *, source: str) -> None:
    """Tell that *error* answers the request of *scope*, which came from *source*."""
    actor, path = acting.actor.get(), scope["path"][:MAX_PATH]
    if actor is None:  # nobody is known: a rejected credential, whatever the error is
        why = "throttled" if error.status == 429 else "unknown"
        facts.emit(telemetry.CredentialRejected(source, _key_id(scope), why))
    else:
        facts.emit(
            telemetry.RequestRefused(
                actor.principal, actor.tenant, source, error.status, error.code, scope["method"][:16], path
            )
        )
    if error.status == 404 and _climbs(path):
        principal = "" if actor is None else actor.principal
        facts.emit(telemetry.RequestForged(source, "a path that climbs", principal))


def _key_id(scope: Mapping[str, Any]) -> str:
    """Return the id of the key that was presented; "" where there is none that could be one."""
    text = dict(scope["headers"]).get(b"authorization", b"")[:512].decode("latin-1")
    presented = keys.parse(text[7:].strip()) if text[:7].lower() == "bearer " else None
    return "" if presented is None else presented.id


def _climbs(path: str) -> bool:
    return "\0" in path or ".." in path.replace("\\", "/").split("/")
