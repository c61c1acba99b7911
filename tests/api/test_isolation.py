"""I48: what belongs to another tenant is not there, on every route and for every id that one could name."""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

import nodes
from greenroom.api import openapi, routes

pytestmark = pytest.mark.asyncio(loop_scope="session")

CANARY = "canary0of0a0tenant"
HOME, OTHER = "default", "other"
EVERY = (*routes.ROUTES, openapi.ROUTE)
# What a route takes, so that it gets as far as to the object.
BODIES: dict[str, Any] = {
    "POST /v1/tasks": {"agent": "echo", "input": 1},
    "POST /v1/tasks/batch": {"tasks": [{"agent": "echo", "input": 1}]},
    "PUT /v1/agents/{name}": nodes.agent("echo"),
    "PATCH /v1/agents/{name}/scale": {"replicas": 1},
    "POST /v1/agents/{name}/rollback": {},
    "POST /v1/rollouts/{id}/promote": {},
    "PATCH /v1/webhooks/{id}": {"description": "another"},
}
SINGLE = [route for route in EVERY if "{" in route.path]
LISTS = [route for route in EVERY if "{" not in route.path and route.method == "GET" and route.path != "/v1/audit"]


@dataclass(frozen=True)
class Tenant:
    """A tenant's administrator, and the ids of one of everything that is theirs, by kind."""

    api: nodes.Api
    ids: dict[str, str]


async def _furnished(api: nodes.Api, tenant: str) -> Tenant:
    mine = api.of(await api.key("admin", tenant=tenant))
    canary = f"{CANARY}0{tenant}"
    headers = {"idempotency-key": f"key-{canary}"}
    body = {"agent": "chained", "input": [canary, None], "session": f"s-{canary}", "metadata": {canary: canary}}
    task = (await mine.call("POST", "/v1/tasks?wait=60", body, headers=headers)).json()
    failed = await mine.run("failing", canary)
    assert (task["state"], failed["state"]) == ("succeeded", "failed")
    key = (await mine.call("POST", "/v1/keys", {"name": canary})).json()
    hook = {"url": f"https://{canary}.example/", "events": [], "description": canary}
    webhook = (await mine.call("POST", "/v1/webhooks", hook)).json()
    ids = {"task": task["id"], "failed": failed["id"], "session": task["session"], "key": key["id"], "canary": canary}
    ids["webhook"] = webhook["id"]
    return Tenant(mine, ids)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tenants(api: nodes.Api) -> AsyncIterator[dict[str, Tenant]]:
    yield {name: await _furnished(api, name) for name in (HOME, OTHER)}


def _shown(response: httpx.Response, id: str) -> tuple[int, bytes, str]:
    """What tells one answer from another, apart from what was asked for and the request's own id."""
    body = re.sub(rb'"request_id":"[0-9a-f]+"', b"", response.content).replace(id.encode(), b"ID")
    return response.status_code, body, response.headers.get("content-type", "")


async def _asked(tenant: Tenant, route: routes.Route, path: str) -> httpx.Response:
    return await tenant.api.call(route.method, path, BODIES.get(f"{route.method} {route.path}"))


def _missing(id: str) -> str:
    """An id of the same form that nobody has."""
    return "".join("f" if letter in "0123456789abcdef" else letter for letter in id)


@pytest.mark.parametrize(
    ("route", "caller", "owner"),
    [
        (route, caller, owner)
        for route, (caller, owner) in itertools.product(SINGLE, itertools.permutations((HOME, OTHER)))
        if caller == OTHER or (route.method, route.path) != ("PUT", "/v1/agents/{name}")  # makes what is not there
    ],
    ids=lambda of: f"{of.method} {of.path}" if isinstance(of, routes.Route) else of,
)
async def test_an_object_of_another_tenant_is_answered_as_one_that_is_not_there(
    tenants: dict[str, Tenant], route: routes.Route, caller: str, owner: str
) -> None:
    for id in tenants[owner].ids.values():
        missing = _missing(id)
        assert missing != id
        answers = [
            _shown(await _asked(tenants[caller], route, re.sub(r"\{\w+\}", each, route.path)), each)
            for each in (id, missing)
        ]
        assert answers[0] == answers[1]
        assert answers[0][0] in (403, 404)
        assert CANARY.encode() not in answers[0][1].replace(b"ID", b"")


async def test_the_owners_still_have_what_was_asked_for(tenants: dict[str, Tenant]) -> None:
    """After all that was tried above, and so that those ids were right."""
    for tenant in tenants.values():
        assert (await tenant.api.task(tenant.ids["task"]))["state"] == "succeeded"
        assert (await tenant.api.get(f"/v1/sessions/{tenant.ids['session']}"))["tasks"] == 1
        assert (await tenant.api.get(f"/v1/keys/{tenant.ids['key']}"))["revoked_at"] is None
        assert (await tenant.api.get(f"/v1/webhooks/{tenant.ids['webhook']}"))["description"] == tenant.ids["canary"]
        assert tenant.ids["canary"] in (await tenant.api.http.get("/v1/tasks")).text


def _queries(route: routes.Route, ids: dict[str, str]) -> Iterator[str]:
    """The route, plainly and with each id as each of its parameters."""
    yield route.path
    for name, id in itertools.product(route.query, ids.values()):
        yield f"{route.path}?{name}={id}"
    if "agent" in route.query:
        yield from (f"{route.path}?agent={name}&limit=200" for name in ("chained", "failing"))
    if "state" in route.query:
        yield from (f"{route.path}?state={state}&limit=200" for state in ("succeeded", "failed", "queued"))


@pytest.mark.parametrize(("caller", "owner"), [(OTHER, HOME), (HOME, OTHER)])
@pytest.mark.parametrize("route", LISTS, ids=lambda route: route.path)
async def test_no_list_shows_what_is_another_tenants(
    tenants: dict[str, Tenant], route: routes.Route, caller: str, owner: str
) -> None:
    theirs = tenants[owner].ids
    for path in _queries(route, theirs):
        response = await tenants[caller].api.http.get(path)
        assert response.status_code < 500
        if response.status_code >= 400:
            continue  # a refusal may repeat what was asked for
        for id in theirs.values():
            assert id not in response.text, path


async def test_the_audit_log_shows_a_tenant_its_own_entries_and_the_home_tenant_all(
    tenants: dict[str, Tenant],
) -> None:
    """By all filters that there are. What a tenant has asked for itself, of others' too, is its own."""
    for caller, owner in itertools.permutations((HOME, OTHER)):
        ids = tenants[owner].ids.values()
        objects = [f"{kind}:{id}" for kind, id in tenants[owner].ids.items()]
        for query in ("", *(f"&actor={id}" for id in ids), *(f"&object={each}" for each in objects), "&after=0"):
            entries = (await tenants[caller].api.get(f"/v1/audit?limit=200{query}"))["items"]
            if caller == OTHER:
                assert {entry["tenant"] for entry in entries} <= {OTHER}, query
    created = f"&action=webhook.create&object=webhook:{tenants[OTHER].ids['webhook']}"
    for name in (HOME, OTHER):
        (entry,) = (await tenants[name].api.get(f"/v1/audit?{created[1:]}"))["items"]
        assert (entry["tenant"], entry["outcome"]) == (OTHER, "done")


async def test_an_idempotency_key_of_another_tenant_is_free(tenants: dict[str, Tenant]) -> None:
    for caller, owner in itertools.permutations(tenants.values()):
        headers = {"idempotency-key": f"key-{owner.ids['canary']}"}
        body = {"agent": "echo", "input": "other"}
        made = await caller.api.call("POST", "/v1/tasks?wait=30", body, headers=headers)
        assert (made.status_code, made.json()["output"]) == (200, "other")


async def test_a_session_of_the_same_name_is_another_session(tenants: dict[str, Tenant]) -> None:
    for caller, owner in itertools.permutations(tenants.values()):
        ran = await caller.api.run("chained", ["mine", None], session=owner.ids["session"])
        assert ran["output"][0] == 1
        await caller.api.http.delete(f"/v1/sessions/{owner.ids['session']}")


async def test_events_of_another_tenants_task_are_not_streamed(tenants: dict[str, Tenant]) -> None:
    for caller, owner in itertools.permutations(tenants.values()):
        response = await caller.api.http.get(f"/v1/tasks/{owner.ids['task']}/events", headers={"last-event-id": "0"})
        assert response.status_code == 404


async def test_a_tenant_sees_its_own_numbers_and_no_reasons(tenants: dict[str, Tenant], api: nodes.Api) -> None:
    late = {"agent": "gated", "input": 1, "not_before": "2999-01-01T00:00:00Z"}
    queued = (await tenants[HOME].api.call("POST", "/v1/tasks", late)).json()
    home, other = [await tenants[name].api.get("/v1/agents/gated") for name in (HOME, OTHER)]
    assert (home["queued"], other["queued"]) == (1, 0)
    assert (other["spec"], other["rollout"], other["reason"], other["grade_reason"]) == (None,) * 4
    status = await tenants[OTHER].api.get("/v1/status")
    assert status["tasks"].get("queued", 0) == 0
    assert (status["alerts"], status["advice"], status["replicas"]["total"]) == ({}, 0, 0)
    assert {row["name"]: row["tasks"] for row in status["agents"]}["gated"] == {}
    assert status["backups"]["to"] == ""
    assert (await tenants[HOME].api.get("/v1/status"))["tasks"]["queued"] >= 1
    await api.http.post(f"/v1/tasks/{queued['id']}/cancel")


async def test_the_home_tenants_administrator_names_a_tenant_to_manage_its_keys(tenants: dict[str, Tenant]) -> None:
    home, other = tenants[HOME], tenants[OTHER]
    key = other.ids["key"]
    assert (await home.api.http.get(f"/v1/keys/{key}")).status_code == 404
    assert (await home.api.get(f"/v1/keys/{key}?tenant=other"))["tenant"] == OTHER
    listed = (await home.api.get("/v1/keys?tenant=other"))["items"]
    assert key in {item["id"] for item in listed}
    assert {item["tenant"] for item in listed} == {OTHER}
    made = (await other.api.call("POST", "/v1/keys", {"name": "short"})).json()
    assert (await home.api.http.delete(f"/v1/keys/{made['id']}?tenant=other")).status_code == 204
    assert (await other.api.of(made["key"]).http.get("/v1/status")).status_code == 401


async def test_nobody_else_does(tenants: dict[str, Tenant]) -> None:
    other, key = tenants[OTHER].api, tenants[HOME].ids["key"]
    for method, path in (
        ("GET", "/v1/keys?tenant=default"),
        ("GET", "/v1/keys?tenant=third"),
        ("GET", f"/v1/keys/{key}?tenant=default"),
        ("GET", f"/v1/keys/{key}/can?tenant=default&action=task:read"),
        ("DELETE", f"/v1/keys/{key}?tenant=default"),
    ):
        assert (await other.http.request(method, path)).status_code == 403, path
    for tenant in (HOME, "third"):
        made = await other.call("POST", "/v1/keys", {"name": "n", "tenant": tenant})
        assert made.status_code == 403
    assert (await other.call("POST", "/v1/keys", {"name": "n", "tenant": OTHER})).status_code == 201


async def test_a_second_tenant_needs_rooms_that_are_closed(
    tenants: dict[str, Tenant], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tenants[HOME].api
    wanted = {"name": "n", "tenant": "third"}
    refused = await home.call("POST", "/v1/keys", wanted)
    assert (refused.status_code, refused.json()["type"]) == (422, "invalid-body")
    assert "isolation tier T0" in refused.json()["detail"]
    monkeypatch.setattr(home.running.services, "tier", "T1")
    assert (await home.call("POST", "/v1/keys", wanted)).status_code == 422
    monkeypatch.setattr(home.running.services, "tier", "T2")
    made = await home.call("POST", "/v1/keys", wanted | {"role": "admin"})
    assert (made.status_code, made.json()["tenant"]) == (201, "third")
    third = home.of(made.json()["key"])
    assert (await third.get("/v1/tasks"))["items"] == []
    assert (await third.http.get("/metrics")).status_code == 403
