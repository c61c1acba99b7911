"""Power loss: what was acknowledged is there when the machine comes back, whatever the disk had not been told to keep.

A VFS records each write and each sync of a store's files. At a random moment the power goes: of the writes after the
last sync of a file, a random part has reached the disk. The store is opened on what is left.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from greenroom.testing import databases
from greenroom.testing.store_contract import TENANT, Node

CUTS = 200
Write = tuple[int, bytes | None]  # where and what; None: truncated to there


class Recording(apsw.VFS):
    def __init__(self, name: str) -> None:
        self.log: list[tuple[str, Write | None]] = []  # file and write; None: a sync
        self._usual = apsw.vfs_names()[0]
        super().__init__(name, self._usual, makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _File(self._usual, name, flags, self.log)


class _File(apsw.VFSFile):
    def __init__(self, usual: str, name: Any, flags: list[int], log: list[tuple[str, Write | None]]) -> None:
        super().__init__(usual, name, flags)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name, self._log = Path(path or "temporary").name, log

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        super().xWrite(data, offset)
        self._log.append((self._name, (offset, bytes(data))))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        super().xTruncate(newsize)
        self._log.append((self._name, (newsize, None)))

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        self._log.append((self._name, None))


@contextlib.contextmanager
def _recorded() -> Iterator[Recording]:
    usual = apsw.vfs_names()[0]
    recording = Recording("recording")
    try:
        yield recording
    finally:
        recording.unregister()
    assert apsw.vfs_names()[0] == usual


def _left(log: list[tuple[str, Write | None]], dice: random.Random) -> dict[str, bytes]:
    """Return what of the files the disk has, if the power goes at the end of *log*."""
    kept: dict[str, bytearray] = {}
    unsynced: dict[str, list[Write]] = {}
    for name, write in log:
        if write is not None:
            unsynced.setdefault(name, []).append(write)
            continue
        for each in unsynced.pop(name, []):
            _apply(kept.setdefault(name, bytearray()), each)
    share = dice.random()
    for name, writes in unsynced.items():
        for each in writes:
            if dice.random() < share:
                _apply(kept.setdefault(name, bytearray()), each)
    return {name: bytes(content) for name, content in kept.items()}


def _apply(content: bytearray, write: Write) -> None:
    offset, data = write
    if data is None:
        del content[offset:]
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


@pytest.mark.slow
async def test_what_was_acknowledged_survives_the_loss_of_power(tmp_path: Path) -> None:
    dice = random.Random(7)
    acknowledged: list[tuple[int, str, str]] = []  # how long the log was, the task, and its state
    (tmp_path / "before").mkdir()
    with _recorded() as vfs:
        async with databases.sqlite(tmp_path / "before") as scratch:
            node = Node(await scratch.open())
            node.store.db._writer.pragma("wal_autocheckpoint", 20)  # type: ignore[attr-defined] # so that there are some
            first = len(vfs.log)
            for number in range(60):
                id = await node.submit(session=f"s{number % 3}")
                acknowledged.append((len(vfs.log), id, "queued"))
                if number % 2:
                    claim = await node.claim_one()
                    assert await node.finish(claim)
                    acknowledged.append((len(vfs.log), claim.id, "succeeded"))
            log = list(vfs.log)
    assert {name for name, write in log[first:] if write is None} == {"greenroom.db", "greenroom.db-wal"}
    for number in range(CUTS):
        cut = dice.randrange(first, len(log))
        folder = tmp_path / f"after-{number}"
        folder.mkdir()
        for name, content in _left(log[:cut], dice).items():
            if not name.endswith("-journal"):  # of the moment before the file had a WAL
                (folder / name).write_bytes(content)
        async with databases.sqlite(folder) as scratch:
            again = await scratch.open("node-2")
            states = {id: state for at, id, state in acknowledged if at <= cut}
            for id, state in states.items():
                found = (await again.tasks.get(id, tenant=TENANT)).state
                assert found in {state, "running", "succeeded"}, (number, cut, id)
                assert state != "succeeded" or found == "succeeded"
            async with again.db.transaction() as tx:
                assert [row[0] for row in await tx.fetch("pragma integrity_check", {})] == ["ok"]
