"""A node's envelope and its advice, with real replicas: leaks, hogs, and a status that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import nodes
from greenroom.control import resources
from greenroom.engine import envelope
from greenroom.store.commits import Operation
from greenroom.store.store import Store


@pytest.fixture(autouse=True)
def _attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured is seen soon."""
    monkeypatch.setattr(resources, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(resources, "MEASURE_EVERY_S", 0.2)


async def test_the_status_tells_what_all_replicas_may_use_what_holds_that_and_what_they_do_use(
    data_dir: Path,
) -> None:
    async with nodes.opened(data_dir, {"echo": nodes.agent("echo")}, cluster={"memory_mb": 500}) as api:

        async def measured() -> Any:
            held = (await api.get("/v1/status"))["resources"]
            return held if held["memory_mb"]["used"] else None

        held = await nodes.eventually(measured)
        assert (held["cpu"]["limit"], held["memory_mb"]["limit"]) == (2.0, 500)
        assert held["cpu"]["enforced"] in ("cgroup v1", "cgroup v2", "affinity")
        assert held["memory_mb"]["enforced"] in ("cgroup v1", "cgroup v2", "measured")
        assert held["memory_mb"]["pct"] == pytest.approx(held["memory_mb"]["used"] / 5, abs=0.1)
        assert 'greenroom_envelope_use_ratio{resource="memory"}' in (await api.http.get("/metrics")).text


async def test_without_limits_nothing_is_held_and_all_is_told_all_the_same(data_dir: Path) -> None:
    cluster = {"memory_mb": "off", "cpu": "off"}
    async with nodes.opened(data_dir, {}, cluster=cluster) as api:
        held = (await api.get("/v1/status"))["resources"]
    assert {held[name]["enforced"] for name in ("cpu", "memory_mb")} == {"off"}
    assert {held[name]["pct"] for name in ("cpu", "memory_mb")} == {None}


async def test_reading_changes_nothing(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes.opened(data_dir, {"echo": nodes.agent("echo")}, cluster={"performance_rules": False}) as api:
        store = api.running.store

        async def rows() -> list[Any]:
            return [await store.db.read(f"select * from {table} order by 1", {}) for table in ("advice", "alert")]

        before = await rows()
        written: list[str] = []
        put = store.commits._put

        def note(operation: Operation, items: Sequence[Any], *, is_one: bool) -> Any:
            written.append(operation.__module__)
            return put(operation, items, is_one=is_one)

        monkeypatch.setattr(store.commits, "_put", note)
        for _ in range(100):
            await api.get("/v1/status")
            await api.get("/v1/advice")
        assert set(written) <= {"greenroom.store.agents", "greenroom.store.transitions"}  # its host's and dispatcher's
        assert await rows() == before


@pytest.mark.slow
async def test_an_agent_that_leaks_is_recycled_again_and_again_and_no_task_is_lost(data_dir: Path) -> None:
    leaking = nodes.agent("leaking", recycling={"memory_mb": 200}, scaling={"min_replicas": 2}, timeout_s=60)
    async with nodes.opened(data_dir, {"leaking": leaking}) as api:
        tasks = [await api.submit("leaking", {"mb": 20, "for_s": 0.05}) for _ in range(100)]
        ended = [await api.end_of(task["id"]) for task in tasks]
        assert {task["state"] for task in ended} == {"succeeded"}
        assert {task["attempt"] for task in ended} == {1}
        assert {len(task["attempts"]) for task in ended} == {1}
        replicas = {task["attempts"][0]["replica"] for task in ended}
        assert len(replicas) >= 6
        assert (await api.get("/v1/failures"))["items"] == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cgroup", "measured"])
async def test_two_that_are_too_much_together_are_not_both_killed_and_both_end(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "measured":
        monkeypatch.setattr(envelope.Envelope.__init__, "__kwdefaults__", {"source": tmp_path / "nowhere"})
    agents = {"hoarding": nodes.agent("hoarding", scaling={"min_replicas": 2}, max_attempts=3, retry_backoff_s=0.1)}
    async with nodes.opened(data_dir, agents, cluster={"memory_mb": 400, "cpu": "off"}) as api:
        held = (await api.get("/v1/status"))["resources"]["memory_mb"]["enforced"]
        if how not in held:
            pytest.skip(f"no control group can be written to here: {held}")
        given = {"gate": str(tmp_path / "gate"), "ledger": str(tmp_path / "ledger")}
        tasks = [await api.submit("hoarding", {"mb": mb, **given}) for mb in (240, 260)]

        async def killed() -> Any:
            return (await api.get("/v1/failures?agent=hoarding"))["items"]

        (failure, *_) = await nodes.eventually(killed)
        assert failure["kind"] == ("evicted" if how == "measured" else "oom")
        assert "cluster.memory_mb" in failure["reason"]
        (tmp_path / "gate").touch()
        ended = [await api.end_of(task["id"]) for task in tasks]
        assert {task["state"] for task in ended} == {"succeeded"}
        charged = {task["attempt"] for task in ended}
        assert charged == {1} if how == "measured" else max(charged) == 2
        store: Store = api.running.store
        assert [alert for alert in await store.alerts.list() if alert.agent == "hoarding"] == []
