"""Time as an argument: the only module that reads a clock or sleeps.

Loops take a `Clock`; tests give them `greenroom.testing.fakes.FakeClock`. Shared comparisons (leases) use the
database's clock, not this one: see `greenroom.store.database`.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """Return the instant, aware, UTC; may jump."""

    def monotonic_s(self) -> float:
        """Return seconds since an arbitrary instant; never goes back."""

    async def sleep(self, delay_s: float, wakeup: asyncio.Event | None = None) -> None:
        """Return after *delay_s*, or at once when *wakeup* is set; the event is cleared."""


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, delay_s: float, wakeup: asyncio.Event | None = None) -> None:
        if wakeup is None:
            await asyncio.sleep(delay_s)
            return
        try:
            async with asyncio.timeout(delay_s):
                await wakeup.wait()
        except TimeoutError:
            return
        wakeup.clear()
