"""Every request that the API takes, as a value: what to send, how often, and how to read the answer.

No I/O: `flows` decides when to send, `client` sends. The one place that knows paths and bodies.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from greenroom import errors, strict_json
from greenroom.sdk import health as health_models
from greenroom.sdk import models, problems, security, tracing

T = TypeVar("T")
Query = Mapping[str, str | int | float | None]

FOLLOW_S = 3600  # the longest that a node keeps one connection for the logs
REHEARSAL_S = 400.0  # a replica starts, and is given the stored sessions


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came; *retry_after_s* is its header, in seconds."""

    status: int
    content: bytes
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request. *repeatable*: twice is as good as once; *wait_s*: how long the answer may be held."""

    method: str
    path: str
    parse: Callable[[Reply], T]
    query: Query = field(default_factory=dict)
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    wait_s: float = 0.0


def as_a(kind: type[T]) -> Callable[[Reply], T]:
    """Read answers as *kind*; refusals raise the error they mean."""
    decoder = msgspec.json.Decoder(kind)

    def parse(reply: Reply) -> T:
        try:
            return decoder.decode(accepted(reply))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise errors.GreenroomError(
                f"cannot read the answer: {error}; is this a Greenroom node, and as new as this client?"
            ) from None

    return parse


def accepted(reply: Reply) -> bytes:
    """The answer's body; raises the error that a refusal means."""
    if reply.status >= 300:
        raise refusal(reply)
    return reply.content


def refusal(reply: Reply) -> errors.GreenroomError:
    problem = problems.read(reply.status, reply.content)
    return problems.to_error(problem, status=reply.status, retry_after_s=reply.retry_after_s)


def _nothing(reply: Reply) -> None:
    accepted(reply)


def _is_ok(reply: Reply) -> bool:
    return reply.status == 200


_task = as_a(models.Task)
_agent = as_a(models.Agent)
_replica = as_a(models.Replica)
_key, _verdict = as_a(models.Key), as_a(models.Verdict)
_shutdown = as_a(models.Shutdown)
_login = as_a(models.Login)
_tasks = as_a(models.Page[models.Task])
_agents = as_a(models.Page[models.Agent])
_replicas = as_a(models.Page[models.Replica])
_failures = as_a(models.Page[models.Failure])
_advice = as_a(models.Page[models.Advice])
_alerts, _alert = as_a(models.Page[models.Alert]), as_a(models.Alert)
_silences, _silence = as_a(models.Page[models.Silence]), as_a(models.Silence)
_alert_rules = as_a(models.Page[models.AlertRule])
_receivers, _receiver_test = as_a(models.Page[models.Receiver]), as_a(models.ReceiverTest)
_revisions = as_a(models.Page[models.Revision])
_rollouts, _rollout = as_a(models.Page[models.Rollout]), as_a(models.Rollout)
_scaling, _load = as_a(models.AgentScaling), as_a(models.Page[models.Load])
_history, _health = as_a(models.Page[models.HistoryBucket]), as_a(health_models.AgentHealth)
_logs = as_a(models.Page[models.LogLine])
_plan = as_a(models.Plan)
_code = as_a(models.Code)
_sessions = as_a(models.Page[models.Session])
_keys = as_a(models.Page[models.Key])
_encryption = as_a(models.Encryption)
_backups = as_a(models.Page[models.Backup])
_backups_state = as_a(models.Backups)
_entries, _checkpoints = as_a(models.Page[security.AuditEntry]), as_a(models.Page[security.Checkpoint])
_erased, _security = as_a(security.Erased), as_a(security.SecurityReport)
_session = as_a(models.Session)
_webhook, _webhooks = as_a(models.Webhook), as_a(models.Page[models.Webhook])
_delivery, _deliveries = as_a(models.Delivery), as_a(models.Page[models.Delivery])
_document = as_a(dict[str, Any])


def submit(
    submission: models.Submission,
    idempotency_key: str | None,
    *,
    wait_s: float | None = None,
    or_cancel: bool = False,
    traceparent: str | None = None,
) -> Call[models.Task]:
    return Call(
        "POST",
        "/v1/tasks",
        _task,
        query={"wait": wait_s, "or_cancel": "true" if or_cancel else None},
        body=strict_json.dumps(_body(submission)),
        headers=_once(idempotency_key) | tracing.headers(traceparent),
        repeatable=not or_cancel,  # a connection that is lost has cancelled it
        wait_s=wait_s or 0.0,
    )


def submit_many(
    submissions: Sequence[models.Submission | Mapping[str, Any]],
    idempotency_key: str | None,
    *,
    traceparent: str | None = None,
) -> Call[list[models.Task | models.Problem]]:
    bodies = [_body(_submission(given, place)) for place, given in enumerate(submissions)]
    body = strict_json.dumps({"tasks": bodies})
    return Call(
        "POST", "/v1/tasks/batch", _read_batch, body=body, headers=_once(idempotency_key) | tracing.headers(traceparent)
    )


def task(id: str, *, wait_s: float | None = None) -> Call[models.Task]:
    return Call("GET", f"/v1/tasks/{_segment(id)}", _task, query={"wait": wait_s}, wait_s=wait_s or 0.0)


def tasks(**query: str | int | None) -> Call[models.Page[models.Task]]:
    return Call("GET", "/v1/tasks", _tasks, query=query)


def cancel(id: str) -> Call[models.Task]:
    return Call("POST", f"/v1/tasks/{_segment(id)}/cancel", _task, repeatable=False)


def retry(id: str) -> Call[models.Task]:
    return Call("POST", f"/v1/tasks/{_segment(id)}/retry", _task, repeatable=False)


def events(id: str, after: int | None) -> Call[None]:
    headers = {"Accept": "text/event-stream"}
    if after is not None:
        headers["Last-Event-ID"] = str(after)
    return Call("GET", f"/v1/tasks/{_segment(id)}/events", _nothing, headers=headers)


def session(id: str, agent: str | None) -> Call[models.Session]:
    return Call("GET", f"/v1/sessions/{_segment(id)}", _session, query={"agent": agent})


def sessions(*, cursor: str | None, limit: int | None) -> Call[models.Page[models.Session]]:
    return Call("GET", "/v1/sessions", _sessions, query={"cursor": cursor, "limit": limit})


def delete_session(id: str, agent: str | None) -> Call[None]:
    return Call("DELETE", f"/v1/sessions/{_segment(id)}", _nothing, query={"agent": agent})


def agents(cursor: str | None = None) -> Call[models.Page[models.Agent]]:
    return Call("GET", "/v1/agents", _agents, query={"cursor": cursor})


def agent(name: str) -> Call[models.Agent]:
    return Call("GET", f"/v1/agents/{_segment(name)}", _agent)


def put_agent(
    name: str,
    spec: Mapping[str, Any],
    *,
    code: str | None = None,
    strategy: str | None = None,
    hold_s: float | None = None,
) -> Call[models.Agent]:
    query = {"code": code, "strategy": strategy, "hold_s": hold_s}
    body = strict_json.dumps(dict(spec))
    return Call("PUT", f"/v1/agents/{_segment(name)}", _agent, query=query, body=body)


def plan_agent(
    name: str,
    spec: Mapping[str, Any],
    *,
    code: str | None = None,
    sessions: bool = False,
    strategy: str | None = None,
    hold_s: float | None = None,
) -> Call[models.Plan]:
    return Call(
        "PUT",
        f"/v1/agents/{_segment(name)}",
        _plan,
        query={
            "code": code,
            "strategy": strategy,
            "hold_s": hold_s,
            "dry_run": "true",
            "sessions": "true" if sessions else None,
        },
        body=strict_json.dumps(dict(spec)),
        repeatable=not sessions,  # the first one may go on, and there is one at a time
        wait_s=REHEARSAL_S if sessions else 0.0,
    )


def upload_code(archive: bytes) -> Call[models.Code]:
    return Call("POST", "/v1/code", _code, body=archive, headers={"Content-Type": "application/gzip"})


def delete_agent(name: str) -> Call[None]:
    return Call("DELETE", f"/v1/agents/{_segment(name)}", _nothing)


def revisions(name: str, cursor: str | None = None) -> Call[models.Page[models.Revision]]:
    return Call("GET", f"/v1/agents/{_segment(name)}/revisions", _revisions, query={"cursor": cursor})


def rollouts(name: str, cursor: str | None = None, *, limit: int | None = None) -> Call[models.Page[models.Rollout]]:
    query = {"cursor": cursor, "limit": limit}
    return Call("GET", f"/v1/agents/{_segment(name)}/rollouts", _rollouts, query=query)


def rollout(id: int) -> Call[models.Rollout]:
    return Call("GET", f"/v1/rollouts/{id}", _rollout)


def promote_rollout(id: int, stage: int | None) -> Call[models.Rollout]:
    body = strict_json.dumps({} if stage is None else {"stage": stage})
    return Call("POST", f"/v1/rollouts/{id}/promote", _rollout, body=body, repeatable=False)


def pause_rollout(id: int) -> Call[models.Rollout]:
    return Call("POST", f"/v1/rollouts/{id}/pause", _rollout)


def resume_rollout(id: int) -> Call[models.Rollout]:
    return Call("POST", f"/v1/rollouts/{id}/resume", _rollout, repeatable=False)  # it may be a promotion


def abort_rollout(id: int) -> Call[models.Rollout]:
    return Call("POST", f"/v1/rollouts/{id}/abort", _rollout)


def roll_back(name: str, to: int | None) -> Call[models.Rollout]:
    body = strict_json.dumps({} if to is None else {"to": to})
    # Without a number it is to the one before, and the one before that is where it began.
    return Call("POST", f"/v1/agents/{_segment(name)}/rollback", _rollout, body=body, repeatable=to is not None)


def scale(name: str, replicas: int) -> Call[models.Agent]:
    return Call("PATCH", f"/v1/agents/{_segment(name)}/scale", _agent, body=strict_json.dumps({"replicas": replicas}))


def scaling(name: str, *, cursor: str | None = None, limit: int | None = None) -> Call[models.AgentScaling]:
    return Call("GET", f"/v1/agents/{_segment(name)}/scaling", _scaling, query={"cursor": cursor, "limit": limit})


def load(name: str, *, hours: int | None = None) -> Call[models.Page[models.Load]]:
    return Call("GET", f"/v1/agents/{_segment(name)}/load", _load, query={"hours": hours})


def history(
    name: str, *, since: datetime | None = None, step_s: int | None = None
) -> Call[models.Page[models.HistoryBucket]]:
    query = {"since": None if since is None else since.isoformat(), "step_s": step_s}
    return Call("GET", f"/v1/agents/{_segment(name)}/history", _history, query=query)


def agent_health(name: str) -> Call[health_models.AgentHealth]:
    return Call("GET", f"/v1/agents/{_segment(name)}/health", _health)


class LogQuery(NamedTuple):
    """Which lines of the logs; None: any. *level* is the least, *since* an instant."""

    agent: str | None = None
    task: str | None = None
    replica: str | None = None
    level: str | None = None
    since: datetime | None = None

    def query(self) -> dict[str, str | int | float | None]:
        since = None if self.since is None else self.since.isoformat()
        return {**self._asdict(), "since": since}


def logs(which: LogQuery, *, cursor: str | None = None, limit: int | None = None) -> Call[models.Page[models.LogLine]]:
    return Call("GET", "/v1/logs", _logs, query={**which.query(), "cursor": cursor, "limit": limit})


def log_stream(which: LogQuery, *, limit: int, after: int | None) -> Call[None]:
    headers = {"Accept": "text/event-stream"}
    if after is not None:
        headers["Last-Event-ID"] = str(after)
    return Call(
        "GET",
        "/v1/logs/stream",
        _nothing,
        query={**which.query(), "limit": limit, "follow_s": FOLLOW_S},
        headers=headers,
    )


def release(name: str) -> Call[models.Agent]:
    return Call("POST", f"/v1/agents/{_segment(name)}/release", _agent)


def failures(
    agent: str | None = None, *, cursor: str | None = None, limit: int | None = None
) -> Call[models.Page[models.Failure]]:
    return Call("GET", "/v1/failures", _failures, query={"agent": agent, "cursor": cursor, "limit": limit})


def advice(*, cursor: str | None = None, limit: int | None = None) -> Call[models.Page[models.Advice]]:
    return Call("GET", "/v1/advice", _advice, query={"cursor": cursor, "limit": limit})


def alerts(
    cursor: str | None = None, *, state: str | None = None, agent: str | None = None
) -> Call[models.Page[models.Alert]]:
    return Call("GET", "/v1/alerts", _alerts, query={"state": state, "agent": agent, "cursor": cursor})


def acknowledge_alert(id: str) -> Call[models.Alert]:
    return Call("POST", f"/v1/alerts/{_segment(id)}/ack", _alert)


def alert_rules(cursor: str | None = None) -> Call[models.Page[models.AlertRule]]:
    return Call("GET", "/v1/alerts/rules", _alert_rules, query={"cursor": cursor})


def silences(cursor: str | None = None) -> Call[models.Page[models.Silence]]:
    return Call("GET", "/v1/silences", _silences, query={"cursor": cursor})


def silence(
    for_s: float,
    *,
    alert: str | None = None,
    kind: str | None = None,
    agent: str | None = None,
    severity: str | None = None,
    comment: str = "",
) -> Call[models.Silence]:
    given = {"for_s": for_s, "alert": alert, "kind": kind, "agent": agent, "severity": severity, "comment": comment}
    body = strict_json.dumps({name: value for name, value in given.items() if value is not None})
    return Call("POST", "/v1/silences", _silence, body=body, repeatable=False)


def unsilence(id: str) -> Call[None]:
    return Call("DELETE", f"/v1/silences/{_segment(id)}", _nothing)


def receivers(cursor: str | None = None) -> Call[models.Page[models.Receiver]]:
    return Call("GET", "/v1/receivers", _receivers, query={"cursor": cursor})


def test_receiver(name: str) -> Call[models.ReceiverTest]:
    return Call("POST", f"/v1/receivers/{_segment(name)}/test", _receiver_test)


def replicas(cursor: str | None = None) -> Call[models.Page[models.Replica]]:
    return Call("GET", "/v1/replicas", _replicas, query={"cursor": cursor})


def restart_replica(id: str) -> Call[models.Replica]:
    return Call("POST", f"/v1/replicas/{_segment(id)}/restart", _replica, repeatable=False)


def drain_replica(id: str) -> Call[models.Replica]:
    return Call("POST", f"/v1/replicas/{_segment(id)}/drain", _replica, repeatable=False)


def status() -> Call[dict[str, Any]]:
    return Call("GET", "/v1/status", _document)


def backups(cursor: str | None = None) -> Call[models.Page[models.Backup]]:
    return Call("GET", "/v1/backups", _backups, query={"cursor": cursor})


def create_backup() -> Call[models.Backups]:
    return Call("POST", "/v1/backups", _backups_state, repeatable=False)


def encryption() -> Call[models.Encryption]:
    return Call("GET", "/v1/encryption", _encryption)


def rotate_encryption(*, data_keys: bool) -> Call[models.Encryption]:
    body = strict_json.dumps({"data_keys": data_keys})
    return Call("POST", "/v1/encryption/rotate", _encryption, body=body, repeatable=False)


def audit(
    *,
    actor: str | None = None,
    action: str | None = None,
    object: str | None = None,
    since: str | None = None,
    after: int | None = None,
    cursor: str | None = None,
    limit: int | None = None,
) -> Call[models.Page[security.AuditEntry]]:
    query = {"actor": actor, "action": action, "object": object, "since": since, "after": after}
    return Call("GET", "/v1/audit", _entries, query={**query, "cursor": cursor, "limit": limit})


def audit_checkpoints(cursor: str | None = None) -> Call[models.Page[security.Checkpoint]]:
    return Call("GET", "/v1/audit/checkpoints", _checkpoints, query={"cursor": cursor})


def erase_audit(actor: str, *, tenant: str | None = None) -> Call[security.Erased]:
    body = strict_json.dumps({"actor": actor, "tenant": tenant})
    return Call("POST", "/v1/audit/erase", _erased, body=body)


def security_report() -> Call[security.SecurityReport]:
    return Call("GET", "/v1/security", _security)


def unlock(subject: str) -> Call[None]:
    return Call("POST", "/v1/security/unlock", _nothing, body=strict_json.dumps({"subject": subject}), repeatable=False)


def keys(cursor: str | None = None, *, tenant: str | None = None) -> Call[models.Page[models.Key]]:
    return Call("GET", "/v1/keys", _keys, query={"cursor": cursor, "tenant": tenant})


def key(id: str, tenant: str | None) -> Call[models.Key]:
    return Call("GET", f"/v1/keys/{_segment(id)}", _key, query={"tenant": tenant})


def key_can(id: str, action: str, resource: str | None, tenant: str | None) -> Call[models.Verdict]:
    query = {"action": action, "resource": resource, "tenant": tenant}
    return Call("GET", f"/v1/keys/{_segment(id)}/can", _verdict, query=query)


def create_key(
    name: str,
    role: str,
    *,
    scopes: Sequence[str] | None = None,
    expires_in_s: float | None = None,
    tenant: str | None = None,
) -> Call[models.Key]:
    body = {"name": name, "role": role, "scopes": scopes, "expires_in_s": expires_in_s, "tenant": tenant}
    given = {word: value for word, value in body.items() if value is not None}
    return Call("POST", "/v1/keys", _key, body=strict_json.dumps(given), repeatable=False)


def revoke_key(id: str, tenant: str | None) -> Call[None]:
    return Call("DELETE", f"/v1/keys/{_segment(id)}", _nothing, query={"tenant": tenant})


def shut_down() -> Call[models.Shutdown]:
    return Call("POST", "/v1/shutdown", _shutdown, repeatable=False)


def create_login() -> Call[models.Login]:
    return Call("POST", "/v1/logins", _login, repeatable=False)


def end_logins() -> Call[None]:
    return Call("DELETE", "/v1/logins", _nothing)


def webhooks(cursor: str | None = None) -> Call[models.Page[models.Webhook]]:
    return Call("GET", "/v1/webhooks", _webhooks, query={"cursor": cursor})


def webhook(id: str) -> Call[models.Webhook]:
    return Call("GET", f"/v1/webhooks/{_segment(id)}", _webhook)


def create_webhook(
    url: str, *, events: Sequence[str] | None, description: str, include_output: bool
) -> Call[models.Webhook]:
    body: dict[str, Any] = {"url": url, "description": description, "include_output": include_output}
    if events is not None:
        body["events"] = list(events)
    return Call("POST", "/v1/webhooks", _webhook, body=strict_json.dumps(body), repeatable=False)


def change_webhook(
    id: str,
    *,
    enabled: bool | None,
    events: Sequence[str] | None,
    description: str | None,
    include_output: bool | None,
) -> Call[models.Webhook]:
    given = {
        "enabled": enabled,
        "events": None if events is None else list(events),
        "description": description,
        "include_output": include_output,
    }
    body = strict_json.dumps({name: value for name, value in given.items() if value is not None})
    return Call("PATCH", f"/v1/webhooks/{_segment(id)}", _webhook, body=body)


def rotate_webhook(id: str) -> Call[models.Webhook]:
    return Call("POST", f"/v1/webhooks/{_segment(id)}/rotate", _webhook, repeatable=False)


def delete_webhook(id: str) -> Call[None]:
    return Call("DELETE", f"/v1/webhooks/{_segment(id)}", _nothing)


def test_webhook(id: str) -> Call[models.Delivery]:
    return Call("POST", f"/v1/webhooks/{_segment(id)}/test", _delivery, repeatable=False)


def deliveries(id: str, *, cursor: str | None = None, limit: int | None = None) -> Call[models.Page[models.Delivery]]:
    query = {"cursor": cursor, "limit": limit}
    return Call("GET", f"/v1/webhooks/{_segment(id)}/deliveries", _deliveries, query=query)


def health() -> Call[bool]:
    return Call("GET", "/healthz", _is_ok, repeatable=False)


def ready() -> Call[bool]:
    return Call("GET", "/readyz", _is_ok, repeatable=False)


def _once(idempotency_key: str | None) -> dict[str, str]:
    # Every submission has a key, so that the client's own retries cannot submit twice.
    return {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}


def _submission(given: models.Submission | Mapping[str, Any], place: int) -> models.Submission:
    if isinstance(given, models.Submission):
        return given
    try:
        return msgspec.convert(given, models.Submission)
    except msgspec.ValidationError as error:
        known = ", ".join(models.Submission.__struct_fields__)
        raise errors.BodyInvalid(
            f"cannot submit submissions[{place}]: {error}; give a Submission, or a dict with some of: {known}"
        ) from None


def _body(submission: models.Submission) -> dict[str, Any]:
    body: dict[str, Any] = {"input": submission.input}
    if submission.priority:
        body["priority"] = submission.priority
    if submission.not_before is not None:
        if submission.not_before.tzinfo is None:
            raise errors.BodyInvalid("cannot submit: not_before has no time zone; pass an aware datetime")
        body["not_before"] = submission.not_before.isoformat()
    for name in ("agent", "session", "timeout_s", "metadata", "idempotency_key", "webhook"):
        if (value := getattr(submission, name)) is not None:
            body[name] = value
    if not submission.cache:
        body["cache"] = False
    return body


class _Raw(msgspec.Struct):
    items: list[msgspec.Raw]


class _Kind(msgspec.Struct):
    state: str | None = None  # a task has one, a problem has none


_raw_batch = as_a(_Raw)


def _read_batch(reply: Reply) -> list[models.Task | models.Problem]:
    return [_task_or_problem(bytes(item)) for item in _raw_batch(reply).items]


def _task_or_problem(item: bytes) -> models.Task | models.Problem:
    if msgspec.json.decode(item, type=_Kind).state is not None:
        return _task(Reply(200, item))
    return msgspec.json.decode(item, type=models.Problem)


def _segment(text: str) -> str:
    """*text* as one segment of a path; dots are quoted too, or clients and proxies would walk up."""
    if not text:
        raise errors.NotFound("cannot ask for nothing: the id is empty")
    return quote(text, safe="").replace(".", "%2E") if set(text) == {"."} else quote(text, safe="")
