"""The routes of who is told of alerts."""

from __future__ import annotations

from greenroom.api.request import Answer, Call


async def list_all(call: Call) -> Answer:
    """List who is told of alerts, and how they do; without their URLs and secrets."""
    return Answer({"items": await call.services.receivers.all(), "next_cursor": None})


async def test(call: Call) -> Answer:
    """Send a receiver a test alert now; the answer tells what became of it."""
    name = call.path("name")
    await call.audit("receiver.test", f"receiver:{name[:64]}")
    return Answer(await call.services.receivers.test(name))
