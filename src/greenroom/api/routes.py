"""The route table: the whole API at a glance. The application, its authorisation and OpenAPI are built from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from greenroom.api import agents, operations, schemas, tasks
from greenroom.api.request import Answer, Call, Stream
from greenroom.core.admission import Permission


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    endpoint: Callable[[Call], Awaitable[Answer | Stream]]
    permission: Permission
    body: type[Any] | None = None
    query: tuple[str, ...] = ()


READ, SUBMIT = Permission.READ, Permission.SUBMIT
OPERATE, DEPLOY, KEYS = Permission.OPERATE, Permission.DEPLOY, Permission.KEYS

ROUTES = (
    Route("POST", "/v1/tasks", tasks.submit, SUBMIT, schemas.Submission, ("wait",)),
    Route("POST", "/v1/tasks/batch", tasks.submit_batch, SUBMIT, schemas.Batch),
    Route("GET", "/v1/tasks", tasks.list_tasks, READ, None, ("agent", "state", "session", "limit", "cursor")),
    Route("GET", "/v1/tasks/{id}", tasks.show, READ, None, ("wait",)),
    Route("POST", "/v1/tasks/{id}/cancel", tasks.cancel, SUBMIT),
    Route("POST", "/v1/tasks/{id}/retry", tasks.retry, SUBMIT),
    Route("GET", "/v1/tasks/{id}/events", tasks.events, READ, None, ("after",)),
    Route("GET", "/v1/sessions", tasks.list_sessions, READ, None, ("limit",)),
    Route("GET", "/v1/sessions/{id}", tasks.show_session, READ, None, ("agent",)),
    Route("DELETE", "/v1/sessions/{id}", tasks.remove_session, SUBMIT, None, ("agent",)),
    Route("GET", "/v1/agents", agents.list_agents, READ),
    Route("GET", "/v1/agents/{name}", agents.show_agent, READ),
    Route("PUT", "/v1/agents/{name}", agents.put_agent, DEPLOY, dict),
    Route("DELETE", "/v1/agents/{name}", agents.delete_agent, DEPLOY),
    Route("PATCH", "/v1/agents/{name}/scale", agents.scale, OPERATE, schemas.Scale),
    Route("GET", "/v1/agents/{name}/revisions", agents.revisions, READ),
    Route("GET", "/v1/replicas", agents.list_replicas, READ),
    Route("POST", "/v1/replicas/{id}/restart", agents.restart_replica, OPERATE),
    Route("POST", "/v1/replicas/{id}/drain", agents.drain_replica, OPERATE),
    Route("GET", "/v1/status", operations.status, READ),
    Route("GET", "/v1/keys", operations.list_keys, KEYS),
    Route("POST", "/v1/keys", operations.create_key, KEYS, schemas.NewKey),
    Route("DELETE", "/v1/keys/{id}", operations.revoke_key, KEYS),
    Route("GET", "/metrics", operations.metrics, READ),
)

OPEN = ("/healthz", "/readyz")  # the only paths that answer without a credential
