"""Submissions: what a caller asks for, completed by what its agent's spec says. For the API and ``Context.call``."""

from __future__ import annotations

import hashlib
from datetime import datetime

from greenroom import random_bits, settings
from greenroom.store import database
from greenroom.store.rows import NewTask


def new_id() -> str:
    """Return 128 unpredictable bits, as 32 hexadecimal digits (ASVS 11.5.1: not a plain UUID)."""
    return random_bits.token_hex(16)


def task_id(now: datetime) -> str:
    """Return *now* in milliseconds and 128 unpredictable bits, as 11 and 32 hexadecimal digits.

    The time is in front so that tasks of one commit, and their events, share pages: each of ids that are random from
    their first digit would have three pages of its own written.
    """
    return f"{database.microseconds(now) // 1000:011x}{new_id()}"


def fingerprint(*parts: bytes) -> bytes:
    """Return what two equal requests have in common."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()[:16]


def new_task(
    agent: str,
    spec: settings.AgentSettings,
    *,
    now: datetime,
    tenant: str,
    input: bytes,
    submitted_by: str,
    session: str | None = None,
    priority: int = 0,
    timeout_s: float | None = None,
    not_before: datetime | None = None,
    deadline_us: int | None = None,
    parent: str | None = None,
    depth: int = 0,
    idempotency_key: str | None = None,
    fingerprint: bytes | None = None,
    metadata: bytes | None = None,
    routing: bytes | None = None,
) -> NewTask:
    """Build the task. *timeout_s* is of the whole task, queue included; the spec's is of one attempt."""
    return NewTask(
        id=task_id(now),
        tenant=tenant,
        agent=agent,
        input=input,
        submitted_by=submitted_by,
        run_timeout_us=int(spec.timeout_s * 1e6),
        max_attempts=spec.max_attempts,
        on_replica_loss=spec.on_replica_loss,
        retry_backoff_us=int(spec.retry_backoff_s * 1e6),
        session=session,
        priority=priority,
        not_before=None if not_before is None else database.microseconds(not_before),
        deadline_at=deadline_us,
        timeout_us=None if timeout_s is None else int(timeout_s * 1e6),
        parent=parent,
        depth=depth,
        idempotency_key=idempotency_key,
        fingerprint=fingerprint,
        metadata=metadata,
        routing=routing,
    )
