"""Webhooks: what they add to the commit that ends a task, and how fast they are told. On SQLite, in this process."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure
from bench.scale import Scale
from bench.switches import BATCH

from greenroom import clock, telemetry
from greenroom.control.webhooks import Webhooks
from greenroom.core import webhooks as core
from greenroom.core.addresses import Policy
from greenroom.security.outgoing import Outgoing
from greenroom.security.webhook_secrets import WebhookSecrets
from greenroom.store import store as stores
from greenroom.store import webhooks as stored
from greenroom.store.rows import Finish
from greenroom.testing.store_contract import TENANT, Node, new_task

ID = "wh_0000000000000001"


def webhooks(folder: Path, scale: Scale) -> Iterator[Figure]:
    """The end of a task with a webhook beside one without, and deliveries to a receiver on loopback."""
    without, with_it, rates = asyncio.run(_measure(folder, scale.rounds))
    yield Figure("end of a task, in batches, with a webhook", "µs/task", with_it, without)
    yield Figure("webhooks told", "1/s", rates)


async def _measure(folder: Path, rounds: int) -> tuple[list[float], list[float], list[float]]:
    receiver = await asyncio.start_server(_answer, "127.0.0.1", 0)
    port = receiver.sockets[0].getsockname()[1]
    store = stores.open(f"sqlite:///{folder / 'greenroom.db'}", clock=clock.SystemClock(), owner="bench")
    await store.start()
    node, seals = Node(store), WebhookSecrets(secrets.token_bytes(32))
    sender = Outgoing(Policy((port,), ("127.0.0.1",)), user_agent="greenroom/bench")
    loop = Webhooks(store, clock.SystemClock(), telemetry.Telemetry(), sender, seals)
    without, with_it, rates = [], [], []
    for _ in range(rounds):
        without.append(await _end(node))
        _, sealed = seals.new(tenant=TENANT, id=ID)
        events = stored.events_text(core.EVENTS)
        url = f"http://127.0.0.1:{port}/"
        await store.webhooks.create(
            stored.NewEndpoint(ID, TENANT, url, events, "", include_output=False, secret=sealed, created_by="bench")
        )
        with_it.append(await _end(node))
        began_s = time.perf_counter()
        while await store.webhooks.pending():
            await loop.step()
            await loop.idle()
        rates.append(BATCH / (time.perf_counter() - began_s))
        await store.webhooks.remove(ID, tenant=TENANT)
    await store.close()
    receiver.close()
    return without, with_it, rates


async def _end(node: Node) -> float:
    """End a batch of tasks in one commit; return the microseconds that each took."""
    await node.store.tasks.submit_all([new_task(id=secrets.token_hex(16)) for _ in range(BATCH)])
    claims = await node.claim(BATCH)
    ends = [Finish(each.id, each.epoch, "succeeded", "ok", each.replica, output=b"1") for each in claims]
    began_s = time.perf_counter()
    await node.store.tasks.finish_all(ends)
    return (time.perf_counter() - began_s) / BATCH * 1e6


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
    await writer.drain()
    writer.close()
