"""What it costs to know who calls and what they may do; without a node, because it is a part of each request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.figures import Figure
from bench.scale import Scale

from greenroom import clock, telemetry
from greenroom.api.keys import Keys
from greenroom.api.roles import Roles
from greenroom.core.permissions import HOME, Action, parse
from greenroom.store import store as stores

TIMES = 20_000
SCOPES = ["task:* on agent:research-*", "task:submit on agent:writer"]


def keys(folder: Path, scale: Scale) -> Iterator[Figure]:
    """A key that is known, one that is seen for the first time, and what a role and scopes allow."""
    yield from asyncio.run(_figures(folder, scale))


async def _figures(folder: Path, scale: Scale) -> list[Figure]:
    store = stores.open(f"sqlite:///{folder / 'keys.db'}", clock=clock.SystemClock(), owner="bench")
    await store.start()
    found = Keys(store.principals, clock.SystemClock(), telemetry.Telemetry(), pepper=b"p" * 32, roles=Roles())
    made = await found.create(
        tenant=HOME, name="bench", role="user", word="dev", scopes=[parse(scope) for scope in SCOPES]
    )
    presented = b"Bearer " + made.text.encode()
    principal = found.principal_of(presented)
    assert principal is not None
    rights = principal.rights

    def anew() -> None:
        found._proven.clear()
        found.principal_of(presented)

    measured: dict[str, tuple[Callable[[], object], str]] = {
        "key, known": (lambda: found.principal_of(presented), "≤ 50 µs"),
        "key, seen for the first time": (anew, "≤ 50 µs"),
        "permission, by a pattern": (lambda: rights.on_agent(Action.TASK_SUBMIT, "research-1"), "≤ 1 µs"),
        "permission, refused": (lambda: rights.on_agent(Action.TASK_SUBMIT, "other"), "≤ 1 µs"),
    }
    figures = [
        Figure(name, "µs", [_us(do) for _ in range(scale.rounds)], aim=aim) for name, (do, aim) in measured.items()
    ]
    await store.close()
    return figures


def _us(do: Callable[[], object]) -> float:
    """Return the CPU time of one, so that what else the machine does counts little."""
    began_s = time.process_time()
    for _ in range(TIMES):
        do()
    return (time.process_time() - began_s) / TIMES * 1e6
