"""Hung replicas are found and replaced; those that only block for a while are not. Real processes."""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import nodes
from greenroom.core import health

pytestmark = pytest.mark.slow

HANG_AFTER_S = 2.0  # the least there is


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP, and SIGCONT at the end if it is still there."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _agent(name: str, **spec: Any) -> dict[str, Any]:
    return nodes.agent(name, hang_after_s=HANG_AFTER_S, retry_backoff_s=0, **spec)


async def exits_of(api: nodes.Api, agent: str) -> dict[str, float]:
    """How many replicas of *agent* have ended, by failure."""
    prefix = f'greenroom_replica_exits_total{{agent="{agent}",reason="'
    lines = (await api.http.get("/metrics")).text.splitlines()
    return {line.split('"')[3]: float(line.split()[-1]) for line in lines if line.startswith(prefix)}


async def another(api: nodes.Api, agent: str, pid: int) -> Any:
    """Wait for a replica of *agent* in the place of the one with *pid*."""

    async def ask() -> Any:
        return next((item for item in await api.replicas(agent) if item["pid"] not in (pid, None)), None)

    return await nodes.eventually(ask)


async def graded(api: nodes.Api, path: str, grade: str) -> Any:
    """Wait until all that is listed at *path* have *grade*."""

    async def ask() -> Any:
        items = (await api.get(path))["items"]
        return items if items and {item["grade"] for item in items} == {grade} else None

    return await nodes.eventually(ask)


@pytest.mark.parametrize("after_s", [HANG_AFTER_S, pytest.param(None, id="default", marks=pytest.mark.long)])
async def test_a_stopped_replica_is_found_after_its_time_and_replaced(data_dir: Path, after_s: float | None) -> None:
    """That it is found within ten by default is for a quiet machine to show: see the bench."""
    spec = nodes.agent("echo") if after_s is None else _agent("echo")
    after_s = after_s or 8.0
    async with nodes.opened(data_dir, {"echo": spec}) as api:
        ((before,), (agent,)) = await graded(api, "/v1/replicas", "healthy"), await graded(api, "/v1/agents", "healthy")
        assert (before["reason"], agent["grade_reason"]) == ("it answers", "it answers")
        begun_s = time.monotonic()
        with stopped(before["pid"]):
            (sick,), (agent,) = (
                await graded(api, "/v1/replicas", "unhealthy"),
                await graded(api, "/v1/agents", "unhealthy"),
            )
            assert sick["reason"] == f"it has not answered for {after_s / 2:g} s"
            assert agent["grade_reason"] == f"{sick['id']}: {sick['reason']}"
            await another(api, "echo", before["pid"])
        assert time.monotonic() - begun_s >= after_s
        row = await api.running.store.agents.replica(before["id"])
        assert (row.state, row.reason) == ("failed", health.why_hung(after_s))
        assert (await api.run("echo", 1))["output"] == 1
        assert await exits_of(api, "echo") == {"hung": 1}


async def test_a_task_that_hangs_its_replica_at_work_or_while_that_drains_runs_again_on_another(
    data_dir: Path, tmp_path: Path, gate: Path
) -> None:
    ways = ("stop", "busy loop", "deadlock")

    async def at_work(api: nodes.Api) -> None:
        ledger = tmp_path / "hanging"
        tasks = [await api.submit("hanging", {"how": how, "ledger": str(ledger)}) for how in ways]
        for task in tasks:
            ended = await api.end_of(task["id"])
            assert (ended["state"], ended["output"], ended["attempt"]) == ("succeeded", 2, 2)
            assert [attempt["reason"] for attempt in ended["attempts"]] == ["replica_lost", "ok"]
        assert await exits_of(api, "hanging") == {"hung": 3}

    async def while_it_drains(api: nodes.Api) -> None:
        ledger = tmp_path / "gated"
        task = await api.submit("gated", {"ledger": str(ledger), "gate": str(gate)})
        await nodes.lines_of(ledger)
        (before,) = await api.replicas("gated")
        assert (await api.call("POST", f"/v1/replicas/{before['id']}/drain")).status_code == 202
        with stopped(before["pid"]):
            await nodes.lines_of(ledger, 2)
        gate.touch()
        assert (await api.end_of(task["id"]))["attempt"] == 2

    agents = {"hanging": _agent("hanging", scaling={"min_replicas": 3}), "gated": _agent("gated")}
    async with nodes.opened(data_dir, agents) as api:
        await asyncio.gather(at_work(api), while_it_drains(api))


async def test_who_blocks_the_loop_for_less_than_the_deadline_or_a_thread_for_longer_is_not_touched(
    data_dir: Path, ledger: Path, tmp_path: Path
) -> None:
    ways = ("regex", "json", "power", "sleep")

    async def block_the_loop_or_the_interpreter(api: nodes.Api) -> None:
        tasks = [await api.submit("blocking", {"how": how, "least_s": 0.6, "ledger": str(ledger)}) for how in ways]
        for task in tasks:
            ended = await api.end_of(task["id"])
            assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
            assert ended["output"] >= 0.6
        assert sorted(line.split()[0] for line in ledger.read_text().splitlines()) == sorted(ways)

    async def block_a_thread(api: nodes.Api) -> None:
        for_s = 1.5 * HANG_AFTER_S
        ended = await api.run("slow", {"for_s": for_s, "ledger": str(tmp_path / "slow")})
        assert (ended["state"], ended["attempt"], ended["output"]) == ("succeeded", 1, before["slow"].pop())

    agents = {
        "blocking": nodes.agent("blocking", hang_after_s=4, scaling={"min_replicas": 4}),
        "slow": _agent("slow_thread"),
    }
    async with nodes.opened(data_dir, agents) as api:
        before = {name: {item["pid"] for item in await api.replicas(name)} for name in agents}
        await asyncio.gather(block_the_loop_or_the_interpreter(api), block_a_thread(api))
        assert {item["pid"] for item in await api.replicas("blocking")} == before["blocking"]
        assert {name: await exits_of(api, name) for name in agents} == {"blocking": {}, "slow": {}}


async def test_hangs_are_found_without_health_checks(data_dir: Path, ledger: Path) -> None:
    agents = {"hanging": _agent("hanging")}
    async with nodes.opened(data_dir, agents, cluster={"health_checks": False}) as api:
        ended = await api.run("hanging", {"how": "stop", "ledger": str(ledger)})
        assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
        (replica,) = await nodes.eventually(lambda: api.replicas("hanging"))  # the new one, which may still start
        assert (replica["grade"], replica["reason"]) == ("unknown", "health checks are off")
        (agent,) = (await api.get("/v1/status"))["agents"]
        assert (agent["grade"], agent["grade_reason"]) == ("unknown", "health checks are off")
