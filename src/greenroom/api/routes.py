"""The route table: the whole API at a glance. The application, its authorisation and OpenAPI are built from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from greenroom.api import agents, operations, recovery, schemas, sessions, tasks
from greenroom.api.request import Answer, Call, Stream
from greenroom.core.admission import Permission
from greenroom.sdk import models


@dataclass(frozen=True, slots=True)
class Page:
    """``{items, next_cursor}`` of *item*."""

    item: type[msgspec.Struct]


@dataclass(frozen=True, slots=True)
class Route:
    """*gives* is by status: JSON of a struct or a page, another media type, or None where there is no body."""

    method: str
    path: str
    endpoint: Callable[[Call], Awaitable[Answer | Stream]]
    permission: Permission
    gives: Mapping[int, type[msgspec.Struct] | Page | str | None]
    body: type[Any] | None = None
    query: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()


READ, SUBMIT = Permission.READ, Permission.SUBMIT
OPERATE, DEPLOY, KEYS = Permission.OPERATE, Permission.DEPLOY, Permission.KEYS

TASK, SESSION, AGENT, REPLICA, KEY = models.Task, models.Session, models.Agent, models.Replica, models.Key
FAILURE, ALERT = models.Failure, models.Alert
TASK_IN_TIME = {200: TASK, 202: TASK}  # it has ended, or not yet
EVENTS, TEXT = "text/event-stream", "text/plain"
ONCE = ("Idempotency-Key",)
LATEST = ("agent", "limit", "cursor")
STREAM = {200: EVENTS, 204: None}  # it goes on, or nothing is left
GONE = {204: None}


ROUTES = (
    Route("POST", "/v1/tasks", tasks.submit, SUBMIT, TASK_IN_TIME, schemas.Submission, ("wait",), ONCE),
    Route("POST", "/v1/tasks/batch", tasks.submit_batch, SUBMIT, {202: schemas.BatchResult}, schemas.Batch, (), ONCE),
    Route(
        "GET",
        "/v1/tasks",
        tasks.list_tasks,
        READ,
        {200: Page(TASK)},
        None,
        ("agent", "state", "session", "limit", "cursor"),
    ),
    Route("GET", "/v1/tasks/{id}", tasks.show, READ, TASK_IN_TIME, None, ("wait",)),
    Route("POST", "/v1/tasks/{id}/cancel", tasks.cancel, SUBMIT, {202: TASK}),
    Route("POST", "/v1/tasks/{id}/retry", tasks.retry, SUBMIT, {202: TASK}),
    Route("GET", "/v1/tasks/{id}/events", tasks.events, READ, STREAM, None, ("after",), ("Last-Event-ID",)),
    Route("GET", "/v1/sessions", sessions.list_all, READ, {200: Page(SESSION)}, None, ("limit", "cursor")),
    Route("GET", "/v1/sessions/{id}", sessions.show, READ, {200: SESSION}, None, ("agent",)),
    Route("DELETE", "/v1/sessions/{id}", sessions.remove, SUBMIT, GONE, None, ("agent",)),
    Route("GET", "/v1/agents", agents.list_agents, READ, {200: Page(AGENT)}),
    Route("GET", "/v1/agents/{name}", agents.show_agent, READ, {200: AGENT}),
    Route("PUT", "/v1/agents/{name}", agents.put_agent, DEPLOY, {200: AGENT}, dict),
    Route("DELETE", "/v1/agents/{name}", agents.delete_agent, DEPLOY, GONE),
    Route("PATCH", "/v1/agents/{name}/scale", agents.scale, OPERATE, {200: AGENT}, schemas.Scale),
    Route("POST", "/v1/agents/{name}/release", agents.release, OPERATE, {200: AGENT}),
    Route("GET", "/v1/agents/{name}/revisions", agents.revisions, READ, {200: Page(schemas.Revision)}),
    Route("GET", "/v1/replicas", agents.list_replicas, READ, {200: Page(REPLICA)}),
    Route("POST", "/v1/replicas/{id}/restart", agents.restart_replica, OPERATE, {202: REPLICA}),
    Route("POST", "/v1/replicas/{id}/drain", agents.drain_replica, OPERATE, {202: REPLICA}),
    Route(
        "GET", "/v1/failures", recovery.list_failures, READ, {200: Page(FAILURE)}, None, ("agent", "limit", "cursor")
    ),
    Route("GET", "/v1/alerts", recovery.list_alerts, READ, {200: Page(ALERT)}),
    Route("POST", "/v1/alerts/{id}/ack", recovery.acknowledge, OPERATE, {200: ALERT}),
    Route("GET", "/v1/status", operations.status, READ, {200: schemas.Status}),
    Route("GET", "/v1/keys", operations.list_keys, KEYS, {200: Page(KEY)}),
    Route("POST", "/v1/keys", operations.create_key, KEYS, {201: KEY}, schemas.NewKey),
    Route("DELETE", "/v1/keys/{id}", operations.revoke_key, KEYS, GONE),
    Route("GET", "/metrics", operations.metrics, READ, {200: TEXT}),
)

OPEN = ("/healthz", "/readyz")  # the only paths that answer without a credential
