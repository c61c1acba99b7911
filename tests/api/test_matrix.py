"""I49: who may do what to whose, for every route: `matrix.txt`, so that a change of it is seen in a diff.

GREENROOM_TEST_WRITE_MATRIX=1 python -m pytest tests/api/test_matrix.py writes it anew.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest

import nodes
from greenroom.api import openapi, routes
from greenroom.api.dashboard import assets, forms, pages
from greenroom.core.permissions import ROLES
from greenroom.store.alerts import Raised
from greenroom.store.recovery import Noted

pytestmark = pytest.mark.asyncio(loop_scope="session")

GOLDEN = Path(__file__).with_name("matrix.txt")
TENANTS = ("default", "other")
AGENT = "sacrificed"
SPEC = nodes.agent("echo")
WEBHOOK = {"url": "https://hooks.example/matrix", "events": []}
SHARED = (
    "agents",
    "scaling",
    "rollouts",
    "replicas",
    "alerts",
    "silences",
    "receivers",
    "assets",
)  # all tenants have the same
BODIES: dict[str, Any] = {
    "POST /v1/tasks": {"agent": "echo", "input": 1},
    "POST /v1/tasks/batch": {"tasks": [{"agent": "echo", "input": 1}]},
    "PUT /v1/agents/{name}": SPEC,
    "PATCH /v1/agents/{name}/scale": {"replicas": 1},
    "POST /v1/agents/{name}/rollback": {},
    "POST /v1/rollouts/{id}/promote": {},
    "POST /v1/keys": {"name": "matrix", "role": "viewer"},
    "POST /v1/webhooks": WEBHOOK,
    "POST /v1/silences": {"agent": AGENT, "for_s": 60},
    "PATCH /v1/webhooks/{id}": {"description": "matrix"},
    "POST /v1/audit/erase": {"actor": "nobody"},
    "POST /v1/security/unlock": {"subject": "principal:nobody"},
}
FORM = {
    "replicas": "1",
    "stage": "1",
    "to": "1",
    "name": "of a form",
    "kind": "recurring",
    "hours": "1",
    "agent": "echo",
    "input": "matrix",
}  # the fields of all forms
HEAD = f"""\
# Who may do what to whose. yes: they may; 403: they may not; 404: for them it is not there; told: the page that the
# form was on tells them one of these.
# The first four columns are of the node's own tenant, the others of another one.
{"":<52}{"".join(f"{role:<10}" for role in [*ROLES] * 2).rstrip()}
"""


class Objects:
    """One of everything that has an id, made anew where it has been removed."""

    def __init__(self, api: nodes.Api) -> None:
        self._api = api
        self._tasks: dict[str, str] = {}

    async def id(self, kind: str, tenant: str) -> str:
        match kind:
            case "agents" | "scaling":
                await self._agent()
                return AGENT
            case "rollouts":
                return str((await self._agent())["rollout"]["id"])
            case "replicas":
                await self._agent()
                return str((await nodes.eventually(lambda: self._api.replicas(AGENT)))[0]["id"])
            case "alerts":
                await self._api.running.store.recovery.note(
                    Noted("nobody", None, alert=Raised("matrix", "recurring", AGENT, "warning", "r"))
                )
                return "matrix"
            case "silences":
                made = await self._api.call("POST", "/v1/silences", BODIES["POST /v1/silences"])
                return str(made.json()["id"])
            case "receivers":
                return "matrix"
            case "keys":
                key = await self._api.running.access.keys.create(
                    tenant=tenant, name="matrix", role="viewer", word="dev"
                )
                return key.id
            case "webhooks":
                if not (there := (await self._owner[tenant].get("/v1/webhooks"))["items"]):
                    there = [(await self._owner[tenant].call("POST", "/v1/webhooks", WEBHOOK)).json()]
                return str(there[0]["id"])
            case "assets":
                return assets.path_of("icon.svg").rpartition("/")[2]
            case "sessions":
                await self._owner[tenant].run("chained", ["a", None], session=f"matrix-{tenant}")
                return f"matrix-{tenant}"
            case _:
                assert kind == "tasks", f"cannot make one of {kind}: say here how"
                if tenant not in self._tasks:
                    self._tasks[tenant] = (await self._owner[tenant].run("echo", 1))["id"]
                return self._tasks[tenant]

    async def open(self) -> None:
        self._owner = {tenant: self._api.of(await self._api.key("admin", tenant=tenant)) for tenant in TENANTS}

    async def _agent(self) -> Any:
        found = await self._api.http.get(f"/v1/agents/{AGENT}")
        if found.status_code == 404:
            found = await self._api.call("PUT", f"/v1/agents/{AGENT}", SPEC)
        return found.json()


def _kind(route: routes.Route) -> str:
    """What a path has the id of: what stands before it."""
    before, _, _ = route.path.partition("/{")
    return before.rpartition("/")[2]


def _ownerships(route: routes.Route) -> tuple[str, ...]:
    if "{" not in route.path:
        return ("",)
    if _kind(route) in SHARED:
        return ("there",) if route.method == "PUT" else ("there", "missing")
    return ("own", "foreign", "missing")


async def _cell(caller: nodes.Api, objects: Objects, route: routes.Route, ownership: str, tenant: str) -> str:
    path = route.path
    if ownership:
        (other,) = {*TENANTS} - {tenant}
        kind = _kind(route)
        owner = other if ownership == "foreign" else tenant
        missing = "9" * 9 if kind == "rollouts" else "f" * 43
        id = missing if ownership == "missing" else await objects.id(kind, owner)
        path = path.replace("{id}", id).replace("{name}", id)
    if path.endswith("/can"):
        path += "?action=task:read"
    if route.body is str:
        given = {"token": forms.token_of(caller.http.headers["authorization"].encode()), **FORM}
        answer = await caller.http.request(route.method, path, data=given)
    else:
        answer = await caller.call(route.method, path, BODIES.get(f"{route.method} {route.path}"))
    assert answer.status_code < 500, answer.text
    if answer.status_code == 303 and forms.FLASH + "=error" in answer.headers.get("set-cookie", ""):
        return "told"
    return str(answer.status_code) if answer.status_code in (401, 403, 404) else "yes"


async def test_the_matrix_is_as_it_was_reviewed(api: nodes.Api) -> None:
    objects = Objects(api)
    await objects.open()
    callers = [
        (tenant, api.of(await api.key(role, tenant=tenant))) for tenant, role in itertools.product(TENANTS, ROLES)
    ]
    lines = []
    for route in (*routes.ROUTES, openapi.ROUTE, *(each for each in pages.ROUTES if each.path != pages.LIVE)):
        for ownership in _ownerships(route):
            cells = [await _cell(caller, objects, route, ownership, tenant) for tenant, caller in callers]
            name = f"{route.method} {route.path}"
            lines.append(f"{name:<43} {ownership:<8}{''.join(f'{cell:<10}' for cell in cells)}".rstrip())
    await api.http.delete(f"/v1/agents/{AGENT}")
    found = HEAD + "\n".join(lines) + "\n"
    if os.environ.get("GREENROOM_TEST_WRITE_MATRIX"):
        GOLDEN.write_text(found)
    assert found.splitlines() == GOLDEN.read_text().splitlines()
