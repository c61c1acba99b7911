"""What the rules find becomes an entry, an alert and what the policy says; never against who could undo it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom import errors, settings, telemetry
from greenroom.control.intrusion import KEEP_FOUND, Intrusion
from greenroom.core.intrusion import QUIET_S
from greenroom.core.measures import Measures
from greenroom.store.audit import Act
from greenroom.store.store import Store
from greenroom.testing import databases


class World:
    def __init__(self, scratch: databases.Scratch, store: Store) -> None:
        self.scratch, self.store = scratch, store
        self.told, self.facts = telemetry.Telemetry(), list[telemetry.Fact]()
        self.told.subscribe(self.facts.append, telemetry.IntrusionFound)
        self.measures, self.revoked, self.spares = Measures(), list[str](), dict[str, str]()

    def intrusion(self, *, is_on: bool = True, **policies: Any) -> Intrusion:
        async def revoke(principal: str) -> bool:
            if principal.startswith("token"):
                return False
            self.revoked.append(principal)
            return True

        return Intrusion(
            self.store,
            self.scratch.clock,
            self.told,
            is_on=is_on,
            policies=settings.Intrusion(**policies),
            measures=self.measures,
            spared=self.spares.get,
            revoke=revoke,
        )

    def probe(self, principal: str = "ann-key") -> None:
        for n in range(20):
            self.told.emit(
                telemetry.RequestRefused(principal, "acme", "192.0.2.7", 403, "forbidden", "DELETE", f"/v1/agents/{n}")
            )

    def guess(self, source: str = "192.0.2.7", key_id: str = "") -> None:
        for _ in range(20):
            self.told.emit(telemetry.CredentialRejected(source, key_id))

    async def acts(self) -> list[tuple[str, str | None]]:
        return [(entry.action, entry.object) for entry in await self.store.audit.after(0)]

    async def alerts(self) -> list[tuple[str, str]]:
        return [(row.severity, row.state) for row in await self.store.alerts.list()]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with databases.sqlite(tmp_path) as scratch:
        store = await scratch.open()
        store.audit.is_on = True
        yield World(scratch, store)


async def test_a_finding_is_an_entry_and_an_alert_that_ends_when_it_is_quiet(world: World) -> None:
    loop = world.intrusion()
    world.probe()
    await loop.step()
    world.probe()
    await loop.step()
    assert await world.acts() == [("intrusion.found", "principal:ann-key")]
    (entry,) = await world.store.audit.after(0)
    found = msgspec.json.decode(entry.detail or "")
    assert (found["rule"], found["policy"]) == ("scope_probing", "alert")
    assert await world.alerts() == [("warning", "firing")]
    world.measures.check("principal:ann-key", world.scratch.clock.monotonic_s())
    assert len(world.facts) == 1
    await world.scratch.advance(QUIET_S)
    await loop.step()
    assert await world.alerts() == [("warning", "resolved")]


async def test_what_is_off_does_nothing_and_the_rates_are_kept(world: World) -> None:
    for loop in (world.intrusion(is_on=False), world.intrusion(scope_probing="off")):
        world.probe()
        await loop.step()
        assert loop.rates()["refused"][0][0] == "ann-key"
    assert await world.acts() == []
    assert await world.alerts() == []


async def test_a_lock_holds_for_its_time_also_over_a_restart_and_on_other_nodes(world: World) -> None:
    loop = world.intrusion(scope_probing="lock", lock_s=60.0)
    world.probe()
    await loop.step()
    assert await world.acts() == [("security.lock", "principal:ann-key"), ("intrusion.found", "principal:ann-key")]
    with pytest.raises(errors.Forbidden):
        world.measures.check("principal:ann-key", world.scratch.clock.monotonic_s())
    world.measures = Measures()
    await world.intrusion(is_on=False).step()  # of the next life
    with pytest.raises(errors.Forbidden):
        world.measures.check("principal:ann-key", world.scratch.clock.monotonic_s())
    await world.scratch.advance(60)
    world.measures.check("principal:ann-key", world.scratch.clock.monotonic_s())
    await world.intrusion(is_on=False).step()
    assert await world.store.measures.all() == []


async def test_a_lock_can_be_ended(world: World) -> None:
    loop = world.intrusion(failed_logins="lock")
    world.guess()
    await loop.step()
    with pytest.raises(errors.Overloaded):
        world.measures.check("source:192.0.2.7", world.scratch.clock.monotonic_s())
    await loop.unlock("source:192.0.2.7")
    assert not world.measures.is_any
    assert (await world.acts())[-1] == ("security.unlock", "source:192.0.2.7")
    with pytest.raises(errors.NotFound):
        await loop.unlock("source:192.0.2.7")


async def test_who_is_slowed_down_is_let_in_now_and_then(world: World) -> None:
    loop = world.intrusion(scope_probing="throttle")
    world.probe()
    await loop.step()
    now_s = world.scratch.clock.monotonic_s()
    world.measures.check("principal:ann-key", now_s)
    with pytest.raises(errors.Overloaded):
        world.measures.check("principal:ann-key", now_s + 1)


async def test_a_key_is_revoked_and_who_has_none_is_locked(world: World) -> None:
    loop = world.intrusion(scope_probing="revoke")
    world.probe()
    world.probe("token-ann")
    await loop.step()
    assert world.revoked == ["ann-key"]
    assert [row.subject for row in await world.store.measures.all()] == ["principal:token-ann"]


@pytest.mark.parametrize("policy", ["throttle", "lock", "revoke"])
async def test_nothing_is_done_to_who_could_undo_it(world: World, policy: str) -> None:
    world.spares["ann-key"] = "it is the last key of an admin"
    loop = world.intrusion(scope_probing=policy)
    world.probe()
    await loop.step()
    assert (world.revoked, await world.store.measures.all()) == ([], [])
    assert await world.alerts() == [("warning", "firing")]
    (entry,) = await world.store.audit.after(0)
    assert "it is the last key of an admin" in (entry.detail or "")


async def test_guessing_at_a_key_does_not_lock_its_owner_out(world: World) -> None:
    loop = world.intrusion(failed_logins="lock")
    for n in range(20):
        world.told.emit(telemetry.CredentialRejected(f"192.0.2.{n}", "a" * 16))
    await loop.step()
    assert await world.acts() == [("intrusion.found", f"key:{'a' * 16}")]
    assert not world.measures.is_any


async def test_what_could_not_be_written_is_written_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = world.intrusion()
    world.probe()

    async def fails(*_: object) -> None:
        raise errors.StoreUnavailable("a test said so")

    with monkeypatch.context() as patch:
        patch.setattr(world.store.audit, "note", fails)
        with pytest.raises(errors.StoreUnavailable):
            await loop.step()
    await loop.step()
    assert await world.acts() == [("intrusion.found", "principal:ann-key")]


async def test_facts_of_others_reach_the_rules(world: World) -> None:
    loop = world.intrusion()
    for n in range(4):
        loop.note_request("far-key", f"198.51.{n}.1")
    for _ in range(3):
        world.told.emit(telemetry.CredentialRejected("192.0.2.9", "", "forged"))
        world.told.emit(telemetry.RequestForged("192.0.2.7", "a webhook to an inner address", "ann-key"))
        world.told.emit(telemetry.AgentBlocked("research", "research-1", "connect to 10.0.0.1"))
    world.told.emit(telemetry.AuditTrouble("chain", "entry 7 was changed"))
    world.told.emit(telemetry.AuditTrouble("stdout", "it takes nothing"))  # no intrusion
    await loop.step()
    assert {(fact.rule, fact.subject) for fact in world.facts if isinstance(fact, telemetry.IntrusionFound)} == {
        ("many_networks", "principal:far-key"),
        ("forged_requests", "source:192.0.2.9"),
        ("forged_requests", "principal:ann-key"),
        ("blocked_agent", "agent:research"),
        ("broken_audit", "node:audit"),
    }


async def test_sudden_load_and_a_clock_that_is_set_back_are_found(world: World) -> None:
    loop = world.intrusion()
    for _ in range(12):
        world.told.emit(telemetry.TaskAccepted("a", 5, "ann-key"))
        await world.scratch.advance(60)
        await loop.step()
    world.told.emit(telemetry.TaskAccepted("a", 400, "ann-key"))
    await loop.step()
    assert [fact.rule for fact in world.facts if isinstance(fact, telemetry.IntrusionFound)] == ["sudden_load"]


async def test_many_sources_are_one_alert(world: World) -> None:
    loop = world.intrusion()
    for n in range(5):
        world.guess(f"192.0.2.{n}")
    await loop.step()
    (alert,) = await world.store.alerts.list()
    assert (alert.id, alert.count) == ("intrusion-failed_logins", 1)
    assert "source:192.0.2.4" in alert.reason
    assert "And 2 more" in alert.reason
    await world.scratch.advance(QUIET_S - 1)
    world.guess("192.0.2.2")
    await loop.step()
    await world.scratch.advance(1)
    await loop.step()
    (alert,) = await world.store.alerts.list()
    assert alert.state == "firing"
    assert "source:192.0.2.4" not in alert.reason
    assert len(await world.acts()) == 5


async def test_requests_between_two_steps_are_bounded(world: World) -> None:
    loop = world.intrusion()
    for n in range(30_000):
        loop.note_request("key", f"2001:db8::{n:x}")
    assert len(loop._seen) <= 10_000


async def test_alerts_of_the_life_before_end_when_it_has_been_quiet(world: World) -> None:
    world_loop = world.intrusion()
    world.probe()
    await world_loop.step()
    again = world.intrusion()
    await again.step()
    assert await world.alerts() == [("warning", "firing")]
    await world.scratch.advance(QUIET_S)
    await again.step()
    assert await world.alerts() == [("warning", "resolved")]


async def test_where_the_log_takes_nothing_it_is_told_all_the_more(world: World) -> None:
    await world.store.audit.note(Act("test", "x"))
    async with world.store.db.transaction() as tx:
        await tx.fetch("delete from audit_head", {})
    loop = world.intrusion(failed_logins="lock")
    world.guess()
    await loop.step()
    await loop.step()
    (found,) = loop.found
    assert found[2] == "nothing was done: the audit log does not take it"
    assert await world.alerts() == [("warning", "firing")]
    assert [fact.rule for fact in world.facts if isinstance(fact, telemetry.IntrusionFound)] == ["failed_logins"]


async def test_no_flood_pushes_out_when_a_rule_has_found_something(world: World) -> None:
    loop = world.intrusion()
    for _ in range(3):
        world.told.emit(telemetry.AgentBlocked("echo", "r-1", "a socket"))
    for n in range(KEEP_FOUND + 1):
        world.guess(f"192.0.2.{n}")
    await loop.step()
    assert loop.found_at_s.keys() == {("blocked_agent", "agent"), ("failed_logins", "source")}
    assert {finding.rule for _, finding, _ in loop.found} == {"failed_logins"}, "the list of them has an end"
