"""`greenroom backup`: by a node, and without one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_node import AT, FakeNode, problem
from greenroom import errors
from greenroom.backups import places
from greenroom.cli import backup as verb
from greenroom.cli import main as cli
from greenroom.testing import databases
from greenroom.testing.store_contract import Node

BACKUP = {
    "id": "20260102T030405.678Z",
    "created_at": AT,
    "greenroom": "0.1.0",
    "rows": 1234567,
    "stored_bytes": 5_000_000,
}


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(["backup", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    node = FakeNode()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(verb, "LOOK_EVERY_S", 0.0)
    with node.serving() as url:
        folder = tmp_path / ".greenroom"
        folder.mkdir()
        (folder / "node.json").write_text(json.dumps({"url": url}))
        (folder / "local.key").write_text("gr_owner\n")
        node.put("GET /healthz", {"status": "ok"})
        yield node


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with a store and no node, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".greenroom"
    folder.mkdir()

    async def fill() -> None:
        async with databases.sqlite(folder) as scratch:
            await Node(await scratch.open()).submit()

    asyncio.run(fill())
    return folder


def state(**changes: Any) -> dict[str, Any]:
    return {"to": "/place", "every_s": None, "is_running": False, "last": None, "error": None, **changes}


def test_a_running_node_makes_it_and_is_waited_for(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("POST /v1/backups", state(is_running=True))
    fake.put(
        "GET /v1/status", {"backups": state(is_running=True)}, {"backups": state(last=BACKUP | {"new_bytes": 1500})}
    )
    code, out, err = run(capsys, "create")
    assert (code, out) == (0, f"backup {BACKUP['id']}: 1,234,567 rows, 5.0 MB, of which 1.5 kB new\n")
    assert "next: greenroom backup drill" in err


def test_what_a_node_could_not_make_is_said(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("POST /v1/backups", state(is_running=True))
    fake.put("GET /v1/status", {"backups": state(error="cannot back up: the disk is full", last=BACKUP)})
    assert run(capsys, "create")[0] == 1
    fake.put("POST /v1/backups", problem(409, "conflict", "another one is being made"))
    code, _, err = run(capsys, "create")
    assert (code, err) == (1, "error: another one is being made\n")


def test_a_node_lists_its_own(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    items = [BACKUP, {"id": "20260101T000000.000Z", "created_at": AT, "problem": "it is damaged"}]
    fake.put("GET /v1/backups", {"items": items, "next_cursor": None})
    code, out, _ = run(capsys, "ls")
    assert code == 0
    assert out.splitlines()[0].split() == ["ID", "ROWS", "SIZE", "NEW", "RELEASE", "PROBLEM"]
    assert "it is damaged" in out
    assert json.loads(run(capsys, "ls", "--json")[1])["items"][0]["id"] == BACKUP["id"]


def test_without_a_node_it_is_made_here_and_the_key_is_spoken_of_once(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "create")
    assert (code, out.startswith("backup "), "1 rows" in out) == (0, True, True)
    assert f"keep a copy of {data_dir}/backup.key on another machine" in err
    code, out, err = run(capsys, "create", "--json")
    assert (code, json.loads(out)["new_bytes"], err) == (0, 0, "")
    assert "backup.key" not in run(capsys, "create")[2]
    assert len(json.loads(run(capsys, "ls", "--json")[1])["items"]) == 3
    assert run(capsys, "ls")[1].count("\n") == 4


def test_old_backups_that_cannot_be_deleted_are_spoken_of_and_the_new_one_is_made(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise errors.BackupFailed("cannot use it: deleting is forbidden")

    monkeypatch.setattr(places.Folder, "delete", refuse)
    code, out, err = run(capsys, "create")
    assert (code, out.startswith("backup ")) == (0, True)
    assert "cannot delete old backups: cannot use it: deleting is forbidden" in err
    assert (data_dir / "backups").is_dir()


def test_a_drill_shows_each_table_and_fails_where_one_differs(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data_dir.is_dir()
    run(capsys, "create")
    code, out, _ = run(capsys, "drill")
    assert (code, "failed" in out, "restores whole" in out) == (0, False, True)
    from greenroom.backups import restoring

    fill = restoring._fill

    async def fill_less(kept: Any, inventory: Any, load: Any) -> None:
        await fill(kept, inventory, load)
        load._connection.execute("delete from task")

    monkeypatch.setattr(restoring, "_fill", fill_less)
    code, out, err = run(capsys, "drill")
    assert (code, "failed" in out, "cannot restore backup" in err) == (1, True, True)
    code, out, _ = run(capsys, "drill", "--json")
    assert (code, json.loads(out)["good"]) == (1, False)


def test_a_restore_asks_before_it_replaces_and_says_where_the_old_one_is(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "create", "--place", str(tmp_path / "place"))
    where = ["--place", str(tmp_path / "place")]
    code, _, err = run(capsys, "restore", *where)
    assert (code, "add --replace" in err) == (1, True)
    code, out, err = run(capsys, "restore", "--replace", *where)
    assert (code, out.startswith("restored ")) == (0, True)
    assert f"what was there is in {data_dir}: greenroom.db.replaced-" in err
    new = tmp_path / "new"
    key = ["--key-file", str(data_dir / "backup.key")]
    assert run(capsys, "restore", "latest", "--data-dir", str(new), *where, *key)[0] == 0
    assert (new / "backup.key").read_bytes() == (data_dir / "backup.key").read_bytes(), "it goes on with these backups"
    assert run(capsys, "restore", "20200101T000000.000Z", "--replace", *where)[0] == 1


def test_what_cannot_be_restored_is_said(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "restore")
    assert (code, "cannot read the key of the backups" in err) == (1, True)
    run(capsys, "create")
    for file in (data_dir / "backups" / "inventories").iterdir():
        file.unlink()
    code, _, err = run(capsys, "drill")
    assert (code, "there is none at this place" in err) == (1, True)


def test_the_manifest_says_where(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "greenroom.toml").write_text('[backups]\nto = "elsewhere"\nkey_file = "the.key"\n')
    assert run(capsys, "create")[0] == 0
    assert (tmp_path / "elsewhere" / "inventories").is_dir()
    assert (tmp_path / "the.key").is_file()
    assert not (data_dir / "backups").exists()
    (tmp_path / "greenroom.toml").write_text('[backups]\nto = "s3://"\n')
    assert run(capsys, "ls")[0] == 2
