"""The OpenAPI document, drawn from the route table and the schemas: what it says is what is checked."""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec

from greenroom import settings
from greenroom.api import routes, schemas
from greenroom.api.request import Answer, Call
from greenroom.api.routes import Route
from greenroom.core import tasks
from greenroom.core.admission import Permission

_PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem document",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
    },
}


_QUERIES: dict[str, dict[str, Any]] = {
    "after": {"type": "integer", "minimum": 0},
    "cursor": {"type": "string", "pattern": "^[0-9]{1,19}$"},
    "limit": {"type": "integer", "minimum": 1, "maximum": 200},
    "state": {"enum": list(tasks.State)},
    "wait": {"type": "number", "minimum": 0, "maximum": schemas.MAX_WAIT_S},
}


async def _show(call: Call) -> Answer:
    """Show this document."""
    return Answer(document())


ROUTE = Route("GET", "/openapi.json", _show, Permission.READ)


@functools.cache
def document() -> dict[str, Any]:
    bodies = [schemas.Submission, schemas.Batch, schemas.Scale, schemas.NewKey, settings.AgentSettings]
    (_, components) = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    for name in ("AgentSettings", "Scaling", "Rollout"):
        components[name]["additionalProperties"] = False  # as `settings` has it
    components["Scale"]["properties"]["replicas"]["minimum"] = 1  # as the route has it
    paths: dict[str, dict[str, Any]] = {}
    for route in (*routes.ROUTES, ROUTE):
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Greenroom", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": components | {"Problem": _PROBLEM},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    names = re.findall(r"\{(\w+)\}", route.path)
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    parameters += [
        {"name": name, "in": "query", "schema": _QUERIES.get(name, {"type": "string"})} for name in route.query
    ]
    operation: dict[str, Any] = {
        "operationId": "_".join(re.findall(r"\w+", f"{route.method.lower()} {route.path}")),
        "summary": (route.endpoint.__doc__ or "").strip(),
        "parameters": parameters,
        "x-permission": route.permission,
        "responses": {
            "2XX": {"description": "done"},
            "default": {
                "description": "refused",
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        },
    }
    if route.body is not None:
        name = "AgentSettings" if route.body is dict else route.body.__name__
        schema = {"$ref": f"#/components/schemas/{name}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation
