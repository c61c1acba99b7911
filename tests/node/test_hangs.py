"""Hung replicas are found and replaced; those that only block for a while are not. Real processes."""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

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

HANG_AFTER_S = 2.0  # the least there is; one test takes the default


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


async def test_by_default_a_stopped_replica_is_found_after_eight_seconds_and_replaced(data_dir: Path) -> None:
    """That it is found within ten is for a quiet machine to show: see the bench."""
    async with nodes.opened(data_dir, {"echo": nodes.agent("echo")}) as api:
        ((before,), (agent,)) = await graded(api, "/v1/replicas", "healthy"), await graded(api, "/v1/agents", "healthy")
        assert (before["reason"], agent["grade_reason"]) == ("it answers", "it answers")
        begun_s = time.monotonic()
        with stopped(before["pid"]):
            (sick,), (agent,) = (
                await graded(api, "/v1/replicas", "unhealthy"),
                await graded(api, "/v1/agents", "unhealthy"),
            )
            assert sick["reason"] == "it has not answered for 4 s"
            assert agent["grade_reason"] == f"{sick['id']}: {sick['reason']}"
            await another(api, "echo", before["pid"])
        assert time.monotonic() - begun_s >= 8
        row = await api.running.store.agents.replica(before["id"])
        assert (row.state, row.reason) == ("failed", health.why_hung(8))
        assert (await api.run("echo", 1))["output"] == 1
        assert await exits_of(api, "echo") == {"hung": 1}


async def test_a_task_that_hangs_its_replica_runs_again_on_another(data_dir: Path, ledger: Path) -> None:
    ways = ("stop", "busy loop", "deadlock")
    async with nodes.opened(data_dir, {"hanging": _agent("hanging", scaling={"min_replicas": 3})}) as api:
        tasks = [await api.submit("hanging", {"how": how, "ledger": str(ledger)}) for how in ways]
        for task in tasks:
            ended = await api.end_of(task["id"])
            assert (ended["state"], ended["output"], ended["attempt"]) == ("succeeded", 2, 2)
            assert [attempt["reason"] for attempt in ended["attempts"]] == ["replica_lost", "ok"]
        assert await exits_of(api, "hanging") == {"hung": 3}


async def test_who_blocks_its_loop_or_its_interpreter_for_less_than_the_deadline_is_not_touched(
    data_dir: Path, ledger: Path
) -> None:
    agents = {"blocking": nodes.agent("blocking", hang_after_s=4, scaling={"min_replicas": 2})}
    async with nodes.opened(data_dir, agents) as api:
        pids = {item["pid"] for item in await api.replicas("blocking")}
        ways = ("regex", "json", "power", "sleep")
        tasks = [await api.submit("blocking", {"how": how, "least_s": 0.9, "ledger": str(ledger)}) for how in ways]
        for task in tasks:
            ended = await api.end_of(task["id"])
            assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
            assert ended["output"] >= 0.9
        assert sorted(line.split()[0] for line in ledger.read_text().splitlines()) == sorted(ways)
        assert {item["pid"] for item in await api.replicas("blocking")} == pids
        assert await exits_of(api, "blocking") == {}


async def test_a_plain_function_may_block_its_thread_for_longer_than_the_deadline(data_dir: Path, ledger: Path) -> None:
    async with nodes.opened(data_dir, {"slow": _agent("slow_thread")}) as api:
        (before,) = await api.replicas("slow")
        ended = await api.run("slow", {"for_s": 2 * HANG_AFTER_S, "ledger": str(ledger)})
        assert (ended["state"], ended["attempt"], ended["output"]) == ("succeeded", 1, before["pid"])
        assert await exits_of(api, "slow") == {}


async def test_a_replica_that_hangs_while_it_drains_is_found_too(data_dir: Path, ledger: Path, gate: Path) -> None:
    async with nodes.opened(data_dir, {"gated": _agent("gated")}) as api:
        task = await api.submit("gated", {"ledger": str(ledger), "gate": str(gate)})
        await nodes.lines_of(ledger)
        (before,) = await api.replicas("gated")
        assert (await api.call("POST", f"/v1/replicas/{before['id']}/drain")).status_code == 202
        with stopped(before["pid"]):
            await nodes.lines_of(ledger, 2)
        gate.touch()
        assert (await api.end_of(task["id"]))["attempt"] == 2


async def test_hangs_are_found_without_health_checks(data_dir: Path, ledger: Path) -> None:
    agents = {"hanging": _agent("hanging")}
    async with nodes.opened(data_dir, agents, cluster={"health_checks": False}) as api:
        ended = await api.run("hanging", {"how": "stop", "ledger": str(ledger)})
        assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
        (replica,) = await nodes.eventually(lambda: api.replicas("hanging"))  # the new one, which may still start
        assert (replica["grade"], replica["reason"]) == ("unknown", "health checks are off")
        (agent,) = (await api.get("/v1/status"))["agents"]
        assert (agent["grade"], agent["grade_reason"]) == ("unknown", "health checks are off")
