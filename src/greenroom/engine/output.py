"""What agent code prints becomes log lines of its task.

The task is found by a context variable, so it works in coroutines, in threads of synchronous agents, and for
logging handlers; threads that agent code starts by itself belong to no task. What belongs to none goes to the
process's own pipe.
"""

from __future__ import annotations

import contextvars
import io
import os
import sys
import threading
from collections.abc import Callable

from greenroom import redaction

MAX_LINE_CHARACTERS = 4096
MAX_TASK_CHARACTERS = 1024 * 1024
MAX_TASK_LINES = 10_000


class TaskLog:
    """The lines of one attempt; safe from several threads. *publish* gets the stream's name and a line."""

    __slots__ = ("_left", "_lines_left", "_lock", "_partial", "_publish")

    def __init__(self, publish: Callable[[str, str], None]) -> None:
        self._publish = publish
        self._partial: dict[str, str] = {}
        self._left, self._lines_left = MAX_TASK_CHARACTERS, MAX_TASK_LINES
        self._lock = threading.Lock()

    def write(self, stream: str, text: str) -> None:
        with self._lock:
            start = 0
            while self._left > 0:
                end = text.find("\n", start)
                if end < 0:
                    self._keep(stream, text[start : start + MAX_LINE_CHARACTERS + 1])
                    return
                line = self._partial.pop(stream, "") + text[start : min(end, start + MAX_LINE_CHARACTERS + 1)]
                self._line(stream, line)
                start = end + 1

    def close(self) -> None:
        """Publish the lines that no newline ended, and nothing after that."""
        with self._lock:
            for stream in list(self._partial):
                self._line(stream, self._partial.pop(stream))
            self._left = 0

    def _keep(self, stream: str, rest: str) -> None:
        kept = self._partial.get(stream, "")
        if rest and len(kept) <= MAX_LINE_CHARACTERS:
            self._partial[stream] = kept + rest

    def _line(self, stream: str, line: str) -> None:
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
        self._publish(stream, line)


current: contextvars.ContextVar[TaskLog | None] = contextvars.ContextVar("greenroom_task_log", default=None)


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
            data = text.encode("utf-8", "backslashreplace")
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


def capture() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr``; before agent code makes its logging handlers."""
    if not isinstance(sys.stdout, TaskStream):
        sys.stdout = TaskStream("stdout", 1)
    if not isinstance(sys.stderr, TaskStream):
        sys.stderr = TaskStream("stderr", 2)
