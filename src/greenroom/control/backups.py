"""The backups' loop: has one made when it is due or asked for, and knows how the last one went.

A backup that fails is said and tried again, sooner than the next is due; it never ends the node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from msgspec.structs import replace

from greenroom import clock as clocks
from greenroom import errors, telemetry
from greenroom.core import backups
from greenroom.sdk import models

LONGEST_NAP_S = 3600.0


class State(msgspec.Struct, frozen=True):
    """*last* is the newest there is; *error* why the last try failed, None if it did not."""

    is_running: bool = False
    last: models.Backup | None = None
    error: str | None = None


class Backups:
    """*make* makes a backup; *newest* looks for the last one; both raise `errors.GreenroomError`.

    *every_s* None: only when somebody asks.
    """

    name = "backups"

    def __init__(
        self,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        *,
        make: Callable[[], Awaitable[models.Backup]],
        newest: Callable[[], Awaitable[models.Backup | None]],
        every_s: float | None,
    ) -> None:
        self._clock, self._facts, self._make, self._newest = clock, facts, make, newest
        self._every_s = every_s
        self.wakeup = asyncio.Event()
        self.state = State()
        self._is_asked = self._has_looked = False
        self._failures = 0
        self._next_at_s: float | None = None

    def ask(self) -> bool:
        """Have a backup made now; False while one is."""
        if self.state.is_running:
            return False
        self._is_asked = True
        self.state = replace(self.state, is_running=True)
        self.wakeup.set()
        return True

    async def step(self) -> float:
        if not self._has_looked:
            await self._look()
        if self._is_asked or (self._next_at_s is not None and self._clock.monotonic_s() >= self._next_at_s):
            await self._run()
        if self._next_at_s is None:
            return LONGEST_NAP_S
        return min(max(self._next_at_s - self._clock.monotonic_s(), 0.0), LONGEST_NAP_S)

    async def _look(self) -> None:
        """Find out when the next one is due, from the last that an earlier life of the node has made."""
        self._has_looked = True
        try:
            last = await self._newest()
        except errors.GreenroomError as error:
            self.state = replace(self.state, error=str(error))
        else:
            self.state = replace(self.state, last=last)
            if last is not None and last.problem is None:
                self._facts.emit(telemetry.NewestBackup(last.created_at))
        if self._every_s is not None:
            last_at = self.state.last.created_at if self.state.last else None
            delay_s = backups.first_delay_s(last_at, self._clock.now(), every_s=self._every_s)
            self._next_at_s = self._clock.monotonic_s() + delay_s

    async def _run(self) -> None:
        begun_s = self._clock.monotonic_s()
        self.state = replace(self.state, is_running=True)
        try:
            made = await self._make()
        except errors.GreenroomError as error:
            self._failures += 1
            self.state = replace(self.state, error=str(error))
            self._facts.emit(telemetry.BackupFailed(str(error)))
        else:
            self._failures = 0
            self.state = State(last=made)
            duration_s = self._clock.monotonic_s() - begun_s
            self._facts.emit(telemetry.BackupMade(made.id, duration_s, made.stored_bytes, made.new_bytes))
            self._facts.emit(telemetry.NewestBackup(made.created_at))
        finally:
            self._is_asked = False
            self.state = replace(self.state, is_running=False)
        if self._every_s is not None:
            delay_s = backups.retry_delay_s(self._failures, every_s=self._every_s) if self._failures else self._every_s
            self._next_at_s = self._clock.monotonic_s() + delay_s
