"""Agents, replicas, status, metrics; and a node that stops."""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from prometheus_client import parser

import nodes

pytestmark = pytest.mark.asyncio(loop_scope="session")


# Agents and replicas


async def test_agents_are_shown_with_what_they_have_to_do(api: nodes.Api) -> None:
    listed = {item["name"]: item for item in (await api.get("/v1/agents"))["items"]}
    shown = await api.get("/v1/agents/echo")
    assert listed["echo"] == shown
    assert (shown["state"], shown["revision"], shown["concurrency"]) == ("ready", 1, 8)
    assert shown["replicas"] == {"desired": 1, "ready": 1}
    assert shown["spec"]["factory"] == "agents:echo"
    assert (await api.http.get("/v1/agents/nobody")).status_code == 404
    revisions = (await api.get("/v1/agents/echo/revisions"))["items"]
    assert [item["number"] for item in revisions] == [1]
    assert re.fullmatch("[0-9a-f]{64}", revisions[0]["digest"])
    assert (await api.http.get("/v1/agents/nobody/revisions")).status_code == 404


async def test_an_agent_is_put_changed_and_removed(api: nodes.Api) -> None:
    spec = nodes.agent("echo", arguments={}, description="Put by a test")
    made = await api.call("PUT", "/v1/agents/put", spec)
    assert (made.status_code, made.json()["revision"]) == (200, 1)
    assert (await api.run("put", 1))["revision"] == 1
    assert (await api.call("PUT", "/v1/agents/put", spec)).json()["revision"] == 1
    changed = (await api.call("PUT", "/v1/agents/put", spec | {"timeout_s": 7})).json()
    assert changed["rollout"]["to_revision"] == 2
    await nodes.eventually(lambda: _served_by(api, "put", 2))
    assert (await api.http.delete("/v1/agents/put")).status_code == 204
    assert (await api.http.delete("/v1/agents/put")).status_code == 404
    assert (await api.call("POST", "/v1/tasks", {"agent": "put", "input": 1})).status_code == 404
    assert (await api.http.get("/v1/agents/put/revisions")).status_code == 404
    await nodes.eventually(lambda: _has_none(api, "put"))


async def _served_by(api: nodes.Api, agent: str, revision: int) -> bool:
    return bool((await api.run(agent, 1))["revision"] == revision)


async def _has_none(api: nodes.Api, agent: str) -> bool:
    return not [item for item in (await api.get("/v1/replicas"))["items"] if item["agent"] == agent]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"factory": None}, "factory"),
        ({"concurency": 2}, "concurency"),
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 2, "on_replica_loss": "fail"}, "on_replica_loss"),
        ({"scaling": {"min_replicas": -1}}, "min_replicas"),
        ({"timeout_s": "long"}, "timeout_s"),
    ],
)
async def test_a_spec_with_a_mistake_is_422_and_names_the_key(
    api: nodes.Api, change: dict[str, Any], word: str
) -> None:
    spec = {key: value for key, value in (nodes.agent("echo") | change).items() if value is not None}
    answer = await api.call("PUT", "/v1/agents/mistaken", spec)
    assert (answer.status_code, answer.json()["type"]) == (422, "settings-invalid")
    assert word in answer.json()["detail"]
    assert (await api.http.get("/v1/agents/mistaken")).status_code == 404


async def test_more_replicas_than_the_cluster_takes_are_a_conflict(api: nodes.Api) -> None:
    most = api.running.settings.cluster.max_replicas
    answer = await api.call("PATCH", "/v1/agents/gated/scale", {"replicas": most})
    assert (answer.status_code, answer.json()["type"]) == (409, "conflict")
    spec = nodes.agent("echo", scaling={"min_replicas": most})
    assert (await api.call("PUT", "/v1/agents/many", spec)).status_code == 409
    assert (await api.call("PATCH", "/v1/agents/nobody/scale", {"replicas": 1})).status_code == 404
    assert (await api.call("PATCH", "/v1/agents/gated/scale", {"replicas": -1})).status_code == 422


async def test_an_agent_is_scaled_up_and_down(api: nodes.Api) -> None:
    for count in (3, 1):
        assert (await api.call("PATCH", "/v1/agents/talking/scale", {"replicas": count})).status_code == 200

        async def has_count(count: int = count) -> bool:
            return len(await api.replicas("talking")) == count

        await nodes.eventually(has_count)


async def test_zero_is_refused_where_nothing_would_start_a_replica_again(api: nodes.Api) -> None:
    scaled = await api.call("PATCH", "/v1/agents/talking/scale", {"replicas": 0})
    assert (scaled.status_code, scaled.json()["type"]) == (422, "invalid-body")
    declared = await api.call("PUT", "/v1/agents/none", nodes.agent("echo", scaling={"min_replicas": 0}))
    assert (declared.status_code, declared.json()["type"]) == (409, "conflict")
    for answer in (scaled, declared):
        assert "cluster.autoscaling is off" in answer.json()["detail"]
        assert "nothing would start a replica again" in answer.json()["detail"]
    assert (await api.get("/v1/agents/talking"))["replicas"]["desired"] == 1
    assert (await api.http.get("/v1/agents/none")).status_code == 404


async def test_bounds_above_the_clusters_are_refused_with_the_key(api: nodes.Api) -> None:
    answer = await api.call("PUT", "/v1/agents/many", nodes.agent("echo", scaling={"max_replicas": 5000}))
    assert answer.status_code == 409
    assert "scaling.max_replicas is more than cluster.max_replicas" in answer.json()["detail"]


async def test_two_who_scale_at_once_do_not_come_to_more_than_there_may_be(api: nodes.Api) -> None:
    agents = ("talking", "failing")
    most = api.running.settings.cluster.max_replicas
    others = sum(agent["replicas"]["desired"] for agent in (await api.get("/v1/agents"))["items"]) - len(agents)
    wanted = most - others - 1
    answers = await asyncio.gather(
        *(api.call("PATCH", f"/v1/agents/{name}/scale", {"replicas": wanted}) for name in agents)
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    for name in agents:
        await api.call("PATCH", f"/v1/agents/{name}/scale", {"replicas": 1})


async def test_what_somebody_sets_is_told_as_a_decision_of_theirs(api: nodes.Api) -> None:
    for count in (2, 1):
        await api.call("PATCH", "/v1/agents/chained/scale", {"replicas": count})
    found = await api.get("/v1/agents/chained/scaling?limit=1")
    (last,) = found["items"]
    assert (last["from_replicas"], last["to_replicas"], last["rule"], last["by"]) == (2, 1, "set", "owner")
    assert found["latest"] == last
    assert (found["is_automatic"], found["replicas"]) == (False, 1)
    (before,) = (await api.get(f"/v1/agents/chained/scaling?limit=1&cursor={found['next_cursor']}"))["items"]
    assert (before["from_replicas"], before["to_replicas"]) == (1, 2)


async def test_replicas_and_their_agents_are_graded(api: nodes.Api) -> None:
    async def graded() -> bool:
        """The first probe is on its way."""
        ((replica,), agent) = await api.replicas("echo"), await api.get("/v1/agents/echo")
        return {replica["grade"], agent["grade"]} == {"healthy"}

    await nodes.eventually(graded)
    assert (await api.get("/v1/agents/echo"))["grade_reason"] == "it answers"
    (told,) = [item for item in (await api.get("/v1/status"))["agents"] if item["name"] == "echo"]
    assert (told["grade"], told["grade_reason"]) == ("healthy", "it answers")
    (listed,) = [item for item in (await api.get("/v1/agents"))["items"] if item["name"] == "echo"]
    assert (listed["grade"], listed["grade_reason"]) == ("healthy", "it answers")


@pytest.mark.parametrize("verb", ["restart", "drain"])
async def test_a_replica_is_replaced(api: nodes.Api, verb: str) -> None:
    (before,) = await nodes.eventually(lambda: api.replicas("failing"))
    assert (before["slots"], before["busy"]) == (1, 0)
    drained = await api.call("POST", f"/v1/replicas/{before['id']}/{verb}")
    assert (drained.status_code, drained.json()["id"], drained.json()["state"]) == (202, before["id"], "draining")

    async def is_replaced() -> bool:
        items = [item for item in (await api.get("/v1/replicas"))["items"] if item["agent"] == "failing"]
        return [item["state"] for item in items if item["id"] != before["id"]] == ["ready"] and len(items) == 1

    await nodes.eventually(is_replaced)
    gone = await api.call("POST", f"/v1/replicas/{before['id']}/{verb}")
    assert (gone.status_code, gone.json()["type"]) == (409, "conflict")
    assert gone.json()["detail"] == f"cannot {verb} {before['id']}: it has stopped already"
    assert (await api.call("POST", f"/v1/replicas/unknown/{verb}")).status_code == 404


async def test_draining_twice_is_draining_once(api: nodes.Api, ledger: Path, gate: Path) -> None:
    accepted = await api.submit("gated", {"ledger": str(ledger), "gate": str(gate)})
    await nodes.lines_of(ledger)
    (busy,) = [item for item in await api.replicas("gated") if item["busy"]]
    for verb in ("drain", "drain", "restart"):
        answer = await api.call("POST", f"/v1/replicas/{busy['id']}/{verb}")
        assert answer.status_code == 202
        assert (answer.json()["id"], answer.json()["state"], answer.json()["busy"]) == (busy["id"], "draining", 1)
    gate.touch()
    assert (await api.end_of(accepted["id"]))["state"] == "succeeded"


@pytest.mark.parametrize("verb", ["restart", "drain"])
async def test_a_replica_of_another_node_is_that_nodes_to_drain(api: nodes.Api, verb: str) -> None:
    (ours,) = await nodes.eventually(lambda: api.replicas("talking"))
    row = await api.running.store.agents.replica(ours["id"])
    theirs = structs.replace(row, id=f"talking-{verb}", node="node-2")
    await api.running.store.agents.put_replica(theirs)
    answer = await api.call("POST", f"/v1/replicas/{theirs.id}/{verb}")
    await api.running.store.agents.put_replica(structs.replace(theirs, state="stopped", ended_at=1))
    assert answer.status_code == 409
    assert answer.json()["detail"] == f"cannot {verb} {theirs.id}: it is of another node, node-2; ask that one"


# Status and metrics


async def test_the_status_shows_the_system(api: nodes.Api) -> None:
    await api.run("echo", 1)
    status = await api.get("/v1/status")
    assert status["environment"] == "development"
    assert status["node"]["state"] == "ready"
    assert status["node"]["store"] in ("sqlite", "postgresql")
    echo = next(item for item in status["agents"] if item["name"] == "echo")
    assert echo["state"] == "ready"
    assert echo["tasks"]["succeeded"] >= 1
    assert status["tasks"]["succeeded"] >= echo["tasks"]["succeeded"]
    assert status["replicas"]["by_state"]["ready"] >= 6


def _count(text: str, name: str, **labels: str) -> float:
    return sum(
        sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def test_metrics_are_prometheus_and_count(api: nodes.Api) -> None:
    before = (await api.http.get("/metrics")).text
    await api.run("echo", 1)
    await api.run("failing", "no")
    answer = await api.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for name, labels in [
        ("greenroom_tasks_accepted_total", {"agent": "echo"}),
        ("greenroom_attempts_total", {"agent": "echo", "state": "succeeded", "reason": "ok"}),
        ("greenroom_attempts_total", {"agent": "failing", "state": "failed", "reason": "agent_error"}),
        ("greenroom_attempt_seconds_count", {"agent": "echo"}),
    ]:
        assert _count(answer.text, name, **labels) == _count(before, name, **labels) + 1


# A node that stops


async def test_a_stopping_node_answers_reads_and_refuses_the_rest(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {"echo": nodes.agent("echo")}) as api:
        task = await api.run("echo", 1)
        api.running.services.stopping.set()
        refused = await api.call("POST", "/v1/tasks", {"agent": "echo", "input": 1})
        assert (refused.status_code, refused.json()["type"]) == (503, "store-unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await api.http.get("/readyz")).status_code == 503
        assert (await api.http.get("/healthz")).status_code == 200
        assert (await api.task(task["id"]))["state"] == "succeeded"
        assert (await api.get("/v1/status"))["node"]["state"] == "draining"
        assert (await api.http.get(f"/v1/tasks/{task['id']}/events")).status_code == 200


async def test_a_full_queue_refuses_with_429_and_says_when_to_come_again(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {"none": nodes.agent("echo")}, server={"max_queued_tasks": 5}) as api:
        await api.running.store.agents.scale("none", 0)
        await nodes.eventually(lambda: _has_none(api, "none"))
        statuses = [(await api.call("POST", "/v1/tasks", {"agent": "none", "input": n})).status_code for n in range(7)]
        assert statuses == [202] * 5 + [429] * 2
        refused = await api.call("POST", "/v1/tasks", {"agent": "none", "input": 1})
        assert (refused.json()["type"], refused.headers["retry-after"]) == ("overloaded", "300")  # nothing drains it
        assert len((await api.get("/v1/tasks?state=queued"))["items"]) == 5


async def test_a_batch_over_the_limit_can_never_be_taken_and_is_told_so(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {"echo": nodes.agent("echo")}, server={"max_queued_tasks": 5}) as api:
        batch = await api.call("POST", "/v1/tasks/batch", {"tasks": [{"agent": "echo", "input": 1}] * 6})
        assert (batch.status_code, batch.json()["type"]) == (422, "invalid-body")
        assert batch.json()["detail"].endswith("at most 5 may be queued (server.max_queued_tasks); send smaller ones")
        assert "retry-after" not in batch.headers


async def test_tasks_that_end_leave_room_for_others_whatever_the_limit(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {"echo": nodes.agent("echo")}, server={"max_queued_tasks": 5}) as api:
        for number in range(12):
            assert (await api.run("echo", number))["state"] == "succeeded"


async def test_ready_stays_ready_while_agents_are_deployed(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {"echo": nodes.agent("echo")}) as api:
        assert (await api.http.get("/readyz")).status_code == 200
        assert (await api.call("PUT", "/v1/agents/raising", nodes.agent("raising"))).status_code == 200
        assert (await api.http.get("/readyz")).status_code == 200
        await nodes.eventually(lambda: _is(api, "raising", "failed"))
        assert (await api.http.get("/readyz")).status_code == 200


async def _is(api: nodes.Api, agent: str, state: str) -> bool:
    return bool((await api.get(f"/v1/agents/{agent}"))["state"] == state)
