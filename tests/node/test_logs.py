"""The logs of a real node: what real replicas write, and what befalls them, found by agent, task and replica."""

# ruff: noqa: ASYNC240 - the files here are touched, never waited for

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import nodes
from greenroom.core.permissions import HOME, Grant

CHATTY = {"chatty": nodes.agent("chatty", concurrency=2), "alone": nodes.agent("chatty")}
SECRET = "sk-live-0123456789abcdef0123"


async def found(api: nodes.Api, query: str = "limit=200") -> list[Any]:
    """What there is, the oldest first."""
    await api.running.logs.step()
    items: list[Any] = (await api.get(f"/v1/logs?{query}"))["items"]
    return items[::-1]


async def texts(api: nodes.Api, query: str) -> list[str]:
    return [item["text"] for item in await found(api, query)]


async def until_said(api: nodes.Api, query: str, text: str) -> list[Any]:
    async def ask() -> list[Any] | None:
        items = await found(api, query)
        return items if any(text in item["text"] for item in items) else None

    return await nodes.eventually(ask)


async def test_what_a_task_says_is_found_by_its_id_with_its_level_and_its_logger(
    data_dir: Path, store_url: str | None
) -> None:
    async with nodes.opened(data_dir, CHATTY, store_url=store_url) as api:
        said = {"print": ["hello"], "log": [["WARNING", "careful"], ["ERROR", "two\nlines"]], "thread": "of nobody"}
        task = (await api.run("chatty", said))["id"]
        items = await found(api, f"task={task}")
        told = [(item["text"], item["level"], item["source"], item["logger"]) for item in items]
        assert [line for line in told if line[0] != "of nobody"] == [
            ("hello", "info", "stdout", None),
            ("careful", "warning", "stderr", "tools.search"),
            ("two", "error", "stderr", "tools.search"),
            ("lines", "error", "stderr", "tools.search"),
        ]
        (replica,) = await api.replicas("chatty")
        assert {(item["agent"], item["replica"], item["epoch"]) for item in items} == {("chatty", replica["id"], 1)}
        (line,) = (await until_said(api, "agent=chatty&level=error", "of nobody"))[:1]  # it came by another way
        assert (line["level"], line["logger"]) == ("error", "tools.thread")
        assert [item["level"] for item in await found(api, "level=error&agent=chatty")][:2] == ["error"] * 2
        assert await texts(api, "task=nobody") == await texts(api, "agent=nobody") == []


async def test_of_two_tasks_at_once_each_has_its_own_lines(data_dir: Path, gate: Path) -> None:
    async with nodes.opened(data_dir, CHATTY) as api:
        ids = [(await api.submit("chatty", {"print": [name], "gate": str(gate)}))["id"] for name in ("one", "two")]
        for id, name in zip(ids, ("one", "two"), strict=True):
            await until_said(api, f"task={id}", name)
        gate.touch()
        for id in ids:
            await api.end_of(id)
        assert [await texts(api, f"task={id}") for id in ids] == [[name, "after the gate"] for name in ("one", "two")]


async def test_what_a_subprocess_writes_is_of_the_only_task_or_of_the_replica(data_dir: Path, gate: Path) -> None:
    async with nodes.opened(data_dir, CHATTY) as api:
        task = (await api.submit("alone", {"shell": "echo from a shell; echo -n bad >&2", "gate": str(gate)}))["id"]
        (line,) = [each for each in await until_said(api, f"task={task}", "from a shell") if "shell" in each["text"]]
        assert (line["source"], line["logger"]) == ("stdout", None)
        both = [{"gate": str(gate)}, {"gate": str(gate), "shell": "echo of which"}]
        first, second = [(await api.submit("chatty", each))["id"] for each in both]
        (line,) = await until_said(api, "agent=chatty&level=info&limit=1", "of which")
        assert (line["task"], line["agent"]) == (None, "chatty")
        gate.touch()
        await asyncio.gather(*map(api.end_of, (task, first, second)))


async def test_hostile_lines_are_stored_as_text_and_secrets_are_masked(data_dir: Path, gate: Path) -> None:
    async with nodes.opened(data_dir, CHATTY) as api:
        said = {"print": ["x" * 10_000, "\x1b[2Jcleared", f"password={SECRET}"], "bytes": "fffe0a", "gate": str(gate)}
        task = (await api.submit("alone", said))["id"]
        await until_said(api, f"task={task}", "\N{REPLACEMENT CHARACTER}")
        gate.touch()
        await api.end_of(task)
        told = await texts(api, f"task={task}")
        assert "x" * 4096 + "…" in told
        assert "\x1b[2Jcleared" in told
        assert "password=***" in told
        assert not any(SECRET in text for text in told)


@pytest.mark.slow
async def test_a_flood_is_counted_and_costs_a_bounded_amount(data_dir: Path) -> None:
    async with nodes.opened(data_dir, CHATTY, logs={"lines_per_second": 50}) as api:
        task = (await api.run("alone", {"flood": 3000}))["id"]
        items = await until_said(api, f"task={task}&limit=200", "left out")
        lines = [item for item in items if item["text"].startswith("flood")]
        assert lines[0]["text"] == "flood 0"
        assert len(lines) <= 150, "it wrote for less than three seconds"
        assert "its replica wrote more than 50 in a second" in items[-1]["text"]
        assert (await api.run("alone", {}))["output"] == "said"


async def test_the_story_of_a_replica_is_told_in_order(data_dir: Path, gate: Path) -> None:
    gate.touch()  # it is not killed before it has sent what it said
    agents = {"alone": nodes.agent("chatty", max_attempts=1)}
    async with nodes.opened(data_dir, agents) as api:
        (replica,) = await api.replicas("alone")
        task = await api.run("alone", {"print": ["last words"], "gate": str(gate), "die": 1})
        assert task["state"] == "failed"
        items = await until_said(api, f"replica={replica['id']}", "gone")
        told = [item for item in items if not item["text"].startswith(("graded", "after the gate"))]
        begins = ["ready, ", "last words", "its process is gone, ", "the task has failed (replica_lost) after "]
        assert [begin for begin, item in zip(begins, told, strict=True) if item["text"].startswith(begin)] == begins
        assert [item["source"] for item in told] == ["greenroom", "stdout", "greenroom", "greenroom"]
        assert [item["level"] for item in told] == ["info", "info", "error", "error"]
        assert [item["task"] for item in told] == [None, task["id"], None, task["id"]]


async def _following(api: nodes.Api, query: str) -> list[Any]:
    response = await api.http.get(f"/v1/logs/stream?{query}")
    assert response.status_code == 200
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(event) for event in events]


@pytest.mark.slow
async def test_a_stream_goes_on_after_the_last_that_was_seen(data_dir: Path, store_url: str | None) -> None:
    async with nodes.opened(data_dir, CHATTY, store_url=store_url) as api:
        await api.run("chatty", {"print": ["one", "two", "three"]})
        await api.running.logs.step()
        seen = await _following(api, "agent=chatty&limit=2")
        assert [line["text"] for line in seen] == ["two", "three"]
    async with nodes.opened(data_dir, CHATTY, store_url=store_url) as api:
        following = asyncio.create_task(_following(api, f"agent=chatty&level=error&after={seen[0]['seq']}&follow_s=1"))
        everything = await _following(api, f"agent=chatty&after={seen[0]['seq']}")
        assert everything[0]["text"] == "three"
        assert any("its process is gone" in line["text"] for line in everything), "the node's end was written, too"
        await api.run("chatty", {"log": [["ERROR", "found"]]})
        await api.running.logs.step()
        assert [line["text"] for line in await following if line["source"] == "stderr"] == ["found"]


@pytest.mark.slow
async def test_lines_are_shown_to_who_may_read_their_task_or_observe_their_agent(data_dir: Path, gate: Path) -> None:
    other = "other"
    async with nodes.opened(data_dir, CHATTY, security={"tenants_below_t2": True}) as api:
        home = api.of(await api.key("viewer"))
        theirs = api.of(await api.key("admin", tenant=other))
        mine = (await api.run("alone", {"print": ["of home"]}))["id"]
        said = {"print": ["of other"], "shell": "echo of a shell", "gate": str(gate)}
        task = (await theirs.submit("alone", said))["id"]
        await until_said(theirs, f"task={task}", "of other")
        await until_said(home, "agent=alone", "1 line was left out: tasks of other tenants have run there")
        gate.touch()
        await theirs.end_of(task)
        assert await texts(theirs, "limit=200") == ["of other", "after the gate"]
        seen = await found(home, "limit=200")
        assert [item["text"] for item in seen if item["task"]] == ["of home"]
        assert {item["agent"] for item in seen} == {"alone", "chatty"}
        assert await texts(theirs, f"task={mine}") == await texts(home, f"task={task}") == []
        assert await _following(theirs, f"task={mine}") == []

        async def of(*grants: Grant) -> nodes.Api:
            keys = api.running.access.keys
            return api.of((await keys.create(tenant=HOME, name="n", role="viewer", word="dev", scopes=grants)).text)

        reader = await of(Grant("task:read", "agent:alone"))
        assert await texts(reader, "limit=200") == ["of home"]
        watcher = await of(Grant("task:read", "agent:chatty"), Grant("agent:observe", "agent:alone"))
        seen = await found(watcher, "limit=200")
        assert {(item["agent"], item["task"], item["source"]) for item in seen} == {("alone", None, "greenroom")}


@pytest.mark.slow
def test_a_follower_sees_what_comes_after_a_restart_of_the_node(tmp_path: Path) -> None:
    folder = nodes.Folder(tmp_path / "project")
    folder.manifest('[agents.alone]\nfactory = "agents:chatty"\n')
    try:
        up = folder.up()
        up.end_of(up.submit("alone", {"print": ["before"]}))
        port = str(up.http.base_url.port)
        words = ("logs", "--agent", "alone", "--follow", "--json")
        follower = folder.ask(*words)
        lines: list[Any] = []
        assert follower.stdout is not None
        while not lines or lines[-1]["text"] != "before":
            lines.append(json.loads(follower.stdout.readline()))
        up.process.terminate()
        up.ended(within_s=nodes.DEADLINE_S)
        again = folder.up("--port", port)
        again.end_of(again.submit("alone", {"print": ["after"]}))
        while lines[-1]["text"] != "after":
            lines.append(json.loads(follower.stdout.readline()))
        follower.terminate()
        follower.wait()
        told = [line["text"] for line in lines]
        assert told.count("before") == told.count("after") == 1
        assert sum("its process is gone" in text for text in told) == 1
    finally:
        folder.close()
