"""Alerts and silences in the store, on both databases."""

from __future__ import annotations

import pytest

from greenroom import errors
from greenroom.core import alerts as core
from greenroom.core.alerts import State
from greenroom.store import alerts
from greenroom.store import database as databases_
from greenroom.store.alerts import Alerts, NewSilence, Pending, Raised, Resolved
from greenroom.testing import databases

A = Raised("agent-a", "recurring", "a", "warning", "why")
SLOW = Pending("rule:slow:a", "slow", "a", "warning", "slow")
HOUR_S = 3600.0


@pytest.fixture(params=["sqlite", "postgresql"])
def scratch(request: pytest.FixtureRequest) -> databases.Scratch:
    name = "sqlite_scratch" if request.param == "sqlite" else "postgres_scratch"
    found: databases.Scratch = request.getfixturevalue(name)
    return found


@pytest.fixture
async def store(scratch: databases.Scratch) -> Alerts:
    opened = await scratch.open()
    await scratch.stop_clock()
    return opened.alerts


def now_us(scratch: databases.Scratch) -> int:
    return databases_.microseconds(scratch.clock.now())


def silence(**given: str | None) -> NewSilence:
    patterns: dict[str, str | None] = dict.fromkeys(("alert", "kind", "agent", "severity"))
    return NewSilence(**patterns | given, comment="known", created_by="ann", for_s=HOUR_S)


async def test_an_alert_that_is_raised_again_is_the_same_one_until_it_is_resolved(
    store: Alerts, scratch: databases.Scratch
) -> None:
    await store.tell(A)
    first = await store.get(A.id)
    assert (first.state, first.count, first.is_firing) == ("firing", 1, True)
    await scratch.advance(5)
    await store.acknowledge(A.id, by="ann")
    await store.tell(Raised(A.id, "quarantined", "a", "critical", "x" * 10_000))
    again = await store.get(A.id)
    assert (again.state, again.kind, again.severity, again.count) == ("acknowledged", "quarantined", "critical", 2)
    assert (again.first_at, again.acknowledged_by, again.is_firing) == (first.first_at, "ann", True)
    assert len(again.reason) == alerts.MAX_REASON
    await store.tell(Resolved(A.id))
    over = await store.get(A.id)
    assert (over.state, over.acknowledged_by, over.is_firing) == ("resolved", "ann", False)
    await store.tell(A)
    anew = await store.get(A.id)
    assert (anew.state, anew.count, anew.acknowledged_by, anew.resolved_at) == ("firing", 1, None, None)


async def test_the_first_who_acknowledges_stays_and_only_what_fires_can_be(store: Alerts) -> None:
    await store.tell_all([A, SLOW])
    assert (await store.acknowledge(A.id, by="ann")).acknowledged_by == "ann"
    assert (await store.acknowledge(A.id, by="bob")).acknowledged_by == "ann"
    with pytest.raises(errors.Conflict, match="is pending"):
        await store.acknowledge(SLOW.id, by="ann")
    await store.tell(Resolved(A.id))
    with pytest.raises(errors.Conflict, match="is resolved"):
        await store.acknowledge(A.id, by="ann")
    with pytest.raises(errors.NotFound):
        await store.acknowledge("unknown", by="ann")


async def test_what_was_pending_leaves_no_trace_unless_it_fired_before(
    store: Alerts, scratch: databases.Scratch
) -> None:
    await store.tell(SLOW)
    assert [(row.state, row.count) for row in await store.open()] == [("pending", 0)]
    await store.tell(Resolved(SLOW.id))
    assert await store.list() == []
    await store.tell(Raised(SLOW.id, "slow", "a", "warning", "fires"))
    await store.tell(SLOW)  # says nothing of what fires
    assert (await store.get(SLOW.id)).reason == "fires"
    await store.tell(Resolved(SLOW.id))
    fired = await store.get(SLOW.id)
    await scratch.advance(5)
    await store.tell(SLOW)
    pending = await store.get(SLOW.id)
    assert (pending.state, pending.resolved_at, pending.first_at) == ("pending", fired.resolved_at, now_us(scratch))
    await scratch.advance(5)
    await store.tell(Resolved(SLOW.id))
    left = await store.get(SLOW.id)
    assert (left.state, left.resolved_at) == ("resolved", fired.resolved_at)


async def test_a_list_has_firing_ones_first_and_can_be_narrowed(store: Alerts) -> None:
    system = Raised("system", "disk", None, "critical", "full")
    await store.tell_all([A, SLOW, system, Raised("agent-b", "recurring", "b", "warning", "why")])
    await store.acknowledge("system", by="ann")
    await store.tell(Resolved("agent-b"))
    assert [row.id for row in await store.list()] == ["agent-a", "system", SLOW.id, "agent-b"]
    assert [row.id for row in await store.list(state=State.ACKNOWLEDGED)] == ["system"]
    assert [row.id for row in await store.list(agent="a")] == ["agent-a", SLOW.id]
    assert [row.id for row in await store.list(agents=[["b"]])] == ["agent-b"]
    assert [row.id for row in await store.list(state=State.FIRING, agent="a", agents=[["b"]])] == []
    assert [row.id for row in await store.open()] == ["agent-a", SLOW.id, "system"]


async def test_a_move_is_told_where_the_state_is_another_one(store: Alerts) -> None:
    """Whoever delivers hooks in there."""
    seen: list[str | None] = []
    original = alerts.note

    async def noted(*given: object) -> object:
        moved = await original(*given)  # type: ignore[arg-type]
        seen.append(None if moved is None else moved.state)
        return moved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alerts, "note", noted)
        for change in (Resolved(SLOW.id), SLOW, SLOW, Raised(SLOW.id, "slow", "a", "warning", "r")):
            await store.tell(change)
        await store.tell(Raised(SLOW.id, "slow", "a", "warning", "another"))
        await store.acknowledge(SLOW.id, by="ann")
        await store.tell(Resolved(SLOW.id))
        await store.tell(Resolved(SLOW.id))
    assert seen == [None, "pending", None, "firing", None, "acknowledged", "resolved", None]


async def test_resolved_alerts_are_forgotten_after_a_month(store: Alerts, scratch: databases.Scratch) -> None:
    await store.tell(A)
    await store.tell(Resolved(A.id))
    await scratch.advance(alerts.KEEP_US / 1e6 + 1)
    await store.tell(Raised("b", "k", None, "warning", "r"))
    await store.tell(Resolved("b"))
    assert [row.id for row in await store.list()] == ["b"]


async def test_a_silence_is_there_until_it_is_over_or_ended(store: Alerts, scratch: databases.Scratch) -> None:
    made = await store.silence(silence(kind="slow*", agent="a"))
    other = await store.silence(silence(severity="warning"))
    assert made.until_at - made.created_at == HOUR_S * 1e6
    at = now_us(scratch)
    assert await store.silences(now_us=at) == sorted((made, other), key=lambda each: each.id)
    assert await store.silences(now_us=at, agents=[["a"]]) == [made]
    assert await store.get_silence(made.id, now_us=at) == made
    await store.unsilence(other.id)
    for over in (store.unsilence(other.id), store.get_silence(other.id, now_us=at)):
        with pytest.raises(errors.NotFound):
            await over
    await scratch.advance(HOUR_S)
    assert await store.silences(now_us=now_us(scratch)) == []
    with pytest.raises(errors.NotFound):
        await store.unsilence(made.id)


async def test_there_are_only_so_many_silences_and_those_that_are_over_make_room(
    store: Alerts, scratch: databases.Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "_SILENCE", alerts._SILENCE.replace(str(core.MAX_SILENCES), "2"))
    for _ in range(2):
        await store.silence(silence(kind="slow"))
    with pytest.raises(errors.Conflict, match="end one first"):
        await store.silence(silence(kind="slow"))
    await scratch.advance(HOUR_S)
    await store.silence(silence(kind="slow"))
