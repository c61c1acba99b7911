"""Backups of a running node, and nodes on what was restored, on what is damaged, and on what others hold."""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

import nodes
from greenroom import errors, telemetry
from greenroom.backups import archive, creating, listing, places, process, restoring, sealing
from greenroom.store import sqlite
from greenroom.testing import databases
from greenroom.testing.fakes import FakeClock

pytestmark = pytest.mark.slow

AGENTS = {
    "gated": nodes.agent("gated", concurrency=4),
    "chained": nodes.agent("chained", sessions=True),
    "echo": nodes.agent("echo", concurrency=8),
    "failing": nodes.agent("failing", max_attempts=1),
}
COPIES = 60  # with fewer of them, a node that does not check its file is not found out


async def backed_up(api: nodes.Api) -> Any:
    """Have the node make a backup, and return what the status says of it."""
    answer = await api.call("POST", "/v1/backups")
    assert answer.status_code == 202, answer.text
    assert answer.json()["is_running"]

    async def made() -> Any:
        backups = (await api.get("/v1/status"))["backups"]
        return None if backups["is_running"] else backups

    said = await nodes.eventually(made)
    assert said["error"] is None, said
    return said["last"]


async def restored(data_dir: Path, target: Path, store_url: str | None) -> None:
    kept = archive.Archive(places.open(str(data_dir / "backups")), sealing.load(data_dir / "backup.key"))
    url = store_url or f"sqlite:///{target}/greenroom.db"
    await restoring.restore(kept, kept.find("latest"), store_url=url, data_dir=target, replace=False)


async def test_on_a_new_machine_all_that_was_open_ends_and_keys_and_sessions_are_there(
    server: databases.Server | None, store_url: str | None, tmp_path: Path, ledger: Path, gate: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    work = {"ledger": str(ledger), "gate": str(gate)}
    async with nodes.opened(old, AGENTS, store_url=store_url) as api:
        key = await api.key("operator")
        done = await api.run("echo", "done before")
        first = await api.run("chained", ["a", None], session="s")
        ids = [(await api.submit("gated", work))["id"] for _ in range(6)]  # four run, two wait
        await nodes.lines_of(ledger, 4)
        backup = await backed_up(api)
        assert backup["rows"] > 8
        assert [item["id"] for item in (await api.get("/v1/backups"))["items"]] == [backup["id"]]
        lost = await api.run("echo", "after the backup")
    gate.unlink(missing_ok=True)
    if server is None:
        await continue_on(new, None, old, key, ids=ids, done=done, first=first, lost=lost, gate=gate)
        return
    async with server.scratch() as other:
        await server._run("select 1")
        await continue_on(new, other.url, old, key, ids=ids, done=done, first=first, lost=lost, gate=gate)


async def continue_on(
    new: Path, url: str | None, old: Path, key: str, *, ids: list[str], done: Any, first: Any, lost: Any, gate: Path
) -> None:
    await restored(old, new, url)
    async with nodes.opened(new, AGENTS, store_url=url) as api:
        gate.touch()
        for id in ids:
            task = await api.end_of(id)
            assert task["state"] == "succeeded", task
        assert (await api.task(done["id"]))["output"] == "done before"
        assert (await api.call("GET", f"/v1/tasks/{lost['id']}")).status_code == 404
        second = await api.run("chained", ["b", None], session="s")
        assert (first["output"][0], second["output"][0]) == (1, 2), "the session's state went on"
        assert (await api.of(key).http.get("/v1/tasks")).status_code == 200
        live = [item for item in (await api.get("/v1/replicas"))["items"] if item["node"] != api.running.id]
        assert live == [], "no replica of the old machine is believed to live"


async def test_a_node_completes_a_restore_that_was_killed_before_it_reads_its_secrets(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    async with nodes.opened(old, {}) as api:
        key = await api.key("operator")
        await backed_up(api)
    await restored(old, new, None)
    files = new / restoring.STAGED / "replaced-x"
    files.mkdir(parents=True)
    (new / "secrets").rename(files / "secrets")
    (new / "greenroom.db").rename(new / "greenroom.db.restoring")
    async with nodes.opened(new, {}) as api:
        assert (await api.of(key).http.get("/v1/tasks")).status_code == 200
    assert not files.parent.exists()


async def test_the_schedule_makes_backups_by_itself_and_tells_of_the_key(data_dir: Path) -> None:
    told: list[telemetry.Fact] = []
    schedule, agents = {"every_s": 10}, {"echo": AGENTS["echo"]}
    async with nodes.opened(data_dir, agents, cluster={"scheduled_backups": True}, backups=schedule) as api:
        api.running.facts.subscribe(told.append, telemetry.BackupMade, telemetry.BackupKeyMade)

        async def last() -> Any:
            return (await api.get("/v1/status"))["backups"]["last"]

        backup = await nodes.eventually(last)
        assert (await api.get("/v1/status"))["backups"]["every_s"] == 10
        assert (await api.call("GET", "/metrics")).text.count('greenroom_backups_total{result="made"} 1.0') == 1
    assert backup["id"]
    async with nodes.opened(data_dir, {"echo": AGENTS["echo"]}) as api:
        await nodes.eventually(last)
        assert (await api.get("/v1/status"))["backups"]["every_s"] is None


async def test_old_ones_that_cannot_be_deleted_are_told_of_and_the_new_one_is_the_last(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, told = process.create, list[telemetry.Fact]()

    async def create(wanted: creating.Wanted) -> creating.Made:
        return msgspec.structs.replace(await real(wanted), not_deleted="cannot delete old backups: forbidden")

    monkeypatch.setattr(process, "create", create)
    async with nodes.opened(data_dir, {}) as api:
        api.running.facts.subscribe(told.append, telemetry.BackupsNotDeleted, telemetry.BackupFailed)
        assert (await backed_up(api))["rows"] > 0
        assert told == [telemetry.BackupsNotDeleted("cannot delete old backups: forbidden")]


async def test_only_one_is_made_at_a_time_and_a_failure_is_shown(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with nodes.opened(data_dir, {}, backups={"to": str(tmp_path / "file" / "place")}) as api:
        assert (await api.call("POST", "/v1/backups")).status_code == 202
        assert (await api.call("POST", "/v1/backups")).status_code == 409

        async def failed() -> Any:
            return (await api.get("/v1/status"))["backups"]["error"]

        assert "backups.to" in await nodes.eventually(failed)
        assert (await api.call("GET", "/v1/backups")).status_code == 503
        assert (await api.call("GET", "/v1/tasks")).status_code == 200


# Damage


def harmed(content: bytes, number: int, chance: random.Random) -> bytes:
    if number % 5 == 4:
        return content[: chance.randrange(1, len(content))]
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 4, 16])):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


async def test_a_damaged_copy_is_refused_untouched_or_serves_every_task(tmp_path: Path) -> None:
    good = tmp_path / "good"
    async with nodes.opened(good, AGENTS) as api:
        ids = [(await api.run("echo", f"text {number}"))["id"] for number in range(20)]
        ids += [(await api.run("chained", ["a", None], session=f"s{number}"))["id"] for number in range(5)]
        ids += [(await api.run("failing", "no"))["id"] for _ in range(3)]
        await backed_up(api)
    content = (good / "greenroom.db").read_bytes()
    chance, became = random.Random(20300101), Counter[str]()
    for number in range(COPIES):
        data_dir = tmp_path / f"copy-{number}"
        data_dir.mkdir()
        for name in ("secrets", "local.key", "manifest-agents.json"):
            shutil.copy(good / name, data_dir / name)
        path = data_dir / "greenroom.db"
        path.write_bytes(harmed(content, number, chance))
        before = hashlib.sha256(path.read_bytes()).digest()
        try:
            async with nodes.opened(data_dir, {}, is_settled=False) as api:
                statuses = [(await api.http.get(f"/v1/tasks/{id}")).status_code for id in ids]
        except errors.StoreDamaged as error:
            became["refused"] += 1
            assert "there is no backup at" in str(error)
            assert hashlib.sha256(path.read_bytes()).digest() == before
            assert {file.name for file in data_dir.glob("greenroom.db*")} == {"greenroom.db", "greenroom.db.lock"}
        else:
            became["served"] += 1
            assert set(statuses) <= {200, 404, 503}, (number, statuses)
            assert statuses.count(200) >= len(ids) - 1, (number, statuses)
    assert became["refused"] >= COPIES // 3, became
    assert became["served"] >= 1, became


async def test_what_is_refused_is_restored_by_the_command_that_the_refusal_names(tmp_path: Path) -> None:
    data_dir = tmp_path / "da ta"
    async with nodes.opened(data_dir, AGENTS) as api:
        id = (await api.run("echo", "kept"))["id"]
        backup = await backed_up(api)
    path = data_dir / "greenroom.db"
    path.write_bytes(path.read_bytes()[:50_000])
    damaged = path.read_bytes()
    with pytest.raises(errors.StoreDamaged) as refused:
        async with nodes.opened(data_dir, AGENTS):
            pass
    assert f"the newest backup is of {backup['created_at'][:10]}" in str(refused.value)
    assert path.read_bytes() == damaged
    command = str(refused.value).rpartition("run: greenroom ")[2]
    script = f"'{sys.executable}' -m greenroom.cli {command}"
    done = await asyncio.create_subprocess_shell(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = await asyncio.wait_for(done.communicate(), 60)
    assert done.returncode == 0, output.decode()
    (aside,) = data_dir.glob("greenroom.db.replaced-*Z")
    assert aside.read_bytes() == damaged
    async with nodes.opened(data_dir, AGENTS) as api:
        assert (await api.task(id))["output"] == "kept"


async def test_a_downgrade_by_accident_is_told_as_such_and_no_restore_is_advised(data_dir: Path) -> None:
    async with nodes.opened(data_dir, {}) as api:
        await backed_up(api)
    with contextlib.closing(apsw.Connection(str(data_dir / "greenroom.db"))) as newer:
        newer.pragma("user_version", 9_999)
    with pytest.raises(errors.StoreOfAnotherRelease) as refused:
        async with nodes.opened(data_dir, {}):
            pass
    assert str(refused.value).endswith("start the newer release again")
    assert "restore" not in str(refused.value)


async def test_a_large_file_is_looked_through_while_the_node_serves(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes.opened(data_dir, {"echo": AGENTS["echo"]}) as api:
        for number in range(40):
            await api.run("echo", f"text {number}")
    path = data_dir / "greenroom.db"
    content = bytearray(path.read_bytes())
    at = content.rindex(b"succeeded")
    content[at : at + 9] = b"sacceeded"  # no state, and pages that fit together
    path.write_bytes(content)
    with pytest.raises(errors.StoreDamaged):
        sqlite.Sqlite(path, FakeClock())
    monkeypatch.setattr(sqlite, "CHECKED_AT_START_BYTES", 0)
    async with nodes.opened(data_dir, {"echo": AGENTS["echo"]}, is_settled=False) as api:
        with pytest.raises(errors.StoreDamaged, match="there is no backup"):
            await asyncio.wait_for(api.running.ended(), nodes.DEADLINE_S)
        refused = await api.call("POST", "/v1/tasks", {"agent": "echo", "input": 1})
        assert (refused.status_code, refused.json()["type"]) == (503, "node-failed")


# A lock


_HOLD = """
    import apsw, sys
    connection = apsw.Connection(sys.argv[1])
    connection.execute("begin exclusive")
    print("held", flush=True)
    sys.stdin.read()
    connection.execute("rollback")
    connection.close()
"""


async def test_while_another_process_holds_the_file_submissions_are_503_and_nothing_is_lost(
    data_dir: Path, ledger: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 50)
    async with nodes.opened(data_dir, AGENTS) as api:
        running = (await api.submit("gated", {"ledger": str(ledger), "gate": str(gate)}))["id"]
        await nodes.lines_of(ledger)
        holder = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            textwrap.dedent(_HOLD),
            str(data_dir / "greenroom.db"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"held\n"
        gate.touch()  # it ends while nothing can be written
        for number in range(5):
            refused = await api.call("POST", "/v1/tasks", {"agent": "echo", "input": number})
            assert (refused.status_code, refused.json()["type"]) == (503, "store-unavailable")
            assert int(refused.headers["retry-after"]) >= 1
            assert (await api.call("GET", f"/v1/tasks/{running}")).status_code == 200
        await holder.communicate(b"")
        assert (await api.end_of(running))["state"] == "succeeded"
        assert (await api.run("echo", "again"))["output"] == "again"
        assert len((await api.get("/v1/tasks"))["items"]) == 2, "what was refused is not there"


def test_what_the_settings_name_relatively_is_seen_from_the_manifest(tmp_path: Path) -> None:
    found = nodes.options(tmp_path / "data", {}, backups={"to": "elsewhere", "key_file": "k"}).settings.backups
    wanted = listing.wanted(found, folder=Path("/project"), data_dir=Path("/data"), store_url=None)
    assert (wanted.to, wanted.key_file) == ("/project/elsewhere", "/project/k")
    assert wanted.store_url == "sqlite:////data/greenroom.db"
