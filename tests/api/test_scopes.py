"""A grant on one agent: what one may read is there, what one may not read is not, what one may not do is 403."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

import nodes
from greenroom.core.permissions import parse
from greenroom.store.alerts import Raised
from greenroom.store.recovery import NewFailure, Noted

pytestmark = pytest.mark.asyncio(loop_scope="session")

MISSING = "0" * 43


async def _with(api: nodes.Api, *scopes: str, role: str = "admin", tenant: str = "default") -> nodes.Api:
    made = await api.running.access.keys.create(
        tenant=tenant, name="scoped", role=role, word="dev", scopes=[parse(scope) for scope in scopes]
    )
    return api.of(made.text)


def _told(response: httpx.Response, id: str) -> tuple[int, str]:
    return response.status_code, response.json()["detail"].replace(id, "ID")


async def test_a_task_of_another_agent_is_not_there(api: nodes.Api) -> None:
    mine = await _with(api, "task:* on agent:echo")
    own, other = await api.run("echo", "a"), await api.run("chained", ["b", None])
    assert (await mine.task(own["id"]))["output"] == "a"
    for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/events"), ("GET", "?wait=1")):
        answers = [_told(await mine.http.request(method, f"/v1/tasks/{id}{path}"), id) for id in (other["id"], MISSING)]
        assert answers[0] == answers[1] == (404, "cannot find the task ID")


async def test_what_may_be_read_but_not_done_is_forbidden(api: nodes.Api) -> None:
    mine = await _with(api, "task:read on agent:echo", "task:* on agent:gated", "agent:read")
    task = await api.run("echo", "a")
    for verb in ("cancel", "retry"):
        refused = await mine.http.post(f"/v1/tasks/{task['id']}/{verb}")
        assert (refused.status_code, refused.json()["type"]) == (403, "forbidden")
    submitted = await mine.call("POST", "/v1/tasks", {"agent": "echo", "input": 1})
    assert submitted.status_code == 403
    assert "task:submit on agent:echo" in submitted.json()["detail"]


async def test_an_agent_that_one_may_not_know_of_is_answered_as_one_that_is_not_there(api: nodes.Api) -> None:
    mine = await _with(api, "task:* on agent:echo", "agent:* on agent:echo")
    for name in ("chained", "nobody"):
        submitted = await mine.call("POST", "/v1/tasks", {"agent": name, "input": ["a", None]})
        assert submitted.status_code == 404
        assert submitted.json()["detail"] == f"cannot find the agent '{name}'; there are: echo"
        for method, path in (
            ("GET", ""),
            ("GET", "/scaling"),
            ("GET", "/load"),
            ("GET", "/history"),
            ("GET", "/revisions"),
            ("GET", "/rollouts"),
            ("POST", "/release"),
            ("DELETE", ""),
        ):
            answer = await mine.http.request(method, f"/v1/agents/{name}{path}")
            assert answer.json()["detail"] == f"cannot find the agent '{name}'; there are: echo", path
        assert (await mine.call("PATCH", f"/v1/agents/{name}/scale", {"replicas": 1})).status_code == 404
        assert (await mine.call("PUT", f"/v1/agents/{name}", nodes.agent("echo"))).status_code == 403
    assert [item["name"] for item in (await mine.get("/v1/agents"))["items"]] == ["echo"]
    assert {item["agent"] for item in (await mine.get("/v1/replicas"))["items"]} == {"echo"}


async def test_operating_is_checked_on_the_agent_of_each_object(api: nodes.Api) -> None:
    mine = await _with(api, "agent:operate on agent:echo", "agent:observe on agent:*ed", "agent:read")
    (replica,) = await api.replicas("chained")
    (hidden,) = await api.replicas("talking")
    rollout = (await api.get("/v1/agents/chained"))["rollout"]["id"]
    hidden_rollout = (await api.get("/v1/agents/talking"))["rollout"]["id"]
    for path in (
        f"/v1/replicas/{replica['id']}/restart",
        f"/v1/rollouts/{rollout}/pause",
        "/v1/agents/chained/release",
    ):
        assert (await mine.http.post(path)).status_code == 403, path
    for path in (f"/v1/replicas/{hidden['id']}/restart", f"/v1/rollouts/{hidden_rollout}/pause"):
        assert (await mine.http.post(path)).status_code == 404, path
    assert (await mine.http.get(f"/v1/rollouts/{rollout}")).status_code == 200
    assert (await mine.http.get(f"/v1/rollouts/{hidden_rollout}")).status_code == 404


async def test_lists_are_whole_pages_of_what_may_be_read(api: nodes.Api) -> None:
    tenant = "paging"
    admin = api.of(await api.key("admin", tenant=tenant))
    mine = await _with(api, "task:read on agent:ech*", "session:read on agent:chained", tenant=tenant)
    wanted = []
    for number in range(5):
        wanted.append((await admin.run("echo", number))["id"])
        await admin.submit("talking", {"count": 0})
    pages: list[list[str]] = []
    cursor: str | None = ""
    while cursor is not None:
        query = f"&cursor={cursor}" if cursor else ""
        page = await mine.get(f"/v1/tasks?limit=2{query}")
        pages.append([item["id"] for item in page["items"]])
        cursor = page["next_cursor"]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [id for page in pages for id in page] == wanted[::-1]
    assert (await mine.get("/v1/tasks?agent=talking"))["items"] == []
    assert (await mine.get("/v1/tasks?agent=echo&state=succeeded&limit=1"))["items"]

    for agent, session in (("chained", "own"), ("chained", "both")):
        await admin.run(agent, ["a", None], session=session)
    assert {item["id"] for item in (await mine.get("/v1/sessions?limit=2"))["items"]} == {"own", "both"}
    blind = await _with(api, "session:read on agent:echo", tenant=tenant)
    assert (await blind.get("/v1/sessions"))["items"] == []
    assert (await blind.http.get("/v1/sessions/own")).status_code == 404
    assert (await mine.http.delete("/v1/sessions/own")).status_code == 403
    status = await mine.http.get("/v1/status")
    assert status.status_code == 403


async def test_a_request_is_routed_among_the_agents_that_its_caller_may_submit_to(api: nodes.Api) -> None:
    request = {"input": "repeat this, and research sources"}
    everybody = await api.call("POST", "/v1/tasks", request)
    mine = await _with(api, "task:* on agent:queue", "task:* on agent:talking")
    routed = await mine.call("POST", "/v1/tasks", {"input": "research sources"})
    assert (routed.status_code, routed.json()["agent"]) == (202, "queue")
    assert {score["agent"] for score in routed.json()["routing"]["scores"]} <= {"queue", "talking"}
    refused = await mine.call("POST", "/v1/tasks", {"input": "repeat what it is told"})
    assert (refused.status_code, refused.json()["type"]) == (422, "no-route")
    assert "echo" not in refused.text
    assert everybody.status_code in (202, 422)


async def test_each_item_of_a_batch_is_checked(api: nodes.Api) -> None:
    mine = await _with(api, "task:* on agent:echo", "agent:read on agent:chained")
    names = ("echo", "chained", "talking", "nobody")
    sent = {"tasks": [{"agent": name, "input": 1} for name in names]}
    items = (await mine.call("POST", "/v1/tasks/batch", sent)).json()["items"]
    assert [item.get("status", item.get("agent")) for item in items] == ["echo", 403, 404, 404]


async def test_who_may_submit_but_not_read_is_not_told_what_came_of_it(api: nodes.Api) -> None:
    mine = await _with(api, "task:submit on agent:echo")
    sent = {"agent": "echo", "input": "secret", "idempotency_key": "submit-only"}
    assert (await mine.call("POST", "/v1/tasks?wait=5", sent)).status_code == 403
    made = await mine.call("POST", "/v1/tasks", sent)
    assert made.status_code == 202
    await api.end_of(made.json()["id"])
    again = await mine.call("POST", "/v1/tasks", sent)
    assert (again.json()["id"], again.json()["state"], again.json()["output"]) == (made.json()["id"], "succeeded", None)
    assert (await mine.http.get(f"/v1/tasks/{made.json()['id']}")).status_code == 403


async def test_the_end_of_the_wait_cancels_nothing_for_who_may_not_cancel(api: nodes.Api) -> None:
    mine = await _with(api, "task:submit on agent:echo", "task:read on agent:echo")
    refused = await mine.call("POST", "/v1/tasks?wait=5&or_cancel=true", {"agent": "echo", "input": 1})
    assert refused.status_code == 403


async def test_a_used_key_does_not_show_a_task_of_an_agent_that_is_not_ones_own(api: nodes.Api) -> None:
    sent = {"agent": "chained", "input": ["a", None], "idempotency_key": "shared-by-colleagues"}
    assert (await api.call("POST", "/v1/tasks?wait=30", sent)).status_code == 200
    mine = await _with(api, "task:* on agent:echo")
    answer = await mine.call("POST", "/v1/tasks", sent)
    assert (answer.status_code, answer.json()["type"]) == (404, "not-found")


async def test_alerts_and_failures_are_of_the_agents_that_one_may_observe(api: nodes.Api) -> None:
    store = api.running.store.recovery
    for agent in ("echo", "chained"):
        failure = NewFailure(f"{agent}-scoped", agent, 1, "n", "killed", "r", "restart")
        alert = Raised(f"scoped-{agent}", "recurring", agent, "warning", "r")
        await store.note(Noted(f"nobody-{agent}", None, failures=(failure,), alert=alert))
    await api.running.store.alerts.tell(Raised("scoped-node", "node", None, "warning", "r"))
    mine = await _with(api, "agent:observe on agent:echo", "alert:* on agent:echo")
    assert {item["agent"] for item in (await mine.get("/v1/failures?limit=200"))["items"]} == {"echo"}
    assert {item["id"] for item in (await mine.get("/v1/alerts"))["items"]} == {"scoped-echo"}
    assert (await mine.get("/v1/advice"))["items"] == []
    for id in ("scoped-chained", "scoped-node", "nothing"):
        assert _told(await mine.http.post(f"/v1/alerts/{id}/ack"), id) == (404, "cannot find the alert ID")
    assert (await mine.http.post("/v1/alerts/scoped-echo/ack")).status_code == 200
    reader = await _with(api, "alert:read on agent:echo", "alert:acknowledge on agent:chained")
    assert (await reader.http.post("/v1/alerts/scoped-echo/ack")).status_code == 403


@pytest.mark.parametrize("field", ["role", "tenant", "owner", "submitted_by", "principal", "scopes", "id", "state"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/tasks", {"agent": "echo", "input": 1}),
        ("PATCH", "/v1/agents/gated/scale", {"replicas": 1}),
        ("POST", "/v1/agents/gated/rollback", {}),
        ("PUT", "/v1/agents/assigned", nodes.agent("echo")),
    ],
)
async def test_nothing_is_assigned_by_a_body_that_is_the_callers_to_have(
    api: nodes.Api, method: str, path: str, body: dict[str, Any], field: str
) -> None:
    for value in ("admin", ["other"]):
        refused = await api.call(method, path, body | {field: value})
        assert refused.status_code in (400, 422), (path, field)


@pytest.mark.parametrize("field", ["owner", "created_by", "id", "key", "rights", "permissions", "secret_hash", "kind"])
async def test_a_new_keys_own_facts_are_not_its_creators_to_say(api: nodes.Api, field: str) -> None:
    assert (await api.call("POST", "/v1/keys", {"name": "n", field: "x"})).status_code == 422


async def test_each_item_of_a_batch_takes_nothing_else_either(api: nodes.Api) -> None:
    sent: Sequence[dict[str, Any]] = [
        {"agent": "echo", "input": 1, field: "x"} for field in ("tenant", "role", "owner")
    ]
    items = (await api.call("POST", "/v1/tasks/batch", {"tasks": sent})).json()["items"]
    assert [item["status"] for item in items] == [422, 422, 422]


async def test_sub_tasks_are_called_in_the_name_of_the_agent_that_calls(api: nodes.Api, ledger: Path) -> None:
    """Who may submit to an agent gets what it does, though they may not submit to those that it calls."""
    mine = await _with(api, "task:* on agent:parent")
    assert (await mine.call("POST", "/v1/tasks", {"agent": "echo", "input": 1})).status_code == 404
    ran = await mine.run("parent", {"agent": "echo", "child": "hello", "ledger": str(ledger)})
    assert ran["output"] == {"answer": "hello"}
    assert {item["agent"] for item in (await mine.get("/v1/tasks"))["items"]} == {"parent"}
