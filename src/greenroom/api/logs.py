"""The routes of the logs: what replicas and tasks said, and what befell them.

A task's lines are for who may read the task, all others for who may observe the agent; lines of other tenants are for
nobody but them, and neither is whether there are any.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from greenroom import errors
from greenroom.api import views
from greenroom.api.request import Answer, Call, Stream
from greenroom.core.permissions import Action
from greenroom.engine import said
from greenroom.store.logs import Filter, StoredLine

HEARTBEAT_S = 15.0
POLL_S = 1.0  # wakeups are hints, and know of this node alone
MAX_PAGE = 200
AT_ONCE = 200  # lines that a stream reads at a time
MAX_FOLLOWERS = 200  # of one node
MAX_FOLLOW_S = 3600.0  # then its client comes again: what they may read may have changed

_encode = msgspec.json.encode


async def list_lines(call: Call) -> Answer:
    """List lines, latest first; ``?agent= &task= &replica= &level= &since= &limit= &cursor=``.

    *level* is the least: debug, info, warning, error or critical.
    """
    limit = call.number("limit", default=50, least=1, most=MAX_PAGE)
    before = call.number("cursor", default=0, most=2**62) or None
    rows = await call.store.logs.latest(_filter(call), before=before, limit=limit)
    cursor = str(rows[-1].seq) if len(rows) == limit else None
    return Answer({"items": [views.log_line(row) for row in rows], "next_cursor": cursor})


async def stream(call: Call) -> Stream:
    """Stream lines as they are stored (SSE), the oldest first: the last ``?limit=`` (50) of those that are there, and
    what comes within ``?follow_s=`` (0). Resumable by ``Last-Event-ID`` or ``?after=``.
    """
    which = _filter(call)
    limit = call.number("limit", default=50, least=1, most=MAX_PAGE)
    until_s = call.services.clock.monotonic_s() + call.seconds("follow_s", most=MAX_FOLLOW_S)
    after: int | None = call.number("after", default=0, most=2**62) if call.query("after") is not None else None
    last_id = call.header("last-event-id") or ""
    if last_id.isascii() and last_id.isdigit() and len(last_id) < 19:
        after = int(last_id)
    if call.store.logs.followers >= MAX_FOLLOWERS:
        raise errors.Overloaded(
            f"cannot follow the logs: {MAX_FOLLOWERS} do already; stop one, or ask for /v1/logs now and then",
            retry_after_s=10.0,
        )
    return Stream(_lines(call, which, after, limit=limit, until_s=until_s))


async def _lines(call: Call, which: Filter, after: int | None, *, limit: int, until_s: float) -> AsyncIterator[bytes]:
    clock, logs = call.services.clock, call.store.logs
    quiet_since_s = clock.monotonic_s()
    with logs.followed() as wakeup:
        if after is None:
            after = await logs.head()
            rows = await logs.latest(which, before=after + 1, limit=limit)
            for row in reversed(rows):
                yield _sse(row)
        yield b": following\n\n"
        while call.is_live:
            wakeup.clear()
            head = await logs.head()  # first: whatever is numbered up to it can be read
            rows = await logs.after(which, after, limit=AT_ONCE) if head > after else ()
            for row in rows:
                yield _sse(row)
            is_full, now_s = len(rows) == AT_ONCE, clock.monotonic_s()
            after = rows[-1].seq if is_full else max(after, head)
            if rows:
                quiet_since_s = now_s
            elif now_s - quiet_since_s > HEARTBEAT_S:
                yield b": still here\n\n"
                quiet_since_s = now_s
            if not is_full:
                if now_s >= until_s or call.services.stopping.is_set():
                    return
                await clock.sleep(min(POLL_S, until_s - now_s), wakeup)


def _filter(call: Call) -> Filter:
    rights = call.principal.rights
    return Filter(
        tenant=call.principal.tenant,
        of_tasks=rights.agents(Action.TASK_READ),
        of_agents=rights.agents(Action.AGENT_OBSERVE),
        agent=call.query("agent"),
        task=call.query("task"),
        replica=call.query("replica"),
        level=_level(call.query("level")),
        since=call.instant("since"),
    )


def _level(name: str | None) -> int:
    if name is None:
        return 0
    if name not in said.LEVELS:
        known = ", ".join(said.LEVELS)
        raise errors.QueryInvalid(f"cannot take ?level={name[:40]}: give one of {known}")
    return said.LEVELS[name]


def _sse(row: StoredLine) -> bytes:
    return b"id: %d\nevent: line\ndata: %s\n\n" % (row.seq, _encode(views.log_line(row)))
