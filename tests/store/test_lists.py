"""Reading and sweeping stay cheap however many tasks there are: lists, and how many tasks one commit moves."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from greenroom.api import views
from greenroom.store import transitions
from greenroom.store.rows import Call, Lease
from greenroom.testing import databases
from greenroom.testing.store_contract import AGENT, TENANT, Node, new_task


@pytest.fixture(params=["sqlite_scratch", "postgres_scratch"])
def scratch(request: pytest.FixtureRequest) -> databases.Scratch:
    opened: databases.Scratch = request.getfixturevalue(request.param)
    return opened


@pytest.fixture
async def node(scratch: databases.Scratch) -> Node:
    return Node(await scratch.open())


async def test_every_filter_finds_what_it_names(node: Node) -> None:
    ended = await node.submit()
    await node.run()
    queued = await node.submit(session="s")
    rows = {id: await node.store.tasks.get(id, tenant=TENANT) for id in (ended, queued)}
    for agent, state, session, id in itertools.product((None, AGENT), (None, "queued", "succeeded"), (None, "s"), rows):
        row, tasks = rows[id], node.store.tasks
        wanted = state in (None, row.state) and session in (None, row.session)
        found = await tasks.list(tenant=TENANT, agent=agent, state=state, session=session)
        assert (id in {task.id for task in found}) == wanted
        assert id not in {task.id for task in await tasks.list(tenant=TENANT, state=state, before_seq=row.seq)}


async def test_one_tick_promotes_a_bounded_number(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transitions, "MAX_MOVED", 2)
    for _ in range(3):
        await node.submit()
    await node.raw("update task set due_at = 1 returning id")
    assert await node.store.tasks.tick() == 0.0
    assert len(await node.claim(slots=5)) == 2
    assert await node.store.tasks.tick() is None
    assert len(await node.claim(slots=5)) == 1


async def test_one_tick_expires_a_bounded_number(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transitions, "MAX_MOVED", 2)
    for _ in range(3):
        await node.submit()
    await node.raw("update task set deadline_at = 1 returning id")
    assert await node.store.tasks.tick() == 0.0
    assert await node.store.tasks.open_counts() == {(AGENT, "queued"): 1}
    assert await node.store.tasks.tick() is None
    assert await node.store.tasks.end_counts(tenant=TENANT) == {(AGENT, "expired"): 3}


async def test_a_rescue_goes_on_until_nothing_is_left(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transitions, "MAX_MOVED", 2)
    for _ in range(5):
        await node.submit()
    assert len(await node.claim(slots=5)) == 5
    assert await node.store.tasks.rescue(not_owner="another") == 5


async def test_a_task_with_many_calls_shows_its_attempt(node: Node) -> None:
    id = await node.submit()
    claim = await node.claim_one()
    moves = [b'{"state":"waiting","for":"x"}', b'{"state":"running"}'] * 300
    async with node.store.db.transaction() as tx:
        events = [transitions._event(id, 100 + n, claim.epoch, tx.now_us, data) for n, data in enumerate(moves)]
        await tx.execute_many(transitions._INSERT_EVENT, events)
        await tx.fetch("update task set event_seq = 1000 where id = :id returning id", {"id": id})
    assert await node.finish(claim)
    told = await node.moves(id)
    assert len(told) == 502
    assert [move.seq for move in told] == sorted(move.seq for move in told)
    (attempt,) = views.attempts(await node.store.tasks.get(id, tenant=TENANT), told)
    assert attempt["reason"] == "ok"


async def test_what_a_call_writes_goes_after_what_begins_and_ends_attempts(node: Node) -> None:
    await node.submit()
    claim = await node.claim_one()
    child = new_task(id="child", parent=claim.id)
    assert await node.store.tasks.call(Call(claim.id, claim.epoch, child))
    await node.store.tasks.cancel("child", tenant=TENANT)
    assert await node.store.tasks.resume(Lease(claim.id, claim.epoch))
    _, waiting, resumed = await node.moves(claim.id)
    assert msgspec.json.decode(waiting.data)["state"] == "waiting"
    assert [waiting.data[:19], resumed.data] == [b'{"state":"waiting",', b'{"state":"running"}']


async def test_the_list_of_sessions_tells_how_large_their_state_is(node: Node) -> None:
    await node.submit(session="s")
    assert await node.finish(await node.claim_one(), session_state=b'{"a":1}')
    (summary,) = await node.store.sessions.list(tenant=TENANT)
    assert (summary.id, summary.tasks, summary.state_bytes) == ("s", 1, 7)
