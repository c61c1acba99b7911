from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, cast

import pytest

from greenroom.sdk.context import Context, TaskInfo
from greenroom.testing.chaos import agent, ledger


class _Context:
    def __init__(self, task: str, session: str | None = None) -> None:
        self.task = TaskInfo(task, "chaos", 2, 3, session, {})
        self.session, self.state = session, dict[str, Any]()


def perform(input: dict[str, Any], context: _Context) -> dict[str, Any]:
    return asyncio.run(agent.perform(input, cast("Context", context)))


def test_the_ledger_tells_of_runs_that_ended_and_of_one_that_did_not_live_to_see_its_end(path: Path) -> None:
    assert ledger.read(path) == []
    perform({"key": "k1", "ledger": str(path)}, _Context("t1"))
    child = os.fork()
    if child == 0:
        perform({"key": "k2", "ledger": str(path), "do": "exit"}, _Context("t2"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    ended, killed = ledger.read(path)
    assert (ended.key, ended.task, ended.epoch, ended.attempt, ended.pid) == ("k1", "t1", 3, 2, os.getpid())
    assert ended.ended_at is not None
    assert ended.ended_at >= ended.begun_at
    assert (killed.key, killed.pid, killed.ended_at) == ("k2", child, None)


def test_a_session_adds_a_link_for_each_task(path: Path) -> None:
    context = _Context("t1", "s")
    first = perform({"key": "k1", "ledger": str(path)}, context)
    second = perform({"key": "k2", "ledger": str(path)}, context)
    assert first["link"] == agent.link("", "k1")
    assert second["link"] == agent.link(first["link"], "k2")


def test_what_is_no_line_of_a_ledger_is_refused() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        ledger.parse(["k1,t1,1"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"
