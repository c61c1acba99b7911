"""The outbox of alerts, on both databases: who is told what, once for each change, whatever dies meanwhile."""

from __future__ import annotations

import pytest

from greenroom.core.notifications import Route
from greenroom.store import notifications
from greenroom.store.alerts import NewSilence, Pending, Raised, Resolved
from greenroom.store.notifications import Claimed, Outcome
from greenroom.testing import databases
from greenroom.testing.store_contract import Node

ALL = Route("all", "webhook")
CRITICAL = Route("pager", "webhook", severities=("critical",), acknowledged=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def scratch(request: pytest.FixtureRequest) -> databases.Scratch:
    name = "sqlite_scratch" if request.param == "sqlite" else "postgres_scratch"
    found: databases.Scratch = request.getfixturevalue(name)
    return found


@pytest.fixture
async def node(scratch: databases.Scratch) -> Node:
    node = Node(await scratch.open())
    await scratch.stop_clock()
    return node


def alert(id: str, *, kind: str = "slow", agent: str | None = "echo", severity: str = "warning") -> Raised:
    return Raised(id, kind, agent, severity, f"{id} is slow")


async def say(node: Node, *changes: Raised | Pending | Resolved, routes: tuple[Route, ...] = (ALL, CRITICAL)) -> None:
    for change in changes:
        await node.store.alerts.tell(change)
    await node.store.notifications.route(routes, wait_s=10)


async def take(node: Node, receiver: str = "all", *, again_us: int | None = None) -> Claimed:
    """Claim, and let the receiver have it."""
    claimed = await node.store.notifications.claim(receiver)
    delays = tuple(again_us for _ in claimed.items)
    await node.store.notifications.note(Outcome(receiver, claimed.items, delays, True, False, 200, None))
    return claimed


def told(claimed: Claimed) -> list[tuple[str, str]]:
    return [(item.told.id, item.told.event) for item in claimed.items]


async def test_what_fires_together_is_told_together_after_a_while(node: Node, scratch: databases.Scratch) -> None:
    await say(node, alert("a"), alert("b"), alert("c", agent=None), alert("d", kind="queue"))
    assert told(await node.store.notifications.claim("all")) == []
    await scratch.advance(10)
    groups = [told(await take(node)) for _ in range(4)]
    assert groups == [[("a", "firing"), ("b", "firing")], [("c", "firing")], [("d", "firing")], []]


async def test_an_alert_that_fires_again_and_again_is_told_once(node: Node, scratch: databases.Scratch) -> None:
    await say(node, alert("a"), alert("a"))
    await scratch.advance(10)
    assert told(await take(node)) == [("a", "firing")]
    await say(node, alert("a"))
    await scratch.advance(10_000)
    assert told(await take(node)) == []


async def test_the_end_is_told_to_who_knows_of_the_beginning_and_nothing_stays(
    node: Node, scratch: databases.Scratch
) -> None:
    await say(node, alert("a", severity="critical"), alert("b"), Resolved("b"))
    await scratch.advance(10)
    assert told(await take(node)) == [("a", "firing")]
    assert told(await take(node, "pager")) == [("a", "firing")]
    await say(node, Resolved("a"), Resolved("b"), Resolved("nothing"))
    for receiver in ("all", "pager"):
        claimed = await take(node, receiver)
        assert told(claimed) == [("a", "resolved")]
        assert claimed.items[0].told.ended_at == claimed.now_us
    assert await node.store.db.lookup("select * from notification", {}) == []


async def test_what_is_over_before_it_is_told_is_told_to_nobody(node: Node, scratch: databases.Scratch) -> None:
    await say(node, alert("a"))
    await say(node, Resolved("a"))
    await scratch.advance(10)
    assert told(await take(node)) == []


async def test_a_receiver_gets_what_it_wants(node: Node, scratch: databases.Scratch) -> None:
    await say(node, alert("a"), alert("b", severity="critical"))
    await scratch.advance(10)
    assert told(await take(node, "pager")) == [("b", "firing")]
    await node.store.alerts.acknowledge("b", by="ann")
    await node.store.alerts.acknowledge("b", by="bob")
    await say(node)
    claimed = await take(node, "pager")
    assert told(claimed) == [("b", "acknowledged")]
    assert claimed.items[0].told.by == "ann"
    assert told(await take(node, "pager")) == []


async def test_who_took_an_alert_ends_that_others_are_told_again(node: Node, scratch: databases.Scratch) -> None:
    await say(node, alert("a"))
    await scratch.advance(10)
    first = await take(node, again_us=60_000_000)
    await scratch.advance(60)
    again = await take(node, again_us=60_000_000)
    assert told(again) == [("a", "firing")]
    assert again.items[0].told.owed_at > first.items[0].told.owed_at
    await node.store.alerts.acknowledge("a", by="ann")
    await say(node)
    await scratch.advance(3600)
    assert told(await take(node)) == []


def silence(kind: str, for_s: float) -> NewSilence:
    return NewSilence(alert=None, kind=kind, agent=None, severity=None, comment="", created_by="ann", for_s=for_s)


async def test_what_is_silenced_is_told_when_the_silence_is_over_if_it_still_fires(
    node: Node, scratch: databases.Scratch
) -> None:
    await node.store.alerts.silence(silence("slow", 90))
    await say(node, alert("a"), alert("b"), alert("c", kind="queue"))
    await scratch.advance(10)
    assert told(await take(node)) == [("c", "firing")]
    assert told(await take(node)) == []
    await say(node, Resolved("b"))
    await scratch.advance(60)
    assert told(await take(node)) == []
    await scratch.advance(21)
    assert told(await take(node)) == [("a", "firing")]
    assert told(await take(node)) == []


async def test_who_knows_of_a_silenced_alert_is_told_of_its_end_and_of_nothing_else(
    node: Node, scratch: databases.Scratch
) -> None:
    await say(node, alert("a"))
    await scratch.advance(10)
    await take(node, again_us=60_000_000)
    made = await node.store.alerts.silence(silence("s*", 3600))
    await scratch.advance(120)
    assert told(await take(node)) == []
    await node.store.alerts.unsilence(made.id)
    await scratch.advance(60)
    assert told(await take(node)) == [("a", "firing")]
    await node.store.alerts.silence(silence("s*", 3600))
    await say(node, Resolved("a"))
    assert told(await take(node)) == [("a", "resolved")]


async def test_nobody_is_told_of_what_was_only_pending(node: Node, scratch: databases.Scratch) -> None:
    pending = Pending("a", "slow", "echo", "warning", "a is slow")
    await say(node, pending, Resolved("a"), pending)
    await scratch.advance(10)
    assert told(await take(node)) == []
    await say(node, alert("a"))
    await scratch.advance(10)
    assert told(await take(node)) == [("a", "firing")]
    await say(node, Resolved("a"), pending, Resolved("a"))
    assert told(await take(node)) == [("a", "resolved")]


async def test_what_a_dead_node_was_sending_is_claimed_again(node: Node, scratch: databases.Scratch) -> None:
    await say(node, alert("a"))
    await scratch.advance(10)
    first = await node.store.notifications.claim("all")
    assert told(await node.store.notifications.claim("all")) == []
    await scratch.advance(41)
    second = await node.store.notifications.claim("all")
    assert told(second) == [("a", "firing")]
    # Who was taken for dead says nothing of the try that came after.
    await node.store.notifications.note(Outcome("all", first.items, (None,), True, False, 200, None))
    await scratch.advance(41)
    assert told(await node.store.notifications.claim("all")) == [("a", "firing")]


async def test_what_changes_while_it_is_sent_is_told_too(node: Node, scratch: databases.Scratch) -> None:
    await say(node, alert("a"))
    await scratch.advance(10)
    sending = await node.store.notifications.claim("all")
    await say(node, Resolved("a"))
    await node.store.notifications.note(Outcome("all", sending.items, (None,), True, False, 200, None))
    assert told(await take(node)) == [("a", "resolved")]


async def test_the_state_of_a_receiver_tells_failures_and_what_waits(node: Node, scratch: databases.Scratch) -> None:
    store = node.store.notifications
    await say(node, alert("a"), alert("b"))
    await scratch.advance(10)
    now_us = 0
    for _ in range(2):
        claimed = await store.claim("all")
        await store.note(Outcome("all", claimed.items, (1, 1), False, False, 500, None))
        await scratch.advance(1)
        now_us = claimed.now_us + 2_000_000
    state = (await store.states(now_us=now_us))["all"]
    assert (state.failures, state.waiting, state.status, state.told_at) == (2, 2, 500, None)
    await take(node, again_us=60_000_000)
    state = (await store.states(now_us=now_us))["all"]
    assert (state.failures, state.waiting, state.status, state.failing_since) == (0, 0, 200, None)
    await store.keep(["pager"])
    assert await store.states(now_us=now_us) == {}


async def test_where_nobody_is_told_nothing_is_kept(node: Node) -> None:
    await say(node, *(alert(f"a{number}") for number in range(3)), routes=())
    assert await node.store.db.lookup("select * from notification", {}) == []


async def test_who_wants_what_is_critical_is_told_of_what_becomes_so(node: Node, scratch: databases.Scratch) -> None:
    await say(node, alert("a"))
    await scratch.advance(10)
    await take(node)
    assert told(await take(node, "pager")) == []
    await say(node, alert("a", kind="stopped", severity="critical"))
    await scratch.advance(10)
    for receiver in ("all", "pager"):
        claimed = await take(node, receiver)
        assert [(item.told.kind, item.told.severity, item.told.event) for item in claimed.items] == [
            ("stopped", "critical", "firing")
        ]


async def test_a_silence_holds_however_many_alerts_it_covers(
    node: Node, scratch: databases.Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "_DUE", notifications._DUE.replace(str(notifications.MAX_ROUTED), "2"))
    await node.store.alerts.silence(silence("slow", 3600))
    await say(node, *(alert(f"a{number}") for number in range(5)), alert("b", kind="queue"))
    await scratch.advance(10)
    assert told(await take(node)) == [("b", "firing")]
    assert told(await take(node)) == []


async def test_what_was_noted_while_nobody_looked_is_not_put_off_again(node: Node, scratch: databases.Scratch) -> None:
    await node.store.alerts.tell(alert("a"))
    await scratch.advance(4)
    await say(node)
    await scratch.advance(6)
    assert told(await take(node)) == [("a", "firing")]


async def test_an_end_is_told_to_who_may_know_though_the_alert_changed_while_it_was_sent(
    node: Node, scratch: databases.Scratch
) -> None:
    await say(node, alert("a"))
    await scratch.advance(10)
    sending = await node.store.notifications.claim("all")
    await say(node, alert("a", severity="critical"))
    await node.store.notifications.note(Outcome("all", sending.items, (None,), True, False, 200, None))
    await say(node, Resolved("a"))
    assert told(await take(node)) == [("a", "resolved")]


async def test_an_alert_that_was_taken_and_is_over_is_told_again_when_it_fires_again(
    node: Node, scratch: databases.Scratch
) -> None:
    await say(node, alert("a"))
    await scratch.advance(10)
    first = await take(node)
    await node.store.alerts.acknowledge("a", by="ann")
    await say(node)
    await say(node, Resolved("a"), alert("a"))
    await scratch.advance(10)
    again = await take(node)
    assert told(again) == [("a", "firing")]
    assert again.items[0].told.by is None
    assert again.items[0].told.begun_at > first.items[0].told.begun_at
