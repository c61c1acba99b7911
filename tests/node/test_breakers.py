"""What the tasks of an agent see of its circuit breaker, of a bad replica and of `max_running`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import nodes
from greenroom import telemetry

pytestmark = pytest.mark.slow


async def _submit(api: nodes.Api, count: int, **input: Any) -> list[str]:
    tasks = [{"agent": "calling", "input": {"name": number, **input}} for number in range(count)]
    answer = await api.call("POST", "/v1/tasks/batch", {"tasks": tasks})
    assert answer.status_code == 202, answer.text
    return [item["id"] for item in answer.json()["items"]]


async def _in_state(api: nodes.Api, state: str) -> bool:
    return bool((await api.get("/v1/agents/calling"))["breaker"]["state"] == state)


async def test_while_what_an_agent_calls_is_down_its_tasks_wait_and_then_all_of_them_succeed(
    data_dir: Path, store_url: str | None, tmp_path: Path
) -> None:
    ledger, down = tmp_path / "ledger", tmp_path / "down"
    down.touch()
    spec = nodes.agent("calling", concurrency=4, max_attempts=10, retry_backoff_s=0.2, breaker={"open_s": 1.0})
    async with nodes.opened(data_dir, {"calling": spec}, store_url=store_url) as api:
        moves: list[telemetry.BreakerMoved] = []
        api.running.facts.subscribe(moves.append, telemetry.BreakerMoved)
        ids = await _submit(api, 50, ledger=str(ledger), down=str(down))
        await nodes.eventually(lambda: _in_state(api, "open"))
        shown = (await api.get("/v1/agents/calling"))["breaker"]
        assert shown["reason"].endswith("the last one: ServiceDown")

        async def alert() -> Any:
            return next(iter((await api.get("/v1/alerts"))["items"]), None)

        assert (await nodes.eventually(alert))["id"] == "breaker-calling"
        assert (await api.get("/v1/status"))["agents"][0]["breaker"]["state"] != "closed"
        down.unlink()
        ended = [await api.end_of(id) for id in ids]
        assert {task["state"] for task in ended} == {"succeeded"}
        assert max(task["attempt"] for task in ended) <= 10
        lines = ledger.read_text().splitlines()
        failed, tried = sum(line.endswith("down") for line in lines), sum(move.state == "half_open" for move in moves)
        assert 20 <= failed <= 20 + 3 + tried  # what ran when it opened, and what was tried since
        assert sum(line.endswith("ok") for line in lines) == 50
        await nodes.eventually(lambda: _in_state(api, "closed"))

        async def is_resolved() -> bool:
            return [each["state"] for each in (await api.get("/v1/alerts"))["items"]] == ["resolved"]

        await nodes.eventually(is_resolved)
        metrics = (await api.http.get("/metrics")).text
        assert 'greenroom_breaker_state{agent="calling"} 0.0' in metrics


async def test_somebody_who_knows_better_closes_it(data_dir: Path, tmp_path: Path) -> None:
    ledger, down = tmp_path / "ledger", tmp_path / "down"
    down.touch()
    spec = nodes.agent("calling", max_attempts=9, retry_backoff_s=0.0, breaker={"min_attempts": 3, "open_s": 3600.0})
    async with nodes.opened(data_dir, {"calling": spec}) as api:
        ids = await _submit(api, 3, ledger=str(ledger), down=str(down))
        await nodes.eventually(lambda: _in_state(api, "open"))
        down.unlink()
        answer = await api.call("POST", "/v1/agents/calling/release")
        assert answer.json()["breaker"] == {"state": "closed", "reason": None, "until": None}
        assert {(await api.end_of(id))["state"] for id in ids} == {"succeeded"}


async def test_a_bad_replica_among_three_is_replaced_while_tasks_flow(data_dir: Path, tmp_path: Path) -> None:
    ledger, down = tmp_path / "ledger", tmp_path / "down"
    scaling = {"min_replicas": 3}
    spec = nodes.agent("calling", max_attempts=100, retry_backoff_s=0.05, scaling=scaling, breaker={"open_s": 0.2})
    async with nodes.opened(data_dir, {"calling": spec}) as api:
        bad = (await api.replicas("calling"))[1]
        down.write_text(str(bad["pid"]))
        ids = await _submit(api, 600, ledger=str(ledger), down=str(down), takes_s=0.02)
        ended = [await api.end_of(id) for id in ids]
        assert {task["state"] for task in ended} == {"succeeded"}
        assert bad["pid"] not in {task["output"] for task in ended}

        async def is_replaced() -> bool:
            ready = await api.replicas("calling")
            return len(ready) == 3 and bad["id"] not in {each["id"] for each in ready}

        await nodes.eventually(is_replaced)
        assert len({task["output"] for task in ended}) in (2, 3)
        metrics = (await api.http.get("/metrics")).text
        assert 'greenroom_replica_ejections_total{agent="calling"} 1.0' in metrics
        assert (await api.get("/v1/failures"))["items"] == []


async def test_never_more_tasks_run_at_once_than_max_running(data_dir: Path, tmp_path: Path) -> None:
    ledger, down = tmp_path / "ledger", tmp_path / "down"
    spec = nodes.agent("calling", concurrency=4, scaling={"min_replicas": 2}, max_running=3)
    async with nodes.opened(data_dir, {"calling": spec}) as api:
        ids = await _submit(api, 60, ledger=str(ledger), down=str(down), takes_s=0.01)
        ids += [
            (await api.submit("calling", {"name": -1, "ledger": str(ledger), "down": str(down), "takes_s": 0.01}))["id"]
            for _ in range(10)
        ]
        assert {(await api.end_of(id))["state"] for id in ids} == {"succeeded"}
        running, most = 0, 0
        for line in ledger.read_text().splitlines():
            running += 1 if line.startswith("begin") else -1
            most = max(most, running)
        assert (running, most) == (0, 3)
        assert os.getpid() not in {int(line.split()[1]) for line in ledger.read_text().splitlines()}
