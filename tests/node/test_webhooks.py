"""Webhooks of a real node, told to a real receiver, whatever happens to either."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import nodes
import receivers
from greenroom import webhooks
from nodes import Folder
from receivers import Receiver

AGENTS = {"echo": nodes.agent("echo", concurrency=8), "failing": nodes.agent("failing", max_attempts=1)}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receivers.receiving() as made:
        yield made


def own(receiver: Receiver) -> dict[str, Any]:
    return {"webhook_hosts": ["127.0.0.1"], "webhook_ports": [receiver.port]}


async def test_ends_are_told_and_verified(data_dir: Path, store_url: str | None, receiver: Receiver) -> None:
    async with nodes.opened(data_dir, AGENTS, store_url=store_url, server=own(receiver)) as api:
        made = (await api.call("POST", "/v1/webhooks", {"url": f"http://127.0.0.1:{receiver.port}/in"})).json()
        tasks = [await api.run("echo", number) for number in range(5)]
        failed = await api.run("failing", "x")
        seen = webhooks.Seen()
        told = [
            webhooks.verify(message.body, message.headers, made["secret"], seen=seen)
            for message in await receiver.until(6)
        ]
        assert {(each["type"], each["data"]["id"]) for each in told} == {
            *(("task.succeeded", task["id"]) for task in tasks),
            ("task.failed", failed["id"]),
        }

        async def all_delivered() -> bool:
            items = (await api.get(f"/v1/webhooks/{made['id']}/deliveries"))["items"]
            return [item["state"] for item in items] == ["delivered"] * 6

        assert await nodes.eventually(all_delivered)
        assert receiver.connections == 6


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "project")
    try:
        yield made
    finally:
        made.close()


@pytest.mark.slow
async def test_a_node_that_is_killed_tells_what_it_has_not_told(folder: Folder, receiver: Receiver) -> None:
    folder.manifest(
        f'[server]\nwebhook_hosts = ["127.0.0.1"]\nwebhook_ports = [{receiver.port}]\n'
        '[agents.echo]\nfactory = "agents:echo"\nconcurrency = 4\n'
    )
    receiver.answer = lambda _: receivers.status(503)
    up = await asyncio.to_thread(folder.up)
    url = f"http://127.0.0.1:{receiver.port}/"
    made = (await asyncio.to_thread(up.call, "POST", "/v1/webhooks", {"url": url})).json()
    ids = [await asyncio.to_thread(up.submit, "echo", number) for number in range(10)]
    for id in ids:
        await asyncio.to_thread(up.end_of, id)
    path = f"/v1/webhooks/{made['id']}/deliveries"

    async def all_refused() -> bool:  # none is on its way then
        items = (await asyncio.to_thread(up.call, "GET", path)).json()["items"]
        return [item["status"] for item in items] == [503] * 10

    await nodes.eventually(all_refused)
    up.process.kill()
    await asyncio.to_thread(up.ended, within_s=30)
    before = [message.id for message in receiver.messages]
    receiver.messages.clear()
    receiver.answer = lambda _: receivers.OK
    up = await asyncio.to_thread(folder.up)
    messages = await receiver.until(10)
    assert {json.loads(message.body)["data"]["id"] for message in messages} == set(ids)
    assert set(before) <= {message.id for message in messages}
    assert all(webhooks.verify(message.body, message.headers, made["secret"]) for message in messages)


async def test_a_node_that_others_point_at_itself_sends_nothing(data_dir: Path, receiver: Receiver) -> None:
    """The trap listens on loopback; no URL and no name leads there unless the operator says so."""
    async with nodes.opened(data_dir, AGENTS, server={"webhook_ports": [receiver.port]}) as api:
        for host in ("127.0.0.1", "localhost", "[::1]", "127.1", "2130706433", "[::ffff:127.0.0.1]"):
            body = {"url": f"https://{host}:{receiver.port}/"}
            assert (await api.call("POST", "/v1/webhooks", body)).status_code == 422
        running = api.running
        named = (await api.call("POST", "/v1/webhooks", {"url": f"https://rebound.example:{receiver.port}/"})).json()

        async def loopback(host: str, port: int) -> list[str]:  # noqa: ARG001 - it stands for a name server
            return ["127.0.0.1"]

        running.outgoing._resolve = loopback
        await api.run("echo", "x")

        async def refused() -> Any:
            (delivery,) = (await api.get(f"/v1/webhooks/{named['id']}/deliveries"))["items"]
            return delivery["error"]

        assert await nodes.eventually(refused) == "refused: the host has an address that is not public"
        assert receiver.connections == 0
