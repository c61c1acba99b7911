"""What `greenroom up` says when its node is ready."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import nodes
from greenroom import node
from greenroom.cli import node as up
from greenroom.node import serving

BROKEN = {"raising": nodes.agent("raising"), "missing": nodes.agent("missing_factory")}


@pytest.mark.parametrize(
    ("agents", "told"),
    [
        ({}, "none yet"),
        ({"echo": nodes.agent("echo"), "gated": nodes.agent("gated")}, "echo, gated"),
        ({"echo": nodes.agent("echo"), **BROKEN}, "echo"),
        (BROKEN, "none"),
    ],
)
async def test_agents_that_are_failed_are_told_of_with_the_reason_on_a_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], agents: dict[str, Any], told: str
) -> None:
    async with nodes.opened(tmp_path / "data", agents) as api:
        await api.running.store.directory.refresh()  # as `node` does before it says that it is ready
        up._tell(api.running)
    first, isolation, limits, *failures, last = capsys.readouterr().err.splitlines()
    assert first == f"ready at ; agents: {told}"
    assert isolation.startswith("warning: T0: agents run as the node's user")
    assert limits.startswith("all replicas together may use 2 CPUs (")
    assert last.startswith("next, in another terminal: ")
    broken = [name for name in agents if name in BROKEN]
    assert [line.partition(" is failed: ")[0] for line in failures] == [f"agent {name}" for name in broken]
    if broken:
        assert "the model is missing" in failures[0]
        assert "missing_factory" in failures[1]


async def test_who_is_told_that_the_node_is_ready_sees_the_agents_as_they_are(tmp_path: Path) -> None:
    stop, seen = asyncio.Event(), {}

    def on_ready(started: node.Node) -> None:
        seen.update({name: entry.agent.state for name, entry in started.store.directory.entries.items()})
        stop.set()

    async with nodes.opened(tmp_path / "data", {"raising": BROKEN["raising"]}, is_settled=False) as api:
        await serving.until_stopped(api.running, stop, on_ready)
    assert seen == {"raising": "failed"}
