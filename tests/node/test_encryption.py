"""Encryption at rest of a running node: its files, its backups, its keys, and what becomes of it when it is killed."""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

import base64
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

import nodes
from greenroom import errors
from greenroom.backups import archive, places, restoring, sealing
from greenroom.cli import main as cli
from greenroom.security import key_sources
from greenroom.store import store as stores
from greenroom.testing.fakes import FakeClock
from nodes import Folder, wait_until

pytestmark = pytest.mark.slow

CANARY = "canary-51d9ab07e2"
AGENTS = {
    "echo": nodes.agent("echo", concurrency=8),
    "chained": nodes.agent("chained", sessions=True),
    "failing": nodes.agent("failing", max_attempts=2, retry_backoff_s=0.0),
    "talking": nodes.agent("talking"),
}
ON: dict[str, Any] = {"security": {"encryption_at_rest": True}}


def forms(text: str) -> Iterator[bytes]:
    yield text.encode()
    yield text.encode("utf-16-le")
    yield text.encode().hex().encode()
    for offset in range(3):
        yield base64.b64encode(b" " * offset + text.encode())[-(-offset * 4 // 3) + 1 : -4]


def with_canary(folder: Path) -> list[str]:
    """The files that have the canary; those of a running store change while they are read."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path.relative_to(folder)) for path in files if any(form in path.read_bytes() for form in forms(CANARY))]


async def work(api: nodes.Api) -> list[Any]:
    """Have the canary go through everything that stores it."""
    ended = [
        await api.run("echo", CANARY, metadata={"about": CANARY}),
        await api.run("chained", [CANARY, None], session="s"),
        await api.run("chained", [CANARY, None], session="s"),
        await api.run("failing", CANARY),
    ]
    assert [task["state"] for task in ended] == ["succeeded"] * 3 + ["failed"]
    assert all(CANARY in str(task) for task in ended)
    return ended


async def rows_of(store_url: str) -> bytes:
    """All rows of a PostgreSQL store, as a dump would have them."""
    db = stores.open(store_url, clock=FakeClock(), owner="nobody").db
    try:
        tables = await db.read("select table_name from information_schema.tables where table_schema = 'public'", {})
        rows = [tuple(row) for (table,) in tables for row in await db.read(f"select * from {table}", {})]
    finally:
        await db.close()
    return repr(rows).encode() + b"".join(value for row in rows for value in row if isinstance(value, bytes))


async def test_no_payload_is_in_the_files_the_tables_or_the_backups_and_all_is_read(
    data_dir: Path, store_url: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    async with nodes.opened(data_dir, AGENTS, store_url=store_url, **ON) as api:
        ended = await work(api)
        assert (await api.call("POST", "/v1/backups")).status_code == 202
        await nodes.eventually(lambda: _is_backed_up(api))
        if store_url is not None:
            rows = await rows_of(store_url)
            assert str(ended[0]["id"]).encode() in rows
            assert not any(form in rows for form in forms(CANARY))
        assert with_canary(data_dir) == []
        session = await api.get("/v1/sessions/s?agent=chained")
        assert session["state"]["count"] == 2
        assert (await api.get("/v1/status"))["encryption"] == "sealed"
    assert with_canary(data_dir) == []
    async with nodes.opened(data_dir, AGENTS, store_url=store_url, **ON) as api:
        assert [await api.task(task["id"]) for task in ended] == ended
    assert CANARY not in "".join(capfd.readouterr())


async def _is_backed_up(api: nodes.Api) -> bool:
    return not (await api.get("/v1/status"))["backups"]["is_running"]


async def test_a_backup_comes_back_with_its_key_and_without_it_nothing_changes(data_dir: Path, tmp_path: Path) -> None:
    async with nodes.opened(data_dir, AGENTS, **ON) as api:
        ended = await work(api)
        assert (await api.call("POST", "/v1/backups")).status_code == 202
        await nodes.eventually(lambda: _is_backed_up(api))
    kept = archive.Archive(places.open(str(data_dir / "backups")), sealing.load(data_dir / "backup.key"))
    new = tmp_path / "new"
    keys = key_sources.Sources(new / "encryption.key", is_ours=True)
    with pytest.raises(errors.BackupInvalid, match=r"what was backed up is encrypted: .*key file .* is missing"):
        await restoring.refuse_without_key(kept, kept.find("latest"), keys)
    assert not new.exists()
    new.mkdir()
    shutil.copy(data_dir / "encryption.key", new)
    await restoring.refuse_without_key(kept, kept.find("latest"), keys)
    url = f"sqlite:///{new}/greenroom.db"
    await restoring.restore(kept, kept.find("latest"), store_url=url, data_dir=new, replace=False)
    async with nodes.opened(new, AGENTS, **ON) as api:
        assert [await api.task(task["id"]) for task in ended] == ended


def test_the_command_restores_nothing_without_the_key(
    folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    up = folder.up()
    id = up.submit("echo", CANARY)
    up.end_of(id)
    up.process.terminate()
    up.ended(within_s=30)
    monkeypatch.chdir(folder.path)
    assert cli.main(["backup", "create"]) == 0
    kept, new = folder.path / ".greenroom", tmp_path / "new"
    where = ("--data-dir", str(new), "--place", str(kept / "backups"), "--key-file", str(kept / "backup.key"))
    for verb in ("restore", "drill"):
        assert cli.main(["backup", verb, *where]) == 1
        assert "what was backed up is encrypted" in capsys.readouterr().err
        assert not list(new.glob("**/greenroom.db*"))
    new.mkdir(exist_ok=True)
    shutil.copy(kept / "encryption.key", new)
    for verb in ("restore", "drill"):
        assert cli.main(["backup", verb, *where]) == 0


async def test_keys_are_rotated_while_tasks_run(data_dir: Path, store_url: str | None) -> None:
    async with nodes.opened(data_dir, AGENTS, store_url=store_url, **ON) as api:
        ended = await work(api)
        before = await api.get("/v1/encryption")
        answer = await api.call("POST", "/v1/encryption/rotate")
        assert answer.status_code == 200, answer.text
        assert answer.json()["key"] != before["key"]
        ended += [await api.run("echo", number) for number in range(20)]

        async def is_done() -> Any:
            found = await api.get("/v1/encryption")
            return found if found["progress"]["is_done"] else None

        found = await nodes.eventually(is_done)
        assert found["mode"] == "sealed"
        assert found["progress"]["resealed"] > 0
        assert [keys["retired"] for keys in found["tenants"]] == [1]
        assert [await api.task(task["id"]) for task in ended] == ended
        operator = api.of(await api.key("operator"))
        assert (await operator.call("GET", "/v1/encryption")).status_code == 200
        assert (await operator.call("POST", "/v1/encryption/rotate")).status_code == 403
        assert (await api.call("POST", "/v1/encryption/rotate", {"data_keys": "yes"})).status_code == 422
    async with nodes.opened(data_dir, AGENTS, store_url=store_url, **ON) as api:
        assert [await api.task(task["id"]) for task in ended] == ended


async def test_what_is_not_encrypted_has_no_keys_to_rotate(data_dir: Path) -> None:
    async with nodes.opened(data_dir, {}) as api:
        assert (await api.get("/v1/encryption"))["mode"] == "off"
        answer = await api.call("POST", "/v1/encryption/rotate")
        assert (answer.status_code, "encryption is off" in answer.text) == (409, True)
    assert not (data_dir / "encryption.key").exists()


async def test_a_task_whose_input_was_tampered_with_fails_and_is_told(data_dir: Path, ledger: Path, gate: Path) -> None:
    agents = {"gated": nodes.agent("gated")}
    async with nodes.opened(data_dir, agents, **ON) as api:
        given = {"ledger": str(ledger), "gate": str(gate)}
        running, waiting, last = [(await api.submit("gated", given))["id"] for _ in range(3)]
        await nodes.lines_of(ledger)
        async with api.running.store.db.transaction() as tx:
            sql = "update task set input = (select input from task where id = :of) where id = :id"
            await tx.fetch(sql, {"of": running, "id": waiting})
        gate.touch()
        assert (await api.end_of(last))["state"] == "succeeded"
        answer = await api.call("GET", f"/v1/tasks/{waiting}")
        assert answer.status_code == 503
        assert answer.json()["type"].endswith("store-damaged")
        newest, listed, first = (await api.get("/v1/tasks"))["items"]
        assert [each["id"] for each in (newest, listed, first)] == [last, waiting, running]
        assert (listed["state"], listed["input"], listed["output"]) == ("failed", None, None)
        assert (listed["error"]["type"], waiting in listed["error"]["message"]) == ("store_damaged", True)
        assert newest["input"] == first["input"] == given
        async with api.running.store.db.transaction() as tx:
            ((state, error),) = await tx.fetch("select state, error from task where id = :id", {"id": waiting})
        opened = await api.running.store.vault.opened("default", "task", "error", (waiting,), error)
        assert (state, json.loads(opened or b"")["type"]) == ("failed", "store_damaged")
        metrics = (await api.call("GET", "/metrics")).text
        (counted,) = [line for line in metrics.splitlines() if line.startswith("greenroom_damaged_values_total")]
        assert float(counted.split()[1]) >= 2
        assert len(await nodes.lines_of(ledger, 2)) == 2


async def test_an_event_that_was_tampered_with_hides_no_others(data_dir: Path) -> None:
    async with nodes.opened(data_dir, {"talking": AGENTS["talking"]}, **ON) as api:
        ids = [(await api.run("talking", {"count": 3}))["id"] for _ in range(2)]
        async with api.running.store.db.transaction() as tx:
            ((seq,),) = await tx.fetch("select min(seq) from task_event where task = :id", {"id": ids[0]})
            data = "(select data from task_event where task = :other and seq = :seq)"
            sql = f"update task_event set data = {data} where task = :id and seq = :seq"
            await tx.fetch(sql, {"id": ids[0], "seq": seq, "other": ids[1]})
        damaged, sound = [await events(api, id) for id in ids]
    assert [each["seq"] for each in damaged] == [each["seq"] for each in sound]
    ((index, error),) = [(each["seq"], each["data"]["error"]) for each in damaged if "error" in each["data"]]
    assert (index, error["type"]) == (seq, "store_damaged")


async def events(api: nodes.Api, id: str) -> list[dict[str, Any]]:
    lines = (await api.call("GET", f"/v1/tasks/{id}/events")).text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


# Processes


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "project")
    manifest(made)
    try:
        yield made
    finally:
        made.close()


def manifest(folder: Folder, security: str = "encryption_at_rest = true") -> None:
    folder.manifest(f'[security]\n{security}\n[agents.echo]\nfactory = "agents:echo"\nconcurrency = 8\n')


def test_another_key_refuses_to_start_and_changes_nothing(folder: Folder) -> None:
    up = folder.up()
    id = up.submit("echo", CANARY)
    up.end_of(id)
    up.process.terminate()
    assert up.ended(within_s=30) == 0
    data = folder.path / ".greenroom"
    store, key = (data / "greenroom.db").read_bytes(), (data / "encryption.key").read_bytes()
    assert with_canary(folder.path) == []
    (data / "encryption.key").unlink()
    for security in ("encryption_at_rest = true", "encryption_at_rest = false"):
        manifest(folder, security)
        code, said = folder.refused()
        assert (code, "is missing" in said) == (1, True), said
        assert not (data / "encryption.key").exists()
    key_sources.make(data / "encryption.key")
    manifest(folder)
    code, said = folder.refused()
    assert (code, "it is encrypted with the key" in said) == (1, True), said
    assert (data / "greenroom.db").read_bytes()[100:] == store[100:]  # but for the header, which counts openings
    (data / "encryption.key").write_bytes(key)
    assert folder.up().end_of(id)["output"] == CANARY


def test_a_key_management_service_is_asked_at_the_start_and_never_for_a_task(folder: Folder, tmp_path: Path) -> None:
    program, calls = tmp_path / "kms.py", tmp_path / "calls"
    program.write_text(
        textwrap.dedent(f"""
        import base64, sys
        open({str(calls)!r}, "a").write(sys.argv[1] + "\\n")
        given = base64.b64decode(sys.stdin.read())
        print(base64.b64encode(bytes(byte ^ 0x5A for byte in given)).decode())
        """)
    )
    manifest(folder, f'encryption_at_rest = true\nencryption_command = ["{sys.executable}", "{program}"]')
    up = folder.up()
    ids = [up.submit("echo", CANARY) for _ in range(20)]
    assert {up.end_of(id)["output"] for id in ids} == {CANARY}
    assert calls.read_text().split() == ["wrap", "unwrap"]
    assert not (folder.path / ".greenroom" / "encryption.key").exists()
    answer = up.call("POST", "/v1/encryption/rotate", {"data_keys": False})
    assert answer.json()["managed"], answer.text
    assert calls.read_text().split() == ["wrap", "unwrap"] * 2
    program.write_text("raise SystemExit('the service is away')")
    answer = up.call("POST", "/v1/encryption/rotate")
    assert (answer.status_code, "the service is away" in answer.text) == (503, True)
    up.process.terminate()
    up.ended(within_s=30)
    code, said = folder.refused()
    assert (code, "the service is away" in said) == (1, True)


@pytest.mark.parametrize("moment", [0, *(pytest.param(each, marks=pytest.mark.long) for each in (1, 2))])
def test_a_node_that_is_killed_while_it_seals_anew_goes_on_with_it(folder: Folder, moment: int) -> None:
    up = folder.up()
    for start in range(0, 1500, 500):
        tasks = [{"agent": "echo", "input": f"{CANARY}-{start + n}"} for n in range(500)]
        assert up.call("POST", "/v1/tasks/batch", {"tasks": tasks}).status_code == 202
    wait_until(lambda: not up.call("GET", "/v1/tasks?state=queued").json()["items"])
    wait_until(lambda: not up.call("GET", "/v1/tasks?state=running").json()["items"])
    assert up.call("POST", "/v1/encryption/rotate").status_code == 200
    wait_until(lambda: _progress(up)["resealed"] > 600 * moment)
    up.process.kill()
    up.process.wait()
    store = folder.path / ".greenroom" / "greenroom.db"
    up = folder.up()
    wait_until(lambda: _progress(up)["is_done"])
    up.process.terminate()
    up.ended(within_s=30)
    with apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READONLY) as connection:
        keys = list(connection.execute("select distinct substr(input, 1, 9) from task"))
        active = connection.execute("select id from data_key where purpose = 'seal' and retired_at is null").fetchall()
    assert [bytes(key)[1:].hex() for (key,) in keys] == [id for (id,) in active]
    up = folder.up()
    outputs = set()
    cursor: str | None = ""
    while cursor is not None:
        page = up.call("GET", f"/v1/tasks?limit=200{cursor and f'&cursor={cursor}'}").json()
        outputs |= {task["output"] for task in page["items"]}
        cursor = page["next_cursor"]
    assert outputs == {f"{CANARY}-{n}" for n in range(1500)}


def _progress(up: nodes.Up) -> Any:
    return up.call("GET", "/v1/encryption").json()["progress"]


def test_the_command_line_tells_and_rotates(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    up = folder.up()
    up.end_of(up.submit("echo", CANARY))
    where = ("--data-dir", str(folder.path / ".greenroom"))
    assert cli.main(["encryption", "status", *where]) == 0
    assert "all payloads are encrypted" in capsys.readouterr().out
    assert cli.main(["encryption", "rotate", *where]) == 0
    said = capsys.readouterr()
    assert "values since the node started" in said.out
    assert "keep a copy of the key" in said.err
    assert cli.main(["encryption", "status", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["mode"] == "sealed"
