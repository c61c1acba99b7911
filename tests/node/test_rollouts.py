"""Rollouts under load, under hostile code, at their bounds, and of a node that is killed: all with real replicas."""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import nodes
from greenroom.core import recovery

pytestmark = pytest.mark.slow

STRATEGIES: dict[str, dict[str, Any]] = {
    "rolling": {"strategy": "rolling", "max_surge": 1, "hold_s": 0.2},
    "blue-green": {"strategy": "blue-green", "hold_s": 0.2},
    "canary": {"strategy": "canary", "weights": [50, 100], "hold_s": 0.2},
}
OPEN = {"progressing", "paused"}


async def _put(api: nodes.Api, spec: dict[str, Any], *, of: str = "echo", **rollout: Any) -> Any:
    response = await api.call("PUT", f"/v1/agents/{of}", spec | {"rollout": {"scale_down_delay_s": 0.2} | rollout})
    assert response.status_code == 200, response.text
    return response.json()["rollout"]


async def _until(api: nodes.Api, id: int, is_so: Callable[[Any], bool]) -> Any:
    async def ask() -> Any:
        rollout = await api.get(f"/v1/rollouts/{id}")
        return rollout if is_so(rollout) else None

    return await nodes.eventually(ask)


async def _ended(api: nodes.Api, id: int) -> Any:
    return await _until(api, id, lambda rollout: rollout["state"] not in OPEN)


def _has_come_to(stage: int, rollout: Any) -> bool:
    return bool(rollout["stage"] >= stage)


async def _move(api: nodes.Api, id: int, verb: str) -> httpx.Response:
    return await api.call("POST", f"/v1/rollouts/{id}/{verb}")


# Load


@contextlib.asynccontextmanager
async def _loaded(api: nodes.Api) -> AsyncIterator[None]:
    """Submit to `echo` in three ways all the time, and watch that it is served; see afterwards that all went well."""
    is_over, tasks, ids, unserved = asyncio.Event(), list[Any](), list[str](), list[Any]()

    async def waiting() -> None:
        while not is_over.is_set():
            tasks.append(await api.run("echo", 1))

    async def in_session() -> None:
        while not is_over.is_set():
            tasks.append(await api.run("echo", 1, session="one"))

    async def batches() -> None:
        while not is_over.is_set():
            response = await api.call("POST", "/v1/tasks/batch", {"tasks": [{"agent": "echo", "input": 1}] * 5})
            assert response.status_code == 202, response.text
            ids.extend(item["id"] for item in response.json()["items"])
            await api.end_of(ids[-1])

    async def watched() -> None:
        while not is_over.is_set():
            before, replicas = await api.get("/v1/agents/echo"), await api.replicas("echo")
            is_served = any(each["revision"] == before["revision"] for each in replicas)
            if not is_served and (await api.get("/v1/agents/echo"))["revision"] == before["revision"]:
                unserved.append(before)
            await asyncio.sleep(0.02)

    running = [asyncio.create_task(each()) for each in (waiting, waiting, in_session, batches, watched)]
    try:
        yield
    finally:
        is_over.set()
        await asyncio.gather(*running)
    tasks += [await api.end_of(id) for id in ids]
    assert {(task["state"], task["attempt"]) for task in tasks} == {("succeeded", 1)}
    assert not unserved


# The database makes no difference to the strategies: the store's contract has what it does for them.
@pytest.mark.parametrize(
    ("server", "strategy"),
    [
        *(("sqlite", strategy) for strategy in STRATEGIES),
        ("postgresql", "canary"),
        *(pytest.param("postgresql", strategy, marks=pytest.mark.long) for strategy in ("rolling", "blue-green")),
    ],
    indirect=["server"],
)
async def test_nothing_fails_while_a_rollout_is_aborted_and_undone(
    data_dir: Path, store_url: str | None, strategy: str
) -> None:
    spec = nodes.agent("echo", concurrency=4, sessions=True, scaling={"min_replicas": 2})
    wanted, timeout_s = STRATEGIES[strategy], itertools.count(10)
    async with nodes.opened(data_dir, {"echo": spec}, store_url=store_url) as api, _loaded(api):
        for stage in (1, 2):
            id = (await _put(api, spec | {"timeout_s": next(timeout_s)}, promotion="manual", **wanted))["id"]
            if stage == 2:
                await _until(api, id, lambda rollout: rollout["state"] == "paused")
                assert (await _move(api, id, "promote")).status_code == 200
            await _until(api, id, functools.partial(_has_come_to, stage))
            for _ in range(2):
                assert (await _move(api, id, "abort")).json()["state"] == "aborted"
            assert (await api.get("/v1/agents/echo"))["revision"] == 1
        serving = (await _ended(api, (await _put(api, spec | {"timeout_s": next(timeout_s)}, **wanted))["id"]))[
            "to_revision"
        ]
        undone = (await api.call("POST", "/v1/agents/echo/rollback", {})).json()
        assert (await _ended(api, undone["id"]))["state"] == "complete"
        assert serving != (await api.get("/v1/agents/echo"))["revision"] == 1


async def test_of_five_deployments_in_a_row_the_last_one_serves(data_dir: Path, store_url: str | None) -> None:
    spec = nodes.agent("echo", concurrency=4, sessions=True, scaling={"min_replicas": 2})
    async with nodes.opened(data_dir, {"echo": spec}, store_url=store_url) as api, _loaded(api):
        begun = [
            await _put(api, spec | {"timeout_s": 10 + place}, **STRATEGIES[strategy])
            for place, strategy in enumerate([*STRATEGIES, *STRATEGIES][:5])
        ]
        assert (await _ended(api, begun[-1]["id"]))["state"] == "complete"
        history = (await api.get("/v1/agents/echo/rollouts"))["items"]
        assert [(each["from_revision"], each["state"]) for each in history[1:5]] == [(1, "superseded")] * 4
        assert (await api.get("/v1/agents/echo"))["revision"] == begun[-1]["to_revision"]


async def test_deployments_at_once_leave_one_open_rollout_and_keep_to_the_bounds(
    data_dir: Path, store_url: str | None
) -> None:
    spec = nodes.agent("echo")
    cluster = {"max_replicas": 3, "max_surge": 1}
    async with nodes.opened(data_dir, {"echo": spec}, store_url=store_url, cluster=cluster) as api:
        bodies = [spec | {"timeout_s": 10 + number, "rollout": {"scale_down_delay_s": 0}} for number in range(8)]
        await asyncio.gather(*(api.call("PUT", "/v1/agents/echo", body) for body in bodies))
        history = (await api.get("/v1/agents/echo/rollouts"))["items"]
        assert sum(each["state"] in OPEN for each in history) <= 1
        assert (await _ended(api, history[0]["id"]))["state"] == "complete"
        answers = await asyncio.gather(*(api.call("PUT", f"/v1/agents/{name}", spec) for name in "abcdef"))
        assert sorted(answer.status_code for answer in answers) == [200] * 2 + [409] * 4


# Evidence

CHECKED = """
import os, pathlib, time

async def agent(input):
    return 2

def late():
    while not pathlib.Path({gate!r}).exists():
        time.sleep(0.01)
    raise ValueError("it is bad")

def exits():
    os._exit(7)

def asks_to_end():
    raise SystemExit(3)

def takes_three(one, two, three):
    pass

def hangs():
    time.sleep(1000)

number = 5
"""


@pytest.fixture
def folder(tmp_path: Path, gate: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "plain.py").write_text("async def agent(input):\n    return 1\n")
    (folder / "checked.py").write_text(CHECKED.format(gate=str(gate)))
    return folder


async def test_undoing_to_a_revision_that_is_on_its_way_does_not_promote_it(
    data_dir: Path, folder: Path, gate: Path
) -> None:
    async with nodes.opened(data_dir, {"echo": {"factory": "plain:agent"}}, folder=folder) as api:
        new = {"factory": "checked:agent"}
        id = (await _put(api, new, strategy="blue-green", checks=["checked:late"]))["id"]
        await nodes.eventually(lambda: _ready_of(api, 2))
        refused = await api.call("POST", "/v1/agents/echo/rollback", {"to": 2})
        assert (refused.status_code, "has to prove itself" in refused.json()["detail"]) == (409, True)
        assert (await api.get("/v1/agents/echo"))["revision"] == 1
        gate.touch()
        ended = await _ended(api, id)
        assert (ended["state"], "it is bad" in ended["reason"]) == ("rolled_back", True)


async def _ready_of(api: nodes.Api, revision: int) -> list[Any]:
    return [each for each in await api.replicas("echo") if each["revision"] == revision]


BAD_CHECKS = {
    "exits": "3 of its replicas have died",
    "asks_to_end": "SystemExit: 3",
    "takes_three": "it takes (one, two, three)",
    "hangs": "its checks were not through",
    "number": "it is a int",
}


async def test_a_hostile_check_is_a_failed_one(data_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "BASE_S", 0.01)
    checks = {check.replace("_", "-"): check for check in BAD_CHECKS}
    plain = {name: {"factory": "plain:agent"} for name in checks}

    async def is_refused(api: nodes.Api, name: str, check: str) -> None:
        limits: dict[str, Any] = {"progress_deadline_s": 1} if check == "hangs" else {}
        new = {"factory": "checked:agent"}
        id = (await _put(api, new, of=name, checks=[f"checked:{check}"], **limits))["id"]
        ended = await _ended(api, id)
        assert (ended["state"], BAD_CHECKS[check] in ended["reason"]) == ("rolled_back", True), (check, ended["reason"])
        assert (await api.run(name, 1))["output"] == 1

    async with nodes.opened(data_dir, plain, folder=folder) as api:
        await asyncio.gather(*(is_refused(api, name, check) for name, check in checks.items()))


async def test_a_dry_run_says_how_a_replica_ended_that_migrate_has_ended(data_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    keeping = "async def agent(input, context):\n    context.state['word'] = input\n"
    (folder / "keeping.py").write_text(keeping)
    spec = {"factory": "keeping:agent", "sessions": True}
    async with nodes.opened(data_dir, {"echo": spec}, folder=folder) as api:
        await api.run("echo", "a", session="one")
        (folder / "keeping.py").write_text(f"{keeping}def migrate(state, old, new):\n    import os; os._exit(9)\n")
        plan = (await api.call("PUT", "/v1/agents/echo?dry_run=true&sessions=true", spec)).json()
        assert "exit code 9" in plan["error"]


# Bounds


async def test_a_deployment_that_joins_a_rollout_is_given_the_replicas_that_it_wants(
    data_dir: Path, store_url: str | None
) -> None:
    spec = nodes.agent("echo")
    cluster = {"max_replicas": 3}
    async with nodes.opened(data_dir, {"echo": spec}, store_url=store_url, cluster=cluster) as api:
        new = spec | {"timeout_s": 5}
        id = (await _put(api, new, promotion="manual", strategy="blue-green"))["id"]
        await _until(api, id, lambda rollout: rollout["state"] == "paused")
        assert (await _put(api, new | {"scaling": {"min_replicas": 2}}, strategy="blue-green"))["id"] == id
        assert (await api.get("/v1/agents/echo"))["replicas"]["desired"] == 1  # until it is complete
        refused = await api.call("PUT", "/v1/agents/echo", new | {"scaling": {"min_replicas": 4}})
        assert refused.status_code == 409
        await _move(api, id, "promote")
        assert (await _ended(api, id))["state"] == "complete"

        async def has_both() -> bool:
            return bool((await api.get("/v1/agents/echo"))["replicas"] == {"desired": 2, "ready": 2})

        await nodes.eventually(has_both)


async def test_scaling_in_the_middle_of_a_rollout_keeps_to_the_surge(data_dir: Path) -> None:
    spec = nodes.agent("echo")
    cluster = {"max_replicas": 8, "max_surge": 1}
    async with nodes.opened(data_dir, {"echo": spec}, cluster=cluster) as api:
        id = (await _put(api, spec | {"timeout_s": 5}, promotion="manual", strategy="blue-green"))["id"]
        refused = await api.call("PATCH", "/v1/agents/echo/scale", {"replicas": 2})
        assert (refused.status_code, "cluster.max_surge is 1" in refused.json()["detail"]) == (409, True)
        await _move(api, id, "abort")
        assert (await api.call("PATCH", "/v1/agents/echo/scale", {"replicas": 2})).status_code == 200


async def test_a_revision_that_stands_by_takes_room_beside_the_others(data_dir: Path, store_url: str | None) -> None:
    spec = nodes.agent("echo")
    waiting: dict[str, Any] = {"strategy": "blue-green", "scale_down_delay_s": 3600}
    cluster = {"max_replicas": 2, "max_surge": 1}
    async with nodes.opened(data_dir, {"echo": spec, "other": spec}, store_url=store_url, cluster=cluster) as api:
        await _ended(api, (await _put(api, spec | {"timeout_s": 5}, **waiting))["id"])
        refused = await api.call("PUT", "/v1/agents/other", spec | {"timeout_s": 5})
        assert (refused.status_code, "1 are missing" in refused.json()["detail"]) == (409, True)


# A node that is killed

MANIFEST = """
[agents.echo]
factory = "keeping:agent"
sessions = true
scaling.min_replicas = 2

[agents.echo.rollout]
scale_down_delay_s = 0
{rollout}
"""
KEEPING = """
VERSION = {version}

async def agent(input, context):
    context.state["seen"] = [*context.state.get("seen", ()), input]
    return VERSION
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[nodes.Folder]:
    folder = nodes.Folder(tmp_path / "folder")
    yield folder
    folder.close()


KILLED = {"rolling": "begun", "blue-green": "complete", "canary": "with traffic"}


# All moments of all strategies: the simulation strikes at every commit.
@pytest.mark.parametrize(
    ("strategy", "moment"),
    [
        pytest.param(strategy, moment, marks=() if KILLED[strategy] == moment else pytest.mark.long)
        for strategy in STRATEGIES
        for moment in ("begun", "with traffic", "complete")
    ],
)
def test_a_node_that_is_killed_in_a_rollout_comes_back_to_what_is_written(
    manifest: nodes.Folder, strategy: str, moment: str
) -> None:
    rollout = STRATEGIES[strategy] | {"promotion": "manual"}
    lines = [f"{key} = {json.dumps(value)}" for key, value in rollout.items()]
    manifest.manifest(MANIFEST.format(rollout="\n".join(lines)))
    (manifest.path / "keeping.py").write_text(KEEPING.format(version=1))
    up = manifest.up()
    spec = {"factory": "keeping:agent", "sessions": True, "scaling": {"min_replicas": 2}}
    inputs = iter(range(1000))
    tasks = [up.submit("echo", next(inputs), session="one")]
    assert up.end_of(tasks[0])["output"] == 1
    (manifest.path / "keeping.py").write_text(KEEPING.format(version=2))
    body = spec | {"rollout": rollout | {"scale_down_delay_s": 0}}
    id = up.call("PUT", "/v1/agents/echo", body).json()["rollout"]["id"]

    def shown() -> Any:
        found = up.call("GET", f"/v1/rollouts/{id}").json()
        if strategy == "canary" and found["weight_pct"] == 50:  # it wants evidence
            up.call("POST", "/v1/tasks/batch", {"tasks": [{"agent": "echo", "input": 0}] * 20})
        if found["state"] == "paused":
            up.call("POST", f"/v1/rollouts/{id}/promote")
        return found

    if moment == "with traffic":
        nodes.wait_until(lambda: shown()["weight_pct"])
    elif moment == "complete":
        nodes.wait_until(lambda: shown()["state"] == "complete")
    tasks += [up.submit("echo", next(inputs), session="one") for _ in range(5)]
    up.process.send_signal(signal.SIGKILL)
    up.ended(within_s=nodes.DEADLINE_S)
    up = manifest.up(is_settled=False)  # what it is not ready for may be a canary, which waits for tasks
    nodes.wait_until(lambda: shown()["state"] == "complete")
    history = up.call("GET", "/v1/agents/echo/rollouts").json()["items"]
    assert [(each["to_revision"], each["state"]) for each in history] == [(2, "complete"), (1, "complete")]
    tasks.append(up.submit("echo", next(inputs), session="one"))
    assert {up.end_of(task)["state"] for task in tasks} == {"succeeded"}
    state = up.call("GET", "/v1/sessions/one?agent=echo").json()["state"]
    assert state == {"seen": list(range(7))}
    assert up.end_of(up.submit("echo", 0))["output"] == 2
