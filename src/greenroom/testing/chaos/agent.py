"""The agent that ``greenroom chaos`` deploys for a while: it notes in a ledger what really ran. Standard library only.

A line of the ledger is one run: ``key,task,epoch,attempt,pid,begun,ended``, written when it begins (without *ended*)
and again when it ends, each by a single append, so that lines of many processes never mix and a killed run leaves its
begin. Whoever may deploy may deploy it: it writes such lines alone, and only into files that are called ``ledger``.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import re
import time
from typing import Any

from greenroom.sdk.context import Context

_KEY = re.compile(r"[\w/.-]{1,200}")


async def perform(input: dict[str, Any], context: Context) -> dict[str, Any]:
    """Do what *input* says: ``nap`` for ``nap_s``, ``call`` the agent itself, ``exit``, or ``segfault``."""
    if not _KEY.fullmatch(input["key"]) or os.path.basename(input["ledger"]) != "ledger":  # noqa: PTH119
        raise ValueError("expected a key of letters and digits, and a file that is called ledger")
    task, begun = context.task, time.time()
    run = f"{input['key']},{task.id},{task.epoch},{task.attempt},{os.getpid()},{begun:.6f}"
    _append(input["ledger"], f"{run},\n")
    match input.get("do", "nap"):
        case "exit":
            os._exit(7)
        case "segfault":
            ctypes.string_at(0)
        case "call":
            await context.call(task.agent, input | {"key": f"{input['key']}/1", "do": "nap"})
        case _:
            pass
    await asyncio.sleep(input.get("nap_s", 0.0))
    answer = {"key": input["key"], "epoch": task.epoch}
    if context.session is not None:
        answer["link"] = context.state["link"] = link(context.state.get("link", ""), input["key"])
    _append(input["ledger"], f"{run},{time.time():.6f}\n")
    return answer


def link(before: str, key: str) -> str:
    """Return the next link of a session's chain: whoever lost or doubled a task's state breaks it."""
    return hashlib.sha256(f"{before}{key}".encode()).hexdigest()


def _append(path: str, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
