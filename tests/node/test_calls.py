"""``Context.call``: chains on one slot each, recorded results, cascades, deadlines; and sessions through kills."""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import nodes

pytestmark = pytest.mark.slow

CHAIN = {name: nodes.agent(name) for name in ("first", "second", "third", "parallel", "parent", "gated")}


def _pid(line: str) -> int:
    pid = int(line.split()[1])
    assert pid > 1
    return pid


async def test_a_chain_of_agents_with_one_slot_each_does_not_deadlock(data_dir: Path, store_url: str | None) -> None:
    async with nodes.opened(data_dir, CHAIN, store_url=store_url) as api:
        assert (await api.run("first", 0))["output"] == ["first", ["second", ["third", 0]]]
        ended = await asyncio.wait_for(asyncio.gather(*(api.run("first", n) for n in range(20))), nodes.DEADLINE_S)
        assert [task["output"] for task in ended] == [["first", ["second", ["third", n]]] for n in range(20)]
        assert {len(task["attempts"]) for task in ended} == {1}
        await nodes.eventually(lambda: _is_idle(api))


async def _is_idle(api: nodes.Api, agent: str = "") -> bool:
    return all(
        item["busy"] == 0 or agent not in ("", item["agent"]) for item in (await api.get("/v1/replicas"))["items"]
    )


async def test_calls_in_parallel_come_back_in_order(data_dir: Path) -> None:
    async with nodes.opened(data_dir, CHAIN) as api:
        items = list(range(12))
        ended = await asyncio.gather(*(api.run("parallel", items) for _ in range(5)))
        assert [task["output"] for task in ended] == [[["third", item] for item in items]] * 5


async def test_calls_that_overlap_never_hang(data_dir: Path) -> None:
    agents = {name: nodes.agent(name) for name in ("overlapping", "third")}
    async with nodes.opened(data_dir, agents) as api:
        delays = [number / 1000 for number in range(40)]
        ended = await asyncio.wait_for(asyncio.gather(*(api.run("overlapping", delay) for delay in delays)), 60)
        assert [task["output"] for task in ended] == [[["third", "early"], ["third", "late"]]] * len(delays)
        await nodes.eventually(lambda: _is_idle(api))


async def test_a_blocking_call_from_a_thread_works(data_dir: Path) -> None:
    agents = {"blocking": nodes.agent("blocking_parent"), "third": nodes.agent("third")}
    async with nodes.opened(data_dir, agents) as api:
        ended = await asyncio.gather(*(api.run("blocking", n) for n in range(3)))
        assert [task["output"] for task in ended] == [["third", n] for n in range(3)]


async def test_a_parent_waits_without_its_slot_and_its_child_names_it(data_dir: Path, ledger: Path, gate: Path) -> None:
    async with nodes.opened(data_dir, CHAIN) as api:
        child = {"ledger": str(ledger), "gate": str(gate)}
        task = await api.submit("parent", {"ledger": str(ledger), "agent": "gated", "child": child})
        await api.until(task["id"], "waiting")
        await nodes.eventually(lambda: _is_idle(api, "parent"))
        (found,) = (await api.get("/v1/tasks?agent=gated"))["items"]
        assert found["parent"] == task["id"]
        gate.touch()
        assert (await api.end_of(task["id"]))["output"]["answer"]["attempt"] == 1


@pytest.mark.parametrize("when", ["waiting", "answered"])
async def test_a_recorded_result_is_used_when_the_parent_runs_again(
    data_dir: Path, store_url: str | None, ledger: Path, tmp_path: Path, when: str
) -> None:
    """The child runs once, whether its parent's process dies before or after the answer came."""
    child_gate, parent_gate = tmp_path / "child", tmp_path / "parent"
    async with nodes.opened(data_dir, CHAIN, store_url=store_url) as api:
        child = {"ledger": str(ledger), "gate": str(child_gate), "name": "child"}
        work = {"ledger": str(ledger), "agent": "gated", "child": child, "gate": str(parent_gate)}
        task = await api.submit("parent", work)
        first = _pid((await nodes.lines_of(ledger, 2))[0])
        if when == "answered":
            child_gate.touch()
            await nodes.lines_of(ledger, 3)
        nodes.kill(first)
        if when == "waiting":
            await nodes.lines_of(ledger, 3)  # the parent again
            child_gate.touch()
        parent_gate.touch()
        ended = await api.end_of(task["id"])
        assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
        lines = [line.split()[0] for line in ledger.read_text().splitlines()]
        assert lines.count("child") == 1, lines
        assert lines.count("parent") == 2
        assert len((await api.get("/v1/tasks?agent=gated"))["items"]) == 1


async def test_a_killed_child_runs_again_and_its_parent_does_not_notice(
    data_dir: Path, ledger: Path, gate: Path
) -> None:
    async with nodes.opened(data_dir, CHAIN) as api:
        child = {"ledger": str(ledger), "gate": str(gate), "name": "child"}
        task = await api.submit("parent", {"ledger": str(ledger), "agent": "gated", "child": child})
        nodes.kill(_pid((await nodes.lines_of(ledger, 2))[1]))
        await nodes.lines_of(ledger, 3)
        gate.touch()
        ended = await api.end_of(task["id"])
        assert (ended["attempt"], ended["output"]["answer"]["attempt"]) == (1, 2)


async def test_cancel_of_the_parent_cancels_its_tree(data_dir: Path, store_url: str | None, ledger: Path) -> None:
    agents = CHAIN | {"stubborn": nodes.agent("stubborn")}
    async with nodes.opened(data_dir, agents, store_url=store_url) as api:
        leaf = {"ledger": str(ledger), "how": "wait"}
        middle = {"ledger": str(ledger), "agent": "stubborn", "child": leaf}
        # The agent parent has one slot, free while its first task waits: the second of the chain runs there, too.
        task = await api.submit("parent", {"ledger": str(ledger), "agent": "parent", "child": middle})
        await nodes.lines_of(ledger, 3)
        assert (await api.call("POST", f"/v1/tasks/{task['id']}/cancel")).status_code == 202
        items = (await api.get("/v1/tasks"))["items"]
        assert [item["state"] for item in items] == ["cancelled"] * 3
        await nodes.eventually(lambda: _is_idle(api))
        assert (await api.run("stubborn", {"how": "echo"}))["state"] == "succeeded"
        assert (await api.run("parent", {"ledger": str(ledger), "agent": "third", "child": 1}))["state"] == "succeeded"


FAILING: list[tuple[dict[str, object], str]] = [
    ({"agent": "nobody", "child": 1}, "not-found"),
    ({"agent": "failing", "child": "no"}, "ValueError"),
    ({"agent": "gated", "child": {"ledger": "/dev/null", "gate": "/nonexistent"}, "timeout_s": 0.3}, "timeout"),
]


async def test_a_call_that_fails_is_told_to_the_parent(data_dir: Path, ledger: Path) -> None:
    async with nodes.opened(data_dir, CHAIN | {"failing": nodes.agent("failing")}) as api:
        for call, type in FAILING:
            ended = await api.run("parent", {"ledger": str(ledger), **call})
            assert ended["state"] == "succeeded"
            assert ended["output"]["failed"] == type, ended["output"]


async def test_the_deadline_goes_down_to_the_child(data_dir: Path, ledger: Path) -> None:
    async with nodes.opened(data_dir, CHAIN) as api:
        child = {"ledger": str(ledger), "gate": "/nonexistent"}
        task = await api.submit("parent", {"ledger": str(ledger), "agent": "gated", "child": child}, timeout_s=1.0)
        await nodes.lines_of(ledger, 2)
        (found,) = (await api.get("/v1/tasks?agent=gated"))["items"]
        deadline = (await api.task(task["id"]))["deadline_at"]
        late = datetime.fromisoformat(found["deadline_at"]) - datetime.fromisoformat(deadline)
        assert late < timedelta(milliseconds=1)
        assert (await api.end_of(task["id"]))["state"] == "expired"
        assert (await api.end_of(found["id"]))["state"] in ("expired", "cancelled")
        await nodes.eventually(lambda: _is_idle(api))


# Sessions


async def test_a_sessions_hash_chain_holds_through_50_tasks_and_kills(data_dir: Path, store_url: str | None) -> None:
    agents = {"chained": nodes.agent("chained", sessions=True, max_attempts=20, scaling={"min_replicas": 2})}
    async with nodes.opened(data_dir, agents, store_url=store_url) as api:
        ids = {}
        for session in ("one", "two"):
            items = [{"agent": "chained", "input": [f"{session}-{n}", None], "session": session} for n in range(50)]
            answer = await api.call("POST", "/v1/tasks/batch", {"tasks": items})
            ids[session] = [item["id"] for item in answer.json()["items"]]
        for place in (5, 15, 25, 35):
            await api.end_of(ids["one"][place])
            for replica in await api.replicas("chained"):
                nodes.kill(replica["pid"])
        for session, tasks in ids.items():
            link = ""
            for number, id in enumerate(tasks):
                link = hashlib.sha256(f"{link}{session}-{number}".encode()).hexdigest()
                assert (await api.end_of(id))["output"] == [number + 1, link]
            shown = await api.get(f"/v1/sessions/{session}?agent=chained")
            assert (shown["tasks"], shown["state"]["link"]) == (50, link)
