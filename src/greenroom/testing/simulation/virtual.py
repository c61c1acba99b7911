"""An event loop in virtual time, on one thread: when everybody waits, it is at once the time that they wait for.

What is for a thread (SQLite's commit) is done on the spot and answered a little later, so that the order of all that
happens is decided by the seed alone.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import datetime, timedelta
from typing import Any

from greenroom import clock as clocks
from greenroom.testing.fakes import START

TICK_S = 1e-6  # the shortest sleep: a delay that is lost in the sum with the time would be slept for ever


class _Waiting(selectors.SelectSelector):
    """Waits by moving the loop's time on."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits, and nobody for a time")
        self.loop.now_s += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """*latency* says how long the next thing that was for a thread takes, in seconds."""

    def __init__(self, latency: Callable[[], float]) -> None:
        self.now_s = 0.0
        self._latency = latency
        selector = _Waiting()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now_s

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        del executor
        future = self.create_future()
        try:
            result = func(*args)
        except Exception as error:  # noqa: BLE001 - for whoever waits for it
            self.call_later(self._latency(), _fail, future, error)
        else:
            self.call_later(self._latency(), _answer, future, result)
        return future


def _answer(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


class VirtualClock(clocks.SystemClock):
    """The time of a `VirtualLoop`; `offset_s` is how wrong the wall clock goes."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.offset_s = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self._loop.now_s + self.offset_s)

    def monotonic_s(self) -> float:
        return self._loop.now_s

    async def sleep(self, delay_s: float, wakeup: asyncio.Event | None = None) -> None:
        await super().sleep(max(delay_s, TICK_S), wakeup)
