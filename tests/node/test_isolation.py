"""A node tells how far its agents are isolated, keeps to it, and tells of those that try the walls."""

# ruff: noqa: ASYNC240 - the files here are looked at, never waited for

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import stat
from pathlib import Path

import msgspec
import pytest

import nodes
from greenroom import errors, telemetry
from greenroom.core.isolation import Tier, decide
from greenroom.engine import rooms
from greenroom.node import isolation

POWERS = rooms.powers()
PR_GET_DUMPABLE = 3
T1 = {"isolation": "T1"}
pytestmark = pytest.mark.skipif(
    decide("T1", POWERS).refusal is not None,
    reason="this kernel closes no rooms: " + "; ".join(decide("T1", POWERS).lacks),
)


async def test_the_status_says_how_far_agents_are_isolated(data_dir: Path) -> None:
    async with nodes.opened(data_dir, {}, security={"isolation": "auto"}) as api:
        assert (await api.get("/v1/status"))["node"]["isolation"].startswith("T1: ")
        assert api.running.isolation.tier is Tier.T1
    async with nodes.opened(data_dir, {}, security={"isolation": "T0"}) as api:
        told = (await api.get("/v1/status"))["node"]["isolation"]
    assert told.startswith("T0: ")
    assert "nothing keeps them from its keys" in told


async def test_an_agent_that_runs_into_a_wall_fails_with_what_to_do_and_is_told_of(data_dir: Path) -> None:
    heard: list[telemetry.AgentBlocked] = []
    async with nodes.opened(data_dir, {"gated": nodes.agent("gated", max_attempts=1)}, security=T1) as api:
        api.running.facts.subscribe(heard.append, telemetry.AgentBlocked)
        ledger = data_dir.parent / "ledger"
        task = await api.run("gated", {"ledger": str(ledger)})
        assert task["state"] == "failed"
        assert task["error"]["type"] == "PermissionError"
        assert f"the agent's room is closed to {ledger}" in task["error"]["message"]
    assert [each.agent for each in heard] == ["gated"]
    assert not ledger.exists()


async def test_an_agent_writes_where_its_settings_say(data_dir: Path) -> None:
    outside = data_dir.parent / "outside"
    outside.mkdir()
    agents = {"gated": nodes.agent("gated", write_paths=[str(outside)])}
    async with nodes.opened(data_dir, agents, security=T1) as api:
        assert (await api.run("gated", {"ledger": str(outside / "ledger")}))["state"] == "succeeded"
    assert (outside / "ledger").read_text()


async def test_a_secret_that_leads_nowhere_refuses_the_revision(data_dir: Path) -> None:
    agents = {"echo": nodes.agent("echo", secrets={"KEY": "file:/nowhere/key"})}
    async with nodes.opened(data_dir, agents, security=T1, is_settled=False) as api:

        async def failed() -> str | None:
            agent = await api.get("/v1/agents/echo")
            return str(agent["reason"]) if agent["state"] == "failed" else None

        assert "cannot resolve the secret KEY, file:/nowhere/key: No such file" in await nodes.eventually(failed)


async def test_no_value_of_a_secret_is_stored_or_shown(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = f"canary-{os.urandom(16).hex()}"
    monkeypatch.setenv("ITS_NAME", canary)
    agents = {"echo": nodes.agent("echo", secrets={"KEY": "env:ITS_NAME"})}
    async with nodes.opened(data_dir, agents, security=T1) as api:
        assert (await api.run("echo", 1))["state"] == "succeeded"
        shown = [(await api.http.get(f"/v1/{path}")).text for path in ("agents/echo", "status", "replicas", "rollouts")]
        (replica,) = await api.replicas("echo")
        command = await asyncio.to_thread(Path(f"/proc/{replica['pid']}/cmdline").read_text)
    stored = [path.read_bytes() for path in data_dir.rglob("*") if path.is_file()]
    assert stored
    assert canary not in "".join([*shown, command])
    assert not any(canary.encode() in content for content in stored)


async def test_a_tier_that_cannot_be_had_refuses_the_start(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    less = msgspec.structs.replace(POWERS, capabilities=frozenset())
    monkeypatch.setattr(rooms, "powers", lambda *_, **__: less)
    data_dir.mkdir()
    with pytest.raises(errors.StartRefused, match=r"cannot isolate agents as security\.isolation = 'T2' says: "):
        async with nodes.opened(data_dir, {}, security={"isolation": "T2"}):
            pass


def test_what_a_node_writes_is_its_users_alone(tmp_path: Path) -> None:
    folder = nodes.Folder(tmp_path / "project")
    folder.manifest('[agents.echo]\nfactory = "agents:echo"\n')
    try:
        folder.up()
        data_dir = folder.path / ".greenroom"
        found = [path for path in (data_dir, *data_dir.rglob("*")) if "snapshots/" not in str(path)]
        assert [path for path in found if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    finally:
        folder.close()


async def test_nobody_reads_the_nodes_memory_or_its_core(data_dir: Path) -> None:
    async with nodes.opened(data_dir, {}):
        is_dumpable = ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
        assert (is_dumpable, resource.getrlimit(resource.RLIMIT_CORE)[0]) == (0, 0)


def test_a_replica_that_the_kernel_ended_for_a_call_is_told_of() -> None:
    facts, heard = telemetry.Telemetry(), list[telemetry.AgentBlocked]()
    isolation.Walls(facts)
    facts.subscribe(heard.append, telemetry.AgentBlocked)
    facts.emit(telemetry.ReplicaExited("a", "r1", "crashed", "by SIGSEGV"))
    assert heard == []
    facts.emit(telemetry.ReplicaExited("a", "r1", "crashed", "by SIGSYS"))
    assert [(each.agent, each.replica) for each in heard] == [("a", "r1")]
