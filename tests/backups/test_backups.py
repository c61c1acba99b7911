"""Backups of real stores, and back: whole, encrypted, incremental, and refused where they are not what they were."""

# ruff: noqa: ASYNC240 - the files here are small

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom import errors
from greenroom.backups import archive, chunks, creating, listing, places, process, restoring, sealing
from greenroom.store import dumps, migrations, sqlite
from greenroom.testing import databases
from greenroom.testing.store_contract import Node, new_task

pytestmark = pytest.mark.slow

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
CANARY = "canary-5a7d3c1e"
_SESSION = (
    "insert into session (tenant, agent, id, state, revision, tasks, created_at, updated_at) "
    "values (:tenant, :agent, :id, :state, :revision, :tasks, :created_at, :updated_at)"
)
_REPLICA = (
    "insert into replica (id, agent, revision, node, state, grade, reason, slots, memory_mb, restarts, started_at) "
    "values (:id, 'a', 1, 'n', 'stopped', 'g', '', 1, :memory_mb, 0, 0)"
)
NASTY: list[dict[str, Any]] = [
    {"id": "", "state": None, "revision": None, "tasks": 0},
    {"id": "empty", "state": b"", "revision": 0, "tasks": -1},
    {"id": "naïve ☃ 🙂 \x01\x7f", "state": bytes(range(256)), "revision": 2**31 - 1, "tasks": 2**63 - 1},
    {"id": "Z", "state": b'"text"', "revision": -(2**31), "tasks": -(2**63)},
    {"id": "a", "state": b"\x00", "revision": 1, "tasks": 1},
    {"id": "É", "state": os.urandom(100_000), "revision": 1, "tasks": 1},
]


class Backed:
    """A store with a place, a key and a data directory of its own."""

    def __init__(self, scratch: databases.Scratch, folder: Path) -> None:
        self.scratch, self.folder = scratch, folder
        self.data_dir = folder / "data"
        self.data_dir.mkdir(exist_ok=True)
        self.place = folder / "place"
        self.now = NOW
        self.wanted = creating.Wanted(
            store_url=scratch.url,
            data_dir=str(self.data_dir),
            to=str(self.place),
            key_file=str(self.data_dir / "backup.key"),
            keep_last=24,
            keep_days=7,
        )

    async def create(self, **changes: Any) -> creating.Made:
        self.now += timedelta(seconds=1)
        return await creating.create(msgspec.structs.replace(self.wanted, **changes), now=self.now)

    @property
    def archive(self) -> archive.Archive:
        return archive.Archive(places.open(str(self.place)), sealing.load(Path(self.wanted.key_file)))

    async def restore(self, url: str, id: str = "latest", *, replace: bool = False, to: str = "restored") -> Path:
        data_dir = self.folder / to
        await restoring.restore(self.archive, self.archive.find(id), store_url=url, data_dir=data_dir, replace=replace)
        return data_dir

    async def drill(self, url: str | None = None, id: str = "latest") -> restoring.Drill:
        with restoring.scratch(self.data_dir) as scratch_url:
            return await restoring.drill(self.archive, self.archive.find(id), scratch_url=url or scratch_url)

    def files(self, under: str = "") -> list[Path]:
        return sorted(path for path in (self.place / under).rglob("*") if path.is_file())


@pytest.fixture
def backed(scratch: databases.Scratch, tmp_path: Path) -> Backed:
    return Backed(scratch, tmp_path)


@pytest.fixture
def backed_sqlite(sqlite_scratch: databases.Scratch, tmp_path: Path) -> Backed:
    return Backed(sqlite_scratch, tmp_path)


async def contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows, but for the word that each restore leaves for the audit log."""
    found = await whole_contents(url)
    del found["audit_pending"]
    return found


async def whole_contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    async with dumps.snapshot(url) as snapshot:
        return {table.name: [tuple(row) async for row in snapshot.rows(table)] for table in snapshot.tables}


async def filled(scratch: databases.Scratch) -> Node:
    """A store with a task in most states, sessions with values that are hard to keep, and a float."""
    node = Node(await scratch.open())
    for _ in range(3):
        await node.submit(input=f'"{CANARY}"'.encode())
    await node.run()
    await node.claim_one()
    await node.submit(session="s")
    await node.submit(session="s")  # blocked: a boolean
    async with node.store.db.transaction() as tx:
        given = {"tenant": CANARY, "agent": "a", "created_at": 1, "updated_at": 2}
        await tx.execute_many(_SESSION, [given | row for row in NASTY])
        await tx.execute_many(_REPLICA, [{"id": "r1", "memory_mb": 0.1}, {"id": "r2", "memory_mb": 12.0}])
        await tx.execute_many(_REPLICA, [{"id": "r3", "memory_mb": None}])
    return node


def restored_url(folder: Path) -> str:
    return f"sqlite:///{folder}/greenroom.db"


async def test_a_restored_store_has_every_row_as_it_was(backed: Backed) -> None:
    await filled(backed.scratch)
    before = await contents(backed.scratch.url)
    made = await backed.create()
    folder = await backed.restore(restored_url(backed.folder / "restored"))
    assert await contents(restored_url(folder)) == before
    assert made.backup.rows == sum(map(len, before.values()))
    assert {len(before[name]) for name in ("task", "replica", "session")} == {5, 3, len(NASTY) + 1}
    assert (folder / "greenroom.db").stat().st_mode & 0o777 == 0o600


async def test_a_restore_leaves_word_for_the_audit_log(backed: Backed) -> None:
    await filled(backed.scratch)
    made = await backed.create()
    folder = await backed.restore(restored_url(backed.folder / "restored"))
    ((_, action, object, detail),) = (await whole_contents(restored_url(folder)))["audit_pending"]
    assert (action, object) == ("backup.restore", f"backup:{made.backup.id}")
    assert f'"made_at":"{made.backup.created_at.isoformat()}"' in detail
    assert (await whole_contents(backed.scratch.url))["audit_pending"] == []


async def test_a_store_moves_from_sqlite_to_postgresql(
    backed_sqlite: Backed, postgres_server: databases.Server
) -> None:
    await filled(backed_sqlite.scratch)
    await backed_sqlite.create()
    async with postgres_server.scratch() as target:
        await backed_sqlite.restore(target.url)
        assert await contents(target.url) == await contents(backed_sqlite.scratch.url)
        node = Node(await target.open("node-2"))
        assert int((await node.raw("select max(seq) from task"))[0][0]) == 5
        await node.submit()
        assert int((await node.raw("select max(seq) from task"))[0][0]) == 6, "numbers go on behind those restored"


async def test_numbers_are_not_given_twice_where_the_last_rows_had_gone(backed: Backed) -> None:
    node = await filled(backed.scratch)
    await node.raw("delete from task where seq > 3")
    await backed.create()
    folder = await backed.restore(restored_url(backed.folder / "restored"))
    async with databases.sqlite(folder) as target:
        other = Node(await target.open("node-2"))
        await other.submit()
        assert int((await other.raw("select max(seq) from task"))[0][0]) == 6


_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
_rows = st.dictionaries(
    _text,
    st.tuples(
        st.none() | st.binary(max_size=50), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False) | st.none()
    ),
    max_size=8,
)


@settings(max_examples=30)
@given(rows=_rows)
def test_any_value_comes_back(rows: dict[str, tuple[bytes | None, int, float | None]], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("values")

    async def run() -> None:
        (folder / "data").mkdir()
        async with databases.sqlite(folder / "data") as scratch:
            backed = Backed(scratch, folder)
            node = Node(await scratch.open())
            async with node.store.db.transaction() as tx:
                given = {"tenant": "t", "agent": "a", "created_at": 1, "updated_at": 2, "revision": 1}
                sessions = [given | {"id": id, "state": row[0], "tasks": row[1]} for id, row in rows.items()]
                await tx.execute_many(_SESSION, sessions)
                await tx.execute_many(_REPLICA, [{"id": id, "memory_mb": row[2]} for id, row in rows.items()])
            await backed.create()
            restored = await backed.restore(restored_url(folder / "restored"))
            assert await contents(restored_url(restored)) == await contents(scratch.url)
            assert (await backed.drill()).is_good

    asyncio.run(run())


async def test_the_next_backup_stores_only_what_is_new(backed: Backed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "TARGET_BYTES", 4096)
    monkeypatch.setattr(chunks, "MOST_BYTES", 8 * 4096)
    store = (await filled(backed.scratch)).store
    await asyncio.gather(*(store.tasks.submit(new_task(input=b"x" * 1000)) for _ in range(500)))
    first = await backed.create()
    again = await backed.create()
    await store.tasks.submit(new_task())
    third = await backed.create()
    assert first.new_chunks > 50
    assert (again.new_chunks, again.backup.stored_bytes) == (0, first.backup.stored_bytes)
    assert 1 <= third.new_chunks <= 3
    assert third.backup.new_bytes < third.backup.stored_bytes / 10
    for id in (first.backup.id, third.backup.id):
        assert (await backed.drill(id=id)).is_good


async def test_a_backup_is_one_moment_while_others_write(backed: Backed, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await filled(backed.scratch)
    before = await contents(backed.scratch.url)
    stored = creating._Writing.store

    async def store_and_submit(self: Any, table: dumps.Table, rows: AsyncIterator[Any]) -> archive.Content:
        await node.submit()
        return await stored(self, table, rows)

    monkeypatch.setattr(creating._Writing, "store", store_and_submit)
    await backed.create()
    folder = await backed.restore(restored_url(backed.folder / "restored"))
    assert await contents(restored_url(folder)) == before
    assert len((await contents(backed.scratch.url))["task"]) > len(before["task"])


async def test_nothing_of_the_store_can_be_read_at_the_place(backed: Backed) -> None:
    await filled(backed.scratch)
    (backed.data_dir / "secrets").write_text(CANARY)
    made = await backed.create()
    everything = b"".join(bytes(path.relative_to(backed.place)) + path.read_bytes() for path in backed.files())
    for word in (CANARY, "session", "greenroom.db", made.backup.greenroom, "node-1"):
        assert word.encode() not in everything
    assert {path.stat().st_mode & 0o777 for path in backed.files()} == {0o600}
    assert Path(backed.wanted.key_file).stat().st_mode & 0o777 == 0o600
    key = sealing._FORM.fullmatch(Path(backed.wanted.key_file).read_text())
    assert key is not None
    assert bytes.fromhex(key[1]) not in everything


async def test_another_key_is_refused_before_anything_is_written(backed_sqlite: Backed) -> None:
    backed = backed_sqlite
    await filled(backed.scratch)
    assert (await backed.create()).has_new_key
    before = {path: path.read_bytes() for path in backed.files()}
    mine = backed.data_dir / "mine.key"
    Path(backed.wanted.key_file).rename(mine)
    with pytest.raises(errors.BackupInvalid, match="is missing; put your copy"):
        await backed.create()
    assert not Path(backed.wanted.key_file).exists()
    sealing.make(Path(backed.wanted.key_file))
    with pytest.raises(errors.BackupInvalid, match="another key"):
        await backed.create()
    with pytest.raises(errors.BackupInvalid, match="another key"):
        await backed.restore(restored_url(backed.folder / "restored"))
    with pytest.raises(errors.BackupInvalid, match="another key"):
        listing.backups(backed.wanted)
    assert {path: path.read_bytes() for path in backed.files()} == before
    assert not (backed.folder / "restored").exists()
    assert len(listing.backups(msgspec.structs.replace(backed.wanted, key_file=str(mine)))) == 1


@pytest.mark.parametrize("content", ["", "greenroom-backup-key-1:00", "x" * 64, "\udcff"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "backup.key"
    path.write_bytes(content.encode(errors="surrogateescape"))
    path.chmod(0o600)
    with pytest.raises(errors.BackupInvalid):
        sealing.load(path)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "backup.key"
    sealing.make(path)
    path.chmod(0o640)
    with pytest.raises(errors.BackupInvalid, match="chmod 600"):
        sealing.load(path)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def swap(path: Path) -> None:
    others = [other for other in path.parent.parent.rglob("*") if other.is_file() and other != path]
    path.write_bytes(others[0].read_bytes())


@pytest.mark.parametrize("harm", [flip, truncate, swap, Path.unlink])
@pytest.mark.parametrize("under", ["chunks", "inventories", ""])
async def test_a_backup_that_was_tampered_with_is_refused(
    backed_sqlite: Backed, under: str, harm: Callable[[Path], Any]
) -> None:
    backed = backed_sqlite
    await filled(backed.scratch)
    await backed.create()
    await backed.create(keep_last=2)
    target = (backed.place / "greenroom") if not under else backed.files(under)[-1]
    if (under, harm) == ("inventories", Path.unlink):
        target.unlink()
        (remaining,) = listing.backups(backed.wanted)
        assert remaining.problem is None
        return
    if (under, harm) == ("", Path.unlink):  # the mark says which key is right; without it the inventories do
        target.unlink()
        sealing.make(Path(backed.wanted.key_file))
        with pytest.raises(errors.BackupInvalid):
            await backed.restore(restored_url(backed.folder / "restored"))
        return
    harm(target)
    with pytest.raises(errors.BackupInvalid):
        await backed.restore(restored_url(backed.folder / "restored"))
    assert not list((backed.folder / "restored").glob("greenroom.db*[!k]"))
    if under:
        with pytest.raises(errors.BackupInvalid):
            await backed.drill()


async def test_a_damaged_backup_is_listed_as_such_and_keeps_its_chunks(backed_sqlite: Backed) -> None:
    backed = backed_sqlite
    node = await filled(backed.scratch)
    first = await backed.create()
    await node.submit()
    last = await backed.create()
    flip(backed.place / "inventories" / first.backup.id)
    newest, oldest = listing.backups(backed.wanted)
    assert (newest.problem, oldest.id) == (None, first.backup.id)
    assert oldest.problem is not None
    assert "damaged" in oldest.problem
    age(backed.files("chunks"))
    before = len(backed.files("chunks"))
    assert (await backed.create()).backup.id > last.backup.id
    assert len(backed.files("chunks")) >= before


async def small_chunks(backed: Backed, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Fill the store, back it up, and return where the chunks lie, of which there are dozens."""
    monkeypatch.setattr(chunks, "TARGET_BYTES", 4096)
    store = (await filled(backed.scratch)).store
    await asyncio.gather(*(store.tasks.submit(new_task(input=b"x" * 1000)) for _ in range(200)))
    await backed.create()
    return backed.files("chunks")


@pytest.mark.parametrize("harm", [truncate, Path.unlink])
async def test_what_has_gone_from_the_place_is_stored_again_by_the_next_backup(
    backed_sqlite: Backed, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], Any]
) -> None:
    backed = backed_sqlite
    found = await small_chunks(backed, monkeypatch)
    for path in found[:2]:
        harm(path)
    assert (await backed.create()).new_chunks == 2
    assert (await backed.create()).new_chunks == 0
    for id in backed.archive.ids():
        assert (await backed.drill(id=id)).is_good


@pytest.mark.parametrize("finder", ["drill", "restore"])
async def test_what_a_drill_or_a_restore_found_rotten_is_stored_anew_by_the_next_backup(
    backed_sqlite: Backed, monkeypatch: pytest.MonkeyPatch, finder: str
) -> None:
    backed = backed_sqlite
    found = await small_chunks(backed, monkeypatch)
    flip(found[0])
    flip(found[1])
    assert (await backed.create()).new_chunks == 0, "nobody has seen it yet"
    with pytest.raises(errors.BackupInvalid, match=rf"2 of its {len(found)} chunks .* greenroom backup create"):
        await (backed.drill() if finder == "drill" else backed.restore(restored_url(backed.folder / "restored")))
    assert len(backed.files("chunks")) == len(found), "whoever read it may have read it wrong"
    assert (await backed.create()).new_chunks == 2
    assert backed.files("damaged") == []
    assert (await backed.create()).new_chunks == 0
    for id in backed.archive.ids():
        assert (await backed.drill(id=id)).is_good


async def test_damage_is_told_also_where_nothing_can_be_written(
    backed_sqlite: Backed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise errors.BackupFailed("cannot write: read only")

    backed = backed_sqlite
    flip((await small_chunks(backed, monkeypatch))[0])
    monkeypatch.setattr(places.Folder, "put", refuse)
    with pytest.raises(errors.BackupInvalid, match="1 of its"):
        await backed.drill()


async def test_the_note_of_a_rotten_chunk_goes_with_the_last_backup_that_needs_it(backed_sqlite: Backed) -> None:
    backed = backed_sqlite
    node = await filled(backed.scratch)
    await backed.create()
    for path in backed.files("chunks"):
        flip(path)
    with pytest.raises(errors.BackupInvalid):
        await backed.drill()
    await node.raw("delete from session")  # nothing can bring their chunk back
    await backed.create()
    assert len(backed.files("damaged")) == 1
    await backed.create(keep_last=1, keep_days=0)
    assert backed.files("damaged") == []
    assert (await backed.drill()).is_good


def age(files: list[Path]) -> None:
    for path in files:
        os.utime(path, (1_000_000_000, 1_000_000_000))


async def test_old_backups_go_with_the_chunks_that_nobody_needs(backed: Backed) -> None:
    node = await filled(backed.scratch)
    ids = []
    for _ in range(4):
        await node.submit()
        ids.append((await backed.create(keep_last=2, keep_days=0)).backup.id)
    assert [backup.id for backup in listing.backups(backed.wanted)] == ids[:1:-1]
    leftover = len(backed.files("chunks"))
    age(backed.files("chunks"))
    deleted = await backed.create(keep_last=1, keep_days=0)
    assert deleted.deleted == (ids[2], ids[3])
    assert len(backed.files("chunks")) < leftover
    needed = {chunk.name for content in backed.archive.find("latest").contents for chunk in content.chunks}
    assert {path.name for path in backed.files("chunks")} == needed
    assert (await backed.drill()).is_good


async def test_a_place_that_deletes_nothing_holds_good_backups_and_the_trouble_is_told_apart(
    backed_sqlite: Backed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise errors.BackupFailed("cannot use it: deleting is forbidden")

    backed = backed_sqlite
    await filled(backed.scratch)
    first = await backed.create()
    assert first.not_deleted is None
    with monkeypatch.context() as patched:
        patched.setattr(places.Folder, "delete", refuse)
        made = await backed.create(keep_last=1, keep_days=0)
    assert made.not_deleted == "cannot delete old backups: cannot use it: deleting is forbidden"
    assert made.deleted == ()
    assert listing.newest(backed.wanted) == made.backup
    assert (await backed.drill()).is_good
    again = await backed.create(keep_last=1, keep_days=0)
    assert (again.not_deleted, again.deleted) == (None, (first.backup.id, made.backup.id))


async def test_a_backup_that_goes_while_others_are_listed_or_made_is_passed_over(
    backed_sqlite: Backed, monkeypatch: pytest.MonkeyPatch
) -> None:
    backed = backed_sqlite
    await filled(backed.scratch)
    made = await backed.create()
    ids = archive.Archive.ids
    monkeypatch.setattr(archive.Archive, "ids", lambda self: ["20000101T000000.000Z", *ids(self)])
    assert listing.backups(backed.wanted) == [made.backup]
    again = await backed.create()
    assert (again.new_chunks, again.not_deleted) == (0, None)
    age(backed.files("chunks"))
    stray = backed.archive.put(backed.archive.name_of(b"stray"), b"stray")
    age(backed.files("chunks"))
    await backed.create()
    with pytest.raises(errors.BackupInvalid, match="missing"):
        backed.archive.chunk(stray)
    assert (await backed.drill()).is_good


async def test_a_chunk_of_a_backup_that_is_being_made_elsewhere_is_not_swept(backed_sqlite: Backed) -> None:
    backed = backed_sqlite
    await filled(backed.scratch)
    await backed.create()
    chunk = backed.archive.put(backed.archive.name_of(b"new"), b"new")
    backed.now = datetime.now(UTC)  # as the file's own time is
    await backed.create(keep_last=1, keep_days=0)
    assert backed.archive.chunk(chunk) == b"new"


async def test_ids_grow_even_where_the_clock_goes_back(backed_sqlite: Backed) -> None:
    backed = backed_sqlite
    await filled(backed.scratch)
    first = await backed.create()
    backed.now -= timedelta(days=1)
    second = await backed.create()
    assert second.backup.id > first.backup.id
    assert backed.archive.find("latest").id == second.backup.id


async def test_two_at_once_are_one_too_many(backed_sqlite: Backed) -> None:
    backed = backed_sqlite
    await filled(backed.scratch)
    with creating._alone(backed.data_dir), pytest.raises(errors.Conflict, match="another one"):
        await backed.create()
    await backed.create()


async def test_a_backup_that_is_killed_leaves_the_earlier_ones_whole(backed_sqlite: Backed) -> None:
    backed = backed_sqlite
    store = (await filled(backed.scratch)).store
    first = await backed.create()
    for _ in range(4):
        await asyncio.gather(
            *(store.tasks.submit(new_task(input=os.urandom(100_000).hex().encode())) for _ in range(20))
        )
    script = "from greenroom.backups import process; process.main()"
    before = len(backed.files("chunks"))
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    child.stdin.write(msgspec.json.encode(backed.wanted) + b"\n")
    await child.stdin.drain()
    async with asyncio.timeout(30):
        while len(backed.files("chunks")) < before + 3:  # noqa: ASYNC110 - another process works meanwhile
            await asyncio.sleep(0)
    child.send_signal(signal.SIGKILL)
    await child.wait()
    ids = [backup.id for backup in listing.backups(backed.wanted)]
    assert ids == [first.backup.id], "it was killed before it was one"
    assert (await backed.drill()).is_good
    after = await backed.create()
    assert (await backed.drill()).is_good
    age(backed.files("chunks"))
    await backed.create(keep_last=1, keep_days=0)
    needed = {chunk.name for content in backed.archive.find("latest").contents for chunk in content.chunks}
    assert {path.name for path in backed.files("chunks")} == needed, "and what it left is swept"
    assert after.backup.rows > first.backup.rows


async def test_a_process_of_its_own_makes_it_and_says_what_failed(backed_sqlite: Backed) -> None:
    backed = backed_sqlite
    await filled(backed.scratch)
    made = await process.create(backed.wanted)
    assert listing.newest(backed.wanted) == made.backup
    with pytest.raises(errors.BackupFailed, match="there is no store"):
        await process.create(msgspec.structs.replace(backed.wanted, store_url=f"sqlite:///{backed.folder}/no.db"))
    blocked = backed.folder / "file"
    blocked.write_text("")
    with pytest.raises(errors.BackupFailed, match=r"backups\.to"):
        await process.create(msgspec.structs.replace(backed.wanted, to=str(blocked / "place")))


async def test_its_process_ends_well_while_the_node_holds_its_stdin_open(backed_sqlite: Backed) -> None:
    await filled(backed_sqlite.scratch)
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "greenroom.backups")
    child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    assert child.stdin is not None
    assert child.stderr is not None
    child.stdin.write(msgspec.json.encode(backed_sqlite.wanted) + b"\n")
    async with asyncio.timeout(60):
        assert (await child.wait(), await child.stderr.read()) == (0, b"")


@pytest.mark.parametrize("code", [-signal.SIGABRT, 1])
def test_a_process_that_ended_badly_made_no_backup_whatever_it_said(code: int) -> None:
    answer = msgspec.json.encode({"made": {"backup": {"id": "x", "created_at": NOW}, "new_chunks": 0}})
    assert process._read(answer, b"", 0).backup.id == "x"
    with pytest.raises(errors.BackupFailed, match=f"ended with {code}: Fatal"):
        process._read(answer, b"before\nFatal Python error", code)


def test_what_it_holds_in_memory_is_never_in_a_core_dump(tmp_path: Path) -> None:
    script = (
        "import resource; from greenroom import errors; from greenroom.backups import creating, process\n"
        "def create(*_, **__): raise errors.BackupFailed(str(resource.getrlimit(resource.RLIMIT_CORE)))\n"
        "creating.create = create; process.main()"
    )
    wanted = {"store_url": "", "data_dir": "", "to": "", "key_file": "", "keep_last": 1, "keep_days": 1}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdin=pipe, stdout=pipe) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(msgspec.json.encode(wanted) + b"\n")
        child.stdin.flush()
        assert b"(0, 0)" in child.stdout.read()


def test_its_process_leaves_with_the_node(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "greenroom.backups"]
    os.mkfifo(tmp_path / "backup.key", 0o600)  # reading it takes for ever
    wanted = creating.Wanted(
        store_url="sqlite:///nowhere",
        data_dir=str(tmp_path),
        to=str(tmp_path / "place"),
        key_file=str(tmp_path / "backup.key"),
        keep_last=1,
        keep_days=1,
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.write(msgspec.json.encode(wanted) + b"\n")
        child.stdin.close()
        assert child.wait(20) == 1


# Restoring


async def test_a_store_with_rows_is_not_replaced_unasked(backed: Backed) -> None:
    node = await filled(backed.scratch)
    await backed.create()
    await node.submit()
    before = await contents(backed.scratch.url)
    await backed.scratch.close()
    with pytest.raises(errors.Conflict, match="--replace"):
        await backed.restore(backed.scratch.url)
    assert await contents(backed.scratch.url) == before
    await backed.restore(backed.scratch.url, replace=True)
    after = await contents(backed.scratch.url)
    assert len(after["task"]) == len(before["task"]) - 1


async def test_a_store_that_a_node_has_open_is_not_replaced(backed: Backed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.store.postgres.CLAIM_TIMEOUT_S", 0.05)
    node = await filled(backed.scratch)
    await node.store.claim_alone()
    await backed.create()
    with pytest.raises(errors.StoreInUse):
        await backed.restore(backed.scratch.url, replace=True)
    await node.submit()


async def test_a_restore_that_fails_leaves_everything_as_it_was(backed: Backed) -> None:
    await filled(backed.scratch)
    (backed.data_dir / "secrets").write_text("mine")
    await backed.create()
    (backed.data_dir / "secrets").write_text("newer")
    await backed.scratch.close()
    before = await contents(backed.scratch.url)
    last = backed.archive.find("latest").tables[-2].chunks or backed.archive.find("latest").files.chunks
    (backed.place / "chunks" / last[0].name[:2] / last[0].name).unlink()
    with pytest.raises(errors.BackupInvalid, match="missing"):
        await backed.restore(backed.scratch.url, replace=True, to="data")
    assert await contents(backed.scratch.url) == before
    assert (backed.data_dir / "secrets").read_text() == "newer"
    assert not [path for path in backed.data_dir.iterdir() if "replaced" in path.name or "restor" in path.name]


async def test_the_nodes_files_come_back_and_what_was_there_is_moved_aside(backed_sqlite: Backed) -> None:
    backed = backed_sqlite
    await filled(backed.scratch)
    code = backed.data_dir / "snapshots" / "abc" / "pkg"
    code.mkdir(parents=True)
    (code / "agents.py").write_text("x = 1")
    (code / "agents.py").chmod(0o444)
    (backed.data_dir / "snapshots" / ".draft-1").mkdir()
    (backed.data_dir / "snapshots" / ".draft-1" / "half.py").write_text("x =")
    (backed.data_dir / "secrets").write_text("mine")
    (backed.data_dir / "secrets").chmod(0o600)
    (backed.data_dir / "local.key").write_text("owner")
    made = await backed.create()
    target = backed.folder / "restored"
    target.mkdir()
    (target / "secrets").write_text("others")
    await backed.restore(restored_url(target))
    assert (target / "secrets").read_text() == "mine"
    assert (target / "secrets").stat().st_mode & 0o777 == 0o600
    (aside,) = target.glob("secrets.replaced-*")
    assert (aside.read_text(), made.backup.id in aside.name) == ("others", True)
    assert (target / "snapshots" / "abc" / "pkg" / "agents.py").read_text() == "x = 1"
    assert (target / "snapshots" / "abc").stat().st_mode & 0o777 == 0o555
    names = {path.name for path in target.iterdir() if "replaced" not in path.name}
    assert names == {"greenroom.db", "greenroom.db.lock", "secrets", "snapshots"}
    (target / "snapshots" / "abc").chmod(0o755)
    (target / "snapshots" / "abc" / "pkg").chmod(0o755)


@pytest.mark.parametrize("path", ["../secrets", "snapshots/../../x", "/etc/passwd", "local.key"])
async def test_a_file_that_is_none_of_a_nodes_is_refused(
    backed_sqlite: Backed, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async def forged(_: Path) -> AsyncIterator[tuple[str, int, bytes]]:
        yield path, 0o600, b"x"

    await filled(backed_sqlite.scratch)
    monkeypatch.setattr(creating, "_files", forged)
    await backed_sqlite.create()
    with pytest.raises(errors.BackupInvalid, match="none of a node's"):
        await backed_sqlite.restore(restored_url(backed_sqlite.folder / "restored"))


@contextlib.contextmanager
def another_migration(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    real = migrations.scripts
    number = max(each.number for each in real("sqlite")) + 1
    script = (
        "alter table session add column mood text not null default 'calm'; create table later (id text primary key);"
    )

    def more(dialect: str) -> Iterator[migrations.Migration]:
        yield from real(dialect)
        yield migrations.Migration(number, f"{number:04}_later", script)

    with monkeypatch.context() as patched:
        patched.setattr(migrations, "scripts", more)
        yield number


async def test_a_backup_of_an_older_release_is_brought_to_this_ones_schema(
    backed: Backed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(backed.scratch)
    await backed.create()
    await backed.scratch.close()
    with another_migration(monkeypatch) as number:
        assert (await backed.drill()).is_good
        await backed.restore(backed.scratch.url, replace=True)
        async with dumps.snapshot(backed.scratch.url) as snapshot:
            assert snapshot.schema == number
            assert "later" in {table.name for table in snapshot.tables}
        moods = {row[-1] for row in (await contents(backed.scratch.url))["session"]}
        assert moods == {"calm"}


async def test_a_backup_of_a_newer_release_is_refused(backed: Backed, monkeypatch: pytest.MonkeyPatch) -> None:
    with another_migration(monkeypatch):
        await filled(backed.scratch)
        await backed.create()
    await backed.scratch.close()
    with pytest.raises(errors.BackupInvalid, match="newer"):
        await backed.restore(restored_url(backed.folder / "restored"))


async def test_a_new_table_is_backed_up_without_anybody_naming_it(
    backed: Backed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with another_migration(monkeypatch):
        node = await filled(backed.scratch)
        await node.raw("insert into later values ('x')")
        await backed.create()
        folder = await backed.restore(restored_url(backed.folder / "restored"))
        assert (await contents(restored_url(folder)))["later"] == [("x",)]


def test_what_the_migrations_make_is_what_the_catalogue_has() -> None:
    with contextlib.closing(apsw.Connection(":memory:")) as connection:
        for migration in migrations.scripts("sqlite"):
            connection.execute(migration.script)
        found = {str(name) for (name,) in connection.execute("select name from sqlite_schema where type = 'table'")}
    assert set(migrations.tables("postgresql")) == {name for name in found if not name.startswith("sqlite_")}


# The exchange of the file


@pytest.mark.parametrize("moved", range(4))
async def test_a_restore_that_died_in_the_exchange_is_completed_by_whoever_opens_the_store(
    backed_sqlite: Backed, moved: int
) -> None:
    backed = backed_sqlite
    node = await filled(backed.scratch)
    await backed.create()
    whole = await contents(backed.scratch.url)
    for _ in range(3):
        await node.submit()
    path = dumps.file_of(backed.scratch.url)
    old = {side: path.with_name(path.name + side).read_bytes() for side in ("-wal", "-shm", "")}
    await backed.scratch.close()
    folder = await backed.restore(restored_url(backed.folder / "restored"))
    for side, content in old.items():
        path.with_name(path.name + side).write_bytes(content)
    restoring_path = path.with_name(path.name + sqlite.RESTORING)
    (folder / "greenroom.db").rename(restoring_path)
    for side in ("-wal", "-shm", "")[:moved]:
        path.with_name(path.name + side).rename(path.with_name(f"{path.name}.replaced-x{side}"))
    os.close(sqlite.take_file(path))
    assert not restoring_path.exists()
    assert not path.with_name(path.name + "-wal").exists()
    assert await contents(backed.scratch.url) == whole


_DIES = """
import asyncio, os, sys
from pathlib import Path
from greenroom.backups import archive, places, restoring, sealing

place, key_file, url, data_dir, left = sys.argv[1:]
left, rename = int(left), os.rename

def rename_or_die(*names):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
    rename(*names)

kept = archive.Archive(places.open(place), sealing.load(Path(key_file)))
os.rename = rename_or_die
asyncio.run(restoring.restore(kept, kept.find("latest"), store_url=url, data_dir=Path(data_dir), replace=True))
"""


async def test_a_restore_that_is_killed_leaves_a_store_with_the_files_that_belong_to_it(backed_sqlite: Backed) -> None:
    backed = backed_sqlite
    await filled(backed.scratch)
    for name in ("secrets", "manifest-agents.json"):
        (backed.data_dir / name).write_text("restored")
    (backed.data_dir / "snapshots" / "abc").mkdir(parents=True)
    (backed.data_dir / "snapshots" / "abc" / "agents.py").write_text("x = 1")
    await backed.create()
    before, became = backed.folder / "before", []
    before.mkdir()
    async with databases.sqlite(before) as other:
        await Node(await other.open()).submit()
    for name in ("secrets", "manifest-agents.json"):
        (before / name).write_text("before")
    for renames in range(100):
        data_dir = backed.folder / f"killed-{renames}"
        shutil.copytree(before, data_dir)
        url = restored_url(data_dir)
        given = (str(backed.place), backed.wanted.key_file, url, str(data_dir), str(renames))
        code = subprocess.run([sys.executable, "-c", _DIES, *given], check=False).returncode  # noqa: ASYNC221 - nothing else runs here
        restoring.complete(url, data_dir)
        os.close(sqlite.take_file(data_dir / "greenroom.db"))
        is_restored = len((await contents(url))["session"]) > 0
        expected = "restored" if is_restored else "before"
        files = {name: (data_dir / name).read_text() for name in ("secrets", "manifest-agents.json")}
        assert files == dict.fromkeys(files, expected), renames
        assert (data_dir / "snapshots" / "abc" / "agents.py").exists() == is_restored
        assert not (data_dir / restoring.STAGED).exists()
        assert len(list(data_dir.glob("secrets.replaced-*"))) == is_restored
        became += [is_restored]
        if code == 0:
            break
        assert code == 9
    assert became == sorted(became)
    assert became.count(False) >= 2
    assert became.count(True) >= 6
    for folder in backed.folder.glob("*/snapshots/abc"):
        folder.chmod(0o755)


async def test_nothing_is_guessed_where_a_restore_into_postgresql_was_killed(
    postgres_server: databases.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    async with postgres_server.scratch() as scratch:
        backed = Backed(scratch, tmp_path)
        await filled(scratch)
        (backed.data_dir / "secrets").write_text("restored")
        await backed.create()
        await scratch.close()
        restoring.complete(scratch.url, backed.data_dir)
        with monkeypatch.context() as patched:
            patched.setattr(restoring, "_publish", die)
            with pytest.raises(KeyboardInterrupt):
                await backed.restore(scratch.url, replace=True)
        folder = backed.folder / "restored"
        with pytest.raises(errors.StartRefused, match="run it again with --replace"):
            restoring.complete(scratch.url, folder)
        await backed.restore(scratch.url, replace=True)
        restoring.complete(scratch.url, folder)
        assert (folder / "secrets").read_text() == "restored"


# The drill


async def test_a_drill_compares_every_table(backed: Backed) -> None:
    await filled(backed.scratch)
    await backed.create()
    found = await backed.drill()
    assert found.is_good
    assert {table.table for table in found.tables} == {*migrations.tables("sqlite"), "(files)"}
    assert not list(backed.data_dir.glob(".drill*"))


async def test_a_drill_leaves_the_scratch_database_empty(
    backed_sqlite: Backed, postgres_server: databases.Server
) -> None:
    await filled(backed_sqlite.scratch)
    await backed_sqlite.create()
    async with postgres_server.scratch() as target:
        assert (await backed_sqlite.drill(target.url)).is_good
        assert (await backed_sqlite.drill(target.url)).is_good
        await filled(target)
        before = await contents(target.url)
        with pytest.raises(errors.Conflict):
            await backed_sqlite.drill(target.url)
        assert await contents(target.url) == before


@pytest.mark.parametrize(
    "harm",
    [
        "update session set tasks = tasks - 1 where id = 'a'",
        "delete from replica where id = 'r3'",
        "insert into ended_count values ('t', 'a', 'failed', 1)",
        "create table stray (id text primary key)",
        "drop table principal",
    ],
)
async def test_a_drill_finds_what_was_not_restored_as_it_was(
    backed_sqlite: Backed, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    await filled(backed_sqlite.scratch)
    await backed_sqlite.create()
    fill = restoring._fill

    async def fill_and_harm(kept: Any, inventory: Any, load: Any) -> None:
        await fill(kept, inventory, load)
        load._connection.execute(harm)

    monkeypatch.setattr(restoring, "_fill", fill_and_harm)
    found = await backed_sqlite.drill()
    assert not found.is_good
    assert len([table for table in found.tables if not table.is_equal]) == 1


# Advice


async def test_the_advice_names_the_newest_backup_and_the_command(backed_sqlite: Backed) -> None:
    wanted = backed_sqlite.wanted
    assert "there is no backup at" in listing.advice(wanted, None)
    await filled(backed_sqlite.scratch)
    await backed_sqlite.create()
    told = listing.advice(wanted, None)
    assert "the newest backup is of 2030-01-01 12:00:01 UTC" in told
    command = f"greenroom backup restore latest --data-dir {wanted.data_dir} --place {wanted.to} --replace"
    assert told.endswith(command)
