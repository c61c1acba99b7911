"""Reading and sweeping stay cheap however many tasks there are: lists, and how many tasks one commit moves."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from greenroom.api import views
from greenroom.store import claims, results, submissions, tasks, transitions
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


async def test_every_commit_is_timed_with_how_much_went_into_it(node: Node) -> None:
    instants, told = iter([1.0, 1.5, 2.0, 4.0]), list[tuple[float, int]]()
    node.store.commits.time(lambda: next(instants), lambda duration_s, items: told.append((duration_s, items)))
    await node.store.tasks.submit_all([new_task() for _ in range(3)])
    await node.submit()
    assert told == [(0.5, 3), (2.0, 1)]


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


_OF_A_TENANT = {"agent": "a", "tenant": "t", "slots": 1, "revision": 1}
_OF_A_KEY = {"tenant": "t", "agent": "a", "key": "k"}
_PLANNED: dict[str, tuple[str, dict[str, Any]]] = {
    "the queue": (claims._ITS_OWN, _OF_A_TENANT),
    "the queue at a priority": (claims._at_priority(claims._ITS_OWN), _OF_A_TENANT | {"priority": 1}),
    "the sessions of a revision": (claims._PINNED, _OF_A_TENANT),
    "the queue of a revision": (claims._ITS_SHARE, _OF_A_TENANT | {"low": 0, "high": 5_000}),
    "suspects": (claims._TO_RUN_ALONE, _OF_A_TENANT),
    "who waits": (claims._TENANTS, {"agent": "a", "behind": "", "most": 9}),
    "lower priorities": (claims._LOWER, {"agent": "a", "tenant": "t", "below": 1, "most": 9}),
    "the next of a session": (transitions._UNBLOCK, {"tenant": "t", "agent": "a", "session": "s"}),
    "who has suspects": (tasks._SUSPECTS, {}),
    "an attempt's end": (transitions._LEASED, {"id": "x", "epoch": 1}),
    "a key": (submissions._BY_KEY, {"tenant": "t", "idempotency_key": "k"}),
    "a session": (submissions._SESSION, {"tenant": "t", "agent": "a", "session": "s"}),
    "leases": (transitions._RENEW, {"owner": "o", "until": 1}),
    "what is lost": (transitions._LOST, {"now": 1, "not_owner": "o", "spared": "p", "most": 1}),
    "what is due": (transitions._NEXT_DUE, {}),
    "a result that is kept": (results._FIND, _OF_A_KEY | {"now": 1}),
    "the next of a key": (results._LET_GO, _OF_A_KEY),
    "who waits for a result": (results._WAITING, _OF_A_KEY | {"most": 9}),
    "results whose time is over": (results._DROP_EXPIRED, {"now": 1, "most": 9}),
    "results that are too many": (results._DROP_OVER, {"tenant": "t", "agent": "a", "max_entries": 9, "most": 9}),
    "how many are queued": (tasks._QUEUED, {}),
    "how many are open": (tasks._OPEN_COUNTS, {}),
}


@pytest.mark.parametrize("name", _PLANNED)
async def test_what_is_asked_all_the_time_reads_no_table_whole(node: Node, name: str) -> None:
    sql, params = _PLANNED[name]
    async with node.store.db.transaction() as tx:
        if node.store.db.dialect == "sqlite":
            plan = [str(row[3]) for row in await tx.fetch(f"explain query plan {sql}", params)]
            assert not [
                step for step in plan if step.startswith(("SCAN task", "SCAN result_cache")) and "INDEX" not in step
            ], plan
        else:
            await tx.fetch("set local enable_seqscan = off", {})  # the table is empty: it would be read whole for that
            plan = [str(row[0]) for row in await tx.fetch(f"explain {sql}", params)]
            assert not [step for step in plan if "Seq Scan on" in step], plan


@pytest.mark.parametrize("name", ["the next of a key", "who waits for a result"])
async def test_tasks_of_a_key_are_found_by_it(node: Node, name: str) -> None:
    sql, params = _PLANNED[name]
    async with node.store.db.transaction() as tx:
        explain = "explain query plan" if node.store.db.dialect == "sqlite" else "explain"
        plan = " ".join(str(row[-1]) for row in await tx.fetch(f"{explain} {sql}", params))
    assert "task_cache_key" in plan


_CLAIMS = ("the queue", "the queue at a priority", "the sessions of a revision", "the queue of a revision", "suspects")


@pytest.mark.parametrize("name", _CLAIMS)
async def test_a_claim_takes_the_first_of_its_tenant_off_an_index_that_is_in_order(node: Node, name: str) -> None:
    sql, params = _PLANNED[name]
    async with node.store.db.transaction() as tx:
        if node.store.db.dialect == "sqlite":
            plan = " ".join(str(row[3]) for row in await tx.fetch(f"explain query plan {sql}", params))
            assert "(agent=? AND tenant=?" in plan
            assert "TEMP B-TREE" not in plan
        else:
            plan = " ".join(str(row[0]) for row in await tx.fetch(f"explain {sql}", params))
            assert "(tenant = " in plan.partition("Index Cond:")[2].partition(" Filter:")[0]
            assert "Sort" not in plan


@pytest.mark.parametrize("state", [None, "queued", "succeeded", "failed"])
async def test_lists_are_read_off_an_index_in_their_order(node: Node, state: str | None) -> None:
    seen: list[tuple[str, Any]] = []
    read, node.store.tasks._db = node.store.db.read, _Heard(seen)  # type: ignore[assignment] # it only reads
    await node.store.tasks.list(tenant=TENANT, state=state, before_seq=9)
    ((sql, params),) = seen
    if node.store.db.dialect == "sqlite":
        plan = " ".join(str(row[3]) for row in await read(f"explain query plan {sql}", params))
        assert "USING INDEX" in plan
        assert "TEMP B-TREE" not in plan


async def test_sub_tasks_are_found_by_their_parent_however_many_tasks_its_tenant_has(node: Node) -> None:
    seen: list[tuple[str, Any]] = []
    read, node.store.tasks._db = node.store.db.read, _Heard(seen)  # type: ignore[assignment] # it only reads
    await node.store.tasks.list(tenant=TENANT, parent="p", before_seq=9)
    ((sql, params),) = seen
    if node.store.db.dialect == "sqlite":
        plan = " ".join(str(row[3]) for row in await read(f"explain query plan {sql}", params))
        assert "task_parent (parent=?)" in plan
        assert "(tenant=? AND seq=?)" in plan


class _Heard:
    def __init__(self, seen: list[tuple[str, Any]]) -> None:
        self._seen = seen

    async def read(self, sql: str, params: Any) -> list[Any]:
        self._seen.append((sql, params))
        return []
