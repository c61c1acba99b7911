"""The contract of the result cache, on both databases; and single flight, whatever happens in whatever order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from greenroom.core import caching
from greenroom.store import results
from greenroom.store.rows import Call, Claim
from greenroom.testing import databases
from greenroom.testing.results_contract import TTL_S, ResultsContract, caching_with
from greenroom.testing.store_contract import TENANT, Node, new_task


class TestSqlite(ResultsContract):
    @pytest.fixture
    def scratch(self, sqlite_scratch: databases.Scratch) -> databases.Scratch:
        return sqlite_scratch


class TestPostgres(ResultsContract):
    @pytest.fixture
    def scratch(self, postgres_scratch: databases.Scratch) -> databases.Scratch:
        return postgres_scratch


KEYS = [caching.key(1, b"1"), caching.key(1, b"2")]
_COMMANDS = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(KEYS), st.integers(1, 4), st.sampled_from([None, None, 3_000_000])),
    st.tuples(st.just("submit"), st.sampled_from(KEYS), st.integers(1, 4), st.sampled_from([None, None, 3_000_000])),
    st.tuples(st.just("claim"), st.integers(1, 3)),
    st.tuples(st.just("claim"), st.integers(1, 3)),
    st.tuples(st.just("finish"), st.sampled_from(["succeeded", "failed", "expired", "queued"]), st.integers(0, 9)),
    st.tuples(st.just("finish"), st.sampled_from(["succeeded", "failed", "expired", "queued"]), st.integers(0, 9)),
    st.tuples(st.just("call"), st.sampled_from(KEYS), st.integers(0, 9)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("advance"), st.sampled_from([1, 2, 20, TTL_S])),
    st.tuples(st.just("rescue"), st.booleans()),
    st.tuples(st.just("trim")),
)
_OPEN = """
select id, cache_key, state, blocked from task
where cache_key is not null and parent is null and finished_at is null order by seq"""
_ENDED = "select id, state, output, cached_from, epoch from task where finished_at is not null"


class Flight:
    """Submissions of two keys, with ends, cancels, expiries, rescues and sub-tasks; looked at after each."""

    def __init__(self, node: Node, scratch: databases.Scratch) -> None:
        self.node, self.scratch = node, scratch
        self.held: list[Claim] = []

    async def do(self, command: tuple[Any, ...]) -> None:
        node = self.node
        match command:
            case ("submit", key, count, timeout_us):
                items = [new_task(cache_key=key, timeout_us=timeout_us) for _ in range(count)]
                await node.store.tasks.submit_all(items)
            case ("claim", slots):
                self.held += await node.claim(slots)
            case ("finish", state, index) if self.held:
                claim = self.held.pop(index % len(self.held))
                await node.finish(claim, state, output=claim.input if state == "succeeded" else None)
            case ("call", key, index) if self.held:
                parent = self.held[index % len(self.held)]
                child = new_task(cache_key=key, parent=parent.id)
                await node.store.tasks.call(Call(parent.id, parent.epoch, child))
            case ("cancel", index):
                if rows := await node.raw(_OPEN):
                    await node.store.tasks.cancel(rows[index % len(rows)][0], tenant=TENANT)
            case ("advance", seconds):
                await self.scratch.advance(seconds)
                await node.store.tasks.tick()
                await node.store.cache.expire()
            case ("rescue", is_another):
                await node.store.tasks.rescue(not_owner="another" if is_another else None)
            case ("trim",):
                await node.store.cache.trim()

    async def look(self) -> None:
        rows = await self.node.raw(_OPEN)
        for key in KEYS:
            of_key = [(state, bool(blocked)) for _, found, state, blocked in rows if found == key]
            assert not of_key or not of_key[0][1], "nobody of this key may run, and some wait"
            assert all(other == ("queued", True) for other in of_key[1:]), "two of one key run, or may"

    async def drain(self) -> None:
        """Let whatever may run succeed, until nothing is left."""
        for _ in range(1_000):
            self.held = await self.node.claim(50)
            if not self.held:
                break
            for claim in self.held:
                await self.node.finish(claim, output=b'"drained"')
        await self.scratch.advance(20)  # what is leased to claims that the test let slip
        await self.node.store.tasks.rescue()

    async def end(self) -> None:
        while await self.node.raw("select 1 from task where finished_at is null limit 1"):
            await self.drain()
            await self.scratch.advance(60)
            await self.node.store.tasks.tick()
        makers = {row[0]: row for row in await self.node.raw(_ENDED)}
        for id, state, output, cached_from, epoch in makers.values():
            if cached_from is not None:
                assert (state, epoch, makers[cached_from][1]) == ("succeeded", 0, "succeeded"), id
                assert (output, makers[cached_from][3]) == (makers[cached_from][2], None), id


@pytest.fixture
async def flying(tmp_path: Path) -> AsyncIterator[databases.Scratch]:
    async with databases.sqlite(tmp_path) as scratch:
        yield scratch


@pytest.mark.slow
@hypothesis.settings(max_examples=100, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(commands=st.lists(_COMMANDS, min_size=10, max_size=40))
async def test_never_two_of_one_key_run_and_nobody_waits_for_ever(
    flying: databases.Scratch, monkeypatch: pytest.MonkeyPatch, commands: list[tuple[Any, ...]]
) -> None:
    monkeypatch.setattr(results, "MAX_ANSWERED", 3)
    if not flying.opened:
        await flying.open()
        await flying.stop_clock()
    node = Node(flying.opened[0])
    caching_with(node)
    for table in ("task", "task_event", "result_cache"):
        await node.raw(f"delete from {table}")
    flight = Flight(node, flying)
    for command in commands:
        await flight.do(command)
        await flight.look()
    await flight.end()
