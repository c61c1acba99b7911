"""The outbox, on both databases: each end is told once to whom it concerns, and claimed by one node at a time."""

from __future__ import annotations

import asyncio

import pytest

from greenroom import errors
from greenroom.core import caching, webhooks
from greenroom.store import webhooks as stored
from greenroom.store.webhooks import Change, Claimed, Due, NewEndpoint, Outcome
from greenroom.testing import databases
from greenroom.testing.results_contract import caching_with
from greenroom.testing.store_contract import TENANT, Node

ALL = stored.events_text(webhooks.EVENTS)
FIRST, SECOND = "wh_0000000000000001", "wh_0000000000000002"


def endpoint(id: str = FIRST, *, tenant: str = TENANT, events: str = ALL) -> NewEndpoint:
    return NewEndpoint(id, tenant, "https://hooks.example.com/", events, "", False, b"sealed", "key-1")


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


async def another(node: Node, scratch: databases.Scratch) -> Node:
    """A second node; on SQLite, which has one only, the same."""
    return Node(await scratch.open("node-2")) if node.store.db.dialect == "postgresql" else node


async def claim(node: Node, webhook: str = FIRST, most: int = 10) -> Claimed:
    (claimed,) = await node.store.webhooks.claim([Due(webhook, most)])
    return claimed


async def told(node: Node, webhook: str = FIRST, *, tenant: str = TENANT) -> list[tuple[str | None, str]]:
    rows = await node.store.webhooks.deliveries(webhook, tenant=tenant)
    return [(row.task, row.type) for row in reversed(rows)]


async def end(node: Node, state: str, **given: str) -> str:
    """A task that has come to *state* by the way that leads there."""
    id = await node.submit(**given)
    match state:
        case "cancelled":
            await node.store.tasks.cancel(id, tenant=given.get("tenant", TENANT))
        case _:
            assert await node.finish(await node.claim_one(), state)
    return id


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "expired"])
async def test_each_end_is_told_once(node: Node, state: str) -> None:
    await node.store.webhooks.create(endpoint())
    id = await end(node, state)
    assert await told(node) == [(id, f"task.{state}")]


async def test_what_expires_while_it_is_queued_is_told(node: Node, scratch: databases.Scratch) -> None:
    await node.store.webhooks.create(endpoint())
    id = await node.submit(timeout_us=1_000_000)
    await scratch.advance(2)
    await node.store.tasks.tick()
    assert await told(node) == [(id, "task.expired")]


async def test_an_attempt_that_is_repeated_or_fenced_tells_nothing(node: Node) -> None:
    await node.store.webhooks.create(endpoint())
    await node.submit()
    first = await node.claim_one()
    assert await node.finish(first, "queued")
    assert not await node.finish(first)
    assert await told(node) == []


async def test_only_the_events_that_are_asked_for_are_told(node: Node) -> None:
    await node.store.webhooks.create(endpoint(events=stored.events_text(["task.failed", "task.expired"])))
    await end(node, "succeeded")
    failed = await end(node, "failed")
    assert await told(node) == [(failed, "task.failed")]


async def test_tenants_are_told_of_their_own(node: Node) -> None:
    await node.store.webhooks.create(endpoint())
    await node.store.webhooks.create(endpoint(SECOND, tenant="other"))
    ours, theirs = await end(node, "succeeded"), await end(node, "cancelled", tenant="other")
    assert await told(node) == [(ours, "task.succeeded")]
    assert await told(node, SECOND, tenant="other") == [(theirs, "task.cancelled")]
    assert await told(node, SECOND) == []


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
async def test_a_task_names_one_that_is_told_of_nothing_else(node: Node, state: str) -> None:
    await node.store.webhooks.create(endpoint(events=""))
    await end(node, state)
    id = await end(node, state, webhook=FIRST)
    assert await told(node) == [(id, f"task.{state}")]


async def test_who_is_named_and_wants_all_is_told_once(node: Node) -> None:
    await node.store.webhooks.create(endpoint())
    await node.store.webhooks.create(endpoint(SECOND))
    id = await end(node, "succeeded", webhook=FIRST)
    assert await told(node) == await told(node, SECOND) == [(id, "task.succeeded")]


async def test_a_task_that_names_one_is_told_of_by_a_node_that_knows_of_none(
    node: Node, scratch: databases.Scratch
) -> None:
    await node.store.webhooks.create(endpoint(events=""))
    id = await node.submit(webhook=FIRST)
    other = await another(node, scratch)
    await other.store.tasks.rescue(not_owner="nobody")
    assert await other.finish(await other.claim_one())
    assert await told(other) == [(id, "task.succeeded")]


async def test_nobody_is_told_by_naming_anothers(node: Node) -> None:
    await node.store.webhooks.create(endpoint(tenant="other"))
    await end(node, "succeeded", webhook=FIRST)
    assert await told(node, tenant="other") == []


async def test_what_is_answered_from_the_cache_is_told(node: Node) -> None:
    caching_with(node)
    await node.store.webhooks.create(endpoint(events=""))
    key = caching.key(1, b"1")
    first, waiting = await node.submit(cache_key=key), await node.submit(cache_key=key, webhook=FIRST)
    await node.run()
    hit = await node.submit(cache_key=key, webhook=FIRST)
    assert first not in {waiting, hit}
    assert await told(node) == [(waiting, "task.succeeded"), (hit, "task.succeeded")]
    await node.store.webhooks.create(endpoint(SECOND))
    another = await node.submit(cache_key=key)
    assert await told(node, SECOND) == [(another, "task.succeeded")]


async def test_while_an_endpoint_is_disabled_only_those_that_name_it_are_kept(node: Node) -> None:
    await node.store.webhooks.create(endpoint())
    named = await node.submit(webhook=FIRST)
    await node.store.webhooks.change(Change(FIRST, TENANT, state="disabled"))
    await end(node, "cancelled")
    assert await node.finish(await node.claim_one())
    assert await told(node) == [(named, "task.succeeded")]
    assert (await claim(node)).deliveries == ()
    await node.store.webhooks.change(Change(FIRST, TENANT, state="enabled"))
    assert [each.task for each in (await claim(node)).deliveries] == [named]


async def test_where_nobody_asks_nothing_is_written(node: Node) -> None:
    await end(node, "succeeded")
    assert await node.raw("select count(*) from delivery") == [(0,)]


async def test_one_node_at_a_time_has_a_delivery(node: Node, scratch: databases.Scratch) -> None:
    await node.store.webhooks.create(endpoint())
    ids = {await end(node, "cancelled") for _ in range(20)}
    other = await another(node, scratch)
    claims = await asyncio.gather(*(claim(each, most=3) for _ in range(5) for each in (node, other)))
    taken = [each.task for claimed in claims for each in claimed.deliveries]
    assert len(taken) == len(set(taken)) == 20
    assert set(taken) == ids
    assert (await claim(node)).deliveries == ()


async def test_what_a_dead_sender_had_is_claimed_again_with_the_same_id(node: Node, scratch: databases.Scratch) -> None:
    await node.store.webhooks.create(endpoint())
    await end(node, "succeeded")
    (first,) = (await claim(node)).deliveries
    await scratch.advance(stored.LEASE_US / 1e6 - 1)
    assert (await claim(node)).deliveries == ()
    await scratch.advance(1)
    (second,) = (await claim(node)).deliveries
    assert (second.id, first.attempts, second.attempts) == (first.id, 1, 2)


def outcome(delivery: stored.Delivery, state: str, **given: object) -> Outcome:
    return Outcome(
        delivery.seq,
        delivery.attempts,
        delivery.webhook,
        state,
        **{"status": 500 if state != "delivered" else 204, "error": None} | given,  # type: ignore[arg-type]
    )


async def test_a_try_that_took_too_long_overwrites_nothing(node: Node, scratch: databases.Scratch) -> None:
    await node.store.webhooks.create(endpoint())
    await end(node, "succeeded")
    (late,) = (await claim(node)).deliveries
    await scratch.advance(stored.LEASE_US / 1e6)
    (second,) = (await claim(node)).deliveries
    await node.store.webhooks.note(outcome(second, "delivered"))
    await node.store.webhooks.note(outcome(late, "pending", delay_us=1))
    (row,) = await node.store.webhooks.deliveries(FIRST, tenant=TENANT)
    assert (row.state, row.status, row.attempts) == ("delivered", 204, 2)


async def test_what_failed_is_due_later_and_the_claim_says_when(node: Node, scratch: databases.Scratch) -> None:
    await node.store.webhooks.create(endpoint())
    await end(node, "succeeded")
    (delivery,) = (await claim(node)).deliveries
    await node.store.webhooks.note(outcome(delivery, "pending", delay_us=7_000_000))
    claimed = await claim(node)
    assert (claimed.deliveries, claimed.next_us) == ((), 7_000_000)
    await scratch.advance(7)
    assert len((await claim(node)).deliveries) == 1


async def failing_since(node: Node) -> int | None:
    return (await node.store.webhooks.get(FIRST, tenant=TENANT)).failing_since


async def test_days_without_success_disable_an_endpoint_and_raise_an_alert(
    node: Node, scratch: databases.Scratch
) -> None:
    await node.store.webhooks.create(endpoint())

    async def fail() -> stored.Disabled | None:
        await end(node, "succeeded")
        delivery = (await claim(node)).deliveries[-1]
        return await node.store.webhooks.note(outcome(delivery, "failed"))

    assert await fail() is None
    await scratch.advance(webhooks.DISABLE_AFTER_S - 1)
    await end(node, "succeeded")
    await node.store.webhooks.note(outcome((await claim(node)).deliveries[-1], "delivered"))
    assert await failing_since(node) is None
    assert await fail() is None
    await scratch.advance(webhooks.DISABLE_AFTER_S + 1)
    assert await fail() == stored.Disabled(FIRST, stored.FAILING)
    (alert,) = await node.store.alerts.list()
    assert (alert.kind, alert.state) == ("webhook", "firing")
    assert (await claim(node)).endpoint is None
    await node.store.webhooks.change(Change(FIRST, TENANT, state="enabled"))
    assert (await node.store.alerts.list())[0].state == "resolved"
    assert await failing_since(node) is None


async def test_who_is_gone_is_disabled_at_once(node: Node) -> None:
    await node.store.webhooks.create(endpoint())
    await end(node, "succeeded")
    (delivery,) = (await claim(node)).deliveries
    assert await node.store.webhooks.note(outcome(delivery, "failed", status=410, is_gone=True)) == stored.Disabled(
        FIRST, stored.GONE
    )
    assert (await node.store.webhooks.get(FIRST, tenant=TENANT)).reason == stored.GONE


async def test_old_deliveries_are_forgotten(node: Node, scratch: databases.Scratch) -> None:
    await node.store.webhooks.create(endpoint())
    await end(node, "succeeded")
    await scratch.advance(stored.KEEP_US / 1e6 - 1)
    kept = await end(node, "succeeded")
    await node.store.webhooks.prune()
    assert len(await told(node)) == 2
    await scratch.advance(2)
    await node.store.webhooks.prune()
    assert await told(node) == [(kept, "task.succeeded")]


async def test_a_tenant_has_so_many_and_no_more(node: Node) -> None:
    for number in range(stored.MAX_ENDPOINTS):
        await node.store.webhooks.create(endpoint(f"wh_{number:016x}", events=""))
    with pytest.raises(errors.Conflict, match="remove one first"):
        await node.store.webhooks.create(endpoint("wh_ffffffffffffffff"))
    await node.store.webhooks.create(endpoint("wh_ffffffffffffffff", tenant="other"))


async def test_what_is_another_tenants_is_not_there(node: Node) -> None:
    await node.store.webhooks.create(endpoint(tenant="other"))
    changes = (
        node.store.webhooks.get(FIRST, tenant=TENANT),
        node.store.webhooks.change(Change(FIRST, TENANT, state="disabled")),
        node.store.webhooks.rotate(stored.Rotation(FIRST, TENANT, b"mine")),
        node.store.webhooks.remove(FIRST, tenant=TENANT),
    )
    for changed in changes:
        with pytest.raises(errors.NotFound):
            await changed
    row = await node.store.webhooks.get(FIRST, tenant="other")
    assert (row.state, row.secret) == ("enabled", b"sealed")


async def test_a_removed_endpoint_is_told_nothing_more(node: Node) -> None:
    await node.store.webhooks.create(endpoint())
    await end(node, "succeeded")
    await node.store.webhooks.remove(FIRST, tenant=TENANT)
    assert (await claim(node)).endpoint is None
    assert await node.store.webhooks.pending() == {}
    await end(node, "succeeded")
    assert await node.raw("select count(*) from delivery") == [(1,)]
