"""What only a file can suffer: a second node, other programs, locks, full and failing disks."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest

from greenroom import errors
from greenroom.store import alerts, recovery, sqlite, sqlite_checks, store
from greenroom.store.principals import Principal
from greenroom.testing import databases
from greenroom.testing.fakes import FakeClock
from greenroom.testing.store_contract import Node


def _open(path: Path) -> store.Store:
    return store.open(f"sqlite:///{path}", clock=FakeClock(), owner="node-1")


def _path(scratch: databases.Scratch) -> Path:
    return Path(scratch.url.removeprefix("sqlite:///"))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_a_second_opener_is_told_who_has_the_file(sqlite_scratch: databases.Scratch) -> None:
    await sqlite_scratch.open()
    with pytest.raises(errors.StoreInUse, match=f"process {os.getpid()}"):
        _open(_path(sqlite_scratch))


async def test_a_closed_store_can_be_opened_by_another(sqlite_scratch: databases.Scratch) -> None:
    await sqlite_scratch.open()
    await sqlite_scratch.close()
    await sqlite_scratch.open()


async def test_the_file_is_its_owners_only(sqlite_scratch: databases.Scratch) -> None:
    node = Node(await sqlite_scratch.open())
    await node.submit()
    path = _path(sqlite_scratch)
    files = [path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")]
    assert [oct(file.stat().st_mode & 0o777) for file in files] == ["0o600"] * 3


@pytest.mark.parametrize("content", [b"this is no database " * 100, b"SQLite format 3\0" + b"\xff" * 4080])
def test_what_is_no_database_is_refused_and_left_as_it_was(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "greenroom.db"
    path.write_bytes(content)
    with pytest.raises(errors.StoreDamaged, match="left untouched"):
        _open(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("version", [0, 3])
def test_another_programs_database_is_refused_and_left_as_it_was(tmp_path: Path, version: int) -> None:
    path = tmp_path / "notes.db"
    with apsw.Connection(str(path)) as other:
        other.execute(f"create table note (text); insert into note values ('mine'); pragma user_version={version}")
    other.close()
    before = _sha256(path)
    with pytest.raises(errors.StoreDamaged, match="not a store of Greenroom"):
        _open(path)
    assert _sha256(path) == before


async def test_a_truncated_store_is_refused_and_left_as_it_was(sqlite_scratch: databases.Scratch) -> None:
    await sqlite_scratch.open()
    await sqlite_scratch.close()
    path = _path(sqlite_scratch)
    path.write_bytes(path.read_bytes()[:5000])
    before = _sha256(path)
    with pytest.raises(errors.StoreDamaged):
        _open(path)
    assert _sha256(path) == before


async def test_a_store_that_was_emptied_is_refused_and_one_that_was_moved_away_is_made_anew(
    sqlite_scratch: databases.Scratch,
) -> None:
    await sqlite_scratch.open()
    await sqlite_scratch.close()
    path = _path(sqlite_scratch)
    path.write_bytes(b"")
    with pytest.raises(errors.StoreDamaged, match="it is empty, and was not"):
        _open(path)
    assert path.read_bytes() == b""
    path.unlink()
    await sqlite_scratch.open()


async def test_a_store_whose_log_was_removed_before_anything_else_was_written_is_refused(
    sqlite_scratch: databases.Scratch,
) -> None:
    node = Node(await sqlite_scratch.open())
    await node.submit()
    path = _path(sqlite_scratch)
    without_log = path.read_bytes()
    await sqlite_scratch.close()
    path.write_bytes(without_log)
    with pytest.raises(errors.StoreDamaged, match="its -wal was removed"):
        _open(path)
    assert path.read_bytes() == without_log


@pytest.mark.parametrize("table", ["alert", "principal"])
async def test_a_damaged_text_that_every_start_reads_is_refused(sqlite_scratch: databases.Scratch, table: str) -> None:
    opened = await sqlite_scratch.open()
    raised = alerts.Raised("a", "quarantined", None, "critical", "dead")
    await opened.recovery.note(recovery.Noted("agent", b"{}", alert=raised))
    await opened.principals.create(Principal("k", "default", "owner", "admin", b"hash", 1))
    await sqlite_scratch.close()
    path = _path(sqlite_scratch)
    with apsw.Connection(str(path)) as harm:
        harm.execute(f"update {table} set {'reason' if table == 'alert' else 'name'} = cast(x'ff41' as text)")
    harm.close()
    with pytest.raises(errors.StoreDamaged, match=f"a text of {table} is damaged"):
        _open(path)


async def test_a_store_that_ends_within_a_page_is_refused(sqlite_scratch: databases.Scratch) -> None:
    await sqlite_scratch.open()
    await sqlite_scratch.close()
    path = _path(sqlite_scratch)
    cut = path.read_bytes()[:-1]
    path.write_bytes(cut)
    with pytest.raises(errors.StoreDamaged, match="ends within a page"):
        _open(path)
    assert path.read_bytes() == cut


async def test_a_newer_schema_is_refused(sqlite_scratch: databases.Scratch) -> None:
    await sqlite_scratch.open()
    await sqlite_scratch.close()
    with apsw.Connection(str(_path(sqlite_scratch))) as newer:
        newer.pragma("user_version", 9_999)
    newer.close()
    with pytest.raises(errors.StoreOfAnotherRelease, match="newer than this release"):
        await sqlite_scratch.open()


async def test_a_check_that_is_cancelled_has_ended_in_the_middle_of_its_reading(
    sqlite_scratch: databases.Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ends = threading.Event(), list[type[BaseException] | None]()

    def look_through(connection: Any) -> None:
        begun.set()
        try:
            connection.execute(
                "with recursive n (i) as (select 1 union all select i + 1 from n limit 100000000) select count(i) "
                "from n"
            ).fetchall()
        except apsw.Error as error:
            ends.append(type(error))
            raise
        ends.append(None)

    node = Node(await sqlite_scratch.open())
    monkeypatch.setattr(sqlite_checks, "look_through", look_through)
    node.store.db._is_checked = False  # type: ignore[attr-defined]
    checking = asyncio.create_task(node.store.db.check())
    await asyncio.to_thread(begun.wait)
    checking.cancel()
    await asyncio.sleep(0)
    checking.cancel()  # who is in a hurry says it twice
    with pytest.raises(asyncio.CancelledError):
        await checking
    assert ends == [apsw.InterruptError]
    await node.submit()


@pytest.mark.parametrize("folder", ["/proc/1/greenroom", "file/greenroom", "missing/greenroom"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.StartRefused, match="--data-dir"):
        _open(tmp_path / folder / "greenroom.db")


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.StartRefused, match="--data-dir"):
        _open(tmp_path)


_HOLD = """
    import apsw, sys
    connection = apsw.Connection(sys.argv[1])
    connection.execute("begin exclusive")
    print("held", flush=True)
    sys.stdin.read()
    connection.execute("rollback")
    connection.close()
"""


async def test_a_file_locked_by_another_process_is_weather(
    sqlite_scratch: databases.Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 50)
    node = Node(await sqlite_scratch.open())
    stored = await node.submit()
    holder = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(_HOLD),
        str(_path(sqlite_scratch)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    with pytest.raises(errors.StoreUnavailable, match="another process holds its file"):
        await node.submit()
    assert await node.state(stored) == "queued"
    await holder.communicate(b"")
    await node.submit()
    assert len(await node.store.tasks.list(tenant="acme")) == 2


async def test_a_full_disk_loses_nothing_and_is_forgotten_once_there_is_room(
    sqlite_scratch: databases.Scratch,
) -> None:
    node = Node(await sqlite_scratch.open())
    database = node.store.db
    assert isinstance(database, sqlite.Sqlite)
    database._writer.pragma("max_page_count", database._writer.pragma("page_count") + 4)
    acknowledged: set[str] = set()

    async def fill() -> None:
        while True:
            acknowledged.add(await node.submit(input=b'"' + b"x" * 2000 + b'"'))

    with pytest.raises(errors.StoreUnavailable, match="the disk is full"):
        await fill()
    assert acknowledged
    database._writer.pragma("max_page_count", 1_000_000)
    acknowledged.add(await node.submit())
    assert {task.id for task in await node.store.tasks.list(tenant="acme")} == acknowledged


async def test_a_cancelled_writer_leaves_no_transaction_open(sqlite_scratch: databases.Scratch) -> None:
    node = Node(await sqlite_scratch.open())

    async def write() -> None:
        async with node.store.db.transaction():
            await asyncio.Event().wait()

    for turns in range(12):
        writing = asyncio.create_task(write())
        for _ in range(turns):
            await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await node.submit()


async def test_a_connection_that_is_in_use_elsewhere_is_weather_and_costs_no_result(
    sqlite_scratch: databases.Scratch,
) -> None:
    node = Node(await sqlite_scratch.open())
    await node.submit()
    claim = await node.claim_one()
    connection = node.store.db._writer  # type: ignore[attr-defined]
    begun, loop = asyncio.Event(), asyncio.get_running_loop()

    def begin() -> int:
        loop.call_soon_threadsafe(begun.set)
        return 0

    connection.create_scalar_function("begun", begin, 0)
    numbers = "select begun() union all select x + 1 from c where x < 2000000"
    lengthy = f"with recursive c (x) as ({numbers}) select count(*) from c"
    busy = asyncio.create_task(asyncio.to_thread(connection.execute, lengthy))
    await begun.wait()
    with pytest.raises(errors.StoreUnavailable, match="in another thread"):
        await node.finish(claim)
    await busy
    assert await node.finish(claim)
    assert await node.state(claim.id) == "succeeded"


_FAIL_WRITES = """
    import asyncio, json, resource, signal, sys
    from pathlib import Path
    from greenroom import errors
    from greenroom.store import store
    from greenroom.testing.fakes import FakeClock
    from greenroom.testing.store_contract import new_task

    async def main(path):
        opened = store.open(f"sqlite:///{path}", clock=FakeClock(), owner="node-1")
        await opened.start()
        said = {"stored": [], "refused": [], "read": [], "after": []}
        first = opened.db._writer
        limit = Path(path + "-wal").stat().st_size + 200_000
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
        for number in range(60):
            task = new_task(id=f"t{number}", input=b'"' + b"x" * 8000 + b'"')
            try:
                await opened.tasks.submit(task)
                said["stored"].append(task.id)
            except errors.StoreUnavailable:
                said["refused"].append(task.id)
                if len(said["refused"]) == 3:
                    said["read"] = [task.id for task in await opened.tasks.list(tenant="acme", limit=200)]
                    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        said["reopened"] = opened.db._writer is not first
        said["integrity"] = [row[0] for row in await opened.db.read("pragma integrity_check", {})]
        await opened.close()
        print(json.dumps(said))

    asyncio.run(main(sys.argv[1]))
"""


async def test_a_disk_that_fails_writes_never_acknowledges_and_recovers_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "greenroom.db"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(_FAIL_WRITES), str(path), stdout=subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(child.communicate(), 60)
    said = json.loads(output)
    assert len(said["refused"]) >= 3
    assert said["reopened"]
    assert said["integrity"] == ["ok"]
    assert set(said["read"]) <= set(said["stored"])
    async with databases.sqlite(tmp_path) as scratch:
        rows = {task.id for task in await (await scratch.open()).tasks.list(tenant="acme", limit=200)}
    assert set(said["stored"]) <= rows
    assert "t59" in said["stored"]


async def test_a_killed_process_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    script = """
        import asyncio, sys
        from greenroom.store import store
        from greenroom.testing.fakes import FakeClock
        from greenroom.testing.store_contract import new_task

        async def main(path):
            opened = store.open(f"sqlite:///{path}", clock=FakeClock(), owner="node-1")
            await opened.start()
            for number in range(1_000_000):
                print((await opened.tasks.submit(new_task(id=f"t{number}"))).id, flush=True)

        asyncio.run(main(sys.argv[1]))
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "greenroom.db"), stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    acknowledged = [(await child.stdout.readline()).strip().decode() for _ in range(100)]
    child.kill()
    acknowledged += (await child.stdout.read()).decode().split("\n")[:-1]
    await child.wait()
    async with databases.sqlite(tmp_path) as scratch:
        opened = await scratch.open()
        (count,) = (await opened.tasks.open_counts()).values()
        for id in acknowledged[-3:]:
            await opened.tasks.get(id, tenant="acme")
    assert len(acknowledged) <= count <= len(acknowledged) + 1


def test_only_known_databases_are_opened() -> None:
    with pytest.raises(errors.StartRefused, match="mysql"):
        store.open("mysql://localhost/x", clock=FakeClock(), owner="node-1")
