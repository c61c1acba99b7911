"""Scaling with real replicas: bursts, scale-in, zero, rollouts of who sleeps, sharing, and a node that starts again."""

# ruff: noqa: ASYNC240 - the files here are touched, never waited for

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nodes
from greenroom.control import autoscaler

QUICK: dict[str, Any] = {
    "min_replicas": 1,
    "max_replicas": 5,
    "target_queue_per_replica": 2,
    "stable_window_s": 1,
    "burst_window_s": 1,
    "stabilisation_s": 0.3,
    "cooldown_s": 0,
    "idle_s": 0.2,
}
ON: dict[str, Any] = {"autoscaling": True, "max_replicas": 8}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What time alone decides is seen soon."""
    monkeypatch.setattr(autoscaler, "STEP_EVERY_S", 0.1)


async def _wanted(api: nodes.Api, name: str, count: int) -> None:
    """Wait until the agent should have *count* replicas, and has them ready, and no others."""

    async def has_them() -> bool:
        replicas = (await api.get(f"/v1/agents/{name}"))["replicas"]
        alive = [item for item in (await api.get("/v1/replicas"))["items"] if item["agent"] == name]
        return replicas == {"desired": count, "ready": count} and len(alive) == count

    await nodes.eventually(has_them)


async def _rules(api: nodes.Api, name: str) -> list[str]:
    return [item["rule"] for item in reversed((await api.get(f"/v1/agents/{name}/scaling"))["items"])]


async def _submitted(api: nodes.Api, name: str, count: int, **input: Any) -> list[str]:
    tasks = [{"agent": name, "input": {"name": str(number), **input}} for number in range(count)]
    answer = await api.call("POST", "/v1/tasks/batch", {"tasks": tasks})
    return [item["id"] for item in answer.json()["items"]]


@pytest.mark.slow
async def test_a_burst_brings_replicas_and_its_end_takes_them_without_a_lost_task(
    tmp_path: Path, ledger: Path, gate: Path
) -> None:
    async with nodes.opened(tmp_path / "data", {"gated": nodes.agent("gated", scaling=QUICK)}, cluster=ON) as api:
        ids = await _submitted(api, "gated", 30, ledger=str(ledger), gate=str(gate))
        await _wanted(api, "gated", 5)
        gate.touch()
        tasks = [await api.end_of(id) for id in ids]
        assert {(task["state"], task["attempt"]) for task in tasks} == {("succeeded", 1)}
        assert len(await nodes.lines_of(ledger)) == 30  # nothing ran twice
        await _wanted(api, "gated", 1)
        rules = await _rules(api, "gated")
        assert "burst" in rules
        assert rules.index("burst") < rules.index("idle")


@pytest.mark.slow
async def test_scale_in_takes_those_that_are_free_and_lets_tasks_end(tmp_path: Path, ledger: Path, gate: Path) -> None:
    scaling = QUICK | {"target_busy_pct": 100}
    async with nodes.opened(tmp_path / "data", {"gated": nodes.agent("gated", scaling=scaling)}, cluster=ON) as api:
        short, long = gate.with_name("short"), gate
        held = await _submitted(api, "gated", 2, ledger=str(ledger), gate=str(long))
        await _submitted(api, "gated", 20, ledger=str(ledger), gate=str(short))
        await _wanted(api, "gated", 5)
        short.touch()
        await nodes.lines_of(ledger, 22)
        await _wanted(api, "gated", 2)
        assert {replica["busy"] for replica in await api.replicas("gated")} == {1}
        long.touch()
        assert {(await api.end_of(id))["attempt"] for id in held} == {1}


@pytest.mark.slow
async def test_an_agent_goes_to_sleep_and_the_first_task_wakes_it(tmp_path: Path, store_url: str | None) -> None:
    agent = nodes.agent("echo", scaling=QUICK | {"min_replicas": 0})
    async with nodes.opened(tmp_path / "data", {"echo": agent}, cluster=ON, store_url=store_url) as api:
        await _wanted(api, "echo", 0)

        async def is_asleep() -> bool:  # the host says so after the number is set
            shown = await api.get("/v1/agents/echo")
            return (shown["state"], "asleep" in shown["reason"]) == ("ready", True)

        await nodes.eventually(is_asleep)
        (told,) = (await api.get("/v1/status"))["agents"]
        assert (told["state"], "asleep" in told["reason"]) == ("ready", True)
        for _ in range(2):
            assert (await api.run("echo", "hi"))["output"] == "hi"
            await _wanted(api, "echo", 0)
        rules = [rule for rule in await _rules(api, "echo") if rule in ("wake", "sleep")]
        assert rules == ["wake", "sleep", "wake", "sleep"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["rolling", "blue-green"])
async def test_a_rollout_of_a_sleeping_agent_is_proven_by_a_replica_that_goes_to_sleep_again(
    tmp_path: Path, strategy: str
) -> None:
    agent = nodes.agent("echo", scaling=QUICK | {"min_replicas": 0}, rollout={"scale_down_delay_s": 0})
    async with nodes.opened(tmp_path / "data", {"echo": agent}, cluster=ON) as api:
        await _wanted(api, "echo", 0)
        new = agent | {"timeout_s": 5, "rollout": {"strategy": strategy, "scale_down_delay_s": 0}}
        plan = (await api.call("PUT", "/v1/agents/echo?dry_run=true", new)).json()
        assert (plan["replicas"], plan["surge"]) == (0, 2)  # one of each revision
        rollout = (await api.call("PUT", "/v1/agents/echo", new)).json()["rollout"]
        assert (rollout["from_revision"], rollout["to_revision"]) == (1, 2)
        assert (await api.running.rollout_at_rest(rollout["id"])).phase == "complete"
        await _wanted(api, "echo", 0)
        assert (await api.run("echo", "hi"))["revision"] == 2


@pytest.mark.slow
async def test_a_canary_of_a_sleeping_agent_gets_its_share_of_the_tasks_that_wake_it(tmp_path: Path) -> None:
    agent = nodes.agent("echo", scaling=QUICK | {"min_replicas": 0})
    async with nodes.opened(tmp_path / "data", {"echo": agent}, cluster=ON) as api:
        await _wanted(api, "echo", 0)
        canary = {"strategy": "canary", "weights": [50, 100], "scale_down_delay_s": 0}
        rollout = (await api.call("PUT", "/v1/agents/echo", agent | {"timeout_s": 5, "rollout": canary})).json()

        async def has_half() -> bool:
            return bool((await api.get("/v1/agents/echo"))["rollout"]["weight_pct"] == 50)

        await nodes.eventually(has_half)
        shown = await api.get("/v1/agents/echo")
        assert (shown["replicas"], shown["grade"]) == ({"desired": 1, "ready": 1}, "healthy")
        scaling = await api.get("/v1/agents/echo/scaling")
        assert scaling["replicas"] + scaling["beside"] == scaling["ready"] == 2
        revisions = {(await api.run("echo", number))["revision"] for number in range(20)}
        assert revisions == {1, 2}

        async def is_complete() -> bool:
            await api.run("echo", 1)  # evidence
            return bool((await api.get(f"/v1/rollouts/{rollout['rollout']['id']}"))["state"] == "complete")

        await nodes.eventually(is_complete)
        await _wanted(api, "echo", 0)


@pytest.mark.slow
async def test_a_sleeping_agent_goes_back_to_what_it_was_when_a_rollout_fails(tmp_path: Path) -> None:
    agent = nodes.agent("echo", scaling=QUICK | {"min_replicas": 0})
    async with nodes.opened(tmp_path / "data", {"echo": agent}, cluster=ON) as api:
        await _wanted(api, "echo", 0)
        broken = agent | {"factory": "agents:raising"}
        rollout = (await api.call("PUT", "/v1/agents/echo", broken)).json()["rollout"]
        assert (await api.running.rollout_at_rest(rollout["id"])).phase == "rolled_back"
        await _wanted(api, "echo", 0)
        assert (await api.run("echo", "hi"))["revision"] == 1


@pytest.mark.slow
async def test_two_agents_share_what_there_is_and_no_task_is_lost(tmp_path: Path, ledger: Path, gate: Path) -> None:
    agents = {name: nodes.agent("gated", scaling=QUICK) for name in ("a", "b")}
    async with nodes.opened(tmp_path / "data", agents, cluster=ON | {"max_replicas": 6}) as api:
        ids = [id for name in agents for id in await _submitted(api, name, 20, ledger=str(ledger), gate=str(gate))]
        for name in agents:
            await _wanted(api, name, 3)
        assert "cluster" in await _rules(api, "a")
        gate.touch()
        assert {((task := await api.end_of(id))["state"], task["attempt"]) for id in ids} == {("succeeded", 1)}


@pytest.mark.slow
async def test_a_node_that_starts_again_keeps_the_number(tmp_path: Path, ledger: Path, gate: Path) -> None:
    agents = {"gated": nodes.agent("gated", scaling=QUICK | {"stabilisation_s": 60})}
    async with nodes.opened(tmp_path / "data", agents, cluster=ON) as api:
        ids = await _submitted(api, "gated", 12, ledger=str(ledger), gate=str(gate))
        await _wanted(api, "gated", 5)
    gate.touch()
    async with nodes.opened(tmp_path / "data", agents, cluster=ON) as api:
        assert {(await api.end_of(id))["state"] for id in ids} == {"succeeded"}
        await _wanted(api, "gated", 5)


@pytest.mark.slow
async def test_a_person_may_set_another_number_within_the_bounds(tmp_path: Path) -> None:
    agents = {"echo": nodes.agent("echo", scaling=QUICK | {"stabilisation_s": 60})}
    async with nodes.opened(tmp_path / "data", agents, cluster=ON) as api:
        assert (await api.call("PATCH", "/v1/agents/echo/scale", {"replicas": 3})).status_code == 200
        await _wanted(api, "echo", 3)
        for count in (0, 6):
            refused = await api.call("PATCH", "/v1/agents/echo/scale", {"replicas": count})
            assert refused.status_code == 409
            assert "between 1 and 5" in refused.json()["detail"]
        found = await api.get("/v1/agents/echo/scaling")
        assert (found["is_automatic"], found["replicas"]) == (True, 3)
        assert ("set", "owner") in {(item["rule"], item["by"]) for item in found["items"]}


MANIFEST = """
[cluster]
autoscaling = true

[agents.gated]
factory = "agents:gated"
max_attempts = 5

[agents.gated.scaling]
max_replicas = 5
target_queue_per_replica = 2
"""


@pytest.mark.slow
def test_a_node_that_is_killed_while_it_scales_out_keeps_the_number_and_every_task(
    tmp_path: Path, ledger: Path, gate: Path
) -> None:
    folder = nodes.Folder(tmp_path / "project")
    folder.manifest(MANIFEST)

    def desired(up: nodes.Up) -> int:
        return int(up.call("GET", "/v1/agents/gated").json()["replicas"]["desired"])

    try:
        up = folder.up()
        ids = [up.submit("gated", {"ledger": str(ledger), "gate": str(gate)}) for _ in range(20)]
        nodes.wait_until(lambda: desired(up) == 5)
        up.process.kill()
        up.process.wait()
        gate.touch()
        again = folder.up()
        assert desired(again) == 5
        assert {again.end_of(id)["state"] for id in ids} == {"succeeded"}
        rules = [item["rule"] for item in again.call("GET", "/v1/agents/gated/scaling").json()["items"]]
        assert "burst" in rules
    finally:
        folder.close()
