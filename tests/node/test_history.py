"""The history of agents survives the node: its end, its death, and the agent itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nodes

ECHO = {"echo": nodes.agent("echo")}


async def _attempts(api: nodes.Api, agent: str = "echo") -> int:
    items: list[Any] = (await api.get(f"/v1/agents/{agent}/history?step_s=3600"))["items"]
    return sum(item["attempts"] for item in items)


async def test_a_restart_keeps_the_history_and_what_is_not_written_yet(data_dir: Path, store_url: str | None) -> None:
    async with nodes.opened(data_dir, ECHO, store_url=store_url) as api:
        await api.run("echo", 1)
        await api.running.history.step()
        await api.run("echo", 2)
    async with nodes.opened(data_dir, ECHO, store_url=store_url) as api:
        assert await _attempts(api) == 2
        await api.run("echo", 3)
        await api.running.history.step()
        assert await _attempts(api) == 3


async def test_an_agent_that_is_dropped_and_comes_again_has_its_history(data_dir: Path) -> None:
    async with nodes.opened(data_dir, {**ECHO, "other": nodes.agent("echo")}) as api:
        await api.run("echo", 1)
        assert (await api.call("DELETE", "/v1/agents/echo")).status_code == 204

        async def is_gone() -> bool:
            return (await api.call("GET", "/v1/agents/echo/history")).status_code == 404

        await nodes.eventually(is_gone)
        await api.running.history.step()
        assert (await api.call("PUT", "/v1/agents/echo", nodes.agent("echo"))).status_code == 200
        assert await _attempts(api) == 1


@pytest.mark.slow
def test_a_node_that_is_killed_loses_at_most_what_a_step_had_not_written(tmp_path: Path) -> None:
    folder = nodes.Folder(tmp_path / "project")
    folder.manifest('[agents.echo]\nfactory = "agents:echo"\n')

    def attempts(of: nodes.Up) -> int:
        items = of.call("GET", "/v1/agents/echo/history?step_s=3600").json()["items"]
        return sum(item["attempts"] for item in items)

    try:
        up = folder.up()
        up.end_of(up.submit("echo", 1))
        nodes.wait_until(lambda: attempts(up))
        up.end_of(up.submit("echo", 2))
        nodes.kill(up.process.pid)
        up.ended(within_s=nodes.DEADLINE_S)
        assert attempts(folder.up()) in (1, 2)
    finally:
        folder.close()
