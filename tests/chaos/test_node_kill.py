"""A node that is killed and started again in its folder goes on at once: it waits for no lease of its own to expire."""

# ruff: noqa: ASYNC240 - the gate is touched, never waited for

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

import nodes
from greenroom.testing import databases
from nodes import Folder

pytestmark = pytest.mark.slow


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> databases.Server | None:
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_server")


async def test_what_a_killed_node_ran_is_free_when_it_is_ready_again(
    server: databases.Server | None, tmp_path: Path, ledger: Path, gate: Path
) -> None:
    folder = Folder(tmp_path / "project")
    folder.manifest('[agents.gated]\nfactory = "agents:gated"\n')
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(folder.close)
        words = [] if server is None else ["--store", (await stack.enter_async_context(server.scratch())).url]
        up = folder.up(*words)
        id = up.submit("gated", {"ledger": str(ledger), "gate": str(gate)})
        await nodes.lines_of(ledger)
        up.process.kill()
        up.process.wait()
        again = folder.up(*words)
        attempts = again.call("GET", f"/v1/tasks/{id}").json()["attempts"]
        assert attempts[0]["reason"] == "fenced"
        gate.touch()
        assert again.end_of(id)["attempt"] == 2
