"""Supervision of the node's own loops: a bug crashes its loop, the loop is started again within a budget, then the node
ends.

Weather (`StoreUnavailable`) is no bug: it is said once, waited out with backoff, and said again when it is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from greenroom import clock as clocks
from greenroom import errors, telemetry

INTENSITY, PERIOD_S = 5, 60.0
WEATHER_CAP_S = 5.0


class Loop(Protocol):
    name: str
    wakeup: asyncio.Event

    async def step(self) -> float:
        """Observe, decide, act once; return the seconds until the next step is needed at the latest."""


async def serve(loop: Loop, clock: clocks.Clock, facts: telemetry.Telemetry) -> None:
    """Repeat ``loop.step()`` for ever; raises what a step raised, `StoreUnavailable` apart."""
    failures = 0
    while True:
        try:
            delay_s = await loop.step()
            if failures:
                facts.emit(telemetry.StoreRecovered(loop.name))
            failures = 0
        except errors.StoreUnavailable as error:
            if not failures:
                facts.emit(telemetry.StoreTrouble(loop.name, str(error)))
            failures += 1
            delay_s = min(WEATHER_CAP_S, 0.1 * 2.0 ** min(failures, 10))  # a power that grows for days overflows
        await clock.sleep(delay_s, loop.wakeup)


async def supervise(loops: Sequence[Loop], clock: clocks.Clock, facts: telemetry.Telemetry) -> None:
    """Serve *loops* until cancelled; raises the last error of one that crashed more than the budget allows."""
    async with asyncio.TaskGroup() as group:
        for loop in loops:
            group.create_task(_keep(loop, clock, facts), name=f"greenroom-{loop.name}")


async def _keep(loop: Loop, clock: clocks.Clock, facts: telemetry.Telemetry) -> None:
    crashes: list[float] = []
    while True:
        try:
            await serve(loop, clock, facts)
        except Exception as error:
            facts.emit(telemetry.ServiceCrashed(loop.name, f"{type(error).__name__}: {error}"))
            now_s = clock.monotonic_s()
            crashes = [at for at in crashes if at > now_s - PERIOD_S] + [now_s]
            if len(crashes) > INTENSITY:
                raise
            await clock.sleep(0.1 * 2.0 ** len(crashes))
