from __future__ import annotations

import os
from pathlib import Path

import pytest

from greenroom import errors
from greenroom.engine import snapshots


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "agents"
    write(folder, "shop.py", "import helpers.tools")
    write(folder, "helpers/tools.py", "TOOLS = ()")
    return folder


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "data" / "snapshots"


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def files(snapshot: snapshots.Snapshot) -> set[str]:
    found = {path for path in snapshot.path.rglob("*") if path.is_file()}
    return {path.relative_to(snapshot.path).as_posix() for path in found}


def test_it_holds_the_source_files_read_only(folder: Path, into: Path) -> None:
    snapshot = snapshots.take(folder, include=(), into=into)
    assert files(snapshot) == {"shop.py", "helpers/tools.py"}
    assert snapshot.path == into / snapshot.digest
    assert all(path.stat().st_mode & 0o222 == 0 for path in [snapshot.path, *snapshot.path.rglob("*")])
    assert [path.name for path in into.iterdir()] == [snapshot.digest]


def test_the_digest_is_the_same_on_every_machine(folder: Path, into: Path) -> None:
    taken = snapshots.take(folder, include=(), into=into)
    assert taken.digest == "920c036b78ad22e9d07df6dc5887ecfa4f4762da7b53b6d2cf464cdc45896e9d"


def test_taken_again_it_is_the_same_one(folder: Path, into: Path) -> None:
    first = snapshots.take(folder, include=(), into=into)
    inode = first.path.stat().st_ino
    (folder / "shop.py").touch()
    assert snapshots.take(folder, include=(), into=into) == first
    assert first.path.stat().st_ino == inode


@pytest.mark.parametrize(
    ("name", "text"), [("shop.py", "import helpers"), ("more.py", ""), ("helpers/tools.py", "TOOLS = []")]
)
def test_a_change_of_a_name_or_a_content_is_another_snapshot(folder: Path, into: Path, name: str, text: str) -> None:
    before = snapshots.take(folder, include=(), into=into)
    write(folder, name, text)
    assert snapshots.take(folder, include=(), into=into).digest != before.digest


def test_names_and_contents_do_not_run_into_one_another(tmp_path: Path, into: Path) -> None:
    write(tmp_path / "one", "a.py", "b")
    write(tmp_path / "two", "a.pyb.py", "")
    digests = {snapshots.take(tmp_path / name, include=(), into=into).digest for name in ("one", "two")}
    assert len(digests) == 2


@pytest.mark.parametrize(
    "name",
    [
        ".hidden.py",
        ".git/hook.py",
        "__pycache__/shop.py",
        "env/lib/package.py",
        "data/snapshots/old/shop.py",
        "run.log",
    ],
)
def test_what_is_no_code_of_the_agent_is_left_out(folder: Path, name: str) -> None:
    write(folder, "env/pyvenv.cfg", "home = /usr/bin")
    write(folder, name, "x")
    taken = snapshots.take(folder, include=("*",), into=folder / "data" / "snapshots")
    assert files(taken) == {"shop.py", "helpers/tools.py"}


def test_symbolic_links_are_not_followed(folder: Path, into: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "secret.py", "KEY = 1")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "secret.py").symlink_to(tmp_path / "elsewhere" / "secret.py")
    assert files(snapshots.take(folder, include=("*",), into=into)) == {"shop.py", "helpers/tools.py"}


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("prompts", {"prompts/a.txt", "prompts/deep/b.txt"}),
        ("prompts/", {"prompts/a.txt", "prompts/deep/b.txt"}),
        ("prompts/*.txt", {"prompts/a.txt", "prompts/deep/b.txt"}),
        ("prompts/**", {"prompts/a.txt", "prompts/deep/b.txt"}),
        ("**/*.txt", {"prompts/a.txt", "prompts/deep/b.txt", "top.txt"}),
        ("./top.txt", {"top.txt"}),
    ],
)
def test_include_adds_files_folders_and_globs(folder: Path, into: Path, pattern: str, taken: set[str]) -> None:
    for name in ("prompts/a.txt", "prompts/deep/b.txt", "top.txt", "prompts2/c.csv"):
        write(folder, name, "x")
    found = files(snapshots.take(folder, include=(pattern,), into=into))
    assert found - {"shop.py", "helpers/tools.py"} == taken


def test_an_include_that_names_nothing_is_an_error(folder: Path, into: Path) -> None:
    with pytest.raises(errors.AgentInvalid, match=r"include names 'promts', and no file there matches"):
        snapshots.take(folder, include=("promts",), into=into)


def test_too_much_is_an_error_that_names_the_biggest(folder: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MAX_BYTES", 4 * 2**20)
    (folder / "model.bin").write_bytes(bytes(5 * 2**20))
    with pytest.raises(errors.AgentInvalid, match=r"4 MiB of code; the biggest so far: model.bin \(5,120 KiB\)"):
        snapshots.take(folder, include=("*.bin",), into=into)
    assert not into.exists()


def test_too_many_files_are_an_error(folder: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MAX_FILES", 1)
    with pytest.raises(errors.AgentInvalid, match="more than 1 files"):
        snapshots.take(folder, include=(), into=into)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, into: Path) -> None:
    with pytest.raises(errors.AgentInvalid, match="is not a folder"):
        snapshots.take(tmp_path / "nowhere", include=(), into=into)


def test_when_another_node_takes_it_meanwhile_its_copy_stands(
    folder: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = snapshots._publish

    def race(draft: Path, target: Path) -> None:
        write(target, "theirs", "")
        publish(draft, target)

    monkeypatch.setattr(snapshots, "_publish", race)
    taken = snapshots.take(folder, include=(), into=into)
    assert files(taken) == {"theirs"}
    assert len(list(into.iterdir())) == 1


@pytest.mark.parametrize("swapped", ["a.py", "package", "package/b.py"])
def test_what_becomes_a_link_while_it_is_read_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    for at in (folder, outside):
        (at / "package").mkdir(parents=True)
        for name in ("a.py", "package/b.py"):
            (at / name).write_text("secret" if at == outside else "mine")
    found = list(snapshots._candidates(folder, tmp_path / "data"))

    def raced(*_: object) -> list[str]:
        (folder / swapped).rename(tmp_path / "before")
        (folder / swapped).symlink_to(outside / swapped)
        return found

    monkeypatch.setattr(snapshots, "_candidates", raced)
    with pytest.raises(errors.AgentInvalid, match="is it changing now"):
        snapshots.take(folder, include=(), into=tmp_path / "data" / "snapshots")
    assert not list(tmp_path.glob("data/snapshots/*/**/*.py"))


def test_what_becomes_a_fifo_while_it_is_read_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "a.py")
    monkeypatch.setattr(snapshots, "_candidates", lambda *_: ["a.py"])
    with pytest.raises(errors.AgentInvalid, match=r"cannot read a\.py"):
        snapshots.take(tmp_path, include=(), into=tmp_path / "data" / "snapshots")
