"""The webhooks' loop: who is told when, how often, and who waits for whom."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from greenroom import errors, telemetry
from greenroom import webhooks as receiving
from greenroom.control import webhooks as control
from greenroom.control.webhooks import Webhooks
from greenroom.core import webhooks
from greenroom.security.outgoing import Answer
from greenroom.security.webhook_secrets import WebhookSecrets
from greenroom.store import webhooks as stored
from greenroom.store.webhooks import Change, NewEndpoint, Rotation
from greenroom.testing import databases
from greenroom.testing.store_contract import TENANT, Node

KEY = b"k" * 32


@dataclass
class Sent:
    url: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def task(self) -> str:
        return str(json.loads(self.body)["data"]["id"])


@dataclass
class World:
    """A store, the loop over it, and receivers by URL, each a function or what it answers."""

    node: Node
    scratch: databases.Scratch
    secrets: WebhookSecrets = field(default_factory=lambda: WebhookSecrets(KEY))
    answers: dict[str, Callable[[Sent], Answer] | Answer] = field(default_factory=dict)
    held: dict[str, asyncio.Event] = field(default_factory=dict)  # receivers that answer when it is set
    sent: list[Sent] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    facts: list[Any] = field(default_factory=list)
    open: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    most: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        told = telemetry.Telemetry()
        told.subscribe(self.facts.append)
        self.loop = Webhooks(self.node.store, self.scratch.clock, told, self, self.secrets, jitter=lambda: 1.0)

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> Answer:
        sent = Sent(url, headers, body)
        self.sent.append(sent)
        self.came.set()
        self.open[url] += 1
        self.most[url] = max(self.most[url], self.open[url])
        try:
            if (gate := self.held.get(url)) is not None:
                await gate.wait()
        finally:
            self.open[url] -= 1
        answer = self.answers.get(url, Answer(204))
        return answer if isinstance(answer, Answer) else answer(sent)

    async def add(self, name: str, *, tenant: str = TENANT, **given: Any) -> tuple[str, str]:
        """A new endpoint: its id, and its secret."""
        id = f"wh_{name:0>16}"
        shown, sealed = self.secrets.new(tenant=tenant, id=id)
        row = {"events": stored.events_text(webhooks.EVENTS), "description": "", "include_output": False, **given}
        await self.node.store.webhooks.create(
            NewEndpoint(id=id, tenant=tenant, url=f"https://{name}.example/", secret=sealed, created_by="key-1", **row)
        )
        return id, shown

    async def end(self, **given: Any) -> str:
        id = await self.node.submit(**given)
        await self.node.finish(await self.node.claim_one())
        return id

    async def step(self) -> float:
        """One step, and the end of what it began."""
        delay_s = await self.loop.step()
        await asyncio.wait_for(self.loop.idle(), 30)
        return delay_s

    async def until(self, url: str, count: int) -> None:
        async with asyncio.timeout(30):
            while sum(sent.url == url for sent in self.sent) < count:
                self.came.clear()
                await self.came.wait()

    async def settle(self) -> None:
        """Steps until nothing more is sent."""
        count = -1
        while count != len(self.sent):
            count = len(self.sent)
            await self.step()

    async def advance(self, delay_s: float) -> None:
        await self.scratch.advance(delay_s)

    async def states(self, id: str) -> list[str]:
        return [row.state for row in await self.node.store.webhooks.deliveries(id, tenant=TENANT, limit=200)]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with databases.sqlite(tmp_path) as scratch:
        yield World(Node(await scratch.open()), scratch)


async def test_an_end_is_told_signed_and_without_what_was_said(world: World) -> None:
    _, secret = await world.add("a")
    task = await world.end()
    await world.settle()
    (sent,) = world.sent
    assert sent.url == "https://a.example/"
    assert sent.headers["Content-Type"] == "application/json"
    now_s = world.scratch.clock.now().timestamp()
    told = receiving.verify(sent.body, sent.headers, secret, now_s=now_s)
    assert told["type"] == "task.succeeded"
    assert (told["data"]["id"], told["data"]["state"], told["data"]["agent"]) == (task, "succeeded", "research")
    assert not {"output", "input", "error", "metadata"} & told["data"].keys()
    assert b"hello" not in sent.body
    assert b"done" not in sent.body


async def test_what_was_said_is_told_where_that_is_asked_for(world: World) -> None:
    await world.add("a", include_output=True)
    await world.end(metadata=b'{"order":7}')
    await world.settle()
    data = json.loads(world.sent[0].body)["data"]
    assert (data["output"], data["output_omitted"], data["error"], data["metadata"]) == (
        "done", False, None, {"order": 7},
    )  # fmt: skip


async def test_what_is_too_large_is_left_to_be_fetched(world: World) -> None:
    await world.add("a", include_output=True)
    await world.node.submit()
    await world.node.finish(await world.node.claim_one(), output=b'"' + b"x" * control.MAX_OUTPUT_BYTES + b'"')
    await world.settle()
    data = json.loads(world.sent[0].body)["data"]
    assert (data["output"], data["output_omitted"]) == (None, True)


async def test_a_receiver_that_is_down_for_ten_minutes_gets_all_of_it(world: World) -> None:
    down, _ = await world.add("down")
    up, _ = await world.add("up")
    world.answers["https://down.example/"] = Answer(error="no connection")
    ids = []
    for _ in range(20):
        ids.append(await world.end())
        await world.settle()
        assert sum(sent.url == "https://up.example/" for sent in world.sent) == len(ids)  # at once
        await world.advance(30)
    world.answers.clear()
    for _ in range(200):
        await world.step()
        await world.advance(30)
    assert await world.states(up) == await world.states(down) == ["delivered"] * 20
    by_task: dict[str, set[str]] = defaultdict(set)
    for sent in world.sent:
        if sent.url == "https://down.example/":
            by_task[sent.task].add(sent.id)
    assert by_task.keys() == set(ids)
    assert all(len(each) == 1 for each in by_task.values())
    assert len({id for each in by_task.values() for id in each}) == 20


async def test_every_try_has_the_same_id_and_body_and_a_signature_of_its_own(world: World) -> None:
    _, secret = await world.add("a")
    world.answers["https://a.example/"] = Answer(503)
    await world.end()
    for _ in range(4):
        await world.settle()
        await world.advance(60)
    assert len(world.sent) == 4
    assert len({(sent.id, sent.body) for sent in world.sent}) == 1
    assert len({sent.headers["webhook-signature"] for sent in world.sent}) == 4
    last_s = float(world.sent[-1].headers["webhook-timestamp"])
    assert receiving.verify(world.sent[-1].body, world.sent[-1].headers, secret, now_s=last_s)


async def test_after_a_day_it_is_given_up_and_shown(world: World) -> None:
    id, _ = await world.add("a")
    world.answers["https://a.example/"] = Answer(500)
    await world.end()
    for _ in range(26):
        await world.settle()
        await world.advance(3600)
    (row,) = await world.node.store.webhooks.deliveries(id, tenant=TENANT)
    assert (row.state, row.status) == ("failed", 500)
    assert row.attempts > 20
    assert (await world.node.store.webhooks.get(id, tenant=TENANT)).state == "enabled"


async def test_what_was_held_up_for_more_than_a_day_is_not_sent(world: World) -> None:
    id, _ = await world.add("a")
    named = await world.node.submit(webhook=id)
    await world.node.store.webhooks.change(Change(id, TENANT, state="disabled"))
    await world.node.finish(await world.node.claim_one())
    await world.settle()
    await world.advance(webhooks.GIVE_UP_AFTER_S + 1)
    await world.node.store.webhooks.change(Change(id, TENANT, state="enabled"))
    await world.settle()
    (row,) = await world.node.store.webhooks.deliveries(id, tenant=TENANT)
    assert (row.task, row.state, world.sent) == (named, "failed", [])


async def test_who_is_gone_is_told_nothing_more(world: World) -> None:
    id, _ = await world.add("a")
    world.answers["https://a.example/"] = Answer(410)
    await world.end()
    await world.settle()
    await world.end()
    await world.settle()
    assert len(world.sent) == 1
    assert (await world.node.store.webhooks.get(id, tenant=TENANT)).reason == stored.GONE
    assert telemetry.WebhookDisabled(id, stored.GONE) in world.facts


async def test_a_slow_receiver_holds_up_only_itself(world: World) -> None:
    await world.add("slow")
    await world.add("fast")
    world.held["https://slow.example/"] = asyncio.Event()
    for count in range(1, 13):
        await world.end()
        await world.loop.step()
        await world.until("https://fast.example/", count)
    assert world.most["https://slow.example/"] == control.PER_ENDPOINT
    world.held["https://slow.example/"].set()
    await world.step()
    await world.settle()
    assert sum(sent.url == "https://slow.example/" for sent in world.sent) == 12


async def test_a_tenant_with_many_slow_receivers_leaves_room_for_the_others(world: World) -> None:
    for number in range(10):
        await world.add(f"slow{number}", tenant="greedy")
        world.held[f"https://slow{number}.example/"] = asyncio.Event()
    await world.add("fast")
    for _ in range(10):
        await world.end(tenant="greedy")
        await world.loop.step()
    await world.end()
    await world.loop.step()
    await world.until("https://fast.example/", 1)
    assert sum(world.open.values()) <= control.PER_TENANT + 1
    for gate in world.held.values():
        gate.set()
    await asyncio.wait_for(world.loop.idle(), 30)


async def test_one_that_fails_is_tried_one_at_a_time(world: World) -> None:
    await world.add("a")
    world.answers["https://a.example/"] = Answer(500)
    await world.end()
    await world.step()
    world.held["https://a.example/"] = asyncio.Event()
    for _ in range(8):
        await world.end()
    await world.loop.step()
    assert len(world.loop._sending) == 1
    world.answers.clear()
    world.held["https://a.example/"].set()
    await asyncio.wait_for(world.loop.idle(), 30)
    world.held["https://a.example/"].clear()
    await world.loop.step()
    assert len(world.loop._sending) == control.PER_ENDPOINT
    world.held["https://a.example/"].set()


async def test_while_a_secret_is_rotated_both_sign(world: World) -> None:
    id, old = await world.add("a")
    new, sealed = world.secrets.new(tenant=TENANT, id=id)
    await world.node.store.webhooks.rotate(Rotation(id, TENANT, sealed))

    async def taken_by() -> list[str]:
        await world.end()
        await world.settle()
        sent, now_s = world.sent[-1], world.scratch.clock.now().timestamp()
        taken = []
        for name, secret in (("old", old), ("new", new)):
            try:
                receiving.verify(sent.body, sent.headers, secret, now_s=now_s)
                taken.append(name)
            except errors.WebhookRefused:
                pass
        return taken

    assert await taken_by() == ["old", "new"]
    await world.advance(webhooks.OVERLAP_S - 1)
    assert await taken_by() == ["old", "new"]
    await world.advance(2)
    assert await taken_by() == ["new"]


async def test_a_secret_that_was_put_into_anothers_row_signs_nothing(world: World) -> None:
    await world.add("a")
    id, _ = await world.add("b", events="")
    await world.node.raw(
        "update webhook set secret = (select secret from webhook where id <> :id) where id = :id", id=id
    )
    await world.end(webhook=id)
    await world.settle()
    assert [sent.url for sent in world.sent] == ["https://a.example/"]
    (row,) = await world.node.store.webhooks.deliveries(id, tenant=TENANT)
    assert row.state == "pending"
    assert "greenroom webhooks rotate" in str(row.error)


async def test_a_test_is_sent_once(world: World) -> None:
    id, secret = await world.add("a", events="")
    world.answers["https://a.example/"] = Answer(500)
    await world.node.store.webhooks.test(stored.Test("msg_t", id, TENANT))
    for _ in range(3):
        await world.settle()
        await world.advance(3600)
    (sent,) = world.sent
    at_s = float(sent.headers["webhook-timestamp"])
    assert receiving.verify(sent.body, sent.headers, secret, now_s=at_s)["type"] == "webhook.test"
    assert await world.states(id) == ["failed"]


async def test_what_was_refused_is_a_fact_once(world: World) -> None:
    await world.add("a")
    world.answers["https://a.example/"] = Answer(error="refused: …", is_refused=True)
    for _ in range(3):
        await world.end()
        await world.settle()
    refused = [fact for fact in world.facts if isinstance(fact, telemetry.UrlRefused)]
    assert refused == [telemetry.UrlRefused("key-1", TENANT, "a.example")]


async def test_what_a_stopped_node_was_sending_is_sent_by_the_next(world: World) -> None:
    await world.add("a")
    world.held["https://a.example/"] = asyncio.Event()
    await world.end()
    await world.loop.step()
    await asyncio.sleep(0)
    await world.loop.close()
    world.held.clear()
    after = World(world.node, world.scratch)
    await after.settle()
    assert after.sent == []  # for all that it knows, somebody is sending
    await world.advance(stored.LEASE_US / 1e6 + control.POLL_S)
    await after.settle()
    assert [sent.id for sent in after.sent] == [world.sent[0].id]


async def test_a_bug_while_sending_ends_the_loop_for_its_supervisor_to_see(world: World) -> None:
    await world.add("a")

    def broken(_: Sent) -> Answer:
        raise RuntimeError("a bug")

    world.answers["https://a.example/"] = broken
    await world.end()
    await world.step()
    with pytest.raises(RuntimeError, match="a bug"):
        await world.loop.step()
    assert await world.loop.step() >= 0


async def test_it_wakes_when_something_is_due(world: World) -> None:
    await world.add("a")
    assert await world.step() == control.REFRESH_S
    world.loop.wakeup.clear()
    await world.end()
    assert world.loop.wakeup.is_set()
    world.answers["https://a.example/"] = Answer(500)
    await world.step()
    await world.advance(4.5)
    assert await world.step() == pytest.approx(0.5)
