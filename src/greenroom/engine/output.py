"""What agent code prints becomes log lines of its task.

The task is found by a context variable, so it works in coroutines, in threads of synchronous agents, and for
logging handlers; threads that agent code starts by itself belong to no task. What belongs to none goes to the
process's own pipe. What a handler of Python's `logging` writes keeps the level and the logger of its record, whatever
the format of its lines.
"""

from __future__ import annotations

import contextvars
import io
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from greenroom import redaction
from greenroom.engine import said

MAX_LINE_CHARACTERS = 4096
MAX_TASK_CHARACTERS = 1024 * 1024
MAX_TASK_LINES = 10_000


class TaskLog:
    """The lines of one attempt; safe from several threads. *publish* gets each."""

    __slots__ = ("_left", "_lines_left", "_lock", "_partial", "_publish")

    def __init__(self, publish: Callable[[said.Line], None]) -> None:
        self._publish = publish
        self._partial: dict[said.Line, str] = {}  # by what it is a line of, which has no text
        self._left, self._lines_left = MAX_TASK_CHARACTERS, MAX_TASK_LINES
        self._lock = threading.Lock()

    def write(self, stream: str, text: str) -> None:
        of = _kind(stream)
        with self._lock:
            start = 0
            while self._left > 0:
                end = text.find("\n", start)
                if end < 0:
                    self._keep(of, text[start : start + MAX_LINE_CHARACTERS + 1])
                    return
                line = self._partial.pop(of, "") + text[start : min(end, start + MAX_LINE_CHARACTERS + 1)]
                self._line(of, line)
                start = end + 1

    def close(self) -> None:
        """Publish the lines that no newline ended, and nothing after that."""
        with self._lock:
            for of in list(self._partial):
                self._line(of, self._partial.pop(of))
            self._left = 0

    def _keep(self, of: said.Line, rest: str) -> None:
        kept = self._partial.get(of, "")
        if rest and len(kept) <= MAX_LINE_CHARACTERS:
            self._partial[of] = kept + rest

    def _line(self, of: said.Line, line: str) -> None:
        if self._left <= 0:
            return
        line = redaction.text(line)
        if len(line) > MAX_LINE_CHARACTERS:
            line = line[:MAX_LINE_CHARACTERS] + "…"
        self._left -= len(line) + 1
        self._lines_left -= 1
        if self._left <= 0 or self._lines_left < 0:
            self._left = 0
            line = "(this task has written too much; the rest of its output is dropped)"
        self._publish(msgspec.structs.replace(of, text=line))


current: contextvars.ContextVar[TaskLog | None] = contextvars.ContextVar("greenroom_task_log", default=None)


_record: contextvars.ContextVar[logging.LogRecord | None] = contextvars.ContextVar("greenroom_log_record", default=None)


def _kind(stream: str) -> said.Line:
    """Return what is being written to *stream* just now, without its text."""
    record = _record.get()
    if record is None:
        return said.Line(stream, "")
    return said.Line(stream, "", said.level_of(record.levelno), said.logger_of(record.name))


class TaskStream(io.TextIOBase):
    """A stdout or stderr that knows whose text it is."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, stream: str, descriptor: int) -> None:
        self.name = f"<{stream}>"
        self._stream, self._descriptor = stream, descriptor

    @property
    def buffer(self) -> io.BufferedIOBase:
        """The process's own pipe, for the few who write bytes."""
        return io.BufferedWriter(io.FileIO(self._descriptor, "w", closefd=False))

    def write(self, text: str) -> int:
        log = current.get()
        if log is not None:
            log.write(self._stream, text)
        else:
            data = _marked(self._stream, text).encode("utf-8", "backslashreplace")
            while data:
                data = data[os.write(self._descriptor, data) :]
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def flush(self) -> None:
        pass

    def close(self) -> None:
        """Stay open: agent code that closes stdout must not silence the next task."""


def _marked(stream: str, text: str) -> str:
    of = _kind(stream)
    if not of.level:
        return text
    lines = text.removesuffix("\n").split("\n")
    return "".join(said.marked(msgspec.structs.replace(of, text=line)) + "\n" for line in lines)


def _emit(handler: logging.StreamHandler[Any], record: logging.LogRecord) -> None:
    """Write *record* as the handler always has, and have `TaskStream` know meanwhile what it writes."""
    token = _record.set(record)
    try:
        _usual_emit(handler, record)
    finally:
        _record.reset(token)


_usual_emit = logging.StreamHandler.emit


def capture() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr``; before agent code makes its logging handlers."""
    logging.StreamHandler.emit = _emit  # type: ignore[method-assign,assignment]  # and of whatever derives from it
    if not isinstance(sys.stdout, TaskStream):
        sys.stdout = TaskStream("stdout", 1)
    if not isinstance(sys.stderr, TaskStream):
        sys.stderr = TaskStream("stderr", 2)
