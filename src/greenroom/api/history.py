"""The route of the history: what became of an agent's attempts and how long they took, also before the node's start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from greenroom import errors
from greenroom.api import access, views
from greenroom.api.request import Answer, Call
from greenroom.core import history
from greenroom.core.permissions import Action
from greenroom.sdk import models
from greenroom.store import database

SINCE_S = 3600  # where nobody says


async def show(call: Call) -> Answer:
    """Show what became of an agent's attempts, in steps of ``?step_s=`` (60) since ``?since=`` (an hour ago), oldest
    first: only steps in which some ended.
    """
    step_s = call.number("step_s", default=history.MINUTE_S, most=history.DAY_S)
    if step_s not in history.STEPS_S:
        choices = ", ".join(map(str, history.STEPS_S))
        raise errors.QueryInvalid(f"cannot take ?step_s={step_s}: give one of {choices}")
    now_us, since_us = database.microseconds(call.services.clock.now()), call.instant("since")
    since_us = history.begin_us(now_us - SINCE_S * 1_000_000 if since_us is None else since_us, step_s)
    if (steps := (now_us - since_us) // (step_s * 1_000_000)) > history.MAX_SHOWN:
        raise errors.QueryInvalid(
            f"cannot show {steps} steps of {step_s} s: at most {history.MAX_SHOWN}; give a later ?since= or a longer "
            "?step_s="
        )
    await call.store.directory.refresh()
    name = access.find_agent(call, call.path("name"), Action.AGENT_OBSERVE).agent.name
    records = await call.store.history.read(name, history.source_s(step_s), since_us=since_us)
    items = await asyncio.to_thread(_items, records, step_s)  # a day of minutes takes longer than the loop may be held
    return Answer({"items": items, "next_cursor": None})


def _items(records: Sequence[tuple[int, bytes]], step_s: int) -> list[models.HistoryBucket]:
    return [views.history_bucket(at_us, step_s, counts) for at_us, counts in history.rolled(records, step_s).items()]
