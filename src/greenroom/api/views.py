"""Rows of the store as the documents that the API shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from greenroom import redaction, settings
from greenroom.api import grading, schemas
from greenroom.core import agents, costs, grades, health, history, rollouts, strategies, traces
from greenroom.core.alerts import Silence
from greenroom.engine import said
from greenroom.sdk import models
from greenroom.store import database
from greenroom.store.advice import Advice
from greenroom.store.agents import Replica, Revision
from greenroom.store.alerts import Alert
from greenroom.store.board import Board
from greenroom.store.data_keys import KeysOfTenant
from greenroom.store.directory import Entry
from greenroom.store.logs import StoredLine
from greenroom.store.recovery import Failure
from greenroom.store.resealing import Progress
from greenroom.store.rollouts import Rollout
from greenroom.store.rows import Accepted, NewTask, StoredEvent, Task
from greenroom.store.scaling import Decision, Load
from greenroom.store.sessions import Session, Summary
from greenroom.store.vault import Vault

_NULL = msgspec.Raw(b"null")


def _raw(value: bytes | None) -> msgspec.Raw:
    return _NULL if value is None else msgspec.Raw(value)


_at = database.instant_or_none


def task(
    row: Task,
    moves: Sequence[StoredEvent],
    trace_url: str | None = None,
    *,
    prices: costs.Prices | None = None,
) -> dict[str, Any]:
    """Return the document of a task; *moves* tell of its attempts but the last, of which its row does.

    *trace_url* is the template of links to traces; without *prices* what it has cost is not known.
    """
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
        "usage": {
            "input_tokens": row.input_tokens,
            "output_tokens": row.output_tokens,
            "cost_usd": None if prices is None else _cost_usd(row, prices),
        },
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
    if row.cached_from is not None:
        document["cached_from"] = row.cached_from
    if row.trace is not None:
        document |= _trace(row.trace, trace_url)
    return document


def _cost_usd(row: Task, prices: costs.Prices) -> float:
    has_run = row.has_ended and row.started_at is not None
    nano = prices.of(input_tokens=row.input_tokens, output_tokens=row.output_tokens, tasks=int(has_run))
    return costs.usd(nano)


def _trace(text: str, url: str | None) -> dict[str, str]:
    if (id := traces.trace_id_of(text)) is None:
        return {}
    return {"trace_id": id} if url is None else {"trace_id": id, "trace_url": url.replace("{trace_id}", id)}


def new_task(given: NewTask, accepted: Accepted, trace_url: str | None = None) -> dict[str, Any]:
    """Return the document of a task that was accepted just now, as `task` would show its row: no need to read it."""
    document: dict[str, Any] = {
        "id": given.id,
        "agent": given.agent,
        "revision": None,
        "state": "queued",
        "input": msgspec.Raw(given.input),
        "output": None,
        "error": None,
        "session": given.session,
        "priority": given.priority,
        "attempt": 0,
        "attempts": [],
        "max_attempts": given.max_attempts,
        "usage": {"input_tokens": 0, "output_tokens": 0, "cost_usd": None},
        "created_at": _at(accepted.created_at),
        "started_at": None,
        "finished_at": None,
        "not_before": _at(given.not_before),
        "deadline_at": _at(accepted.deadline_at),
        "parent": given.parent,
        "metadata": _raw(given.metadata),
    }
    if given.routing is not None:
        document["routing"] = msgspec.Raw(given.routing)
    if given.trace is not None:
        document |= _trace(given.trace, trace_url)
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


def ready(rows: Iterable[Replica], board: Board) -> grading.Ready:
    """Return the replicas that are ready, by agent and revision; of those without any, none.

    Not those that run one suspect alone: they are beside their agent's number.
    """
    found: grading.Ready = defaultdict(list)
    for row in rows:
        if row.state == "ready" and not board.runs_alone(row.id):
            found[row.agent, row.revision].append(grades.Graded(row.id, health.Grade(row.grade), row.reason))
    return found


def full(entries: Mapping[str, Entry], most: int) -> int | None:
    """Return *most*, which all agents together may have, where they have it."""
    return most if sum(entry.agent.replicas for entry in entries.values()) >= most else None


def _reason(entry: Entry, *, queued: int, full: int | None) -> str:
    """Return why the agent stands as it does; where it sleeps though tasks wait, what keeps it from waking."""
    row = entry.agent
    if entry.wanted or not queued or full is None or row.state != agents.State.READY:
        return row.reason
    tasks = "1 task waits" if queued == 1 else f"{queued} tasks wait"
    return f"{tasks}, and cluster.max_replicas ({full}) leaves no replica: see greenroom scale explain {row.name}"


def agent(
    entry: Entry,
    *,
    ready: grading.Ready,
    open_counts: Mapping[str, int],
    breaker: models.BreakerState,
    full: int | None,
    finding: health.Finding = grades.TOO_FEW,
    is_observed: bool = True,
) -> dict[str, Any]:
    """Return the document of an agent; without what others have caused or decided, unless *is_observed*."""
    row, spec = entry.agent, entry.spec
    graded = grading.agent(entry, ready, finding)
    if not is_observed:
        return agent(
            entry, ready=ready, open_counts=open_counts, breaker=_said_to_all(breaker), full=full, finding=finding
        ) | {
            "reason": None,
            "grade_reason": None,
            "spec": None,
            "rollout": None,
        }
    return {
        "name": row.name,
        "description": redaction.text(spec.description),
        "state": row.state,
        "reason": _reason(entry, queued=open_counts.get("queued", 0), full=full),
        "grade": graded.grade,
        "grade_reason": graded.reason,
        "revision": row.revision,
        "generation": row.generation,
        "adapter": row.adapter,
        "replicas": {"desired": entry.wanted, "ready": len(ready[row.name, row.revision])},
        "queued": open_counts.get("queued", 0),
        "running": open_counts.get("running", 0),
        "waiting": open_counts.get("waiting", 0),
        "concurrency": spec.concurrency,
        "sessions": spec.sessions,
        "skills": spec.skills,
        "examples": redaction.value(spec.examples),
        "spec": _shown_spec(row.spec),
        "updated_at": _at(row.updated_at),
        "rollout": None if entry.rollout is None else rollout(entry.rollout, desired=row.replicas, ready=ready),
        "breaker": breaker,
    }


def agent_status(
    entry: Entry,
    *,
    ready: grading.Ready,
    tasks: dict[str, int],
    breaker: models.BreakerState,
    full: int | None,
    finding: health.Finding = grades.TOO_FEW,
    is_observed: bool = True,
) -> schemas.AgentStatus:
    """Return how an agent stands; without what others have caused or decided, unless *is_observed*."""
    row = entry.agent
    graded = grading.agent(entry, ready, finding)
    return schemas.AgentStatus(
        name=row.name,
        state=row.state,
        reason=_reason(entry, queued=tasks.get("queued", 0), full=full) if is_observed else "",
        grade=graded.grade,
        grade_reason=graded.reason if is_observed else "",
        revision=row.revision,
        replicas=models.ReplicaCount(desired=entry.wanted, ready=len(ready[row.name, row.revision])),
        tasks=tasks,
        rollout=_rollout_status(entry.rollout) if is_observed else None,
        breaker=breaker if is_observed else _said_to_all(breaker),
    )


def _said_to_all(breaker: models.BreakerState) -> models.BreakerState:
    """Leave out why it opened: that quotes an error of somebody's task."""
    return msgspec.structs.replace(breaker, reason=None)


def _rollout_status(row: Rollout | None) -> schemas.RolloutStatus | None:
    if row is None or not row.state.is_open:
        return None
    return schemas.RolloutStatus(
        id=row.id, state=row.phase, to_revision=row.to_revision, weight_pct=row.state.weight_pct
    )


def _shown_spec(spec: bytes) -> dict[str, Any]:
    document = msgspec.json.decode(spec)
    arguments = document.pop("arguments", {})
    shown: dict[str, Any] = redaction.value(document)
    shown["arguments"] = {
        name: settings.masked(("agents", "", "arguments", name), value) for name, value in arguments.items()
    }
    return shown


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


def revision(row: Revision) -> models.Revision:
    return models.Revision(
        agent=row.agent,
        number=row.number,
        digest=row.digest,
        created_at=_at(row.created_at),
        proven_at=_at(row.proven_at),
        retired_at=_at(row.retired_at),
    )


def rollout(row: Rollout, *, desired: int, ready: grading.Ready) -> models.Rollout:
    """Return the document of a rollout of an agent that should have *desired* replicas."""
    state, left_s = row.state, rollouts.left_s(row.state)
    return models.Rollout(
        id=row.id,
        agent=row.agent,
        strategy=row.strategy,
        from_revision=row.from_revision,
        to_revision=row.to_revision,
        state=row.phase,
        stage=state.stage + 1 if state.stages else 0,
        stages=stages(state, desired=rollouts.wanted(state, desired)),
        weight_pct=state.weight_pct,
        ready=len(ready[row.agent, row.to_revision]),
        old_ready=0 if row.from_revision is None else len(ready[row.agent, row.from_revision]),
        reason=row.reason,
        is_proven=state.is_proven,
        awaits_promotion=state.awaits_promotion,
        held_s=state.held_s,
        waited_s=state.waited_s,
        evidence=tuple(_tallies(state)),
        begun_by=row.begun_by,
        created_at=_at(row.created_at),
        updated_at=_at(row.updated_at),
        ended_at=_at(row.ended_at),
        due_at=None if left_s is None else database.instant(row.updated_at + round(left_s * 1e6)),
        moments=tuple(map(_moment, state.moments)),
    )


def _moment(moment: rollouts.Moment) -> models.Moment:
    return models.Moment(
        at=database.instant(moment.at_us),
        state=moment.phase,
        stage=moment.stage + 1,
        weight_pct=moment.weight_pct,
        reason=moment.reason,
    )


def stages(state: rollouts.Rollout, *, desired: int) -> tuple[models.Stage, ...]:
    """Return the stages of a rollout as numbers of the *desired* replicas."""
    has_old = state.from_revision is not None

    def count(pct: float) -> int:
        return strategies.replicas(pct, desired) if desired else 0

    return tuple(
        models.Stage(
            weight_pct=stage.weight_pct,
            replicas=count(stage.capacity_pct),
            old_replicas=count(stage.old_pct) if has_old else 0,
            hold_s=stage.hold_s,
        )
        for stage in state.stages
    )


def _tallies(state: rollouts.Rollout) -> Iterator[models.Tally]:
    """Yield what was counted on both revisions, weight by weight; not of a revision that got nothing."""
    if state.from_revision is None:
        return
    for each in state.evidence:
        sides = (
            (state.from_revision, 100 - each.weight_pct, each.serving),
            (state.to_revision, each.weight_pct, each.candidate),
        )
        for revision, weight_pct, tally in sides:
            if weight_pct or tally.tasks:
                yield models.Tally(
                    revision=revision,
                    weight_pct=weight_pct,
                    tasks=tally.tasks,
                    errors=tally.errors,
                    slow=tally.slow,
                    refused=tally.refused,
                    costly=tally.costly,
                )


def scaling_decision(row: Decision) -> models.ScalingDecision:
    return models.ScalingDecision(
        at=_at(row.at),
        from_replicas=row.from_replicas,
        to_replicas=row.to_replicas,
        rule=row.rule,
        reason=row.reason,
        inputs=msgspec.json.decode(row.inputs),
        by=row.decided_by,
    )


def load(row: Load) -> models.Load:
    return models.Load(
        at=_at(row.at),
        arrivals=row.arrivals,
        ends=row.ends,
        run_s=None if row.run_us is None else row.run_us / 1e6,
        waiting=row.waiting,
        busy=row.busy,
        replicas=row.replicas,
        start_s=None if row.start_us is None else row.start_us / 1e6,
    )


def log_line(row: StoredLine) -> models.LogLine:
    return models.LogLine(
        seq=row.seq,
        at=database.instant(row.at),
        level=said.level_of(row.level),
        agent=row.agent,
        replica=row.replica or None,
        task=row.task,
        epoch=row.epoch,
        source=row.source,
        logger=row.logger or None,
        text=row.text.decode("utf-8", "replace"),
        trace_id=None if row.trace is None else traces.trace_id_of(row.trace),
    )


def history_bucket(at_us: int, step_s: int, counts: history.Counts) -> models.HistoryBucket:
    return models.HistoryBucket(
        at=database.instant(at_us),
        step_s=step_s,
        attempts=counts.attempts,
        judged=counts.judged,
        errors=counts.errors,
        retries=counts.retries,
        tokens=counts.tokens,
        input_tokens=counts.input_tokens,
        cost_usd=None if counts.cost is None else costs.usd(counts.cost),
        tasks=counts.tasks,
        states=counts.states,
        reasons=counts.reasons,
        run=_durations(counts.run),
        wait=_durations(counts.wait),
        response=_durations(counts.response),
    )


def _durations(seen: history.Histogram) -> models.Durations | None:
    spread = seen.spread()
    if spread is None:
        return None
    return models.Durations(count=spread.count, mean_s=round(spread.mean, 6), p50_s=spread.p50, p95_s=spread.p95)


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


def alert(row: Alert, silenced_by: list[str]) -> dict[str, Any]:
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
        "silenced_by": silenced_by,
    }


def silence(row: Silence) -> models.Silence:
    return models.Silence(
        id=row.id,
        alert=row.alert,
        kind=row.kind,
        agent=row.agent,
        severity=row.severity,
        comment=row.comment,
        created_by=row.created_by,
        created_at=database.instant(row.created_at),
        until=database.instant(row.until_at),
    )


def advice(row: Advice) -> models.Advice:
    return models.Advice(
        id=row.id,
        rule=row.rule,
        state=row.state,
        agent=row.agent,
        what=row.what,
        why=row.why,
        expected=row.expected,
        metric=row.metric,
        before=row.value_before,
        wanted=row.value_wanted,
        after=row.value_after,
        outcome=row.outcome,
        opened_at=_at(row.opened_at),
        applied_at=_at(row.applied_at),
        ended_at=_at(row.ended_at),
    )


def session(row: Session | Summary) -> dict[str, Any]:
    """Return the document of a session; with its state if the row has it."""
    document = {
        "id": row.id,
        "agent": row.agent,
        "revision": row.revision,
        "pinned_revision": row.pin,
        "tasks": row.tasks,
        "created_at": _at(row.created_at),
        "updated_at": _at(row.updated_at),
    }
    if isinstance(row, Summary):
        return document | {"state_bytes": row.state_bytes}
    return document | {"state_bytes": len(row.state or b""), "state": _raw(row.state)}


def encryption(vault: Vault, progress: Progress, keys: Sequence[KeysOfTenant]) -> models.Encryption:
    return models.Encryption(
        mode=vault.mode,
        key=vault.key,
        managed=vault.keys.is_managed,
        progress=models.Resealing(**msgspec.structs.asdict(progress)),
        tenants=tuple(models.TenantKeys(**msgspec.structs.asdict(each)) for each in keys),
    )
