"""Keeps what replicas and tasks say, and what befell them: see `store.logs`. The only writer of the logs.

Who says something waits for nobody: a line is put into memory, and each step writes what has come since the last one,
many lines in a commit. What a crash loses is what was said since the last step that was stored. A replica that says too
much costs its node a bounded amount: what is over the rate is counted, and the number is said in place of the lines.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import msgspec

from greenroom import clock as clocks
from greenroom import redaction, settings, strict_json, telemetry
from greenroom.control import lifecycle
from greenroom.core import failures
from greenroom.core.permissions import HOME
from greenroom.engine import said
from greenroom.store import database
from greenroom.store.logs import Bounds, Line
from greenroom.store.rows import Claim
from greenroom.store.store import Store

WRITE_EVERY_S = 0.5
WINDOW_S = 1.0
TRIM_EVERY_S = 60.0
DAY_S = 86_400
AT_ONCE = 200  # lines of one commit
MOST = 5_000  # lines that wait while the store takes none
MAX_CHARACTERS = 4_096  # of a line
MAX_EVENT_BYTES = 65_536  # of an event that a task emitted as a line; who has more to say says it in an event
OWNERS = 10  # tasks of a replica that are told how much of theirs was left out; the replica is told of the rest


class _Window(msgspec.Struct, eq=False):
    """A second of one replica: how many lines may still come, and how many were left out, by whose they are."""

    until_s: float
    left: int
    left_out: Counter[Line] = msgspec.field(default_factory=Counter)


class Logs:
    """*whose* returns the tenant whose tasks alone have run in a replica ("": several), and the only one that runs."""

    name = "logs"

    def __init__(
        self,
        store: Store,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        found: settings.Logs,
        *,
        whose: Callable[[str], tuple[str, Claim | None]],
    ) -> None:
        self._store, self._clock, self._whose = store, clock, whose
        self._rate = found.lines_per_second
        self._bounds = Bounds(found.keep_days * DAY_S, found.max_lines, found.max_mb * 2**20)
        self.wakeup = asyncio.Event()
        self._waiting: deque[Line | telemetry.TaskSaid] = deque()
        self._heard_at_us: deque[int] = deque()  # of each of those
        self._windows: dict[str, _Window] = {}
        self._trim_at_s = clock.monotonic_s()
        self.is_on = found.keep_days > 0
        if self.is_on:
            facts.subscribe(self._hear_replica, telemetry.ReplicaSaid)
            facts.subscribe(self._hear_task, telemetry.TaskSaid)
            facts.subscribe(self._hear_end, telemetry.AttemptEnded)
            facts.subscribe(self._hear, *lifecycle.KINDS)

    async def step(self) -> float:
        self._close_windows()
        await self._write()
        await self._trim()
        return WRITE_EVERY_S

    async def close(self) -> None:
        """Write the rest; raises `errors.StoreUnavailable`."""
        self._close_windows(are_over=True)
        await self._write()

    # --- hearing

    def _hear_replica(self, fact: telemetry.ReplicaSaid) -> None:
        tenant, only = self._whose(fact.replica)
        if tenant != HOME and (only is None or not tenant):
            note = _note_of(fact.agent, fact.replica, "tasks of other tenants have run there")
            self._window(fact.replica).left_out[note] += 1
            return
        line = Line(
            at=0,
            tenant=tenant,
            agent=fact.agent,
            replica=fact.replica,
            task=None if only is None else only.id,
            epoch=None if only is None else only.epoch,
            of_task=only is not None,
            level=said.LEVELS.get(fact.severity, logging.INFO),
            source=fact.stream,
            logger=fact.by,
            text=fact.line,
        )
        if self._may_keep(fact.agent, fact.replica, line):
            self._keep(line)

    def _hear_task(self, fact: telemetry.TaskSaid) -> None:
        if self._may_keep(fact.agent, fact.replica, fact):
            self._keep(fact)

    def _hear_end(self, ended: telemetry.AttemptEnded) -> None:
        if ended.state != "succeeded" and len(self._waiting) < MOST:
            self._keep(lifecycle.end(ended, at_us=0))

    def _hear(self, fact: Any) -> None:
        if len(self._waiting) < MOST:
            self._keep(lifecycle.line(fact, at_us=0))

    def _keep(self, what: Line | telemetry.TaskSaid) -> None:
        self._waiting.append(what)
        self._heard_at_us.append(database.microseconds(self._clock.now()))

    # --- bounds

    def _window(self, replica: str) -> _Window:
        window = self._windows.get(replica)
        if window is None:
            window = self._windows[replica] = _Window(self._clock.monotonic_s() + WINDOW_S, self._rate)
        return window

    def _may_keep(self, agent: str, replica: str, what: Line | telemetry.TaskSaid) -> bool:
        """Count what its replica says; False if it is too much, or more than can wait."""
        window = self._window(replica)
        if window.left > 0 and len(self._waiting) < MOST:
            window.left -= 1
            return True
        why = f"its replica wrote more than {self._rate} in a second" if window.left <= 0 else "too much waits"
        note = _note_of(agent, replica, why)
        if isinstance(what, telemetry.TaskSaid) and len(window.left_out) < OWNERS:
            note = msgspec.structs.replace(note, tenant=what.tenant, task=what.task, epoch=what.epoch, of_task=True)
        window.left_out[note] += 1
        return False

    def _close_windows(self, *, are_over: bool = False) -> None:
        """Say what was left out, and let those go whose second is over; while no more can wait they go on."""
        if len(self._waiting) >= MOST and not are_over:
            return
        now_s = self._clock.monotonic_s()
        for replica, window in list(self._windows.items()):
            if are_over or now_s >= window.until_s:
                del self._windows[replica]
                for note, count in window.left_out.items():
                    lines = "1 line was" if count == 1 else f"{count} lines were"
                    self._keep(msgspec.structs.replace(note, text=f"({lines} left out: {note.text})"))

    # --- writing

    async def _write(self) -> None:
        while self._waiting:
            batch = list(itertools.islice(zip(self._waiting, self._heard_at_us, strict=True), AT_ONCE))
            await self._store.logs.put([_line(what, at_us) for what, at_us in batch])
            for _ in batch:
                self._waiting.popleft()
                self._heard_at_us.popleft()

    async def _trim(self) -> None:
        """Drop what is kept for long enough, or is too much: some of it in each step, as long as there is more."""
        now_s = self._clock.monotonic_s()
        if self.is_on and now_s >= self._trim_at_s and not await self._store.logs.trim(self._bounds):
            self._trim_at_s = now_s + TRIM_EVERY_S


def _note_of(agent: str, replica: str, why: str) -> Line:
    """Return the line that stands for others, without their number."""
    level = logging.WARNING
    return Line(at=0, tenant=HOME, agent=agent, replica=replica, level=level, source="greenroom", text=why)


def _line(what: Line | telemetry.TaskSaid, at_us: int) -> Line:
    """Return what was heard as it is stored: clean, without secrets, and no longer than a line may be."""
    line = what if isinstance(what, Line) else _of_task(what)
    text = redaction.text(line.text).encode("utf-8", "replace").decode()
    if len(text) > MAX_CHARACTERS:
        text = text[:MAX_CHARACTERS] + "…"
    return msgspec.structs.replace(line, at=at_us, text=text, logger=failures.told(redaction.text(line.logger)))


def _of_task(fact: telemetry.TaskSaid) -> Line:
    """Return what a task's event says: a line that it printed or logged, or whatever agent code has emitted as one."""
    stream, text, level, logger = "", "", "", ""
    if len(fact.data) > MAX_EVENT_BYTES:
        text = f"(an event of {len(fact.data)} bytes)"
    else:
        match strict_json.loads(fact.data):
            case {"line": str(text), **rest} | {"message": str(text), **rest}:
                stream, level, logger = (_word(rest.get(name)) for name in ("stream", "level", "logger"))
            case str(text):
                pass
            case _:
                text = fact.data.decode()
    return Line(
        at=0,
        tenant=fact.tenant,
        agent=fact.agent,
        replica=fact.replica,
        task=fact.task,
        epoch=fact.epoch,
        of_task=True,
        level=said.LEVELS.get(level.lower(), logging.INFO),
        source=stream if stream in ("stdout", "stderr", "greenroom") else "event",
        logger=said.logger_of(logger),
        text=text,
    )


def _word(value: object) -> str:
    return value if isinstance(value, str) else ""
