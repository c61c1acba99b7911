"""Rows of the store as the documents that the API shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from greenroom import settings
from greenroom.api import schemas
from greenroom.core import agents, health
from greenroom.sdk import models
from greenroom.store import database
from greenroom.store.agents import Replica, Revision
from greenroom.store.directory import Entry
from greenroom.store.recovery import Alert, Failure
from greenroom.store.rows import StoredEvent, Task
from greenroom.store.sessions import Session, Summary

_NULL = msgspec.Raw(b"null")


def _raw(value: bytes | None) -> msgspec.Raw:
    return _NULL if value is None else msgspec.Raw(value)


def _at(microseconds: int | None) -> datetime | None:
    return database.instant_or_none(microseconds)


def task(row: Task, moves: Sequence[StoredEvent]) -> dict[str, Any]:
    """Return the document of a task; *moves* tell of its attempts but the last, of which its row does."""
    document: dict[str, Any] = {
        "id": row.id,
        "agent": row.agent,
        "revision": row.revision,
        "state": row.state,
        "input": _raw(row.input),
        "output": _raw(row.output),
        "error": _raw(row.error),
        "session": row.session,
        "priority": row.priority,
        "attempt": row.attempts_charged,
        "attempts": attempts(row, moves),
        "max_attempts": row.max_attempts,
        "usage": {"input_tokens": row.input_tokens, "output_tokens": row.output_tokens},
        "created_at": _at(row.created_at),
        "started_at": _at(row.started_at),
        "finished_at": _at(row.finished_at),
        "not_before": _at(row.not_before),
        "deadline_at": _at(row.deadline_at),
        "parent": row.parent,
        "metadata": _raw(row.metadata),
    }
    if row.routing is not None:
        document["routing"] = msgspec.Raw(row.routing)
    return document


def attempts(row: Task, moves: Sequence[StoredEvent]) -> list[dict[str, Any]]:
    """Return a task's attempts, oldest first: the last as the row tells it, those before as *moves* do."""
    by_epoch: dict[int, dict[str, Any]] = {}
    for move in moves:
        data = msgspec.json.decode(move.data)
        if data["state"] == "running" and "attempt" in data:
            told = (data["attempt"], data["replica"], data["revision"])
            by_epoch[move.epoch] = _attempt(move.epoch, *told, move.at)
        elif "reason" in data and move.epoch in by_epoch and by_epoch[move.epoch]["ended_at"] is None:
            by_epoch[move.epoch] |= {"ended_at": _at(move.at), "reason": data["reason"]}
    if row.claim_seq is not None:
        last = _attempt(row.epoch, row.attempts_charged, row.replica, row.revision, row.claimed_at)
        by_epoch[row.epoch] = last | {"ended_at": _at(row.finished_at), "reason": row.reason}
    return list(by_epoch.values())


def _attempt(
    epoch: int, number: int, replica: str | None, revision: int | None, started_at: int | None
) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "attempt": number,
        "replica": replica,
        "revision": revision,
        "started_at": _at(started_at),
        "ended_at": None,
        "reason": None,
    }


def event(row: StoredEvent) -> dict[str, Any]:
    return {"seq": row.seq, "type": row.type, "at": _at(row.at), "data": msgspec.Raw(row.data)}


def ready(rows: Iterable[Replica]) -> dict[str, list[health.Graded]]:
    """Return each agent's replicas that are ready; of an agent without any, none."""
    by_agent: dict[str, list[health.Graded]] = defaultdict(list)
    for row in rows:
        if row.state == "ready":
            by_agent[row.agent].append(health.Graded(row.id, health.Grade(row.grade), row.reason))
    return by_agent


def grade(entry: Entry, replicas: Sequence[health.Graded]) -> tuple[health.Grade, str]:
    """Grade an agent by its *replicas* that are ready."""
    row = entry.agent
    has_failed = row.state in (agents.State.FAILED, agents.State.QUARANTINED)
    return health.of_agent(row.replicas, replicas, failure=row.reason if has_failed else "")


def agent(
    entry: Entry, *, replicas: Sequence[health.Graded], open_counts: dict[tuple[str, str], int]
) -> dict[str, Any]:
    row, spec = entry.agent, entry.spec
    graded, why = grade(entry, replicas)
    return {
        "name": row.name,
        "description": spec.description,
        "state": row.state,
        "reason": row.reason,
        "grade": graded,
        "grade_reason": why,
        "revision": row.revision,
        "generation": row.generation,
        "adapter": row.adapter,
        "replicas": {"desired": row.replicas, "ready": len(replicas)},
        "queued": open_counts.get((row.name, "queued"), 0),
        "running": open_counts.get((row.name, "running"), 0),
        "waiting": open_counts.get((row.name, "waiting"), 0),
        "concurrency": spec.concurrency,
        "sessions": spec.sessions,
        "skills": spec.skills,
        "examples": spec.examples,
        "spec": _shown_spec(row.spec),
        "updated_at": _at(row.updated_at),
    }


def agent_status(entry: Entry, *, replicas: Sequence[health.Graded], tasks: dict[str, int]) -> schemas.AgentStatus:
    row = entry.agent
    graded, why = grade(entry, replicas)
    return schemas.AgentStatus(
        name=row.name,
        state=row.state,
        reason=row.reason,
        grade=graded,
        grade_reason=why,
        revision=row.revision,
        replicas=models.ReplicaCount(desired=row.replicas, ready=len(replicas)),
        tasks=tasks,
    )


def _shown_spec(spec: bytes) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode(spec)
    arguments = document.get("arguments", {})
    document["arguments"] = {
        name: settings.masked(("agents", "", "arguments", name), value) for name, value in arguments.items()
    }
    return document


def replica(row: Replica, *, busy: int) -> dict[str, Any]:
    return {
        "id": row.id,
        "agent": row.agent,
        "revision": row.revision,
        "node": row.node,
        "pid": row.pid,
        "state": row.state,
        "grade": row.grade,
        "reason": row.reason,
        "busy": busy,
        "slots": row.slots,
        "memory_mb": row.memory_mb,
        "restarts": row.restarts,
        "started_at": _at(row.started_at),
    }


def revision(row: Revision) -> schemas.Revision:
    return schemas.Revision(
        agent=row.agent, number=row.number, digest=row.digest, created_at=database.instant(row.created_at)
    )


def failure(row: Failure) -> dict[str, Any]:
    return {
        "agent": row.agent,
        "revision": row.revision,
        "replica": row.replica,
        "node": row.node,
        "kind": row.kind,
        "reason": row.reason,
        "action": row.rung,
        "at": _at(row.at),
        "recovered_at": _at(row.recovered_at),
        "recovered_by": row.recovered_by,
    }


def alert(row: Alert) -> dict[str, Any]:
    return {
        "id": row.id,
        "kind": row.kind,
        "agent": row.agent,
        "severity": row.severity,
        "state": row.state,
        "reason": row.reason,
        "count": row.count,
        "first_at": _at(row.first_at),
        "last_at": _at(row.last_at),
        "acknowledged_at": _at(row.acknowledged_at),
        "acknowledged_by": row.acknowledged_by,
        "resolved_at": _at(row.resolved_at),
    }


def session(row: Session | Summary) -> dict[str, Any]:
    """Return the document of a session; with its state if the row has it."""
    document = {
        "id": row.id,
        "agent": row.agent,
        "revision": row.revision,
        "tasks": row.tasks,
        "created_at": _at(row.created_at),
        "updated_at": _at(row.updated_at),
    }
    if isinstance(row, Summary):
        return document | {"state_bytes": row.state_bytes}
    return document | {"state_bytes": len(row.state or b""), "state": _raw(row.state)}
