"""The notifier's loop: who is told when, and who waits for whom."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from greenroom import errors, telemetry
from greenroom.control.notifier import Notifier, Receiver
from greenroom.core import notifications
from greenroom.core.notifications import Route, Told, Type
from greenroom.security.outgoing import Answer
from greenroom.store.alerts import Raised, Resolved
from greenroom.store.store import Store
from greenroom.testing import databases

TAKEN = Answer(200)


@dataclass
class World:
    """A store, and receivers that answer as they are told."""

    scratch: databases.Scratch
    store: Store
    told: dict[str, list[list[tuple[str, str]]]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[str, Answer] = field(default_factory=dict)
    held: dict[str, asyncio.Event] = field(default_factory=dict)  # receivers that answer when it is set
    facts: list[Any] = field(default_factory=list)

    def notifier(self, *names: str, type: Type = "webhook") -> Notifier:
        heard = telemetry.Telemetry()
        heard.subscribe(self.facts.append)
        receivers = [self._receiver(Route(name, type)) for name in names]
        return Notifier(self.store, self.scratch.clock, heard, receivers, group_wait_s=10, jitter=lambda: 1.0)

    def _receiver(self, route: Route) -> Receiver:
        async def send(told: Sequence[Told]) -> Answer:
            self.told[route.name].append([(each.id, each.event) for each in told])
            if (gate := self.held.get(route.name)) is not None:
                await gate.wait()
            return self.answers.get(route.name, TAKEN)

        return Receiver(route, send)

    async def fire(self, *ids: str) -> None:
        for id in ids:
            await self.store.alerts.tell(Raised(id, "slow", None, "warning", "it is slow"))

    async def advance(self, delay_s: float, notifier: Notifier) -> None:
        await self.scratch.advance(delay_s)
        await notifier.step()
        await notifier.idle()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with databases.sqlite(tmp_path) as scratch:
        store = await scratch.open()
        await scratch.stop_clock()
        yield World(scratch, store)


async def test_an_alert_is_told_once_then_after_a_while_again_and_its_end(world: World) -> None:
    notifier = world.notifier("people")
    await world.fire("a")
    await notifier.step()
    await world.advance(10, notifier)
    await world.advance(3600, notifier)
    assert world.told["people"] == [[("a", "firing")]]
    await world.advance(3 * 3600, notifier)
    await world.store.alerts.tell(Resolved("a"))
    await notifier.step()
    await world.advance(0, notifier)
    assert world.told["people"] == [[("a", "firing")], [("a", "firing")], [("a", "resolved")]]


async def test_alertmanager_hears_every_minute_that_it_fires(world: World) -> None:
    notifier = world.notifier("am", type="alertmanager")
    await world.fire("a")
    await notifier.step()
    for _ in range(3):
        await world.advance(notifications.RESEND_S, notifier)
    assert world.told["am"] == [[("a", "firing")]] * 3


async def test_a_receiver_that_hangs_holds_up_no_other_one(world: World) -> None:
    notifier = world.notifier("hanging", "well")
    world.held["hanging"] = asyncio.Event()
    await world.fire("a")
    await notifier.step()
    await world.scratch.advance(10)
    await notifier.step()
    await world.fire("b")
    await notifier.step()
    await world.scratch.advance(10)
    await notifier.step()
    await notifier.step()
    for _ in range(20):
        await asyncio.sleep(0)
    assert world.told["well"] == [[("a", "firing")], [("b", "firing")]]
    assert world.told["hanging"] == [[("a", "firing")]]
    world.held.pop("hanging").set()
    await notifier.idle()
    await world.advance(0, notifier)
    assert world.told["hanging"] == [[("a", "firing")], [("b", "firing")]]


async def test_a_receiver_that_is_down_is_tried_ever_more_seldom_and_said_once(world: World) -> None:
    notifier = world.notifier("down")
    world.answers["down"] = Answer(error="no connection")
    await world.fire("a")
    await notifier.step()
    tries: list[int] = []
    for second in range(100):
        await world.advance(1, notifier)
        if len(world.told["down"]) > len(tries):
            tries.append(second + 1)
    assert tries == [10, 15, 25, 45, 85]
    world.answers.clear()
    await world.advance(100, notifier)
    changes = [(fact.state, fact.reason) for fact in world.facts if isinstance(fact, telemetry.ReceiverChanged)]
    assert changes == [("failing", "no connection"), ("taking", "")]
    outcomes = [fact.outcome for fact in world.facts if isinstance(fact, telemetry.NotificationTried)]
    assert outcomes == ["retried"] * 5 + ["taken"]


async def test_who_asks_for_time_gets_it(world: World) -> None:
    notifier = world.notifier("busy")
    world.answers["busy"] = Answer(429, retry_after_s=300)
    await world.fire("a")
    await notifier.step()
    await world.advance(10, notifier)
    await world.advance(299, notifier)
    assert len(world.told["busy"]) == 1
    await world.advance(1, notifier)
    assert len(world.told["busy"]) == 2


async def test_after_a_day_it_is_given_up_and_begun_anew_later(world: World) -> None:
    notifier = world.notifier("gone")
    world.answers["gone"] = Answer(410)
    await world.fire("a")
    await notifier.step()
    for _ in range(30):
        await world.advance(3600, notifier)
    outcomes = [fact.outcome for fact in world.facts if isinstance(fact, telemetry.NotificationTried)]
    assert outcomes.count("given_up") == 1
    assert outcomes[-1] == "retried"


async def test_another_life_of_the_node_tells_what_was_not_told(world: World) -> None:
    first = world.notifier("people")
    world.held["people"] = asyncio.Event()
    await world.fire("a")
    await first.step()
    await world.scratch.advance(10)
    await first.step()
    await asyncio.sleep(0)
    await first.close()
    world.held.clear()
    second = world.notifier("people")
    await world.advance(41, second)
    assert world.told["people"] == [[("a", "firing")], [("a", "firing")]]


async def test_what_was_not_told_to_anybody_is_not_told_to_who_comes_later(world: World) -> None:
    await world.fire("a")
    await world.notifier().step()
    late = world.notifier("late")
    await late.step()
    await world.advance(100, late)
    assert world.told["late"] == []


async def test_a_test_alert_goes_out_at_once(world: World) -> None:
    notifier = world.notifier("people")
    assert await notifier.test("people") == TAKEN
    assert world.told["people"] == [[("test", "firing")]]
    with pytest.raises(errors.NotFound, match="there are: people"):
        await notifier.test("nobody")
