"""The node's ends of a replica's channel and of its stdout and stderr. Called by `engine.replicas`.

What comes in is written by agent code: bounded in size, in rate and in what waits to be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import cast

import msgspec

from greenroom import redaction
from greenroom.engine import protocol

_MAX_UNREAD_BYTES = 64 * 1024 * 1024  # two frames of the largest size
_MAX_LINE_BYTES = 4096
_WINDOW_S = 0.1
_WINDOW_BYTES, _WINDOW_LINES = 256 * 1024, 50
_LAST_WORDS_BYTES = 64 * 1024


class Channel(asyncio.Protocol):
    """Frames both ways. What is sent within one turn of the loop leaves in one write."""

    def __init__(
        self,
        *,
        on_message: Callable[[protocol.ToNode], None],
        on_end: Callable[[], None],
        on_broken: Callable[[str], None],
    ) -> None:
        self.closed = asyncio.Event()
        self._on_message, self._on_end, self._on_broken = on_message, on_end, on_broken
        self._frames = protocol.Frames()
        self._unsent: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._transport.set_write_buffer_limits(high=_MAX_UNREAD_BYTES)

    def send(self, message: protocol.Message) -> None:
        """Send *message* soon; raises ValueError when it is too large for a frame."""
        frame = protocol.frame(message)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(frame)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None and not self._transport.is_closing():
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    def data_received(self, data: bytes) -> None:
        try:
            messages = [protocol.decode_for_node(body) for body in self._frames.feed(data)]
        except (ValueError, msgspec.DecodeError) as error:
            self._break(f"it sent a frame that is none: {error}")
            return
        for message in messages:
            self._on_message(message)

    def eof_received(self) -> None:
        self._on_end()

    def pause_writing(self) -> None:
        self._break(f"it left more than {_MAX_UNREAD_BYTES // 2**20} MiB unread")

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self.closed.set()

    def _break(self, why: str) -> None:
        self.abort()
        self._on_broken(why)


class LogPipe:
    """Reads lines from a pipe whose writer may be native code, hostile, or shared with a grandchild that
    outlives it.

    A line is cut at 4 KiB. At most 500 lines a second are passed on and at most 2.5 MB a second are read:
    what is over the first is counted and dropped, what is over the second makes the writer wait.
    """

    def __init__(self, fd: int, on_line: Callable[[str], None]) -> None:
        self._fd, self._on_line = fd, on_line
        self._rest = b""
        self._bytes = self._lines = self._dropped = 0
        self._loop = asyncio.get_running_loop()
        self._window: asyncio.TimerHandle | None = None
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _WINDOW_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._fd)
            return
        if self._window is None:
            self._window = self._loop.call_later(_WINDOW_S, self._open_window)
        self._split(data)
        self._bytes += len(data)
        if self._bytes >= _WINDOW_BYTES:
            self._loop.remove_reader(self._fd)

    def _open_window(self) -> None:
        self._window = None
        if self._dropped:
            self._on_line(f"({self._dropped} lines were dropped: too many at once)")
        full = self._bytes >= _WINDOW_BYTES
        self._bytes = self._lines = self._dropped = 0
        if full:
            self._loop.add_reader(self._fd, self._read)

    def _split(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._pass_on(line)
        if len(self._rest) > _MAX_LINE_BYTES:
            self._pass_on(self._rest)
            self._rest = b""

    def _pass_on(self, line: bytes) -> None:
        if self._lines >= _WINDOW_LINES:
            self._dropped += 1
            return
        self._lines += 1
        self._on_line(redaction.text(line[:_MAX_LINE_BYTES].decode(errors="replace").rstrip("\r")))

    def close(self) -> None:
        """Pass on what a dead writer left, and let go."""
        self._loop.remove_reader(self._fd)
        with contextlib.suppress(BlockingIOError):
            self._split(os.read(self._fd, _LAST_WORDS_BYTES))
        if self._rest:
            self._pass_on(self._rest)
        if self._window is not None:
            self._window.cancel()
            if self._dropped:
                self._on_line(f"({self._dropped} lines were dropped: too many at once)")
        os.close(self._fd)
