"""The route table: the whole API at a glance. The application, its authorisation and OpenAPI are built from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from greenroom.api import (
    agents,
    alerts,
    audit,
    code,
    encryption,
    health,
    history,
    login,
    logs,
    operations,
    principals,
    receivers,
    recovery,
    rollouts,
    scaling,
    schemas,
    sessions,
    tasks,
    webhooks,
)
from greenroom.api import security as posture
from greenroom.api.request import Answer, Call, Stream
from greenroom.core.permissions import Action
from greenroom.sdk import models, security
from greenroom.sdk.health import AgentHealth


class Page(msgspec.Struct, frozen=True):
    """``{items, next_cursor}`` of *item*."""

    item: type[msgspec.Struct]


class Events(msgspec.Struct, frozen=True):
    """Server-sent events, each with *item* as its data."""

    item: type[msgspec.Struct]


Given = type[msgspec.Struct] | tuple[type[msgspec.Struct], ...] | Page | Events | str | None


_MEDIA_TYPES: Mapping[Any, bytes] = {bytes: b"application/gzip", str: b"application/x-www-form-urlencoded"}


class Route(msgspec.Struct, frozen=True):
    """*gives* is by status: JSON of a struct, of one of several, or of a page; another media type; None where there is
    no body. *body* is JSON of that type, an archive where it is bytes, and a form where it is str.
    """

    method: str
    path: str
    endpoint: Callable[[Call], Awaitable[Answer | Stream]]
    action: Action
    gives: Mapping[int, Given]
    body: type[Any] | None = None
    query: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    body_is_optional: bool = False
    submits: bool = False  # its request is in the trace of the tasks that it makes

    @property
    def media_type(self) -> bytes:
        """What the body has to be declared as."""
        return _MEDIA_TYPES.get(self.body, b"application/json")


TASK, SESSION, AGENT, REPLICA, KEY = models.Task, models.Session, models.Agent, models.Replica, models.Key
FAILURE, ALERT, SILENCE = models.Failure, models.Alert, models.Silence
WEBHOOK = models.Webhook
REVISION, ROLLOUT = models.Revision, models.Rollout
AGENT_OR_PLAN = {200: (AGENT, models.Plan)}  # the latter for a dry run
TASK_IN_TIME = {200: TASK, 202: TASK}  # it has ended, or not yet
TEXT, PAGE = "text/plain", "text/html"
ASKED = ("Idempotency-Key", "Cache-Control", "traceparent", "tracestate")
LINES = ("agent", "task", "replica", "level", "since", "limit")
LATEST = ("agent", "limit", "cursor")
STREAM = {200: Events(models.Event), 204: None}  # it goes on, or nothing is left
GONE = {204: None}


ROUTES = (
    Route(
        "POST",
        "/v1/tasks",
        tasks.submit,
        Action.TASK_SUBMIT,
        TASK_IN_TIME,
        schemas.Submission,
        ("wait", "or_cancel"),
        ASKED,
        submits=True,
    ),
    Route(
        "POST",
        "/v1/tasks/batch",
        tasks.submit_batch,
        Action.TASK_SUBMIT,
        {202: schemas.BatchResult},
        schemas.Batch,
        (),
        ASKED,
        submits=True,
    ),
    Route(
        "GET",
        "/v1/tasks",
        tasks.list_tasks,
        Action.TASK_READ,
        {200: Page(TASK)},
        None,
        ("agent", "state", "session", "parent", "limit", "cursor"),
    ),
    Route("GET", "/v1/tasks/{id}", tasks.show, Action.TASK_READ, TASK_IN_TIME, None, ("wait",)),
    Route("POST", "/v1/tasks/{id}/cancel", tasks.cancel, Action.TASK_CANCEL, {202: TASK}),
    Route("POST", "/v1/tasks/{id}/retry", tasks.retry, Action.TASK_SUBMIT, {202: TASK}, submits=True),
    Route("GET", "/v1/tasks/{id}/events", tasks.events, Action.TASK_READ, STREAM, None, ("after",), ("Last-Event-ID",)),
    Route(
        "GET", "/v1/sessions", sessions.list_all, Action.SESSION_READ, {200: Page(SESSION)}, None, ("limit", "cursor")
    ),
    Route("GET", "/v1/sessions/{id}", sessions.show, Action.SESSION_READ, {200: SESSION}, None, ("agent",)),
    Route("DELETE", "/v1/sessions/{id}", sessions.remove, Action.SESSION_DELETE, GONE, None, ("agent",)),
    Route("GET", "/v1/agents", agents.list_agents, Action.AGENT_READ, {200: Page(AGENT)}),
    Route("GET", "/v1/agents/{name}", agents.show_agent, Action.AGENT_READ, {200: AGENT}),
    Route(
        "PUT",
        "/v1/agents/{name}",
        agents.put_agent,
        Action.AGENT_DEPLOY,
        AGENT_OR_PLAN,
        dict,
        ("code", "strategy", "hold_s", "dry_run", "sessions"),
    ),
    Route("DELETE", "/v1/agents/{name}", agents.delete_agent, Action.AGENT_DEPLOY, GONE),
    Route("PATCH", "/v1/agents/{name}/scale", scaling.scale, Action.AGENT_OPERATE, {200: AGENT}, schemas.Scale),
    Route(
        "GET",
        "/v1/agents/{name}/scaling",
        scaling.show,
        Action.AGENT_OBSERVE,
        {200: models.AgentScaling},
        None,
        ("limit", "cursor"),
    ),
    Route(
        "GET", "/v1/agents/{name}/load", scaling.load, Action.AGENT_OBSERVE, {200: Page(models.Load)}, None, ("hours",)
    ),
    Route(
        "GET",
        "/v1/agents/{name}/history",
        history.show,
        Action.AGENT_OBSERVE,
        {200: Page(models.HistoryBucket)},
        None,
        ("since", "step_s"),
    ),
    Route("GET", "/v1/agents/{name}/health", health.show, Action.AGENT_OBSERVE, {200: AgentHealth}),
    Route("POST", "/v1/agents/{name}/release", agents.release, Action.AGENT_OPERATE, {200: AGENT}),
    Route("GET", "/v1/agents/{name}/revisions", agents.revisions, Action.AGENT_OBSERVE, {200: Page(REVISION)}),
    Route(
        "GET",
        "/v1/agents/{name}/rollouts",
        rollouts.list_all,
        Action.AGENT_OBSERVE,
        {200: Page(ROLLOUT)},
        None,
        ("limit",),
    ),
    Route(
        "POST",
        "/v1/agents/{name}/rollback",
        rollouts.roll_back,
        Action.AGENT_OPERATE,
        {200: ROLLOUT},
        schemas.Rollback,
        body_is_optional=True,
    ),
    Route("GET", "/v1/rollouts/{id}", rollouts.show, Action.AGENT_OBSERVE, {200: ROLLOUT}),
    Route(
        "POST",
        "/v1/rollouts/{id}/promote",
        rollouts.promote,
        Action.AGENT_OPERATE,
        {200: ROLLOUT},
        schemas.Promotion,
        body_is_optional=True,
    ),
    Route("POST", "/v1/rollouts/{id}/pause", rollouts.pause, Action.AGENT_OPERATE, {200: ROLLOUT}),
    Route("POST", "/v1/rollouts/{id}/resume", rollouts.resume, Action.AGENT_OPERATE, {200: ROLLOUT}),
    Route("POST", "/v1/rollouts/{id}/abort", rollouts.abort, Action.AGENT_OPERATE, {200: ROLLOUT}),
    Route("POST", "/v1/code", code.upload, Action.AGENT_DEPLOY, {201: models.Code}, bytes),
    Route("GET", "/v1/replicas", agents.list_replicas, Action.AGENT_OBSERVE, {200: Page(REPLICA)}),
    Route("POST", "/v1/replicas/{id}/restart", agents.restart_replica, Action.AGENT_OPERATE, {202: REPLICA}),
    Route("POST", "/v1/replicas/{id}/drain", agents.drain_replica, Action.AGENT_OPERATE, {202: REPLICA}),
    Route(
        "GET",
        "/v1/failures",
        recovery.list_failures,
        Action.AGENT_OBSERVE,
        {200: Page(FAILURE)},
        None,
        ("agent", "limit", "cursor"),
    ),
    Route(
        "GET",
        "/v1/advice",
        recovery.list_advice,
        Action.AGENT_OBSERVE,
        {200: Page(models.Advice)},
        None,
        ("limit", "cursor"),
    ),
    Route("GET", "/v1/alerts", alerts.list_all, Action.ALERT_READ, {200: Page(ALERT)}, None, ("state", "agent")),
    Route("GET", "/v1/alerts/rules", alerts.list_rules, Action.ALERT_READ, {200: Page(models.AlertRule)}),
    Route("POST", "/v1/alerts/{id}/ack", alerts.acknowledge, Action.ALERT_ACKNOWLEDGE, {200: ALERT}),
    Route("GET", "/v1/silences", alerts.list_silences, Action.ALERT_READ, {200: Page(SILENCE)}),
    Route("POST", "/v1/silences", alerts.silence, Action.ALERT_ACKNOWLEDGE, {201: SILENCE}, schemas.NewSilence),
    Route("DELETE", "/v1/silences/{id}", alerts.unsilence, Action.ALERT_ACKNOWLEDGE, GONE),
    Route("GET", "/v1/logs", logs.list_lines, Action.TASK_READ, {200: Page(models.LogLine)}, None, (*LINES, "cursor")),
    Route(
        "GET",
        "/v1/logs/stream",
        logs.stream,
        Action.TASK_READ,
        {200: Events(models.LogLine)},
        None,
        (*LINES, "after", "follow_s"),
        ("Last-Event-ID",),
    ),
    Route("GET", "/v1/receivers", receivers.list_all, Action.RECEIVER_MANAGE, {200: Page(models.Receiver)}),
    Route("POST", "/v1/receivers/{name}/test", receivers.test, Action.RECEIVER_MANAGE, {200: models.ReceiverTest}),
    Route("GET", "/v1/status", operations.status, Action.STATUS_READ, {200: schemas.Status}),
    Route("GET", "/v1/backups", operations.list_backups, Action.BACKUP_READ, {200: Page(models.Backup)}),
    Route("POST", "/v1/backups", operations.create_backup, Action.BACKUP_CREATE, {202: models.Backups}),
    Route("GET", "/v1/keys", principals.list_all, Action.KEY_READ, {200: Page(KEY)}, None, ("tenant",)),
    Route("POST", "/v1/keys", principals.create, Action.KEY_CREATE, {201: KEY}, schemas.NewKey),
    Route("GET", "/v1/keys/{id}", principals.show, Action.KEY_READ, {200: KEY}, None, ("tenant",)),
    Route(
        "GET",
        "/v1/keys/{id}/can",
        principals.can,
        Action.KEY_READ,
        {200: models.Verdict},
        None,
        ("action", "resource", "tenant"),
    ),
    Route("DELETE", "/v1/keys/{id}", principals.revoke, Action.KEY_REVOKE, GONE, None, ("tenant",)),
    Route("POST", "/v1/shutdown", operations.shut_down, Action.SYSTEM_SHUTDOWN, {202: models.Shutdown}),
    Route("POST", "/v1/logins", login.create, Action.LOGIN_MANAGE, {201: models.Login}),
    Route("DELETE", "/v1/logins", login.end, Action.LOGIN_MANAGE, GONE),
    Route("GET", "/v1/webhooks", webhooks.list_all, Action.WEBHOOK_MANAGE, {200: Page(WEBHOOK)}),
    Route("POST", "/v1/webhooks", webhooks.create, Action.WEBHOOK_MANAGE, {201: WEBHOOK}, schemas.NewWebhook),
    Route("GET", "/v1/webhooks/{id}", webhooks.show, Action.WEBHOOK_MANAGE, {200: WEBHOOK}),
    Route("PATCH", "/v1/webhooks/{id}", webhooks.change, Action.WEBHOOK_MANAGE, {200: WEBHOOK}, schemas.WebhookChange),
    Route("DELETE", "/v1/webhooks/{id}", webhooks.remove, Action.WEBHOOK_MANAGE, GONE),
    Route("POST", "/v1/webhooks/{id}/rotate", webhooks.rotate, Action.WEBHOOK_MANAGE, {200: WEBHOOK}),
    Route("POST", "/v1/webhooks/{id}/test", webhooks.test, Action.WEBHOOK_MANAGE, {202: models.Delivery}),
    Route(
        "GET",
        "/v1/webhooks/{id}/deliveries",
        webhooks.deliveries,
        Action.WEBHOOK_MANAGE,
        {200: Page(models.Delivery)},
        None,
        ("limit", "cursor"),
    ),
    Route(
        "GET",
        "/v1/audit",
        audit.list_entries,
        Action.AUDIT_READ,
        {200: Page(security.AuditEntry)},
        None,
        ("actor", "action", "object", "since", "after", "limit", "cursor"),
    ),
    Route(
        "GET",
        "/v1/audit/checkpoints",
        audit.list_checkpoints,
        Action.AUDIT_READ,
        {200: Page(security.Checkpoint)},
        None,
        ("limit", "cursor"),
    ),
    Route(
        "POST",
        "/v1/audit/erase",
        audit.erase,
        Action.SECURITY_OPERATE,
        {200: security.Erased},
        schemas.AuditErasure,
    ),
    Route("GET", "/v1/security", posture.report, Action.SECURITY_READ, {200: security.SecurityReport}),
    Route("POST", "/v1/security/unlock", posture.unlock, Action.SECURITY_OPERATE, GONE, schemas.Unlock),
    Route("GET", "/v1/encryption", encryption.show, Action.SECURITY_READ, {200: models.Encryption}),
    Route(
        "POST",
        "/v1/encryption/rotate",
        encryption.rotate,
        Action.SECURITY_OPERATE,
        {200: models.Encryption},
        schemas.KeyRotation,
        body_is_optional=True,
    ),
    Route("GET", "/metrics", operations.metrics, Action.METRICS_READ, {200: TEXT}),
)

PROBES = ("/healthz", "/readyz")
OPEN = (*PROBES, login.PATH)  # the only paths that answer without a credential
