"""Agents that go wrong: hostile results, factories that cannot be built, crash loops; and changes under load."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

import nodes
from greenroom.core import recovery

pytestmark = pytest.mark.slow

HOSTILE = nodes.AGENTS.parents[1] / "agents"

RESULTS = {
    "100 MB": "result_too_large",
    "100 MB in pieces": "result_too_large",
    "NaN": "result_not_json",
    "cycle": "result_not_json",
    "bytes": "result_not_json",
    "lone surrogate": "result_not_json",
    "raising __str__": "result_not_json",
    "raising key": "result_not_json",
    "raising mapping": "result_not_json",
    "deep nesting": "result_not_json",
    "very deep nesting": "result_not_json",
    "huge int": "result_not_json",
    "very huge int": "result_not_json",
    "tuple keys": "result_not_json",
    "keys that collide": "result_not_json",
    "NUL": "result_not_json",
    "a generator inside": "result_not_json",
    "a class": "result_not_json",
}
ERRORS = {
    "10 MB message": "ValueError",
    "raising __str__": "MuteError",
    "surrogate and NUL": "ValueError",
    "long type name": "E" * 197 + "…",
    "recursion": "RecursionError",
}


async def test_whatever_an_agent_returns_or_raises_its_node_lives(data_dir: Path, store_url: str | None) -> None:
    agents = {
        name: {"factory": f"hostile:{name}"} for name in ("result", "error", "flood", "stdin_and_exit", "endless")
    }
    async with nodes.opened(data_dir, agents, store_url=store_url, folder=HOSTILE) as api:
        for agent, expected in (("result", RESULTS), ("error", ERRORS)):
            ended = await asyncio.gather(*(api.run(agent, name) for name in expected))
            assert {task["input"]: task["state"] for task in ended} == dict.fromkeys(expected, "failed")
            assert {task["input"]: task["error"]["type"][:197] for task in ended} == {
                name: type[:197] for name, type in expected.items()
            }
            for task in ended:
                assert len(task["error"]["message"]) <= 4096
                assert (await api.http.get(f"/v1/tasks/{task['id']}/events")).status_code == 200
        assert (await api.run("flood", ""))["output"] == "dry"
        assert (await api.run("stdin_and_exit", ""))["state"] == "failed"
        assert (await api.run("endless", ""))["state"] == "failed"
        assert (await api.http.get("/healthz")).status_code == 200


BROKEN = {
    "unimportable": ({"factory": "unimportable:agent"}, ("ModuleNotFoundError", "a_module_that_nobody_has", "install")),
    "no-module": ({"factory": "nowhere:agent"}, ("ModuleNotFoundError", "nowhere", "check the factory")),
    "no-attribute": (nodes.agent("nothing"), ("no 'nothing'", "echo")),
    "raising": (nodes.agent("raising"), ("RuntimeError", "the model is missing")),
    "junk": (nodes.agent("junk"), ("int", "execute_task")),
    "wrong-arguments": (nodes.agent("raising", arguments={"modle": 1}), ("modle", "takes")),
    "missing-arguments": (nodes.agent("greedy"), ("model",)),
    "dying": (nodes.agent("dying_when_built"), ("exit code 4",)),
}


async def test_factories_that_go_wrong_are_told_with_their_reason_and_the_others_serve(data_dir: Path) -> None:
    agents = {name: spec for name, (spec, _) in BROKEN.items()} | {"echo": nodes.agent("echo")}
    begun_s = time.monotonic()
    async with nodes.opened(data_dir, agents, is_settled=False) as api:
        await nodes.eventually(lambda: _is_up(api), within_s=20)
        assert time.monotonic() - begun_s < 20
        assert (await api.run("echo", 1))["state"] == "succeeded"
        shown = {item["name"]: item for item in (await api.get("/v1/agents"))["items"]}
        for name, (_, words) in BROKEN.items():
            assert shown[name]["state"] == "failed"
            for word in (*words, *([] if name == "dying" else [name])):
                assert word in shown[name]["reason"], (name, shown[name]["reason"])
        assert shown["echo"]["state"] == "ready"
        queued = await api.submit("raising", 1)
        assert queued["state"] == "queued"


async def _is_ready(api: nodes.Api, agent: str) -> bool:
    shown = await api.get(f"/v1/agents/{agent}")
    return (shown["state"], shown["reason"]) == ("ready", "")


async def _is_up(api: nodes.Api) -> bool:
    return (await api.http.get("/readyz")).status_code == 200


async def test_an_agent_that_dies_in_idleness_is_quarantined_and_a_new_deployment_starts_it_again(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "BASE_S", 0.01)
    agents = {"dying": nodes.agent("dying"), "echo": nodes.agent("echo")}
    async with nodes.opened(data_dir, agents, is_settled=False) as api:

        async def is_quarantined() -> bool:
            return bool((await api.get("/v1/agents/dying"))["state"] == "quarantined")

        await nodes.eventually(is_quarantined)
        shown = await api.get("/v1/agents/dying")
        assert (shown["grade"], shown["grade_reason"]) == ("unhealthy", shown["reason"])
        exits = [line for line in (await api.http.get("/metrics")).text.splitlines() if "replica_exits_total" in line]
        assert sum(float(line.split()[-1]) for line in exits if 'agent="dying"' in line) == recovery.INTENSITY
        assert await api.replicas("dying") == []
        assert (await api.run("echo", 1))["state"] == "succeeded"
        assert [item["restarts"] for item in await api.replicas("echo")] == [0]
        assert (await api.call("PUT", "/v1/agents/dying", nodes.agent("echo"))).status_code == 200
        assert (await api.run("dying", 2))["output"] == 2
        await nodes.eventually(lambda: _is_ready(api, "dying"))


async def test_a_new_spec_replaces_the_replicas_and_no_request_is_lost(data_dir: Path, store_url: str | None) -> None:
    at_once = {"scale_down_delay_s": 0}
    agents = {"pid": nodes.agent("pid", scaling={"min_replicas": 2}, concurrency=4, rollout=at_once)}
    async with nodes.opened(data_dir, agents, store_url=store_url) as api:
        seen: list[Any] = []
        done = asyncio.Event()

        async def load() -> None:
            while not done.is_set():
                response = await api.call("POST", "/v1/tasks?wait=30", {"agent": "pid", "input": 1})
                assert response.status_code == 200, response.text
                seen.append(response.json())

        loads = [asyncio.create_task(load()) for _ in range(4)]
        for number in (2, 3):
            spec = agents["pid"] | {"timeout_s": 100 + number}
            assert (await api.call("PUT", "/v1/agents/pid", spec)).status_code == 200

            async def is_replaced(number: int = number) -> bool:
                revisions = [item["revision"] for item in (await api.get("/v1/replicas"))["items"]]
                return revisions == [number] * 2

            await nodes.eventually(is_replaced)
        done.set()
        await asyncio.gather(*loads)
        assert {task["state"] for task in seen} == {"succeeded"}
        assert {len(task["attempts"]) for task in seen} == {1}
        assert {task["revision"] for task in seen} == {1, 2, 3}
        order = [task["revision"] for task in sorted(seen, key=lambda task: task["started_at"])]
        assert order[0] == 1
        assert order[-1] == 3
        by_pid: dict[int, set[int]] = {}
        for task in seen:
            by_pid.setdefault(task["output"], set()).add(task["revision"])
        assert all(len(revisions) == 1 for revisions in by_pid.values())


async def test_the_task_log_holds_what_an_agent_prints(data_dir: Path) -> None:
    agents = {"exits": {"factory": "hostile:stdin_and_exit"}}
    async with nodes.opened(data_dir, agents, folder=HOSTILE) as api:
        task = await api.run("exits", "")
        assert "last words" in (await api.http.get(f"/v1/tasks/{task['id']}/events")).text
