"""The OpenAPI document, drawn from the route table and the schemas: what it says is what is checked and answered.

Bodies are checked by their schemas. Answers are described by the values that the client reads them as, `sdk.models`;
that they are so, and whole, `tests/api/test_openapi.py` sees at every route.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from greenroom import settings
from greenroom.api import logs, problems, routes, schemas
from greenroom.api.request import Answer, Call
from greenroom.api.routes import Events, Given, Page, Route
from greenroom.core import agents, alerts, breaker, health, history, rollouts, tasks
from greenroom.core.permissions import Action
from greenroom.engine import protocol, said
from greenroom.sdk import models

_SCHEMAS = "#/components/schemas/"

_PROBLEM = {
    "title": "Problem",
    "description": "Why something is refused (RFC 9457). The type `no-route` comes with `candidates`.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string", "description": "stable: what programs go by"},
        "title": {"type": "string", "description": "what the type means"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what it is this time, and what to do"},
        "request_id": {"type": "string"},
        "candidates": {"type": "array", "items": {"$ref": f"{_SCHEMAS}Score"}},
    },
}
_LIMITS = {
    "RateLimit-Policy": {"description": "where callers are limited: quotas and windows", "schema": {"type": "string"}},
    "RateLimit": {"description": "what is left of each, and when all of it is there", "schema": {"type": "string"}},
}
_REFUSED = {
    "description": "refused",
    "headers": {
        **_LIMITS,
        "Retry-After": {"description": "with 429 and 503: seconds", "schema": {"type": "integer", "minimum": 1}},
        "WWW-Authenticate": {"description": "with 401", "schema": {"type": "string"}},
        "Allow": {"description": "with 405", "schema": {"type": "string"}},
    },
    "content": {problems.MEDIA_TYPE: {"schema": {"$ref": f"{_SCHEMAS}Problem"}}},
}
_MEANINGS = {200: "done", 201: "made", 202: "accepted, and not at its end yet", 204: "done, and nothing to say"}

# What is given beside the body, by name: what it is, and what it does.
_NAME, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
_SWITCH = {"type": "boolean", "default": False}
_QUERIES: dict[str, tuple[dict[str, Any], str]] = {
    "action": (_NAME, "Only this act; key.* stands for all that begin so."),
    "actor": (_NAME, "Only what this one has done: the id of a key, or a token's issuer and subject."),
    "after": (_COUNT, "Begin behind the event or the entry of this number."),
    "agent": (_NAME, "Only what is of this agent."),
    "code": (
        {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "The digest of code that was brought; without one it is that of the node's own folder.",
    ),
    "cursor": (_NAME, "Go on where a list ended: its next_cursor."),
    "dry_run": (_SWITCH, "Begin nothing, and answer with the plan."),
    "hold_s": (
        {"type": "number", "minimum": 0},
        "How long each stage is watched, in place of the spec's for this time.",
    ),
    "follow_s": (
        {"type": "number", "minimum": 0, "maximum": logs.MAX_FOLLOW_S, "default": 0},
        "Go on with what comes, for so many seconds.",
    ),
    "hours": ({"type": "integer", "minimum": 1, "maximum": 168, "default": 24}, "How far back."),
    "level": ({"type": "string", "enum": list(said.LEVELS)}, "Only what is as grave as this, or graver."),
    "limit": ({"type": "integer", "minimum": 1, "maximum": 200, "default": 50}, "How many."),
    "object": (_NAME, "Only what was done to this, for example agent:research."),
    "or_cancel": (
        _SWITCH,
        "With wait: cancel the task if it has not ended by then, and as soon as the caller closes the connection.",
    ),
    "replica": (_NAME, "Only what is of this replica."),
    "parent": (_NAME, "Only the sub-tasks of this task."),
    "resource": ({"type": "string", "pattern": "^agent:"}, "On what; without it, on anything at all."),
    "session": (_NAME, "Only what is of this session."),
    "sessions": (_SWITCH, "With dry_run: try the revision, on the agent's stored sessions too; one at a time."),
    "since": ({"type": "string", "format": "date-time"}, "Only what is not older."),
    "state": ({"type": "string", "enum": list(tasks.State)}, "Only what is in this state."),
    "step_s": ({"type": "integer", "enum": list(history.STEPS_S), "default": history.MINUTE_S}, "How long each is."),
    "strategy": (
        {"type": "string", "enum": ["rolling", "blue-green", "canary"]},
        "In place of the spec's for this time.",
    ),
    "task": (_NAME, "Only what is of this task."),
    "tenant": (_NAME, "Of this tenant, for who may manage others than their own."),
    "wait": (
        {"type": "number", "minimum": 0, "maximum": schemas.MAX_WAIT_S},
        "Answer when the task has ended, or after this many seconds.",
    ),
}
# Where it is something else than everywhere.
_QUERIES_OF: dict[tuple[str, str], tuple[dict[str, Any], str]] = {
    ("/v1/alerts", "state"): ({"type": "string", "enum": list(alerts.State)}, "Only what is in this state."),
}
_HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "Cache-Control": (
        {"type": "string"},
        "With no-cache or no-store the task runs: no kept result answers it, and its own is not kept.",
    ),
    "Idempotency-Key": (
        {"type": "string", "minLength": 1, "maxLength": 255},
        "The same request with the same key is accepted once, however often it is sent.",
    ),
    "Last-Event-ID": ({"type": "string", "pattern": "^[0-9]{1,18}$"}, "Begin behind the event of this number."),
    "traceparent": (
        {"type": "string"},
        "The trace that the tasks belong to, as W3C has it; malformed: there is none.",
    ),
    "tracestate": ({"type": "string", "maxLength": 512}, "What goes with traceparent, handed on as it is."),
}

# What the client reads with more patience than this node needs: these it knows, and gives always but for the latter.
_CHOICES: dict[tuple[str, str], Iterable[str]] = {
    ("Task", "state"): tasks.State,
    ("Alert", "state"): alerts.State,
    ("Event", "type"): ("state", *sorted(protocol.EVENT_TYPES)),
    ("LogLine", "level"): tuple(said.LEVELS),
    ("LogLine", "source"): ("stdout", "stderr", "event", "greenroom"),
    ("Agent", "state"): agents.State,
    ("Replica", "state"): ("starting", "ready", "draining", "stopped", "failed"),
    ("Replica", "grade"): health.Grade,
    ("Agent", "grade"): health.Grade,
    ("AgentStatus", "grade"): health.Grade,
    ("Rollout", "state"): rollouts.Phase,
    ("RolloutStatus", "state"): (rollouts.Phase.PROGRESSING, rollouts.Phase.PAUSED),
    ("BreakerState", "state"): (*breaker.State, "off"),
    ("Plan", "action"): ("begin", "join", "stay"),
    ("Webhook", "state"): ("enabled", "disabled"),
    ("Delivery", "state"): ("pending", "delivered", "failed"),
}
_SOMETIMES = {
    "Task": {"routing", "cached_from", "trace_id", "trace_url"},
    "Session": {"state"},
    "Key": {"key", "rights"},
    "Webhook": {"secret"},
}


async def _show(call: Call) -> Answer:
    """Show this document."""
    return Answer(document())


ROUTE = Route("GET", "/openapi.json", _show, Action.STATUS_READ, {200: "application/json"})


@functools.cache
def document() -> dict[str, Any]:
    every = (*routes.ROUTES, ROUTE)
    paths: dict[str, dict[str, Any]] = {}
    for route in every:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Greenroom", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": _bodies() | _answers(every) | {"Problem": _PROBLEM},
            "responses": {"Refused": _REFUSED},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _query(route: Route, name: str) -> tuple[dict[str, Any], str]:
    return _QUERIES_OF.get((route.path, name)) or _QUERIES[name]


def _bodies() -> dict[str, Any]:
    kinds = [
        schemas.Submission,
        schemas.Batch,
        schemas.Scale,
        schemas.Rollback,
        schemas.KeyRotation,
        schemas.Promotion,
        schemas.NewKey,
        schemas.NewWebhook,
        schemas.WebhookChange,
        schemas.NewSilence,
        schemas.AuditErasure,
        schemas.Unlock,
        settings.AgentSettings,
    ]
    (_, components) = msgspec.json.schema_components(kinds, ref_template=_SCHEMAS + "{name}")
    # A rollout is something else where it is answered.
    components["RolloutSettings"] = components.pop("Rollout") | {"title": "RolloutSettings"}
    components["AgentSettings"]["properties"]["rollout"]["$ref"] = f"{_SCHEMAS}RolloutSettings"
    for name in ("AgentSettings", "Scaling", "RolloutSettings", "Example"):
        components[name]["additionalProperties"] = False  # as `settings` has it
    components["Batch"]["properties"]["tasks"]["items"] = {"$ref": f"{_SCHEMAS}Submission"}
    return components


def _answers(every: Iterable[Route]) -> dict[str, Any]:
    given = [kind for route in every for answer in route.gives.values() for kind in _kinds(answer)]
    kinds = [models.Event, *dict.fromkeys(given)]
    (_, components) = msgspec.json.schema_components(kinds, ref_template=_SCHEMAS + "{name}")
    for name, schema in components.items():
        schema["required"] = [key for key in schema["properties"] if key not in _SOMETIMES.get(name, ())]
        for key, value in schema["properties"].items():
            value.pop("default", None)  # a newer client's idea of what an older node did not say
            if (name, key) in _CHOICES:
                schema["properties"][key] = {"type": "string", "enum": list(_CHOICES[name, key])}
    components["Agent"]["properties"]["spec"] = {"$ref": f"{_SCHEMAS}AgentSettings"}
    either = [{"$ref": f"{_SCHEMAS}Task"}, {"$ref": f"{_SCHEMAS}Problem"}]
    components["BatchResult"]["properties"]["items"]["items"] = {"anyOf": either}
    return components


def _kinds(answer: Given) -> tuple[type[msgspec.Struct], ...]:
    match answer:
        case Page(item) | Events(item):
            return (item,)
        case None | str():
            return ()
        case tuple():
            return answer
        case _:
            return (answer,)


def _operation(route: Route) -> dict[str, Any]:
    names = re.findall(r"\{(\w+)\}", route.path)
    operation: dict[str, Any] = {
        "operationId": "_".join(re.findall(r"\w+", f"{route.method.lower()} {route.path}")),
        "summary": (route.endpoint.__doc__ or "").strip().replace("``", ""),
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names),
            *(_parameter(name, "query", *_query(route, name)) for name in route.query),
            *(_parameter(name, "header", *_HEADERS[name]) for name in route.headers),
        ],
        "x-permission": route.action,
        "responses": {
            **{str(status): _response(status, kind) for status, kind in route.gives.items()},
            "4XX": {"$ref": "#/components/responses/Refused"},
            "5XX": {"$ref": "#/components/responses/Refused"},
        },
    }
    if route.body is not None:
        content = {route.media_type.decode(): {"schema": _body_schema(route.body)}}
        operation["requestBody"] = {"required": not route.body_is_optional, "content": content}
    return operation


def _body_schema(body: type[Any]) -> dict[str, Any]:
    if body is bytes:
        return {"type": "string", "format": "binary"}
    return {"$ref": f"{_SCHEMAS}{'AgentSettings' if body is dict else body.__name__}"}


def _parameter(name: str, place: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": place, "description": description, "schema": schema}


def _response(status: int, kind: Given) -> dict[str, Any]:
    response: dict[str, Any] = {"description": _MEANINGS[status], "headers": _LIMITS}
    match kind:
        case None:
            pass
        case "application/json":
            response["content"] = {kind: {"schema": {"type": "object"}}}
        case Events(item):
            # What each of its events has as data; OpenAPI 3.1 has no word for it.
            stream = {"schema": {}, "x-event": {"$ref": f"{_SCHEMAS}{item.__name__}"}}
            response["content"] = {"text/event-stream": stream}
        case str():
            response["content"] = {kind: {"schema": {"type": "string"}}}
        case Page(item):
            response["content"] = {"application/json": {"schema": _page(item)}}
        case tuple():
            choices = [{"$ref": f"{_SCHEMAS}{each.__name__}"} for each in kind]
            response["content"] = {"application/json": {"schema": {"anyOf": choices}}}
        case _:
            response["content"] = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}{kind.__name__}"}}}
    return response


def _page(item: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["items", "next_cursor"],
        "properties": {
            "items": {"type": "array", "items": {"$ref": f"{_SCHEMAS}{item.__name__}"}},
            "next_cursor": {"type": ["string", "null"], "description": "null at the end of the list"},
        },
    }
