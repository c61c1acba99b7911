"""A store of the first releases, with rows, becomes today's: what was stored is read, goes on, and can be encrypted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from greenroom import settings
from greenroom.security import key_sources
from greenroom.store import dumps, submissions
from greenroom.store.alerts import Raised
from greenroom.store.rows import NewTask
from greenroom.store.store import Store
from greenroom.store.vault import Mode, Vault
from greenroom.testing import databases

FIRST = 8  # the schema before keys had scopes, and before anything was audited, encrypted or told by webhooks


@pytest.fixture(params=["sqlite", "postgresql"])
def scratch(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("sqlite_scratch" if request.param == "sqlite" else "postgres_scratch")


def _task(name: str) -> NewTask:
    input, fingerprint = f'"{name}"'.encode(), b"f" * 16
    id = submissions.new_id()
    return NewTask(id, "acme", "echo", input, "ann", 60_000_000, 3, idempotency_key=name, fingerprint=fingerprint)


async def _turned_back(scratch: databases.Scratch, tmp_path: Path) -> None:
    """Put the rows that are there into a store of the first schema, with the columns that it had."""
    rows: dict[str, list[dict[str, Any]]] = {}
    async with dumps.snapshot(scratch.url) as now:
        for table in now.tables:
            found = [row async for row in now.rows(table)]
            rows[table.name] = [dict(zip(table.columns, row, strict=True)) for row in found]
    for alert in rows["alert"]:
        alert["state"] = "firing"  # also where somebody has acknowledged it
    empty = f"sqlite:///{tmp_path / 'first.db'}"
    async with dumps.loading(empty, schema=FIRST, replace=False, upgrade=False):
        pass
    async with dumps.snapshot(empty) as first:
        assert first.schema == FIRST
        tables = first.tables
    async with dumps.loading(scratch.url, schema=FIRST, replace=True, upgrade=False) as load:
        for table in tables:
            await load.put(table, [tuple(row[name] for name in table.columns) for row in rows[table.name]])
            await load.continue_behind(table)


async def _resealed(store: Store) -> None:
    while await store.resealing.step():
        pass


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "encrypted"])
async def test_a_store_of_the_first_schema_goes_on(
    scratch: databases.Scratch, tmp_path: Path, *, is_encrypted: bool
) -> None:
    before = await scratch.open()
    made = [await before.tasks.submit(_task(name)) for name in ("a", "b", "c")]
    events = await before.tasks.events(await before.tasks.get(made[0].id, tenant="acme"))
    for id in ("new", "taken"):
        await before.alerts.tell(Raised(id, "test", None, "warning", "why"))
    taken = await before.alerts.acknowledge("taken", by="ann")
    await scratch.close()
    await _turned_back(scratch, tmp_path)
    if is_encrypted:
        wanted = settings.Security(encryption_at_rest=True)
        scratch.vault = lambda: Vault(key_sources.named(wanted, folder=tmp_path, data_dir=tmp_path), is_on=True)
    store = await scratch.open()
    store.audit.is_on = True
    if is_encrypted:
        modes = [store.vault.mode]
        await _resealed(store)
        modes.append(store.vault.mode)
        assert modes == [Mode.SEALING, Mode.SEALED]
    for task, name in zip(made, "abc", strict=True):
        assert (await store.tasks.get(task.id, tenant="acme")).input == f'"{name}"'.encode()
    assert await store.tasks.events(await store.tasks.get(made[0].id, tenant="acme")) == events
    assert [(alert.id, alert.state) for alert in await store.alerts.open()] == [
        ("new", "firing"),
        ("taken", "acknowledged"),
    ]
    assert await store.alerts.get("taken") == taken
    again = await store.tasks.submit(_task("a"))
    assert (again.id, again.is_new) == (made[0].id, False), "a repeated request is known by its fingerprint"
    await store.tasks.cancel(made[1].id, tenant="acme")
    assert (await store.tasks.get(made[1].id, tenant="acme")).state == "cancelled"
    assert [entry.action for entry in await store.audit.after(0)] == ["task.cancel"]
