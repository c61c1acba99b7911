"""Who may do what: nobody is anonymous, roles bound what they may, tenants do not see one another."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

import nodes
from greenroom.api import openapi, routes
from greenroom.core import permissions, rates
from greenroom.security import keys

pytestmark = pytest.mark.asyncio(loop_scope="session")

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get")
PATHS = sorted({route.path for route in (*routes.ROUTES, openapi.ROUTE)})
UNKNOWN = (
    "/login/",
    "/docs",
    "/redoc",
    "/debug",
    "/static/x",
    "/v1",
    "/v1/",
    "/v1/tasks/",
    "/healthz/",
    "/v2/tasks",
    "/.env",
)
MISSING_ID = "0" * 32

# The lowest role that may use each route: the written form of who may do what.
LOWEST_ROLE = {
    "POST /v1/tasks": "user",
    "POST /v1/tasks/batch": "user",
    "GET /v1/tasks": "viewer",
    "GET /v1/tasks/{id}": "viewer",
    "POST /v1/tasks/{id}/cancel": "user",
    "POST /v1/tasks/{id}/retry": "user",
    "GET /v1/tasks/{id}/events": "viewer",
    "GET /v1/sessions": "viewer",
    "GET /v1/sessions/{id}": "viewer",
    "DELETE /v1/sessions/{id}": "user",
    "GET /v1/agents": "viewer",
    "GET /v1/agents/{name}": "viewer",
    "PUT /v1/agents/{name}": "admin",
    "DELETE /v1/agents/{name}": "admin",
    "PATCH /v1/agents/{name}/scale": "operator",
    "GET /v1/agents/{name}/scaling": "viewer",
    "GET /v1/agents/{name}/load": "viewer",
    "GET /v1/agents/{name}/history": "viewer",
    "GET /v1/agents/{name}/health": "viewer",
    "POST /v1/agents/{name}/release": "operator",
    "GET /v1/agents/{name}/revisions": "viewer",
    "GET /v1/agents/{name}/rollouts": "viewer",
    "POST /v1/agents/{name}/rollback": "operator",
    "GET /v1/rollouts/{id}": "viewer",
    "POST /v1/rollouts/{id}/promote": "operator",
    "POST /v1/rollouts/{id}/pause": "operator",
    "POST /v1/rollouts/{id}/resume": "operator",
    "POST /v1/rollouts/{id}/abort": "operator",
    "POST /v1/code": "admin",
    "GET /v1/replicas": "viewer",
    "POST /v1/replicas/{id}/restart": "operator",
    "POST /v1/replicas/{id}/drain": "operator",
    "GET /v1/failures": "viewer",
    "GET /v1/advice": "viewer",
    "GET /v1/alerts": "viewer",
    "GET /v1/alerts/rules": "viewer",
    "POST /v1/alerts/{id}/ack": "operator",
    "GET /v1/silences": "viewer",
    "POST /v1/silences": "operator",
    "DELETE /v1/silences/{id}": "operator",
    "GET /v1/logs": "viewer",
    "GET /v1/logs/stream": "viewer",
    "GET /v1/receivers": "operator",
    "POST /v1/receivers/{name}/test": "operator",
    "GET /v1/status": "viewer",
    "GET /v1/backups": "operator",
    "POST /v1/backups": "operator",
    "GET /v1/encryption": "operator",
    "POST /v1/encryption/rotate": "admin",
    "GET /v1/keys": "admin",
    "POST /v1/keys": "admin",
    "GET /v1/keys/{id}": "admin",
    "GET /v1/keys/{id}/can": "admin",
    "DELETE /v1/keys/{id}": "admin",
    "POST /v1/shutdown": "admin",
    "POST /v1/logins": "viewer",
    "DELETE /v1/logins": "viewer",
    "GET /v1/webhooks": "operator",
    "POST /v1/webhooks": "operator",
    "GET /v1/webhooks/{id}": "operator",
    "PATCH /v1/webhooks/{id}": "operator",
    "DELETE /v1/webhooks/{id}": "operator",
    "POST /v1/webhooks/{id}/rotate": "operator",
    "POST /v1/webhooks/{id}/test": "operator",
    "GET /v1/webhooks/{id}/deliveries": "operator",
    "GET /v1/audit": "admin",
    "GET /v1/audit/checkpoints": "admin",
    "POST /v1/audit/erase": "admin",
    "GET /v1/security": "operator",
    "POST /v1/security/unlock": "admin",
    "GET /metrics": "viewer",
    "GET /openapi.json": "viewer",
}
ROLES = ("viewer", "user", "operator", "admin")

_sources = (f"10.{a}.{b}.{c}" for a, b, c in itertools.product(range(256), repeat=3))


def _filled(path: str) -> str:
    return re.sub(r"\{\w+\}", MISSING_ID, path)


def _without_id(response: httpx.Response) -> tuple[int, bytes, str | None]:
    """What tells one rejection from another, apart from the request's own id."""
    body = re.sub(rb'"request_id":"[0-9a-f]+"', b"", response.content)
    return response.status_code, body, response.headers.get("www-authenticate")


async def _bad_keys(api: nodes.Api) -> dict[str, str | None]:
    good = await api.key("admin")
    expired = await api.key("admin", expires_in_s=1e-6)
    revoked = await api.key("admin")
    revoked_id = keys.parse(revoked)
    assert revoked_id is not None
    await api.running.access.auth.revoke(revoked_id.id, tenant="default")
    other_id = good.replace(good.split("_")[2], "f" * 16)
    return {
        "none": None,
        "empty": "",
        "garbage": "gr_garbage",
        "mistyped": good[:-1] + ("0" if good[-1] != "0" else "1"),
        "unknown": keys.mint("dev", b"another pepper").text,
        "other id": other_id,
        "expired": expired,
        "revoked": revoked,
        "long": "x" * 600,
    }


async def test_every_rejected_credential_looks_the_same(api: nodes.Api) -> None:
    answers = {}
    for name, key in (await _bad_keys(api)).items():
        answers[name] = _without_id(await api.of(key, source=next(_sources)).http.get("/v1/status"))
    assert {answer[0] for answer in answers.values()} == {401}
    assert len(set(answers.values())) == 1, answers


@pytest.mark.parametrize(
    "authorization", [b"Basic Zm9vOmJhcg==", b"Bearer", b"bearer  ", b"\xff\xfe", b"Bearer \xe4", b"gr_dev_x"]
)
async def test_other_schemes_are_rejected(api: nodes.Api, authorization: bytes) -> None:
    http = api.of(None, source=next(_sources)).http
    response = await http.get("/v1/status", headers=[(b"authorization", authorization)])
    assert response.status_code == 401


@pytest.mark.parametrize("path", [*PATHS, *UNKNOWN])
async def test_nothing_answers_without_a_valid_credential(api: nodes.Api, path: str) -> None:
    expired = await api.key("admin", expires_in_s=1e-6)
    for method, key in itertools.product(METHODS, (None, "gr_garbage", expired)):
        http = api.of(key, source=next(_sources)).http
        response = await http.request(method, _filled(path))
        assert response.status_code == 401, (method, path, key)


async def test_the_open_paths_are_these_three_and_say_nothing(api: nodes.Api) -> None:
    assert routes.OPEN == ("/healthz", "/readyz", "/login")
    http = api.of(None, source=next(_sources)).http
    for path in routes.PROBES:
        response = await http.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
        assert (await http.post(path)).status_code == 405


@pytest.mark.parametrize("path", UNKNOWN)
async def test_an_unknown_path_is_not_found_with_a_credential(api: nodes.Api, path: str) -> None:
    response = await api.http.get(path)
    assert (response.status_code, response.json()["type"]) == (404, "not-found")


async def test_a_websocket_is_refused(api: nodes.Api) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await api.running.app({"type": "websocket", "path": "/v1/tasks", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_a_method_that_a_path_does_not_take_is_405_and_says_which_it_takes(api: nodes.Api) -> None:
    by_path: dict[str, set[str]] = {}
    for route in (*routes.ROUTES, openapi.ROUTE):
        by_path.setdefault(route.path, set()).add(route.method)
    for path, taken in by_path.items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - taken:
            response = await api.http.request(method, _filled(path))
            if path == "/v1/tasks/batch":  # also a task's id, by its form
                assert response.status_code in (404, 405)
                continue
            assert response.status_code == 405, (method, path)
            assert {word.strip() for word in response.headers["allow"].split(",")} == taken


async def test_the_written_table_names_every_route() -> None:
    assert set(LOWEST_ROLE) == {f"{route.method} {route.path}" for route in (*routes.ROUTES, openapi.ROUTE)}


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_may_do_what_the_table_says(api: nodes.Api, role: str) -> None:
    mine = api.of(await api.key(role))
    for route, lowest in LOWEST_ROLE.items():
        method, path = route.split()
        status = (await mine.http.request(method, _filled(path))).status_code
        assert (status != 403) == (ROLES.index(role) >= ROLES.index(lowest)), (route, status)
        assert status not in (401, 500)


async def test_an_unknown_role_may_do_nothing(api: nodes.Api) -> None:
    mine = api.of(await api.key("god"))
    for route in LOWEST_ROLE:
        method, path = route.split()
        assert (await mine.http.request(method, _filled(path))).status_code == 403


# Guessing


@pytest.mark.slow
async def test_guessing_is_slowed_down_per_source(api: nodes.Api) -> None:
    bad, good = next(_sources), await api.key("user")
    statuses = [(await api.of("gr_guess", source=bad).http.get("/v1/status")).status_code for _ in range(40)]
    limit = rates.Rejections.LIMIT_PER_MINUTE
    assert statuses == [401] * limit + [429] * (40 - limit)
    blocked = await api.of("gr_guess", source=bad).http.get("/v1/status")
    assert blocked.status_code == 429
    assert blocked.json()["type"] == "rate-limited"
    assert 1 <= int(blocked.headers["retry-after"]) <= 60
    spoofed = await api.of("gr_guess", source=bad).http.get("/v1/status", headers={"x-forwarded-for": next(_sources)})
    assert spoofed.status_code == 429
    assert (await api.of(good, source=bad).http.get("/v1/status")).status_code == 200  # strangers lock nobody out
    assert (await api.of(good, source=next(_sources)).http.get("/v1/status")).status_code == 200
    assert (await api.http.get("/v1/status")).status_code == 200


# Keys


async def test_a_key_works_at_once_and_is_revoked_at_once(api: nodes.Api) -> None:
    made = (await api.call("POST", "/v1/keys", {"name": "ci", "role": "viewer"})).json()
    mine = api.of(made["key"], source=next(_sources))
    assert (await mine.http.get("/v1/agents")).status_code == 200
    listed = (await api.get("/v1/keys"))["items"]
    assert [item["revoked_at"] for item in listed if item["id"] == made["id"]] == [None]
    assert made["key"] not in str(listed)
    assert (await api.http.delete(f"/v1/keys/{made['id']}")).status_code == 204
    assert (await mine.http.get("/v1/agents")).status_code == 401


async def test_a_new_key_is_answered_as_it_is_listed_and_with_its_text(api: nodes.Api) -> None:
    before = datetime.now(UTC)
    for lifetime_s in (None, 3600.0):
        made = (await api.call("POST", "/v1/keys", {"name": "ci", "expires_in_s": lifetime_s})).json()
        assert made.pop("key").startswith("gr_dev_")
        assert [item for item in (await api.get("/v1/keys"))["items"] if item["id"] == made["id"]] == [made]
        created_at = datetime.fromisoformat(made["created_at"])
        assert before <= created_at <= datetime.now(UTC)
        if lifetime_s is None:
            assert made["expires_at"] is None
        else:
            assert datetime.fromisoformat(made["expires_at"]) == created_at + timedelta(seconds=lifetime_s)


async def test_nobody_grants_more_than_they_have(api: nodes.Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """No role of today grants keys without granting all: make one."""
    keys_only = [permissions.Grant(action) for action in permissions.Action if action.startswith("key:")]
    clerk_role = (*permissions.ROLES["viewer"], *keys_only)
    monkeypatch.setattr(permissions, "ROLES", {**permissions.ROLES, "clerk": clerk_role})
    clerk = api.of(await api.key("clerk"))
    for role, status in {"viewer": 201, "clerk": 201, "user": 403, "operator": 403, "admin": 403}.items():
        response = await clerk.call("POST", "/v1/keys", {"name": "n", "role": role})
        assert response.status_code == status, role


@pytest.mark.parametrize(
    "body",
    [
        {"name": "n", "role": "owner"},
        {"name": "n", "tenant": "other"},
        {"name": "n", "permissions": ["keys"]},
        {"name": "", "role": "user"},
        {"name": "n", "expires_in_s": 0},
        {"role": "user"},
        ["n"],
    ],
)
async def test_a_key_that_nobody_can_have_is_refused(api: nodes.Api, body: Any) -> None:
    assert (await api.call("POST", "/v1/keys", body)).status_code == 422


# Tenants

CANARY = "canary-of-another-tenant"


async def _foreign(api: nodes.Api) -> tuple[nodes.Api, dict[str, str]]:
    """Another tenant, with one of everything that has an id."""
    other = api.of(await api.key("admin", tenant="other"))
    task = await other.run("chained", [CANARY, None], session=f"session-{CANARY}")
    key_id = (await other.call("POST", "/v1/keys", {"name": CANARY})).json()["id"]
    webhook = {"url": f"https://{CANARY}.example/", "description": CANARY, "events": []}
    webhook_id = (await other.call("POST", "/v1/webhooks", webhook)).json()["id"]
    return other, {"tasks": task["id"], "sessions": task["session"], "keys": key_id, "webhooks": webhook_id}


async def test_what_belongs_to_another_tenant_is_not_there(api: nodes.Api) -> None:
    other, ids = await _foreign(api)
    seen = 0
    for route in routes.ROUTES:
        kind = route.path.split("/")[2] if route.path.startswith("/v1/") else ""
        if "{" not in route.path or kind not in ids:
            continue
        foreign, missing = ids[kind], MISSING_ID if kind == "tasks" else f"x-{MISSING_ID}"
        answers = [
            _without_id(await api.call(route.method, route.path.replace("{id}", id), {} if route.body else None))
            for id in (foreign, missing)
        ]
        assert answers[0][0] == 404, route.path
        assert answers[0][1].replace(foreign.encode(), b"") == answers[1][1].replace(missing.encode(), b"")
        seen += 1
    assert seen == sum(path.split("/")[2] in ids for path in (each.path for each in routes.ROUTES) if "{" in path)
    assert (await other.task(ids["tasks"]))["state"] == "succeeded"
    assert (await other.get("/v1/keys"))["items"][-1]["revoked_at"] is None


async def test_no_list_shows_what_is_anothers(api: nodes.Api) -> None:
    _, ids = await _foreign(api)
    for path in PATHS:
        if "{" not in path and path not in ("/v1/tasks/batch", "/v1/audit"):  # the home tenant sees who did what to all
            text = (await api.http.get(path)).text
            assert CANARY not in text
            assert not [id for id in ids.values() if id in text], path
    for query in (f"session={ids['sessions']}", "agent=chained", "state=succeeded"):
        assert CANARY not in (await api.http.get(f"/v1/tasks?{query}")).text


async def test_tenants_do_not_share_sessions_or_idempotency_keys(api: nodes.Api) -> None:
    other = api.of(await api.key("user", tenant="other"))
    headers = {"idempotency-key": "shared"}
    ours = await api.call("POST", "/v1/tasks", {"agent": "echo", "input": 1}, headers=headers)
    theirs = await other.call("POST", "/v1/tasks", {"agent": "echo", "input": 2}, headers=headers)
    assert ours.status_code == theirs.status_code == 202
    assert ours.json()["id"] != theirs.json()["id"]
    assert (await other.run("chained", ["a", None], session="shared"))["output"][0] == 1
    assert (await api.run("chained", ["a", None], session="shared"))["output"][0] == 1
