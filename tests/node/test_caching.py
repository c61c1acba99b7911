"""The result cache of a real node: what callers see of hits, of waiting for the same, and of asking for a run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import nodes
from greenroom.testing import databases

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

KEEPS = {"cache": {"ttl_s": 600}}
AGENTS = {
    "echo": nodes.agent("echo", concurrency=4, **KEEPS),
    "gated": nodes.agent("gated", concurrency=4, sessions=True, **KEEPS),
    "failing": nodes.agent("failing", max_attempts=1, **KEEPS),
    "plain": nodes.agent("echo"),
    "parent": nodes.agent("parent"),
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> databases.Server | None:
    """The PostgreSQL server; None: the test is SQLite's turn."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_server")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(server: databases.Server | None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[nodes.Api]:
    data, cluster = tmp_path_factory.mktemp("caching") / "data", {"result_cache": True}
    if server is None:
        async with nodes.opened(data, AGENTS, cluster=cluster) as opened:
            yield opened
        return
    async with (
        server.scratch() as scratch,
        nodes.opened(data, AGENTS, cluster=cluster, store_url=scratch.url) as opened,
    ):
        yield opened


def _post(api: nodes.Api, body: Any, path: str = "/v1/tasks", **headers: str) -> Any:
    return api.call("POST", path, body, headers={name.replace("_", "-"): text for name, text in headers.items()})


async def _counted(api: nodes.Api, agent: str) -> dict[str, float]:
    text = (await api.http.get("/metrics")).text
    found = {}
    for line in text.splitlines():
        if line.startswith(f'greenroom_cache_total{{agent="{agent}"'):
            labels, _, value = line.rpartition(" ")
            found[labels.split('result="')[1].rstrip('"}')] = float(value)
    return found


async def test_the_same_input_again_is_answered_and_says_by_whom(api: nodes.Api) -> None:
    first = await api.run("echo", {"q": "again", "n": 1})
    answer = await _post(api, {"agent": "echo", "input": {"n": 1, "q": "again"}, "priority": 5, "metadata": {"a": 1}})
    hit = answer.json()
    assert (answer.status_code, hit["state"], hit["output"]) == (200, "succeeded", {"q": "again", "n": 1})
    assert (hit["cached_from"], hit["attempts"], hit["started_at"]) == (first["id"], [], None)
    assert hit["usage"] == {"input_tokens": 0, "output_tokens": 0, "cost_usd": None}
    assert "cached_from" not in first
    assert await api.task(hit["id"]) == hit
    third = await api.run("echo", {"q": "again", "n": 1})
    assert third["cached_from"] == first["id"]


async def test_the_events_of_a_hit_are_its_acceptance_and_its_end(api: nodes.Api) -> None:
    await api.run("echo", "events")
    hit = await api.run("echo", "events")
    text = (await api.http.get(f"/v1/tasks/{hit['id']}/events")).text
    told = [json.loads(line[6:])["data"]["state"] for line in text.splitlines() if line.startswith("data: ")]
    assert told == ["queued", "succeeded"]


@pytest.mark.parametrize("header", ["no-cache", "no-store"])
async def test_who_asks_for_a_run_gets_one_and_its_result_is_not_kept(api: nodes.Api, header: str) -> None:
    body = {"agent": "echo", "input": f"run {header}"}
    for _ in range(2):
        ran = (await _post(api, body, "/v1/tasks?wait=60", cache_control=header)).json()
        assert ran["attempts"]
    for _ in range(2):
        assert (await api.run("echo", body["input"], cache=False))["attempts"]
    assert (await api.run("echo", body["input"]))["attempts"], "nothing was kept"
    assert not (await api.run("echo", body["input"]))["attempts"]


async def test_one_runs_and_the_others_get_its_result(api: nodes.Api, tmp_path: Path) -> None:
    work = {"ledger": str(tmp_path / "ledger"), "gate": str(tmp_path / "gate")}
    first = await api.submit("gated", work)
    await api.until(first["id"], "running")
    waiting = [asyncio.create_task(api.run("gated", work)) for _ in range(3)]
    batch = (await _post(api, {"tasks": [{"agent": "gated", "input": work}] * 2}, "/v1/tasks/batch")).json()["items"]
    assert [item["state"] for item in batch] == ["queued"] * 2
    (tmp_path / "gate").touch()
    ended = [await wait for wait in waiting] + [await api.end_of(item["id"]) for item in batch]
    assert {(task["state"], task["cached_from"]) for task in ended} == {("succeeded", first["id"])}
    assert len((tmp_path / "ledger").read_text().splitlines()) == 1
    counted = await _counted(api, "gated")
    assert (counted["miss"], counted["joined"]) == (1, 5)


async def test_a_batch_is_answered_from_the_cache_and_each_may_ask_for_a_run(api: nodes.Api) -> None:
    first = await api.run("echo", "batch")
    items = [{"agent": "echo", "input": "batch"}, {"agent": "echo", "input": "batch", "cache": False}]
    hit, ran = (await _post(api, {"tasks": items}, "/v1/tasks/batch")).json()["items"]
    assert (hit["state"], hit["cached_from"]) == ("succeeded", first["id"])
    assert (await api.end_of(ran["id"]))["attempts"]


async def test_an_idempotency_key_stands_for_the_hit_that_it_was(api: nodes.Api) -> None:
    await api.run("echo", "key")
    answers = [await _post(api, {"agent": "echo", "input": "key"}, idempotency_key="hit") for _ in range(2)]
    assert answers[0].json() == answers[1].json()


async def test_failures_sessions_and_agents_that_do_not_opt_in_are_not_kept(api: nodes.Api, tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    work = {"ledger": str(tmp_path / "ledger"), "gate": str(tmp_path / "gate")}
    for _ in range(2):
        assert (await api.run("failing", "no"))["attempts"]
        assert (await api.run("gated", work, session="s"))["attempts"]
        assert (await api.run("plain", "same"))["attempts"]
    assert await _counted(api, "plain") == {}


async def test_a_task_that_is_retried_runs(api: nodes.Api) -> None:
    first = await api.run("echo", "retried")
    again = (await api.call("POST", f"/v1/tasks/{first['id']}/retry")).json()
    assert (await api.end_of(again["id"]))["attempts"]


async def test_another_tenant_is_not_answered(api: nodes.Api) -> None:
    await api.run("echo", "tenant")
    other = api.of(await api.key(tenant="other"))
    assert (await other.run("echo", "tenant"))["attempts"]


async def test_a_sub_task_is_answered_from_the_cache(api: nodes.Api, tmp_path: Path) -> None:
    first = await api.run("echo", "called")
    work = {"ledger": str(tmp_path / "ledger"), "agent": "echo", "child": "called"}
    parent = await api.run("parent", work)
    assert parent["output"] == {"answer": "called"}
    (child,) = [task for task in (await api.get("/v1/tasks?agent=echo"))["items"] if task["parent"] == parent["id"]]
    assert (child["state"], child["cached_from"]) == ("succeeded", first["id"])


async def test_without_the_switch_nothing_is_kept(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {"echo": AGENTS["echo"]}) as api:
        for _ in range(2):
            assert (await api.run("echo", "same"))["attempts"]
