"""The task and session routes: submit, wait, batch, idempotency, routing, order, cancel, retry, sessions."""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

import asyncio
import json
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import nodes
from greenroom import errors
from greenroom.api import access

pytestmark = pytest.mark.asyncio(loop_scope="session")

MISSING = "0" * 32


def _post(api: nodes.Api, body: Any, path: str = "/v1/tasks", **headers: str) -> Any:
    return api.call("POST", path, body, headers={name.replace("_", "-"): text for name, text in headers.items()})


# Submit, wait, show


async def test_a_task_is_accepted_and_runs(api: nodes.Api) -> None:
    accepted = await api.submit("echo", {"q": 1}, metadata={"who": "me"}, priority=3)
    assert accepted["state"] == "queued"
    task = await api.end_of(accepted["id"])
    assert {key: task[key] for key in ("id", "agent", "state", "input", "output", "error", "metadata", "priority")} == {
        "id": accepted["id"],
        "agent": "echo",
        "state": "succeeded",
        "input": {"q": 1},
        "output": {"q": 1},
        "error": None,
        "metadata": {"who": "me"},
        "priority": 3,
    }
    assert task["created_at"] <= task["started_at"] <= task["finished_at"]
    assert [(attempt["attempt"], attempt["reason"]) for attempt in task["attempts"]] == [(1, "ok")]
    assert set(accepted) <= set(task)


async def test_waiting_answers_200_in_any_terminal_state_and_202_otherwise(
    api: nodes.Api, ledger: Path, gate: Path
) -> None:
    failed = await _post(api, {"agent": "failing", "input": "no"}, "/v1/tasks?wait=30")
    assert (failed.status_code, failed.json()["state"]) == (200, "failed")
    assert failed.json()["error"] == {"type": "ValueError", "message": "no", "retryable": False, "may_have_run": False}
    work = {"ledger": str(ledger), "gate": str(gate)}
    late = await _post(api, {"agent": "gated", "input": work}, "/v1/tasks?wait=0.05")
    assert (late.status_code, late.json()["state"]) == (202, "running")
    id = late.json()["id"]
    assert (await api.http.get(f"/v1/tasks/{id}?wait=0.05")).status_code == 202
    assert (await api.http.get(f"/v1/tasks/{id}")).status_code == 200
    waiting = asyncio.create_task(api.http.get(f"/v1/tasks/{id}?wait=60"))
    gate.touch()
    assert ((await waiting).status_code, (await waiting).json()["state"]) == (200, "succeeded")
    gone = await _post(api, {"agent": "echo", "input": 1}, "/v1/tasks?wait=301")
    assert gone.status_code == 422


async def test_a_wait_does_not_depend_on_being_told(
    api: nodes.Api, ledger: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task may end on another node, of which nobody here hears."""
    monkeypatch.setattr(api.running.store.hub, "publish", lambda _: None)
    work = {"ledger": str(ledger), "gate": str(gate)}
    waiting = asyncio.create_task(_post(api, {"agent": "gated", "input": work}, "/v1/tasks?wait=30"))
    await nodes.lines_of(ledger)
    gate.touch()
    answer = await asyncio.wait_for(waiting, 10)
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")


async def test_unknown_agents_and_tasks_are_404(api: nodes.Api) -> None:
    answer = await _post(api, {"agent": "nobody", "input": 1})
    assert answer.status_code == 404
    assert "echo" in answer.json()["detail"]
    for method, path in [("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry")]:
        assert (await api.call(method, f"/v1/tasks/{MISSING}{path}")).status_code == 404


async def test_lists_are_filtered_and_paged(api: nodes.Api) -> None:
    session = f"list-{secrets.token_hex(4)}"
    for number in range(5):
        await api.run("chained", [str(number), None], session=session)
    seen: list[str] = []
    cursor = ""
    while True:
        page = await api.get(f"/v1/tasks?session={session}&agent=chained&state=succeeded&limit=2{cursor}")
        seen += [item["input"][0] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == ["4", "3", "2", "1", "0"]
    assert (await api.get(f"/v1/tasks?session={session}&state=failed"))["items"] == []


# Idempotency


async def test_a_repeated_key_answers_with_the_same_task(api: nodes.Api) -> None:
    key = secrets.token_hex(8)
    body = {"agent": "echo", "input": "once"}
    first = await _post(api, body, idempotency_key=key)
    again = await _post(api, body, "/v1/tasks?wait=30", idempotency_key=key)
    assert again.json()["id"] == first.json()["id"]
    assert (again.status_code, again.json()["state"]) == (200, "succeeded")
    other = await _post(api, body | {"input": "twice"}, idempotency_key=key)
    assert (other.status_code, other.json()["type"]) == (422, "idempotency-mismatch")
    assert (await _post(api, body, idempotency_key="")).status_code == 422
    assert (await _post(api, body, idempotency_key="k" * 256)).status_code == 422


@pytest.mark.parametrize("path", ["/v1/tasks", "/v1/tasks/batch"])
async def test_a_key_finds_its_task_although_its_agent_is_gone(
    api: nodes.Api, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    body = {"agent": "echo", "input": "once", "idempotency_key": secrets.token_hex(8)}
    sent = body if path == "/v1/tasks" else {"tasks": [body]}
    first = await _post(api, sent, path)
    monkeypatch.setattr(access, "find_agent", _nobody)
    again = await _post(api, sent, path)
    ids = [answer.json()["items"][0]["id"] if "batch" in path else answer.json()["id"] for answer in (first, again)]
    assert ids[0] == ids[1]
    body["idempotency_key"] += "x"
    unknown = (await _post(api, sent, path)).json()
    assert (unknown["items"][0] if "batch" in path else unknown)["type"] == "not-found"


def _nobody(call: object, name: str, action: object) -> Any:
    del call, action
    raise errors.NotFound(f"cannot find the agent {name}")


async def test_the_key_may_stand_in_the_body(api: nodes.Api) -> None:
    body = {"agent": "echo", "input": 1, "idempotency_key": secrets.token_hex(8)}
    assert (await _post(api, body)).json()["id"] == (await _post(api, body)).json()["id"]


@pytest.mark.slow
async def test_64_equal_requests_at_once_are_one_task(api: nodes.Api) -> None:
    for _ in range(5):
        key = secrets.token_hex(8)
        body = {"agent": "echo", "input": key, "metadata": {"key": key}}
        answers = await asyncio.gather(*(_post(api, body, idempotency_key=key) for _ in range(64)))
        assert {answer.status_code for answer in answers} <= {200, 202}  # it may have ended meanwhile
        assert len({answer.json()["id"] for answer in answers}) == 1


async def test_of_64_different_requests_with_one_key_one_is_accepted(api: nodes.Api) -> None:
    key = secrets.token_hex(8)
    answers = await asyncio.gather(*(_post(api, {"agent": "echo", "input": n}, idempotency_key=key) for n in range(64)))
    assert sorted(answer.status_code for answer in answers) == [202] + [422] * 63


async def test_routing_is_no_part_of_the_fingerprint(api: nodes.Api) -> None:
    key = secrets.token_hex(8)
    body = {"input": "repeat this, echo"}
    answers = [await _post(api, body, idempotency_key=key) for _ in range(2)]
    assert answers[0].json()["id"] == answers[1].json()["id"]


# Batches


async def test_a_batch_answers_each_item_in_order(api: nodes.Api) -> None:
    key = secrets.token_hex(8)
    items: list[Any] = [
        {"agent": "echo", "input": 0},
        {"agent": "nobody", "input": 1},
        {"agent": "echo", "input": 2, "session": "../x"},
        {"input": "zzzz qqqq"},
        "no object",
        {"agent": "echo", "input": 5, "idempotency_key": key},
        {"agent": "echo", "input": 5, "idempotency_key": key},
        {"agent": "echo", "input": 7, "idempotency_key": key},
        {"agent": "failing", "input": "8"},
    ]
    answer = await _post(api, {"tasks": items}, "/v1/tasks/batch")
    assert answer.status_code == 202
    told = [item.get("type", item.get("state")) for item in answer.json()["items"]]
    assert told[:5] == ["queued", "not-found", "invalid-body", "no-route", "invalid-body"]
    assert told[7:] == ["idempotency-mismatch", "queued"]
    accepted = answer.json()["items"]
    assert accepted[5]["id"] == accepted[6]["id"]
    assert (await api.end_of(accepted[0]["id"]))["output"] == 0
    assert (await api.end_of(accepted[8]["id"]))["state"] == "failed"


async def test_a_batch_with_a_key_is_accepted_once(api: nodes.Api) -> None:
    key = secrets.token_hex(8)
    body = {"tasks": [{"agent": "echo", "input": n} for n in range(20)]}
    answers = [await _post(api, body, "/v1/tasks/batch", idempotency_key=key) for _ in range(2)]
    ids = [[item["id"] for item in answer.json()["items"]] for answer in answers]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 20


async def test_a_batchs_key_is_of_its_whole_body_and_of_no_single_task(api: nodes.Api) -> None:
    key = secrets.token_hex(8)
    body = {"tasks": [{"agent": "echo", "input": n} for n in range(3)]}
    first = await _post(api, body, "/v1/tasks/batch", idempotency_key=key)
    for other in (body["tasks"][:2], [*body["tasks"], {"agent": "echo", "input": 3}]):
        refused = await _post(api, {"tasks": other}, "/v1/tasks/batch", idempotency_key=key)
        assert (refused.status_code, refused.json()["type"]) == (422, "idempotency-mismatch")
    key += "-partly"
    partly = [{"agent": "nobody", "input": 1}, {"agent": "echo", "input": 2}]
    await _post(api, {"tasks": partly}, "/v1/tasks/batch", idempotency_key=key)
    refused = await _post(api, {"tasks": partly[::-1]}, "/v1/tasks/batch", idempotency_key=key)
    assert (refused.status_code, refused.json()["type"]) == (422, "idempotency-mismatch")
    single = await _post(api, {"agent": "echo", "input": 0}, idempotency_key=f"{key}:0")
    assert single.json()["id"] not in {item["id"] for item in first.json()["items"]}
    for bad in ("", "k" * 256):
        assert (await _post(api, body, "/v1/tasks/batch", idempotency_key=bad)).status_code == 422


async def test_a_task_has_one_shape_wherever_it_is_shown(api: nodes.Api) -> None:
    session = f"shape-{secrets.token_hex(4)}"
    accepted = await api.submit("echo", 1, session=session)
    batch = await _post(api, {"tasks": [{"agent": "echo", "input": 1}]}, "/v1/tasks/batch")
    ended = await api.end_of(accepted["id"])
    listed = (await api.get(f"/v1/tasks?session={session}"))["items"][0]
    assert {frozenset(shown) for shown in (accepted, batch.json()["items"][0], listed)} == {frozenset(ended)}
    assert (accepted["attempts"], listed) == ([], ended)


@pytest.mark.parametrize("body", [{"tasks": []}, {"tasks": [{}] * 1001}, {"tasks": {}}, {}, {"tasks": [], "wait": 1}])
async def test_a_batch_that_is_none_is_422(api: nodes.Api, body: Any) -> None:
    assert (await _post(api, body, "/v1/tasks/batch")).status_code == 422


@pytest.mark.slow
async def test_500_tasks_in_a_batch_all_run(api: nodes.Api) -> None:
    answer = await _post(api, {"tasks": [{"agent": "echo", "input": n} for n in range(500)]}, "/v1/tasks/batch")
    ids = [item["id"] for item in answer.json()["items"]]
    outputs = await asyncio.gather(*(api.end_of(id) for id in ids))
    assert [task["output"] for task in outputs] == list(range(500))


# Routing


async def test_a_request_without_an_agent_goes_to_the_one_that_fits(api: nodes.Api) -> None:
    task = (await _post(api, {"input": "Please repeat what I say"}, "/v1/tasks?wait=30")).json()
    assert task["agent"] == task["routing"]["agent"] == "echo"
    best = task["routing"]["scores"][0]
    assert best["agent"] == "echo"
    assert best["score"] > 0
    assert best["reason"]
    assert (await api.task(task["id"]))["routing"] == task["routing"]


async def test_a_request_that_fits_no_agent_is_422_with_the_candidates(api: nodes.Api) -> None:
    answer = await _post(api, {"input": "xylophone zzz"})
    assert (answer.status_code, answer.json()["type"]) == (422, "no-route")
    assert {candidate["agent"] for candidate in answer.json()["candidates"]} <= set(await _names(api))
    assert answer.json()["candidates"]


async def _names(api: nodes.Api) -> list[str]:
    return [item["name"] for item in (await api.get("/v1/agents"))["items"]]


# Order


async def test_a_task_waits_for_its_time(api: nodes.Api) -> None:
    due = datetime.now(UTC) + timedelta(seconds=0.6)
    accepted = await api.submit("echo", 1, not_before=due.isoformat())
    assert (await api.http.get(f"/v1/tasks/{accepted['id']}?wait=0.2")).json()["state"] == "queued"
    task = await api.end_of(accepted["id"])
    assert datetime.fromisoformat(task["started_at"]) >= due - timedelta(milliseconds=1)
    assert datetime.fromisoformat(task["started_at"]) < due + timedelta(seconds=2)


async def test_the_higher_priority_runs_first_and_equals_in_order(api: nodes.Api, ledger: Path, gate: Path) -> None:
    await api.submit("queue", {"ledger": str(ledger), "gate": str(gate), "name": "holds"})
    await nodes.lines_of(ledger)
    ids = []
    for name, priority in [("low", -5), ("a", 0), ("b", 0), ("high", 9), ("c", 0), ("highest", 1000)]:
        accepted = await api.submit("queue", {"ledger": str(ledger), "name": name}, priority=priority)
        ids.append(accepted["id"])
    gate.touch()
    for id in ids:
        await api.end_of(id)
    names = [line.split()[0] for line in await nodes.lines_of(ledger, 7)]
    assert names == ["holds", "highest", "high", "a", "b", "c", "low"]


async def test_a_task_that_waits_too_long_expires(api: nodes.Api, ledger: Path, gate: Path) -> None:
    await api.submit("queue", {"ledger": str(ledger), "gate": str(gate)})
    await nodes.lines_of(ledger)
    accepted = await api.submit("queue", {"ledger": str(ledger)}, timeout_s=0.2)
    task = await api.end_of(accepted["id"])
    gate.touch()
    assert (task["state"], task["error"]["type"], task["attempts"]) == ("expired", "timeout", [])


# Cancel, retry


async def test_cancel_ends_a_queued_task_for_good(api: nodes.Api, ledger: Path, gate: Path) -> None:
    holding = await api.submit("queue", {"ledger": str(ledger), "gate": str(gate)})
    await nodes.lines_of(ledger)
    accepted = await api.submit("queue", {"ledger": str(ledger)})
    cancelled = await api.call("POST", f"/v1/tasks/{accepted['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
    again = await api.call("POST", f"/v1/tasks/{accepted['id']}/cancel")
    assert (again.status_code, again.json()["type"]) == (409, "conflict")
    gate.touch()
    await api.end_of(holding["id"])
    await api.run("queue", {"ledger": str(ledger)})
    assert len(ledger.read_text().splitlines()) == 2
    assert (await api.task(accepted["id"]))["state"] == "cancelled"


async def test_cancel_ends_a_running_task_and_its_slot_is_free_again(api: nodes.Api, ledger: Path, gate: Path) -> None:
    accepted = await api.submit("queue", {"ledger": str(ledger), "gate": str(gate)})
    await nodes.lines_of(ledger)
    cancelled = await api.call("POST", f"/v1/tasks/{accepted['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
    assert (await api.run("queue", {"ledger": str(ledger)}))["state"] == "succeeded"
    task = await api.task(accepted["id"])
    assert (task["state"], task["output"], task["error"]["type"]) == ("cancelled", None, "cancelled")
    assert task["attempts"][0]["reason"] == "cancelled"


async def test_an_ended_task_cannot_be_cancelled(api: nodes.Api) -> None:
    task = await api.run("echo", 1)
    answer = await api.call("POST", f"/v1/tasks/{task['id']}/cancel")
    assert (answer.status_code, answer.json()["type"]) == (409, "conflict")
    assert "succeeded" in answer.json()["detail"]
    assert await api.task(task["id"]) == task


async def test_retry_submits_an_ended_task_again_as_a_new_one(api: nodes.Api, ledger: Path, gate: Path) -> None:
    task = await api.run("failing", "no", metadata={"a": 1}, priority=2)
    answer = await api.call("POST", f"/v1/tasks/{task['id']}/retry")
    assert answer.status_code == 202
    fresh = await api.end_of(answer.json()["id"])
    assert fresh["id"] != task["id"]
    assert (fresh["state"], fresh["input"], fresh["priority"]) == ("failed", "no", 2)
    assert fresh["metadata"] == {"a": 1, "retry_of": task["id"]}
    open_ = await api.submit("gated", {"ledger": str(ledger), "gate": str(gate)})
    assert (await api.call("POST", f"/v1/tasks/{open_['id']}/retry")).status_code == 409
    gate.touch()
    await api.end_of(open_["id"])


async def test_retry_keeps_the_whole_tasks_timeout(api: nodes.Api) -> None:
    task = await api.run("failing", "no", timeout_s=7.5)
    answer = await api.call("POST", f"/v1/tasks/{task['id']}/retry")
    fresh = await api.end_of(answer.json()["id"])
    lasted = datetime.fromisoformat(fresh["deadline_at"]) - datetime.fromisoformat(fresh["created_at"])
    assert lasted == timedelta(seconds=7.5)


# Sessions


async def test_a_session_keeps_state_between_its_tasks_in_their_order(api: nodes.Api, gate: Path) -> None:
    session = f"s-{secrets.token_hex(4)}"
    accepted = [await api.submit("chained", ["0", str(gate)], session=session)]
    accepted += [await api.submit("chained", [str(n), None], session=session) for n in range(1, 6)]
    gate.touch()
    counts = [(await api.end_of(task["id"]))["output"][0] for task in accepted]
    assert counts == [1, 2, 3, 4, 5, 6]
    shown = await api.get(f"/v1/sessions/{session}")
    assert (shown["agent"], shown["tasks"], shown["state"]["count"]) == ("chained", 6, 6)
    listed = [item for item in (await api.get("/v1/sessions"))["items"] if item["id"] == session]
    assert len(listed) == 1
    assert "state" not in listed[0]


async def test_every_session_is_listed_page_by_page(api: nodes.Api) -> None:
    name = f"paged-{secrets.token_hex(4)}"
    for number in range(5):
        await api.run("echo", number, session=f"{name}.{number}:@")
    seen: list[str] = []
    query = "?limit=2"
    while True:
        page = await api.get(f"/v1/sessions{query}")
        assert len(page["items"]) <= 2
        seen += [item["id"] for item in page["items"] if item["id"].startswith(name)]
        if page["next_cursor"] is None:
            break
        query = f"?limit=2&cursor={quote(page['next_cursor'])}"
    assert seen == [f"{name}.{number}:@" for number in (4, 3, 2, 1, 0)]


async def test_a_removed_session_begins_anew(api: nodes.Api, gate: Path) -> None:
    session = f"s-{secrets.token_hex(4)}"
    await api.run("chained", ["a", None], session=session)
    running = await api.submit("chained", ["b", str(gate)], session=session)
    busy = await api.http.delete(f"/v1/sessions/{session}")
    assert (busy.status_code, busy.json()["type"]) == (409, "conflict")
    gate.touch()
    await api.end_of(running["id"])
    assert (await api.http.delete(f"/v1/sessions/{session}")).status_code == 204
    assert (await api.http.get(f"/v1/sessions/{session}")).status_code == 404
    assert (await api.run("chained", ["c", None], session=session))["output"][0] == 1


async def test_a_session_name_of_two_agents_needs_the_agent(api: nodes.Api) -> None:
    session = f"s-{secrets.token_hex(4)}"
    for agent, input in (("chained", ["a", None]), ("echo", 1)):
        await api.run(agent, input, session=session)
    ambiguous = await api.http.get(f"/v1/sessions/{session}")
    assert ambiguous.status_code == 409
    assert "chained" in ambiguous.json()["detail"]
    assert (await api.get(f"/v1/sessions/{session}?agent=chained"))["tasks"] == 1
    assert (await api.http.delete(f"/v1/sessions/{session}?agent=echo")).status_code == 204


# Events of tasks that have ended


def _events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


async def test_the_events_of_an_ended_task_are_told_and_the_stream_ends(api: nodes.Api) -> None:
    task = await api.run("talking", {"count": 4})
    response = await api.http.get(f"/v1/tasks/{task['id']}/events")
    assert response.headers["content-type"].startswith("text/event-stream")
    events = _events(response.text)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["data"]["state"] for event in events if event["type"] == "state"] == [
        "queued",
        "running",
        "succeeded",
    ]
    assert [event["data"]["number"] for event in events if event["type"] == "message"] == [0, 1, 2, 3]
    frames = response.text.strip().split("\n\n")
    assert frames[2].splitlines()[:2] == ["id: 3", "event: message"]


@pytest.mark.parametrize(("after", "status"), [(2**31 - 1, 200), (2**31, 422)])
async def test_no_event_is_numbered_above_what_both_stores_can_count(api: nodes.Api, after: int, status: int) -> None:
    task = await api.run("echo", 1)
    assert (await api.http.get(f"/v1/tasks/{task['id']}/events?after={after}")).status_code == status


async def test_who_has_seen_all_events_of_an_ended_task_is_told_not_to_come_again(api: nodes.Api) -> None:
    task = await api.run("echo", 1)
    answer = await api.http.get(f"/v1/tasks/{task['id']}/events", headers={"last-event-id": "3"})
    assert (answer.status_code, answer.text) == (204, "")


async def test_events_resume_after_the_last_one_seen(api: nodes.Api) -> None:
    task = await api.run("talking", {"count": 4})
    path = f"/v1/tasks/{task['id']}/events"
    everything = _events((await api.http.get(path)).text)
    for seen in (0, 1, 3, len(everything) - 1):
        resumed = await api.http.get(path, headers={"last-event-id": str(seen)})
        assert _events(resumed.text) == everything[seen:]
        assert _events((await api.http.get(f"{path}?after={seen}")).text) == everything[seen:]
    for nonsense in ("x", "-1", "1e3", "9" * 40):
        assert _events((await api.http.get(path, headers={"last-event-id": nonsense})).text) == everything


@pytest.mark.parametrize("after", [0, 1, 1_000_000])
async def test_a_stream_of_an_ended_task_ends_at_once_whatever_was_seen(api: nodes.Api, after: int) -> None:
    """A browser resumes after the last event by itself, again and again."""
    task = await api.run("echo", 1)
    response = await asyncio.wait_for(api.http.get(f"/v1/tasks/{task['id']}/events?after={3 + after}"), 5)
    assert response.text == ""
