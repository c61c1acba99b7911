"""The routes of webhooks."""

from __future__ import annotations

from typing import Any

import pytest

import nodes
import urls
from greenroom import telemetry
from greenroom.core import webhooks

pytestmark = pytest.mark.asyncio(loop_scope="session")

URL = "https://hooks.example.com/in"
NOTHING = "wh_" + "0" * 16


async def add(api: nodes.Api, **given: Any) -> Any:
    response = await api.call("POST", "/v1/webhooks", {"url": URL, "events": [], **given})
    assert response.status_code == 201, response.text
    return response.json()


async def remove(api: nodes.Api, webhook: Any) -> None:
    assert (await api.http.delete(f"/v1/webhooks/{webhook['id']}")).status_code == 204


async def test_a_secret_is_shown_once(api: nodes.Api) -> None:
    made = await add(api, description="ours")
    assert len(webhooks.secret_bytes(made["secret"])) == webhooks.SECRET_BYTES
    shown = await api.get(f"/v1/webhooks/{made['id']}")
    listed = await api.get("/v1/webhooks")
    assert shown == {key: value for key, value in made.items() if key != "secret"}
    assert shown in listed["items"]
    rotated = (await api.call("POST", f"/v1/webhooks/{made['id']}/rotate")).json()
    assert rotated["secret"] != made["secret"]
    assert rotated["old_secret_until"] is not None
    assert "secret" not in await api.get(f"/v1/webhooks/{made['id']}")
    await remove(api, made)
    assert (await api.http.get(f"/v1/webhooks/{made['id']}")).status_code == 404


async def test_no_secret_is_stored_as_it_is(api: nodes.Api) -> None:
    made = await add(api)
    secret = webhooks.secret_bytes(made["secret"])
    rows = await api.running.store.db.read("select secret from webhook", {})
    assert rows
    assert not [row for row in rows if secret in row[0] or made["secret"].encode() in row[0]]
    await remove(api, made)


async def test_without_events_all_ends_are_told(api: nodes.Api) -> None:
    made = (await api.call("POST", "/v1/webhooks", {"url": URL})).json()
    assert made["events"] == list(webhooks.EVENTS)
    await remove(api, made)


async def test_a_webhook_is_changed_in_part(api: nodes.Api) -> None:
    made = await add(api, description="before")
    path = f"/v1/webhooks/{made['id']}"
    for change in ({"events": ["task.failed"]}, {"description": ""}, {"include_output": True}, {"enabled": False}):
        assert (await api.call("PATCH", path, change)).status_code == 200
    after = await api.get(path)
    assert (after["events"], after["description"], after["include_output"]) == (["task.failed"], "", True)
    assert (after["state"], after["reason"]) == ("disabled", "by its owner")
    assert (await api.call("POST", f"{path}/test")).status_code == 409
    assert (await api.call("PATCH", path, {"enabled": True})).json()["reason"] == ""
    assert (await api.call("PATCH", path, {"url": "https://other.example/"})).status_code == 422
    await remove(api, made)


@pytest.mark.parametrize("url", urls.REFUSED_URLS)
async def test_a_url_that_leads_to_no_public_receiver_is_refused(api: nodes.Api, url: str) -> None:
    heard: list[telemetry.UrlRefused] = []
    api.running.facts.subscribe(heard.append, telemetry.UrlRefused)
    response = await api.call("POST", "/v1/webhooks", {"url": urls.plain(url)})
    api.running.facts.unsubscribe(heard.append, telemetry.UrlRefused)
    assert response.status_code in {400, 422}, response.text  # 400: NUL is no JSON of ours
    assert len(heard) == (response.status_code == 422)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": ""},
        {"url": URL, "events": ["task.started"]},
        {"url": URL, "events": ["task.failed "]},
        {"url": URL, "events": "task.failed"},
        {"url": URL, "events": [" task.failed "]},
        {"url": URL, "events": ["task.failed"] * 21},
        {"url": URL, "description": "x" * 201},
        {"url": URL, "secret": "whsec_mine"},
        {"url": URL, "tenant": "other"},
        {"url": 1},
        [URL],
    ],
)
async def test_what_is_no_webhook_is_refused(api: nodes.Api, body: Any) -> None:
    assert (await api.call("POST", "/v1/webhooks", body)).status_code == 422


async def test_a_task_names_a_webhook_of_its_tenant(api: nodes.Api) -> None:
    made = await add(api)
    task = await api.run("echo", "hello", webhook=made["id"])
    (delivery,) = (await api.get(f"/v1/webhooks/{made['id']}/deliveries"))["items"]
    assert (delivery["task"], delivery["type"]) == (task["id"], "task.succeeded")
    retried = (await api.call("POST", f"/v1/tasks/{task['id']}/retry")).json()
    await api.end_of(retried["id"])
    told = (await api.get(f"/v1/webhooks/{made['id']}/deliveries"))["items"]
    assert {each["task"] for each in told} == {task["id"], retried["id"]}
    await remove(api, made)


async def test_a_task_cannot_name_what_is_not_there(api: nodes.Api) -> None:
    foreign = await add(api.of(await api.key("operator", tenant="other")))
    disabled = await add(api)
    await api.call("PATCH", f"/v1/webhooks/{disabled['id']}", {"enabled": False})
    for webhook, status in {NOTHING: 404, foreign["id"]: 404, disabled["id"]: 409, URL: 422, "wh_1\n": 422}.items():
        body = {"agent": "echo", "input": 1, "webhook": webhook}
        response = await api.call("POST", "/v1/tasks", body)
        assert response.status_code == status, response.text
        batch = await api.call("POST", "/v1/tasks/batch", {"tasks": [body]})
        assert batch.json()["items"][0]["status"] == status
    await remove(api, disabled)


async def test_a_test_is_among_the_deliveries(api: nodes.Api) -> None:
    made = await add(api, url="https://receiver.invalid.example/")
    sent = await api.call("POST", f"/v1/webhooks/{made['id']}/test")
    assert sent.status_code == 202

    async def ended() -> Any:
        (delivery,) = (await api.get(f"/v1/webhooks/{made['id']}/deliveries"))["items"]
        return delivery if delivery["state"] != "pending" else None

    delivery = await nodes.eventually(ended)
    assert (delivery["id"], delivery["state"], delivery["type"]) == (sent.json()["id"], "failed", "webhook.test")
    assert delivery["error"] == "the host's name cannot be resolved"
    await remove(api, made)


async def test_deliveries_are_listed_page_by_page(api: nodes.Api) -> None:
    made = await add(api)
    ids = [(await api.run("echo", number, webhook=made["id"]))["id"] for number in range(3)]
    path, seen = f"/v1/webhooks/{made['id']}/deliveries?limit=2", []
    page = await api.get(path)
    while True:
        seen += [each["task"] for each in page["items"]]
        if page["next_cursor"] is None:
            break
        page = await api.get(f"{path}&cursor={page['next_cursor']}")
    assert seen == ids[::-1]
    await remove(api, made)
