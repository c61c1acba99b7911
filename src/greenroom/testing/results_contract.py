"""What every store does about the result cache, as tests: subclass `ResultsContract` with a fixture ``scratch``.

The tests play the dispatcher, as those of `store_contract` do.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec
import pytest

from greenroom import settings
from greenroom.core import caching
from greenroom.store import results
from greenroom.store.rows import Call, Task
from greenroom.testing.databases import Scratch
from greenroom.testing.store_contract import AGENT, TENANT, Node, new_task

KEY = caching.key(1, b'"hello"')
TTL_S = 60.0


def caching_with(node: Node, **given: Any) -> None:
    """Have every agent keep its results."""
    cache = settings.Cache(**{"ttl_s": TTL_S} | given)
    node.store.results.is_on = True
    node.store.results._cache_of = lambda _: cache


async def task(node: Node, id: str, *, tenant: str = TENANT) -> Task:
    return await node.store.tasks.get(id, tenant=tenant)


class ResultsContract:
    @pytest.fixture
    async def node(self, scratch: Scratch) -> Node:
        node = Node(await scratch.open())
        caching_with(node)
        return node

    async def _entries(self, node: Node) -> int:
        return sum((await node.store.cache.counts()).values())

    # --- hits

    async def test_the_same_input_is_answered_at_once_with_the_other_tasks_result(self, node: Node) -> None:
        first = await node.submit(cache_key=KEY)
        await node.finish(await node.claim_one(), output=b'{"n":1}', input_tokens=7)
        accepted = await node.store.tasks.submit(new_task(cache_key=KEY))
        assert (accepted.is_new, accepted.is_answered) == (True, True)
        hit = await task(node, accepted.id)
        assert (hit.state, hit.output, hit.cached_from, hit.reason) == ("succeeded", b'{"n":1}', first, "cached")
        assert (hit.epoch, hit.attempts_charged, hit.input_tokens, hit.started_at) == (0, 0, 0, None)
        assert hit.created_at == hit.finished_at
        assert await node.claim(5) == []

    async def test_a_hit_tells_that_it_was_queued_and_has_succeeded(self, node: Node) -> None:
        first = await node.submit(cache_key=KEY)
        await node.run()
        events = await node.events(await node.submit(cache_key=KEY), after=0)
        assert [event.seq for event in events] == [1, 2]
        told = [msgspec.json.decode(event.data) for event in events]
        assert told == [{"state": "queued"}, {"state": "succeeded", "reason": "cached", "cached_from": first}]

    async def test_a_hit_counts_as_a_task_that_succeeded(self, node: Node) -> None:
        await node.submit(cache_key=KEY)
        await node.run()
        await node.submit(cache_key=KEY)
        assert await node.store.tasks.end_counts(tenant=TENANT) == {(AGENT, "succeeded"): 2}

    async def test_a_result_outlives_the_node_that_kept_it(self, scratch: Scratch, node: Node) -> None:
        await node.submit(cache_key=KEY)
        await node.run()
        await node.store.close()
        scratch.opened.clear()
        again = Node(await scratch.open())
        caching_with(again)
        assert (await again.store.tasks.submit(new_task(cache_key=KEY))).is_answered

    async def test_other_tenants_agents_and_keys_are_not_answered(self, node: Node) -> None:
        await node.submit(cache_key=KEY)
        await node.run()
        others: list[dict[str, Any]] = [{"tenant": "other"}, {"agent": "other"}, {"cache_key": caching.key(2, b"1")}]
        for changes in others:
            assert not (await node.store.tasks.submit(new_task(**{"cache_key": KEY} | changes))).is_answered

    async def test_a_task_without_a_key_is_neither_answered_nor_kept(self, node: Node) -> None:
        await node.submit()
        await node.run()
        assert await self._entries(node) == 0
        await node.submit(cache_key=KEY)
        await node.run()
        assert not (await node.store.tasks.submit(new_task())).is_answered

    @pytest.mark.parametrize("state", ["failed", "expired"])
    async def test_a_failure_is_never_kept(self, node: Node, state: str) -> None:
        await node.submit(cache_key=KEY)
        await node.finish(await node.claim_one(), state)
        assert not (await node.store.tasks.submit(new_task(cache_key=KEY))).is_answered

    async def test_a_result_is_kept_for_its_time_by_the_databases_clock(self, scratch: Scratch, node: Node) -> None:
        await scratch.stop_clock()
        await node.submit(cache_key=KEY)
        await node.run()
        await scratch.advance(TTL_S - 1)
        assert (await node.store.tasks.submit(new_task(cache_key=KEY))).is_answered
        await scratch.advance(1)
        assert not (await node.store.tasks.submit(new_task(cache_key=KEY))).is_answered
        assert await node.store.cache.expire() == 1
        await node.run()
        assert (await node.store.tasks.submit(new_task(cache_key=KEY))).is_answered

    async def test_a_result_belongs_to_the_revision_that_made_it(self, node: Node) -> None:
        await node.submit(cache_key=KEY)
        await node.finish(await node.claim_one(), revision=2)
        assert not (await node.store.tasks.submit(new_task(cache_key=KEY))).is_answered
        key = caching.key(2, b'"hello"')
        assert (await node.store.tasks.submit(new_task(cache_key=key))).is_answered

    async def test_an_agent_that_keeps_nothing_any_more_still_answers_who_waits(self, node: Node) -> None:
        await node.submit(cache_key=KEY)
        waiting = await node.submit(cache_key=KEY)
        caching_with(node, ttl_s="off")
        await node.run()
        assert await node.state(waiting) == "succeeded"
        assert not (await node.store.tasks.submit(new_task(cache_key=KEY))).is_answered

    async def test_the_result_of_a_task_that_is_deleted_answers_nobody(self, node: Node) -> None:
        first = await node.submit(cache_key=KEY)
        await node.run()
        hit = await node.submit(cache_key=KEY)
        await node.raw("delete from task where id = :id", id=first)
        assert not (await node.store.tasks.submit(new_task(cache_key=KEY))).is_answered
        assert (await task(node, hit)).output == b'"done"'

    async def test_a_used_idempotency_key_goes_before_the_cache(self, node: Node) -> None:
        await node.submit(cache_key=KEY)
        await node.run()
        item = new_task(cache_key=KEY, idempotency_key="k", fingerprint=b"f")
        first = await node.store.tasks.submit(item)
        again = await node.store.tasks.submit(msgspec.structs.replace(item, id="another"))
        assert (first.is_new, first.is_answered) == (True, True)
        assert (again.id, again.is_new, again.matches) == (first.id, False, True)

    async def test_a_batch_of_hits_misses_and_others_is_answered_in_order(self, node: Node) -> None:
        await node.submit(cache_key=KEY)
        await node.run()
        other = caching.key(1, b"2")
        items = [new_task(cache_key=key) for key in (KEY, None, other, KEY, other)]
        answers = await node.store.tasks.submit_all(items)
        assert [answer.id for answer in answers if not isinstance(answer, Exception)] == [item.id for item in items]
        assert [await node.state(item.id) for item in items] == ["succeeded", "queued", "queued", "succeeded", "queued"]
        assert [claim.id for claim in await node.claim(5)] == [items[1].id, items[2].id]

    # --- single flight

    async def test_of_the_same_input_one_runs_and_answers_the_others(self, node: Node) -> None:
        first, second, third = [await node.submit(cache_key=KEY) for _ in range(3)]
        (claim,) = await node.claim(5)
        fourth = await node.submit(cache_key=KEY)
        assert claim.id == first
        await node.finish(claim, output=b"42")
        for id in (second, third, fourth):
            answered = await task(node, id)
            assert (answered.state, answered.output, answered.cached_from) == ("succeeded", b"42", first)
        assert await node.claim(5) == []
        assert await node.trail(second) == ["succeeded"]

    async def test_who_is_waited_for_by_somebody_more_urgent_is_as_urgent(self, node: Node) -> None:
        await node.submit(priority=5)
        first = await node.submit(cache_key=KEY)
        await node.submit(cache_key=KEY, priority=3)
        assert (await task(node, first)).priority == 3
        await node.submit(cache_key=KEY, priority=9)
        claim = await node.claim_one()
        assert claim.id == first
        await node.submit(cache_key=KEY, priority=10)
        assert (await task(node, first)).priority == 9  # it runs

    async def test_the_same_input_many_times_in_one_commit_runs_once(self, node: Node) -> None:
        answers = await asyncio.gather(*(node.store.tasks.submit(new_task(cache_key=KEY)) for _ in range(20)))
        (claim,) = await node.claim(20)
        await node.finish(claim)
        states = [await node.state(answer.id) for answer in answers]
        assert states == ["succeeded"] * 20

    @pytest.mark.parametrize("state", ["failed", "expired", "cancelled"])
    async def test_the_next_one_takes_the_place_of_one_that_has_no_result(self, node: Node, state: str) -> None:
        first, second, third = [await node.submit(cache_key=KEY) for _ in range(3)]
        claim = await node.claim_one()
        if state == "cancelled":
            await node.store.tasks.cancel(first, tenant=TENANT)
        else:
            await node.finish(claim, state)
        (next_claim,) = await node.claim(5)
        assert next_claim.id == second
        await node.finish(next_claim)
        assert (await task(node, third)).cached_from == second

    async def test_one_that_is_queued_again_keeps_the_others_waiting(self, node: Node) -> None:
        first, _ = await node.submit(cache_key=KEY), await node.submit(cache_key=KEY)
        await node.finish(await node.claim_one(), "queued")
        assert [claim.id for claim in await node.claim(5)] == [first]

    async def test_one_whose_node_is_lost_runs_again_and_answers(self, node: Node) -> None:
        first, second = await node.submit(cache_key=KEY), await node.submit(cache_key=KEY)
        await node.claim_one()
        await node.store.tasks.rescue(not_owner="another")
        claim = await node.claim_one()
        assert claim.id == first
        await node.finish(claim)
        assert await node.state(second) == "succeeded"

    async def test_who_waits_is_cancelled_and_expires_as_ever(self, scratch: Scratch, node: Node) -> None:
        await node.submit(cache_key=KEY)
        cancelled, late = await node.submit(cache_key=KEY), await node.submit(cache_key=KEY, timeout_us=1_000_000)
        last = await node.submit(cache_key=KEY)
        claim = await node.claim_one()
        await node.store.tasks.cancel(cancelled, tenant=TENANT)
        await scratch.advance(5)
        await node.store.tasks.tick()
        assert await node.claim(5) == []
        await node.finish(claim)
        assert [await node.state(id) for id in (cancelled, late, last)] == ["cancelled", "expired", "succeeded"]

    async def test_one_that_expires_in_the_queue_lets_the_next_go(self, scratch: Scratch, node: Node) -> None:
        await node.submit(cache_key=KEY, timeout_us=1_000_000)
        second = await node.submit(cache_key=KEY)
        await scratch.advance(5)
        await node.store.tasks.tick()
        assert (await node.claim_one()).id == second

    async def test_one_that_is_found_to_be_late_at_its_claim_lets_the_next_go_at_once(
        self, scratch: Scratch, node: Node
    ) -> None:
        await node.submit(cache_key=KEY, timeout_us=1_000_000)
        second, begun = await node.submit(cache_key=KEY), asyncio.get_running_loop().create_future()
        await scratch.advance(5)
        node.store.claims.claimed = lambda claims: begun.set_result(claims) if claims else None
        node.store.board.open("r", agent=AGENT, revision=1, slots=1)
        await node.flush()  # and nobody asks for another commit
        assert [claim.id for claim in await asyncio.wait_for(begun, 5)] == [second]

    async def test_who_waits_is_answered_after_a_restart_too(self, scratch: Scratch, node: Node) -> None:
        first, second = await node.submit(cache_key=KEY), await node.submit(cache_key=KEY)
        await node.claim_one()
        await node.store.close()
        scratch.opened.clear()
        again = Node(await scratch.open(owner="another"))
        await again.store.tasks.rescue(not_owner="another")
        (claim,) = await again.claim(5)
        assert claim.id == first
        await again.finish(claim)
        assert (await task(again, second)).cached_from == first

    async def test_a_used_idempotency_key_holds_up_nobody(self, node: Node) -> None:
        await node.submit(idempotency_key="k")
        await node.run()
        replayed, other = new_task(cache_key=KEY, idempotency_key="k"), new_task(cache_key=KEY)
        await node.store.tasks.submit_all([replayed, other])
        assert (await node.claim_one()).id == other.id

    async def test_who_waits_hears_of_the_answer(self, node: Node) -> None:
        await node.submit(cache_key=KEY)
        waiting = new_task(cache_key=KEY)
        with node.store.hub.end_of(waiting.id) as end:
            await node.store.tasks.submit(waiting)
            await node.run()
            assert end.has_come

    async def test_where_very_many_wait_each_end_answers_some(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(results, "MAX_ANSWERED", 3)
        ids = [await node.submit(cache_key=KEY) for _ in range(6)]
        await node.run()
        assert [await node.state(id) for id in ids] == ["succeeded"] * 4 + ["queued"] * 2
        await node.run()
        assert [await node.state(id) for id in ids] == ["succeeded"] * 6

    async def test_the_results_that_one_end_copies_are_bounded(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(results, "MAX_ANSWERED_BYTES", 10)
        ids = [await node.submit(cache_key=KEY) for _ in range(4)]
        await node.finish(await node.claim_one(), output=b'"abc"')
        assert [await node.state(id) for id in ids] == ["succeeded"] * 3 + ["queued"]

    # --- sub-tasks

    async def test_a_sub_task_is_answered_too_but_waits_for_nobody(self, node: Node) -> None:
        first = await node.submit(cache_key=KEY)
        await node.claim_one()
        parent = await node.submit(agent="parent")
        lease = await node.claim_one(agent="parent")
        child = new_task(cache_key=KEY, parent=parent)
        await node.store.tasks.call(Call(parent, lease.epoch, child))
        claim = await node.claim_one()
        assert claim.id == child.id
        await node.finish(claim, output=b"1")
        another = new_task(cache_key=KEY, parent=parent)
        accepted = await node.store.tasks.call(Call(parent, lease.epoch, another))
        assert accepted is not None
        assert accepted.is_answered
        assert (await task(node, another.id)).output == b"1"
        assert await node.state(first) == "running"

    # --- bounds

    async def test_the_oldest_entries_of_a_tenant_go_when_there_are_too_many(
        self, scratch: Scratch, node: Node
    ) -> None:
        caching_with(node, max_entries=2)
        await scratch.stop_clock()
        for number in range(4):
            await node.submit(cache_key=caching.key(1, b"%d" % number))
            await node.run()
            await scratch.advance(1)
        await node.submit(tenant="other", cache_key=KEY)
        await node.run()
        assert await node.store.cache.counts() == {(TENANT, AGENT): 2, ("other", AGENT): 1}
        answered = [
            (await node.store.tasks.submit(new_task(cache_key=caching.key(1, b"%d" % number)))).is_answered
            for number in range(4)
        ]
        assert answered == [False, False, True, True]

    async def test_a_lower_bound_takes_effect_bite_by_bite(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(8):
            await node.submit(cache_key=caching.key(1, b"%d" % number))
        for claim in await node.claim(8):
            await node.finish(claim)
        monkeypatch.setattr(results, "MAX_DROPPED", 2)
        caching_with(node, max_entries=1)
        counts = []
        for number in range(8, 20):
            await node.submit(cache_key=caching.key(1, b"%d" % number))
            await node.run()
            counts.append(await self._entries(node))
        assert counts[-1] == 1
        assert all(before - after <= 1 for before, after in itertools.pairwise(counts))

    async def test_trimming_drops_the_older_half(self, scratch: Scratch, node: Node) -> None:
        await scratch.stop_clock()
        for number in range(5):
            await node.submit(cache_key=caching.key(1, b"%d" % number))
            await node.run()
            await scratch.advance(1)
        assert await node.store.cache.trim("another") == 0
        assert await node.store.cache.trim(AGENT) == 2
        assert not (await node.store.tasks.submit(new_task(cache_key=caching.key(1, b"1")))).is_answered
        assert (await node.store.tasks.submit(new_task(cache_key=caching.key(1, b"2")))).is_answered

    async def test_expired_entries_go_in_bites(
        self, scratch: Scratch, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(results, "MAX_DROPPED", 2)
        for number in range(5):
            await node.submit(cache_key=caching.key(1, b"%d" % number))
            await node.run()
        await scratch.advance(TTL_S + 5)
        assert await node.store.cache.expire() == 5
        assert await self._entries(node) == 0

    async def test_how_submissions_met_the_cache_is_told_after_the_commit(self, node: Node) -> None:
        told: list[dict[tuple[str, str], int]] = []
        node.store.hub.subscribe(lambda news: told.append(dict(news.cache)) if news.cache else None)
        await node.store.tasks.submit_all([new_task(cache_key=KEY) for _ in range(3)])
        await node.run()
        await node.submit(cache_key=KEY)
        await node.submit()
        assert told == [{(AGENT, "miss"): 1, (AGENT, "joined"): 2}, {(AGENT, "hit"): 1}]
