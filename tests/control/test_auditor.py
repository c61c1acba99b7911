"""The auditor signs in time, tells of what was changed, and writes many refusals as few entries."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from greenroom import telemetry
from greenroom.control.auditor import CHECK_EVERY_S, SEAL_EVERY_S, Auditor
from greenroom.security import audit
from greenroom.store.audit import SEAL_MOST, Act
from greenroom.store.store import Store
from greenroom.testing import databases

SIGNER = audit.Signer(b"s" * 32)


class World:
    def __init__(self, scratch: databases.Scratch, store: Store) -> None:
        self.scratch, self.store, self.told = scratch, store, telemetry.Telemetry()
        self.facts: list[telemetry.Fact] = []
        self.told.subscribe(self.facts.append, telemetry.AuditTrouble)
        self.auditor = self.fresh()

    def fresh(self) -> Auditor:
        return Auditor(self.store, self.scratch.clock, self.told, signer=SIGNER, home="default")

    async def after(self, delay_s: float) -> None:
        await self.scratch.advance(delay_s)
        await self.auditor.step()

    async def tamper(self, sql: str) -> None:
        async with self.store.db.transaction() as tx:
            await tx.fetch(sql, {})

    async def alerts(self) -> list[tuple[str, str, str]]:
        return [(row.id, row.severity, row.state) for row in await self.store.alerts.list()]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with databases.sqlite(tmp_path) as scratch:
        store = await scratch.open()
        store.audit.is_on = True
        yield World(scratch, store)


async def test_what_was_appended_is_signed_within_a_minute(world: World) -> None:
    await world.auditor.step()
    await world.store.audit.note(Act("test", "x"))
    await world.after(SEAL_EVERY_S - 1)
    assert await world.store.audit.checkpoints() == []
    await world.after(1)
    (checkpoint,) = await world.store.audit.checkpoints()
    assert (checkpoint.first, checkpoint.last) == (1, 1)


async def test_many_entries_are_signed_at_once(world: World) -> None:
    await world.auditor.step()
    await world.store.audit.note(*(Act("test", str(n)) for n in range(SEAL_MOST)))
    assert world.auditor.wakeup.is_set()
    await world.auditor.step()
    assert len(await world.store.audit.checkpoints()) == 1


@pytest.mark.parametrize(
    "sql",
    [
        "update audit_entry set outcome = 'x' where seq = 3",
        "delete from audit_entry where seq = 3",
        "delete from audit_entry where seq > 8",
        "update audit_checkpoint set root = head",
        "delete from audit_checkpoint",
    ],
)
async def test_what_was_changed_before_the_start_is_told_of(world: World, sql: str) -> None:
    await world.store.audit.note(*(Act("test", str(n)) for n in range(10)))
    await world.auditor.seal()
    await world.tamper(sql)
    world.auditor = world.fresh()
    await world.auditor.step()
    assert await world.alerts() == [("audit-broken", "critical", "firing")]
    assert world.auditor.trouble is not None
    (fact,) = world.facts
    assert isinstance(fact, telemetry.AuditTrouble)
    assert fact.where == "chain"
    await world.after(CHECK_EVERY_S)
    assert len(world.facts) == 1  # once


@pytest.mark.parametrize(
    "sql", ["update audit_entry set hash = prev where seq = 10", "delete from audit_entry where seq = 10"]
)
async def test_what_is_changed_under_a_running_node_is_told_of_within_a_minute(world: World, sql: str) -> None:
    await world.store.audit.note(*(Act("test", str(n)) for n in range(10)))
    await world.auditor.step()
    assert world.auditor.checked == 10
    await world.tamper(sql)
    await world.after(CHECK_EVERY_S)
    assert await world.alerts() == [("audit-broken", "critical", "firing")]


async def test_a_sound_log_raises_nothing_however_it_grows_and_ends_an_old_alert(world: World) -> None:
    from greenroom.store.alerts import Raised

    await world.store.alerts.tell(Raised("audit-broken", "audit", None, "critical", "in another life"))
    for n in range(30):
        await world.store.audit.note(*(Act("test", str(n)) for n in range(n * 7)))
        await world.after(47)
    await world.after(CHECK_EVERY_S)
    assert await world.alerts() == [("audit-broken", "critical", "resolved")]
    assert world.facts == []
    assert world.auditor.checked == sum(n * 7 for n in range(30))


async def test_ten_thousand_bad_credentials_are_a_handful_of_entries(world: World) -> None:
    for n in range(10_000):
        world.told.emit(telemetry.CredentialRejected(f"192.0.2.{n % 50}", f"{n:016x}"))
        if n % 100 == 0:
            await world.after(1)
    await world.auditor.write(all_of_it=True)
    entries = await world.store.audit.after(0)
    assert len(entries) <= 50 * 3
    assert {entry.action for entry in entries} == {"login.reject"}
    assert sum(msgspec.json.decode(entry.detail or "")["count"] for entry in entries) == 10_000


async def test_who_was_refused_what_is_said(world: World) -> None:
    for path in ("/v1/keys", "/v1/agents/a"):
        refused = telemetry.RequestRefused("ann-key", "acme", "192.0.2.7", 403, "forbidden", "DELETE", path)
        world.told.emit(refused)
    world.told.emit(telemetry.RequestRefused("ann-key", "acme", "192.0.2.7", 404, "not-found", "GET", "/v1/tasks/1"))
    await world.auditor.step()
    (entry,) = await world.store.audit.after(0)
    assert (entry.tenant, entry.actor, entry.source) == ("acme", "ann-key", "192.0.2.7")
    assert (entry.action, entry.object, entry.outcome) == ("request.refuse", "DELETE /v1/keys", "refused")
    assert entry.detail == '{"count":2,"status":403,"why":"forbidden"}'


async def test_where_the_log_is_off_nothing_is_done(world: World) -> None:
    world.store.audit.is_on = False
    world.told.emit(telemetry.CredentialRejected("192.0.2.1"))
    await world.auditor.step()
    await world.auditor.seal()
    world.store.audit.is_on = True
    assert await world.store.audit.after(0) == []


async def test_what_somebody_did_to_a_file_is_an_act(world: World) -> None:
    world.told.emit(telemetry.PolicyChanged("admin, user"))
    world.told.emit(telemetry.PolicyRefused("it is no TOML"))
    world.told.emit(telemetry.CertificateChanged("loaded", "tls.pem", "expires on 2027-01-01"))
    world.told.emit(telemetry.CertificateChanged("expiring", "tls.pem", "on 2027-01-01"))
    await world.auditor.step()
    found = [(entry.action, entry.object, entry.outcome) for entry in await world.store.audit.after(0)]
    assert found == [
        ("policy.reload", "policy", "done"),
        ("policy.reload", "policy", "refused"),
        ("certificate.reload", "tls.pem", "done"),
    ]


async def test_a_damaged_value_is_told_once_however_often_it_is_read(world: World) -> None:
    for _ in range(100):
        world.told.emit(telemetry.ValueDamaged("input of task 1: it was changed"))
    await world.auditor.step()
    (entry,) = await world.store.audit.after(0)
    assert (entry.action, entry.outcome) == ("encryption.damage", "found")
