"""Rules over signals, on a real store: what fires, what a restart takes up, and what nobody can tell."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from greenroom import errors, telemetry
from greenroom.control.monitor import LOOK_EVERY_S, Monitor
from greenroom.core import history
from greenroom.core.signals import Rule, Signal
from greenroom.store import database
from greenroom.store.history import Part
from greenroom.store.recovery import NewFailure, Noted

if TYPE_CHECKING:
    from control.conftest import Loops


FAILING = Rule("failure_rate", Signal.FAILURE_PCT, above=50.0, min_volume=10, for_s=30.0, keep_s=60.0)
WAITING = Rule("queue_age", Signal.OLDEST_WAIT_S, above=100.0, for_s=0.0, keep_s=0.0)
ID = "rule:failure_rate:agent"


class World:
    def __init__(self, loops: Loops, rules: Sequence[Rule], gauges: dict[Signal, float | None] | None = None) -> None:
        self.loops, self.store, self.rules = loops, loops.store, rules
        self.gauges = gauges or {}
        self.parts = itertools.count()
        self.restart()

    def restart(self, *rules: Rule) -> None:
        """Let a monitor go on that knows nothing but what the store does."""
        self.rules = rules or self.rules
        read = {signal: lambda signal=signal: self.gauges[signal] for signal in self.gauges}
        self.monitor = Monitor(self.store, self.loops.scratch.clock, self.loops.told, self.rules, gauges=read)

    async def ran(self, *, ok: int = 0, failed: int = 0, agent: str = "agent") -> None:
        """Write into the history that so many attempts have ended in this minute."""
        counts = history.Counts()
        counts.end("succeeded", "ok", ok)
        counts.end("failed", "agent_error", failed)
        now_us = database.microseconds(self.loops.scratch.clock.now())
        at = history.begin_us(now_us, history.MINUTE_S)
        await self.store.history.put(
            [Part(agent, history.MINUTE_S, at, f"part-{next(self.parts)}", history.encode(counts))]
        )

    async def look(self, *, after_s: float = 0.0) -> dict[str, str]:
        """Let that time pass, look, and return the states of the alerts."""
        if after_s:
            await self.loops.scratch.advance(after_s)
        assert await self.monitor.step() == LOOK_EVERY_S
        return {row.id: row.state for row in await self.store.alerts.list()}

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(fact.alert, fact.state) for fact in self.loops.facts if isinstance(fact, telemetry.AlertChanged)]


async def world(loops: Loops, *rules: Rule, **gauges: float | None) -> World:
    await loops.deploy()
    return World(loops, rules, {Signal(name): value for name, value in gauges.items()})


async def test_a_failing_agent_is_an_alert_after_a_while_and_until_it_has_been_well_for_a_while(loops: Loops) -> None:
    seen = await world(loops, FAILING)
    await seen.ran(failed=9)
    assert await seen.look() == {}  # too few to say anything
    await seen.ran(ok=4, failed=1)
    assert await seen.look(after_s=1) == {ID: "pending"}
    assert seen.told == []
    assert await seen.look(after_s=15) == {ID: "pending"}
    assert await seen.look(after_s=15) == {ID: "firing"}
    (alert,) = await seen.store.alerts.list()
    assert (alert.kind, alert.agent, alert.severity) == ("failure_rate", "agent", "warning")
    assert alert.reason.startswith("the percentage of attempts that fail of agent is 71.43 over 300 s (14 seen)")
    assert await seen.look(after_s=15) == {ID: "firing"}
    assert (await seen.store.alerts.get(ID)).count == 1  # it is the same one, and not raised again
    await seen.store.alerts.acknowledge(ID, by="ann")
    assert await seen.look(after_s=400) == {ID: "acknowledged"}
    assert await seen.look(after_s=59) == {ID: "acknowledged"}
    assert await seen.look(after_s=1) == {ID: "resolved"}
    assert seen.told == [(ID, "firing"), (ID, "resolved")]


async def test_a_restart_takes_up_what_is_pending_and_what_fires(loops: Loops) -> None:
    seen = await world(loops, FAILING)
    await seen.ran(failed=20)
    assert await seen.look() == {ID: "pending"}
    seen.restart()
    assert await seen.look(after_s=29) == {ID: "pending"}
    seen.restart()
    assert await seen.look(after_s=1) == {ID: "firing"}  # 30 s after it was first seen
    await seen.store.alerts.acknowledge(ID, by="ann")
    seen.restart()
    assert await seen.look(after_s=1) == {ID: "acknowledged"}
    seen.restart()
    assert await seen.look(after_s=400) == {ID: "acknowledged"}
    assert await seen.look(after_s=60) == {ID: "resolved"}
    assert seen.told == [(ID, "firing"), (ID, "resolved")]


async def test_what_cannot_be_read_neither_fires_nor_resolves(loops: Loops, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = await world(loops, FAILING, WAITING)
    await seen.ran(failed=20)
    assert await seen.look() == {ID: "pending"}

    async def fails(*_: object, **__: object) -> Any:
        raise errors.StoreUnavailable("a test said so")

    with monkeypatch.context() as patch:
        patch.setattr(seen.store.history, "recent", fails)
        patch.setattr(seen.store.tasks, "waiting", fails)
        assert await seen.look(after_s=40) == {ID: "pending"}
    assert await seen.look() == {ID: "firing"}
    with monkeypatch.context() as patch:
        patch.setattr(seen.store.history, "recent", fails)
        assert await seen.look(after_s=9_999) == {ID: "firing"}
        assert await seen.look(after_s=9_999) == {ID: "firing"}


async def test_where_the_store_takes_nothing_no_change_is_lost_and_none_is_told(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = await world(loops, FAILING)
    await seen.ran(failed=20)
    await seen.look()

    async def fails(_: object) -> None:
        raise errors.StoreUnavailable("a test said so")

    with monkeypatch.context() as patch:
        patch.setattr(seen.store.alerts, "tell_all", fails)
        with pytest.raises(errors.StoreUnavailable):
            await seen.look(after_s=30)
    assert seen.told == []
    assert await seen.look() == {ID: "firing"}
    assert seen.told == [(ID, "firing")]


async def test_what_was_stored_although_nobody_knew_is_not_raised_again(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = await world(loops, FAILING)
    await seen.ran(failed=20)
    await seen.look()
    stores = seen.store.alerts.tell_all

    async def stored(changes: Any) -> None:
        await stores(changes)
        raise errors.StoreUnavailable("nobody knows")

    with monkeypatch.context() as patch:
        patch.setattr(seen.store.alerts, "tell_all", stored)
        with pytest.raises(errors.StoreUnavailable):
            await seen.look(after_s=30)
    assert await seen.look() == {ID: "firing"}
    assert (await seen.store.alerts.get(ID)).count == 1


async def test_a_rule_that_is_gone_and_an_agent_that_is_gone_leave_no_alert(loops: Loops) -> None:
    other = Rule("other", Signal.ATTEMPTS, above=1.0, for_s=0.0)
    seen = await world(loops, other, FAILING)
    await seen.ran(failed=20)
    assert await seen.look() == {"rule:other:agent": "firing", ID: "pending"}
    seen.restart(FAILING)
    assert await seen.look() == {"rule:other:agent": "resolved", ID: "pending"}
    seen.restart(other)
    assert await seen.look() == {"rule:other:agent": "firing"}
    seen.restart(Rule("other", Signal.ATTEMPTS, except_agents=("ag*",), above=1.0, for_s=0.0))
    assert await seen.look() == {"rule:other:agent": "resolved"}


async def test_the_queue_the_replicas_and_those_that_died_are_looked_at(loops: Loops) -> None:
    few = Rule("few", Signal.REPLICAS, below=1.0, for_s=0.0, keep_s=0.0)
    dying = Rule("restarts", Signal.RESTARTS, above=1.0, window_s=60.0, for_s=0.0, keep_s=0.0)
    full = Rule("full", Signal.QUEUED, above=0.0, for_s=0.0, keep_s=0.0)
    seen = await world(loops, few, dying, full, WAITING)
    assert await seen.look() == {}
    for number in range(2):
        failure = NewFailure(f"r-{number}", "agent", 1, "node-1", "crashed", "why", "restart")
        await seen.store.recovery.note(Noted("agent", b"{}", (failure,)))
    assert await seen.look() == {"rule:restarts:agent": "firing"}
    await loops.deploy("sleeping", replicas=1)
    for _ in range(4):
        await loops.submit("sleeping")
    found = await seen.look(after_s=101)
    assert found["rule:restarts:agent"] == "resolved"
    assert {id for id, state in found.items() if state == "firing"} == {"rule:full:sleeping", "rule:queue_age:sleeping"}


async def test_a_gauge_of_the_node_is_an_alert_of_no_agent_and_unknown_where_it_does_not_say(loops: Loops) -> None:
    disk = Rule("disk_free", Signal.DISK_FREE_PCT, below=10.0, for_s=0.0, keep_s=0.0)
    seen = await world(loops, disk, Rule("backup", Signal.BACKUP_OVERDUE_S, above=1.0, for_s=0.0), disk_free_pct=5.0)
    assert await seen.look() == {"rule:disk_free": "firing"}
    assert (await seen.store.alerts.get("rule:disk_free")).agent is None
    seen.gauges[Signal.DISK_FREE_PCT] = None
    assert await seen.look() == {"rule:disk_free": "firing"}
    seen.gauges[Signal.DISK_FREE_PCT] = 10.0
    assert await seen.look() == {"rule:disk_free": "resolved"}


async def test_many_agents_do_not_hold_up_the_loop_and_are_one_write(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = await world(loops, Rule("idle", Signal.ATTEMPTS, below=1.0, for_s=0.0))
    names = [f"agent-{number}" for number in range(300)]

    async def many() -> Any:
        return dict.fromkeys(names)

    monkeypatch.setattr(seen.store.directory, "refresh", many)
    writes: list[int] = []
    write_all = seen.store.commits.write_all

    def counted(operation: Any, items: Any) -> asyncio.Future[list[Any]]:
        writes.append(len(items))
        return write_all(operation, items)

    monkeypatch.setattr(seen.store.commits, "write_all", counted)
    await seen.monitor.step()
    assert writes == [300]
    assert len(await seen.store.alerts.open()) == 300
    await seen.monitor.step()
    assert writes == [300]
