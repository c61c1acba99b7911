"""What becomes of tasks when replicas are killed, blocked, stopped or late. Bounds are those of the promises."""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import nodes
from greenroom import errors
from greenroom.control import dispatcher
from greenroom.core import recovery

pytestmark = pytest.mark.slow


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def gone(pid: int, *, within_s: float) -> None:
    async def ask() -> bool:
        return not is_alive(pid)

    await nodes.eventually(ask, within_s=within_s)


def _pids(lines: list[str]) -> list[int]:
    pids = [int(line.split()[1]) for line in lines]
    assert min(pids) > 1  # they are killed
    return pids


async def test_a_task_of_a_killed_replica_runs_again_at_once(
    data_dir: Path, store_url: str | None, ledger: Path, gate: Path
) -> None:
    async with nodes.opened(data_dir, {"gated": nodes.agent("gated")}, store_url=store_url) as api:
        for _ in range(3):
            ledger.unlink(missing_ok=True)
            gate.unlink(missing_ok=True)
            submitted_s = time.monotonic()
            task = await api.submit("gated", {"ledger": str(ledger), "gate": str(gate)})
            (pid,) = _pids(await nodes.lines_of(ledger))
            killed_s = time.monotonic()
            nodes.kill(pid)
            second = _pids(await nodes.lines_of(ledger, 2))[1]
            # A machine that is slow now (each commit waits for its disk) was so when the task began for the first time.
            assert time.monotonic() - killed_s < 3 + 10 * (killed_s - submitted_s)
            assert second != pid
            gate.touch()
            ended = await api.end_of(task["id"])
            assert (ended["state"], ended["output"]["attempt"], ended["attempt"]) == ("succeeded", 2, 2)
            assert [attempt["reason"] for attempt in ended["attempts"]] == ["replica_lost", "ok"]


async def test_a_task_that_kills_its_replicas_fails_after_its_attempts_and_hurts_nobody_else(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "BASE_S", 0.01)
    agents = {"stubborn": nodes.agent("stubborn", max_attempts=3, retry_backoff_s=0.01), "echo": nodes.agent("echo")}
    async with nodes.opened(data_dir, agents) as api:
        killers = {how: await api.submit("stubborn", {"how": how}) for how in ("exit", "kill", "segfault")}
        innocent = [await api.submit("stubborn", {"how": "echo"}) for _ in range(5)]
        assert (await api.run("echo", 1))["state"] == "succeeded"
        for how, task in killers.items():
            ended = await api.end_of(task["id"])
            # Who is killed by SIGKILL may have been killed by somebody else.
            expected = "replica_lost" if how == "kill" else "poison"
            assert (ended["state"], ended["error"]["type"], ended["attempt"]) == ("failed", expected, 3)
            assert ended["error"]["may_have_run"] is True
        for task in innocent:
            assert (await api.end_of(task["id"]))["state"] == "succeeded"
        assert (await api.run("stubborn", {"how": "echo"}))["state"] == "succeeded"


async def test_one_poisonous_task_among_two_hundred_is_quarantined_after_three_kills(data_dir: Path) -> None:
    spec = nodes.agent("stubborn", concurrency=4, memory_mb=150, scaling={"min_replicas": 2}, retry_backoff_s=0.05)

    async def is_quarantined(api: nodes.Api, how: str) -> None:
        tasks = [{"agent": how, "input": {"how": how if n == 20 else "echo"}} for n in range(200)]
        answer = await api.call("POST", "/v1/tasks/batch", {"tasks": tasks})
        ids = [item["id"] for item in answer.json()["items"]]
        ended = [await api.end_of(id) for id in ids]
        poison = ended.pop(20)
        assert {task["state"] for task in ended} == {"succeeded"}
        assert poison["state"] == "failed"
        failures = (await api.get(f"/v1/failures?agent={how}"))["items"]
        if poison["error"]["type"] == "MemoryError":  # the limit of its address space was faster
            assert failures == []
            return
        assert poison["error"]["type"] == "poison"
        assert 0 < len(failures) <= 3
        assert {failure["kind"] for failure in failures} == {"oom" if how == "eat" else "crashed"}
        await nodes.eventually(lambda: _stands_at(api, how, 2))
        assert (await api.get(f"/v1/agents/{how}"))["state"] == "ready"

    agents = ("exit", "segfault", "eat")
    async with nodes.opened(data_dir, dict.fromkeys(agents, spec)) as api:
        await asyncio.gather(*(is_quarantined(api, how) for how in agents))
        assert (await api.get("/v1/alerts"))["items"] == []


async def _stands_at(api: nodes.Api, agent: str, count: int) -> bool:
    alive = [item for item in (await api.get("/v1/replicas"))["items"] if item["agent"] == agent]
    return len(alive) == len(await api.replicas(agent)) == count


async def test_a_new_revision_that_never_works_is_rolled_back_while_the_old_one_serves(data_dir: Path) -> None:
    async with nodes.opened(data_dir, {"echo": nodes.agent("echo")}) as api:
        assert (await api.run("echo", 1))["revision"] == 1
        assert (await api.call("PUT", "/v1/agents/echo", nodes.agent("raising"))).status_code == 200

        async def alert() -> dict[str, Any] | None:
            return next(iter((await api.get("/v1/alerts"))["items"]), None)

        told = await nodes.eventually(alert)
        assert (told["kind"], told["state"]) == ("rollout-failed", "firing")
        assert "to revision 2 has failed and revision 1 serves: cannot " in told["reason"]
        shown = await api.get("/v1/agents/echo")
        assert (shown["revision"], shown["state"], (await api.run("echo", 1))["revision"]) == (1, "ready", 1)
        await api.call("PUT", "/v1/agents/echo", nodes.agent("pid"))

        async def is_mended() -> bool:
            return bool((await api.get("/v1/agents/echo"))["revision"] == 3)

        await nodes.eventually(is_mended)
        assert isinstance((await api.run("echo", 1))["output"], int)
        assert [alert["state"] for alert in (await api.get("/v1/alerts"))["items"]] == ["resolved"]


async def test_a_new_revision_that_gets_ready_and_dies_of_its_tasks_is_rolled_back_and_they_succeed(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "BASE_S", 0.01)
    spec = {"max_attempts": 20, "retry_backoff_s": 0.01, "rollout": {"scale_down_delay_s": 0}}
    async with nodes.opened(data_dir, {"echo": nodes.agent("echo", **spec)}) as api:
        assert (await api.run("echo", 1))["revision"] == 1
        await api.call("PUT", "/v1/agents/echo", nodes.agent("stubborn", **spec))

        async def serves(revision: int) -> bool:
            items = (await api.get("/v1/replicas"))["items"]
            return [(item["revision"], item["state"]) for item in items] == [(revision, "ready")]

        await nodes.eventually(lambda: serves(2))
        tasks = [await api.submit("echo", {"how": "exit"}) for _ in range(recovery.INTENSITY)]
        await nodes.eventually(lambda: serves(1))
        for task in tasks:
            ended = await api.end_of(task["id"])
            assert (ended["state"], ended["revision"]) in {("succeeded", 1), ("failed", 2)}
        assert (await api.end_of(tasks[-1]["id"]))["state"] == "succeeded"


async def test_on_replica_loss_fail_is_not_run_again(data_dir: Path, ledger: Path) -> None:
    agents = {"stubborn": nodes.agent("stubborn", on_replica_loss="fail")}
    async with nodes.opened(data_dir, agents) as api:
        ended = await api.run("stubborn", {"how": "exit", "ledger": str(ledger)})
        assert (ended["state"], ended["error"]["type"], ended["error"]["may_have_run"]) == (
            "failed",
            "replica_lost",
            True,
        )
        assert len(ledger.read_text().splitlines()) == 1


async def test_a_memory_eater_is_stopped_at_its_limit(data_dir: Path) -> None:
    agents = {"stubborn": nodes.agent("stubborn", memory_mb=200, max_attempts=1), "echo": nodes.agent("echo")}
    async with nodes.opened(data_dir, agents) as api:
        ended = await api.run("stubborn", {"how": "eat"})
        assert ended["state"] == "failed"
        assert ended["error"]["type"] in ("MemoryError", "replica_lost")
        assert (await api.run("echo", 1))["state"] == "succeeded"
        assert (await api.run("stubborn", {"how": "echo"}))["state"] == "succeeded"


# Cancel


async def test_cancel_is_final_at_once_and_a_deaf_process_goes_within_its_grace(data_dir: Path, tmp_path: Path) -> None:
    """Its neighbours in the process run again, and nobody charges them for it."""

    async def goes(api: nodes.Api, how: str) -> None:
        ledger = tmp_path / how
        others = [await api.submit(how, {"how": "wait", "ledger": str(ledger)}) for _ in range(3)]
        await nodes.lines_of(ledger, 3)
        task = await api.submit(how, {"how": how, "ledger": str(ledger)})
        pid = _pids(await nodes.lines_of(ledger, 4))[3]
        asked_s = time.monotonic()
        answer = await api.call("POST", f"/v1/tasks/{task['id']}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
        assert time.monotonic() - asked_s < 1
        await gone(pid, within_s=dispatcher.GRACE_S + 1)
        lines = await nodes.lines_of(ledger, 7)
        assert {line.split()[0] for line in lines[4:]} == {"wait"}
        for other in others:
            shown = await api.task(other["id"])
            assert (shown["state"], shown["attempt"]) == ("running", 1)
            assert [attempt["reason"] for attempt in shown["attempts"]] == ["neighbour", None]
            await api.call("POST", f"/v1/tasks/{other['id']}/cancel")
        assert (await api.task(task["id"]))["state"] == "cancelled"
        assert (await api.run(how, {"how": "echo"}))["state"] == "succeeded"

    agents = ("busy", "sleep", "deaf", "stop")
    async with nodes.opened(data_dir, dict.fromkeys(agents, nodes.agent("stubborn", concurrency=4))) as api:
        await asyncio.gather(*(goes(api, how) for how in agents))


async def test_cancel_ends_a_blocked_thread_with_its_process(data_dir: Path, ledger: Path) -> None:
    async with nodes.opened(data_dir, {"blocked": nodes.agent("thread_blocked")}) as api:
        task = await api.submit("blocked", {"ledger": str(ledger)})
        (pid,) = _pids(await nodes.lines_of(ledger))
        assert (await api.call("POST", f"/v1/tasks/{task['id']}/cancel")).status_code == 202
        await gone(pid, within_s=dispatcher.GRACE_S + 1)
        assert (await api.task(task["id"]))["state"] == "cancelled"
        await api.submit("blocked", {"ledger": str(ledger)})
        assert _pids(await nodes.lines_of(ledger, 2))[1] != pid


async def test_cancel_of_an_agent_that_listens_keeps_its_process(data_dir: Path, ledger: Path) -> None:
    async with nodes.opened(data_dir, {"stubborn": nodes.agent("stubborn")}) as api:
        for count in range(1, 4):
            task = await api.submit("stubborn", {"how": "wait", "ledger": str(ledger)})
            await nodes.lines_of(ledger, count)
            await api.call("POST", f"/v1/tasks/{task['id']}/cancel")
        assert (await api.run("stubborn", {"how": "echo", "ledger": str(ledger)}))["state"] == "succeeded"
        assert len(set(_pids(await nodes.lines_of(ledger, 4)))) == 1


# Deadlines


async def test_a_deadline_holds_against_every_way_not_to_end(data_dir: Path, tmp_path: Path) -> None:
    async def holds(api: nodes.Api, how: str) -> None:
        ledger = tmp_path / how
        ended = await api.run(how, {"how": how, "ledger": str(ledger)})
        assert (ended["state"], ended["error"]["type"]) == ("expired", "timeout")
        assert _lasted_s(ended) < 0.5 + 2
        assert [attempt["reason"] for attempt in ended["attempts"]] == ["timeout"]
        if how != "wait":
            await gone(_pids(await nodes.lines_of(ledger))[0], within_s=dispatcher.GRACE_S + 1)
        assert (await api.run(how, {"how": "echo"}, timeout_s=30))["state"] == "succeeded"

    agents = ("wait", "busy", "sleep", "deaf", "stop")
    async with nodes.opened(data_dir, dict.fromkeys(agents, nodes.agent("stubborn", timeout_s=0.5))) as api:
        await asyncio.gather(*(holds(api, how) for how in agents))


async def test_the_callers_deadline_is_of_the_whole_task(data_dir: Path, ledger: Path) -> None:
    async with nodes.opened(data_dir, {"stubborn": nodes.agent("stubborn")}) as api:
        running = await api.submit("stubborn", {"how": "wait", "ledger": str(ledger)}, timeout_s=0.8)
        await nodes.lines_of(ledger)
        queued = await api.submit("stubborn", {"how": "wait", "ledger": str(ledger)}, timeout_s=0.3)
        for task, bound_s in ((queued, 0.3), (running, 0.8)):
            ended = await api.end_of(task["id"])
            assert ended["state"] == "expired"
            assert bound_s - 0.01 < _lasted_s(ended) < bound_s + 2
        assert len(ledger.read_text().splitlines()) == 1


def _lasted_s(task: dict[str, Any]) -> float:
    begun, ended = (datetime.fromisoformat(task[key]) for key in ("created_at", "finished_at"))
    return (ended - begun).total_seconds()


# Load


async def test_nothing_is_lost_or_doubled_while_replicas_are_killed(
    data_dir: Path, store_url: str | None, ledger: Path
) -> None:
    agents = {"gated": nodes.agent("gated", concurrency=2, max_attempts=50, scaling={"min_replicas": 3})}
    async with nodes.opened(data_dir, agents, store_url=store_url) as api:
        # Else many who were killed in idleness, before the first commits on a slow disk, would be blamed on the agent.
        await api.run("gated", {"ledger": "/dev/null"})
        ids: list[str] = []
        kills = 0

        async def kill() -> None:
            nonlocal kills
            for _ in range(8):
                replicas = await nodes.eventually(lambda: api.replicas("gated"))
                nodes.kill(replicas[kills % len(replicas)]["pid"])
                kills += 1
                await asyncio.sleep(0.1)

        killing = asyncio.create_task(kill())
        number = 0
        while not killing.done():
            tasks = [
                {"agent": "gated", "input": {"ledger": str(ledger), "name": str(n)}} for n in range(number, number + 10)
            ]
            answer = await api.call("POST", "/v1/tasks/batch", {"tasks": tasks})
            ids += [item["id"] for item in answer.json()["items"]]
            number += 10
            await asyncio.sleep(0.01)
        await killing
        ended = await asyncio.gather(*(api.end_of(id) for id in ids))
        assert kills == 8
        assert {task["state"] for task in ended} == {"succeeded"}
        runs = [line.split()[0] for line in ledger.read_text().splitlines()]
        assert set(runs) == {str(n) for n in range(number)}
        ran_again = sum(len(task["attempts"]) - 1 for task in ended)
        assert len(runs) <= number + ran_again


async def test_a_node_whose_loops_have_ended_takes_no_more(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> float:
        raise RuntimeError("a bug")

    monkeypatch.setattr("greenroom.control.supervisor.INTENSITY", 0)
    async with nodes.opened(data_dir, {"gated": nodes.agent("gated")}) as api:
        assert api.running.services.is_ready()
        assert (await api.http.get("/healthz")).status_code == 200
        monkeypatch.setattr(api.running.janitor, "step", broken)
        api.running.janitor.wakeup.set()
        with pytest.raises(ExceptionGroup):
            await asyncio.wait_for(api.running.ended(), nodes.DEADLINE_S)
        assert not api.running.services.is_ready()
        assert isinstance(api.running.failure, ExceptionGroup)
        assert isinstance(api.running.services.refusal, errors.NodeFailed)
        node = (await api.get("/v1/status"))["node"]
        assert (node["state"], node["reason"]) == ("failed", api.running.services.failure)
        assert "RuntimeError" in node["reason"]
        assert "a bug" not in node["reason"]
        assert (await api.http.get("/readyz")).status_code == 503
        assert (await api.http.get("/healthz")).status_code == 503
        refused = await api.call("POST", "/v1/tasks", {"agent": "gated", "input": 1})
        assert (refused.status_code, refused.json()["type"]) == (503, "node-failed")
        assert "RuntimeError" in refused.json()["detail"]
        assert (await api.call("GET", "/v1/tasks")).status_code == 200
