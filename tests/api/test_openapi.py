"""The OpenAPI document describes what is answered: each answer of each route is held against it."""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

import nodes
from greenroom.api import openapi, routes
from greenroom.core import history
from greenroom.core.optimizer import Found
from greenroom.engine import archives
from greenroom.security import audit
from greenroom.store import database
from greenroom.store.alerts import Raised
from greenroom.store.history import Part
from greenroom.store.measures import Measure
from greenroom.store.recovery import Noted
from greenroom.store.scaling import Load

pytestmark = pytest.mark.asyncio(loop_scope="session")

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
SAY_NOTHING = {"title", "description", "default"}


def mistakes(value: Any, schema: dict[str, Any], at: str = "") -> Iterator[str]:
    """What of *value* is not as *schema* has it. JSON Schema, as far as the document needs it; objects are closed."""
    for keyword, says in schema.items():
        match keyword:
            case "$ref":
                yield from mistakes(value, openapi.document()["components"]["schemas"][says.rpartition("/")[2]], at)
            case "anyOf":
                if all(any(mistakes(value, choice, at)) for choice in says):
                    yield f"{at}: {value!r} is none of {says}"
            case "type":
                kinds = [kind for name in ([says] if isinstance(says, str) else says) for kind in TYPES[name]]
                if type(value) not in kinds:
                    yield f"{at}: {value!r} is no {says}"
            case "enum":
                if value not in says:
                    yield f"{at}: {value!r} is none of {says}"
            case "format":
                assert says == "date-time"
                if isinstance(value, str) and datetime.fromisoformat(value).tzinfo is None:
                    yield f"{at}: {value!r} has no time zone"
            case "pattern":
                if isinstance(value, str) and not re.search(says, value):
                    yield f"{at}: {value!r} does not match {says}"
            case "minimum" | "exclusiveMinimum" | "maximum" | "minLength" | "maxLength" | "minItems" | "maxItems":
                pass  # of requests
            case "required":
                yield from (
                    f"{at}: {name} is missing" for name in says if isinstance(value, dict) and name not in value
                )
            case "properties" if isinstance(value, dict):
                for name, item in value.items():
                    if name in says:
                        yield from mistakes(item, says[name], f"{at}.{name}")
                    else:
                        yield f"{at}: {name} is not described"
            case "additionalProperties":
                if isinstance(says, dict) and isinstance(value, dict):
                    for name, item in value.items():
                        yield from mistakes(item, says, f"{at}.{name}")
            case "items" if isinstance(value, list):
                for index, item in enumerate(value):
                    yield from mistakes(item, says, f"{at}[{index}]")
            case "properties" | "items":
                pass
            case _:
                assert keyword in SAY_NOTHING, f"the test does not know {keyword}"


class Reader:
    """Calls routes as the document names them, and holds every answer against it."""

    def __init__(self, api: nodes.Api) -> None:
        self._api = api
        self.answered: set[tuple[str, str]] = set()  # route and status

    async def call(self, route: str, body: Any = None, query: str = "", **given: Any) -> httpx.Response:
        method, path = route.split()
        names = {name: given.pop(name) for name in re.findall(r"\{(\w+)\}", path)}
        response = await self._api.call(method, path.format(**names) + query, body, **given)
        responses = openapi.document()["paths"][path][method.lower()]["responses"]
        status = str(response.status_code)
        described = responses.get(status) or responses[f"{status[0]}XX"]
        self.answered.add((route, status if status in responses else f"{status[0]}XX"))
        self._check(response, self._followed(described).get("content", {}))
        return response

    def _followed(self, described: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in described:
            described = openapi.document()["components"]["responses"][described["$ref"].rpartition("/")[2]]
        return described

    def _check(self, response: httpx.Response, content: dict[str, Any]) -> None:
        if not content:
            assert response.content == b""
            return
        media_type = response.headers["content-type"].split(";")[0]
        schema = content[media_type]
        if media_type.endswith("json"):
            assert not list(mistakes(response.json(), schema["schema"], response.request.url.path))
        if "x-event" in schema:
            events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
            assert events
            for event in events:
                assert not list(mistakes(json.loads(event), schema["x-event"], "event"))


@pytest.mark.slow
async def test_every_route_answers_as_it_is_described(
    api: nodes.Api, ledger: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(api)
    call = reader.call

    # Tasks, in every state and of every kind.
    done = await call("POST /v1/tasks", {"agent": "talking", "input": {"count": 2}, "metadata": {"a": 1}}, "?wait=30")
    failed = await call("POST /v1/tasks", {"agent": "failing", "input": "no"}, "?wait=30")
    await call("POST /v1/tasks", {"input": "repeat this"}, "?wait=30")
    await call("POST /v1/tasks", {"agent": "chained", "input": ["a", None], "session": "described"}, "?wait=30")
    running = (
        await call("POST /v1/tasks", {"agent": "gated", "input": {"ledger": str(ledger), "gate": str(gate)}})
    ).json()
    await nodes.lines_of(ledger)
    late = {"agent": "echo", "input": 1, "not_before": "2999-01-01T00:00:00Z", "timeout_s": 60, "priority": 1}
    queued = (await call("POST /v1/tasks", late)).json()
    for task in (done.json(), failed.json(), running, queued):
        await call("GET /v1/tasks/{id}", id=task["id"])
    await call("GET /v1/tasks/{id}", None, "?wait=0.01", id=running["id"])
    await call("POST /v1/tasks/{id}/cancel", id=queued["id"])
    await call("GET /v1/tasks/{id}", id=queued["id"])
    late_too = (
        await call("POST /v1/tasks", {"agent": "queue", "input": {"ledger": str(ledger), "gate": str(gate)}})
    ).json()
    expired = (await call("POST /v1/tasks", {"agent": "queue", "input": {}, "timeout_s": 0.05}, "?wait=30")).json()
    assert expired["state"] == "expired"
    gate.touch()
    for task in (running, late_too):
        await api.end_of(task["id"])
    for task in (done.json(), failed.json(), queued, expired):
        await call("GET /v1/tasks/{id}/events", id=task["id"])
    await call("GET /v1/tasks/{id}/events", id=done.json()["id"], headers={"last-event-id": "999"})
    await call("POST /v1/tasks/{id}/retry", id=failed.json()["id"])
    batch = [{"agent": "echo", "input": 1}, {"agent": "nobody", "input": 1}, {"input": "xylophone zzz"}, "no object"]
    await call("POST /v1/tasks/batch", {"tasks": batch})
    await call("GET /v1/tasks", None, "?limit=200")
    assert "candidates" in (await call("POST /v1/tasks", {"input": "xylophone zzz"})).json()

    await call("GET /v1/sessions")
    await call("GET /v1/sessions/{id}", id="described")
    await call("DELETE /v1/sessions/{id}", id="described")

    spec = nodes.agent("echo", arguments={}, skills=["s"], examples=["e"], env=["A"])
    await call("PUT /v1/agents/{name}", spec, name="described")
    await call("GET /v1/agents/{name}", name="described")
    await call("GET /v1/agents/{name}/revisions", name="described")
    await call("PATCH /v1/agents/{name}/scale", {"replicas": 2}, name="described")
    await call("GET /v1/agents/{name}/scaling", name="described")
    load = Load(agent="described", arrivals=1, ends=1, run_us=2, waiting=3, busy=1.0, replicas=1, start_us=None)
    await api.running.store.scaling.record([load])
    assert (await call("GET /v1/agents/{name}/load", None, "?hours=1", name="described")).json()["items"]
    await api.running.history.step()
    tenfold = history.Counts(ends={"failed agent_error": 10}, run=history.Histogram({60: 10}, 10.0))
    now_us = database.microseconds(api.running.clock.now())
    part = Part("described", 60, history.begin_us(now_us, 60), "another", history.encode(tenfold))
    await api.running.store.history.put([part])
    assert (await call("GET /v1/agents/{name}/history", name="described")).json()["items"]
    await call("GET /v1/agents/{name}/health", name="described")
    await call("GET /v1/agents")
    await api.running.logs.step()
    assert (await call("GET /v1/logs", None, "?agent=described")).json()["items"]
    await call("GET /v1/logs/stream", None, "?agent=described")

    async def both() -> list[Any] | None:
        ready = await api.replicas("described")
        return ready if len(ready) == 2 else None

    killed, _ = await nodes.eventually(both)
    nodes.kill(killed["pid"])

    async def failures() -> list[Any]:
        found: list[Any] = (await call("GET /v1/failures", None, "?agent=described")).json()["items"]
        return found

    (failure,) = await nodes.eventually(failures)
    assert (failure["replica"], failure["action"]) == (killed["id"], "restart")
    assert failure["kind"] in {"killed", "oom"}  # the kernel may have ended another test's replica at the same moment
    raised = Raised("agent-described", "recurring", "described", "warning", "it dies again and again")
    await api.running.store.recovery.note(Noted("somebody", None, alert=raised))
    await call("GET /v1/alerts")
    found = Found("idle", "described", "what", "why", "expected", "replicas", 2.0, 1.0)
    await api.running.store.advice.open(found)
    await call("GET /v1/advice")
    await call("POST /v1/alerts/{id}/ack", id="agent-described")
    await call("GET /v1/alerts/rules")
    silence = (await call("POST /v1/silences", {"kind": "slow_*", "for_s": 60})).json()
    await call("GET /v1/silences")
    await call("DELETE /v1/silences/{id}", id=silence["id"])
    await call("GET /v1/receivers")
    await call("POST /v1/receivers/{name}/test", name="matrix")
    await call("POST /v1/agents/{name}/release", name="described")

    restarted, drained = await nodes.eventually(both)
    await call("GET /v1/replicas")
    await call("POST /v1/replicas/{id}/restart", id=restarted["id"])
    await call("POST /v1/replicas/{id}/drain", id=drained["id"])
    await call("DELETE /v1/agents/{name}", name="described")
    await rollouts_answer(reader)
    await webhooks_answer(reader)

    made = (await call("POST /v1/keys", {"name": "described", "expires_in_s": 60})).json()
    scoped = {"name": "described", "scopes": ["task:* on agent:echo"]}
    scoped_key = (await call("POST /v1/keys", scoped)).json()
    await call("GET /v1/keys/{id}", id=scoped_key["id"])
    await call("GET /v1/keys/{id}/can", None, "?action=task:submit&resource=agent:echo", id=scoped_key["id"])
    await call("DELETE /v1/keys/{id}", id=made["id"])
    monkeypatch.setattr(api.running.services, "ask_to_stop", lambda: None)
    await call("POST /v1/shutdown")
    await backups_rest(api)
    await call("POST /v1/backups")
    await backups_rest(api)
    for route in ("POST /v1/logins", "DELETE /v1/logins"):
        await call(route)
    await call("POST /v1/encryption/rotate", {"data_keys": False})
    for route in (
        "GET /v1/backups",
        "GET /v1/encryption",
        "GET /v1/keys",
        "GET /v1/status",
        "GET /metrics",
        "GET /openapi.json",
    ):
        await call(route)

    await call("GET /v1/audit", None, "?action=key.*&limit=5")
    await api.running.store.audit.seal(audit.Signer(b"s" * 32))
    await call("GET /v1/audit/checkpoints")
    await call("POST /v1/audit/erase", {"actor": "nobody"})
    await api.running.store.measures.take(Measure("principal:x", "lock", "scope_probing", "why", 0, 2**62 // 2**11))
    await call("GET /v1/security")
    await call("POST /v1/security/unlock", {"subject": "principal:x"})

    described = {(f"{route.method} {route.path}", str(status)) for route in EVERY for status in route.gives}
    assert described <= reader.answered, described - reader.answered


async def webhooks_answer(reader: Reader) -> None:
    call = reader.call
    webhook = {"url": "https://hooks.example.com/", "events": []}
    id = (await call("POST /v1/webhooks", webhook)).json()["id"]
    await call("GET /v1/webhooks")
    await call("GET /v1/webhooks/{id}", id=id)
    await call("POST /v1/webhooks/{id}/rotate", id=id)
    await call("PATCH /v1/webhooks/{id}", {"description": "x"}, id=id)
    await call("POST /v1/webhooks/{id}/test", id=id)
    await call("GET /v1/webhooks/{id}/deliveries", id=id)
    await call("DELETE /v1/webhooks/{id}", id=id)


async def rollouts_answer(reader: Reader) -> None:
    call = reader.call
    archive = archives.pack({"agents.py": b"async def echo(input):\n    return input\n"})
    gzip = {"content-type": "application/gzip"}
    brought = (await call("POST /v1/code", content=archive, headers=gzip)).json()
    rollout = {"strategy": "blue-green", "promotion": "manual", "hold_s": 60}
    spec = nodes.agent("echo", rollout=rollout)
    name = {"name": "rolled"}
    await call("PUT /v1/agents/{name}", spec, "?dry_run=true&sessions=true", **name)
    await call("PUT /v1/agents/{name}", spec, **name)

    async def rollout_is(state: str) -> dict[str, Any] | None:
        last = (await call("GET /v1/agents/{name}", **name)).json()["rollout"]
        return last if last["state"] == state else None

    await nodes.eventually(lambda: rollout_is("complete"))
    changed = spec | {"timeout_s": 5, "arguments": {}}
    await call("PUT /v1/agents/{name}", changed, f"?dry_run=true&code={brought['digest']}", **name)
    await call("PUT /v1/agents/{name}", changed, f"?code={brought['digest']}", **name)
    await call("GET /v1/status")
    id = (await nodes.eventually(lambda: rollout_is("paused")))["id"]
    for verb in ("promote", "pause", "resume", "abort"):
        await call(f"POST /v1/rollouts/{{id}}/{verb}", id=id)
    await call("GET /v1/rollouts/{id}", id=id)
    await call("GET /v1/agents/{name}/rollouts", **name)
    await call("GET /v1/agents/{name}/revisions", **name)
    await call("POST /v1/agents/{name}/rollback", {"to": 1}, **name)
    await call("DELETE /v1/agents/{name}", **name)


async def backups_rest(api: nodes.Api) -> None:
    async def rest() -> bool:
        return not (await api.get("/v1/status"))["backups"]["is_running"]

    await nodes.eventually(rest)


EVERY = (*routes.ROUTES, openapi.ROUTE)


@pytest.mark.parametrize("route", EVERY, ids=lambda route: f"{route.method} {route.path}")
async def test_every_route_refuses_as_it_is_described(
    api: nodes.Api, route: routes.Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.running.services, "ask_to_stop", lambda: None)
    name = f"{route.method} {route.path}"
    if name == "POST /v1/backups":
        await backups_rest(api)
    names = dict.fromkeys(re.findall(r"\{(\w+)\}", route.path), "nobody")
    source = f"10.9.9.{EVERY.index(route)}"  # from one place, more than thirty a minute would be too many
    stranger = await Reader(api.of(None, source=source)).call(name, **names)
    assert (stranger.status_code, stranger.headers["www-authenticate"]) == (401, "Bearer")
    garbage: dict[str, Any] = {"content": b"{", "headers": {"content-type": "application/json"}} if route.body else {}
    refused = await Reader(api).call(name, **names, **garbage)
    is_json = route.body is not None and route.body is not bytes
    assert refused.status_code == (
        400 if is_json else 415 if route.body is bytes else 404 if names else next(iter(route.gives))
    )


async def test_the_document_describes_every_route_once(api: nodes.Api) -> None:
    document = await api.get("/openapi.json")
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert described == {(route.method, route.path) for route in EVERY}
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids)), "an operation's id stands for one operation"
    assert all(operation["summary"] and "`" not in operation["summary"] for operation in operations)
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references == set(document["components"]["schemas"]), "nothing is missing, and nothing is left over"


async def test_what_is_given_beside_the_body_is_described_with_its_type() -> None:
    for route in EVERY:
        operation = openapi.document()["paths"][route.path][route.method.lower()]
        given = {(item["in"], item["name"]): item for item in operation["parameters"]}
        assert {name for place, name in given if place == "path"} == set(re.findall(r"\{(\w+)\}", route.path))
        assert all(item["schema"]["type"] for item in given.values())
        assert all(item["description"] for (place, _), item in given.items() if place != "path")
    paths = openapi.document()["paths"]
    for path in ("/v1/tasks", "/v1/tasks/batch"):
        headers = {(item["in"], item["name"]) for item in paths[path]["post"]["parameters"]}
        assert headers >= {("header", "Idempotency-Key"), ("header", "Cache-Control")}
    events = paths["/v1/tasks/{id}/events"]["get"]["parameters"]
    assert ("header", "Last-Event-ID") in {(item["in"], item["name"]) for item in events}
    wait = next(item for item in paths["/v1/tasks"]["post"]["parameters"] if item["name"] == "wait")
    assert wait["schema"] == {"type": "number", "minimum": 0, "maximum": 300.0}
