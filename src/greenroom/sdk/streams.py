"""Following a task's events, or the logs, over connections that break: server-sent events, resumed, without I/O.

The clients open the stream, feed bytes, and ask here how to go on when it ends.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import msgspec

from greenroom import errors
from greenroom.sdk import calls, flows, models

NOTHING_LEFT = 204  # the node's answer to a resumed stream: the task has ended, and all of it was sent


LOG_TRIES = 60  # connections in a row that fail, while a node is started again perhaps
LOG_DELAY_S = 2.0  # between those, at most


class Numbered(Protocol):
    @property
    def seq(self) -> int: ...


T = TypeVar("T", bound=Numbered)


class Parser(Generic[T]):
    """Bytes of one connection in, what its data are out; what was cut off is sent again by the node."""

    def __init__(self, kind: type[T]) -> None:
        self._decode = msgspec.json.Decoder(kind).decode
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[T]:
        # Not `splitlines`: the text of an event may hold U+2028 and the like.
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [event for line in lines if (event := self._take(line.removesuffix(b"\r"))) is not None]

    def _take(self, line: bytes) -> T | None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            return None
        if line or not self._data:
            return None  # a comment that keeps the connection open, or a field that the data repeats
        data, self._data = b"\n".join(self._data), []
        try:
            return self._decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise errors.GreenroomError(f"cannot read an event: {error}; is the node as new as this client?") from None


class _Resumed(Generic[T]):
    """A stream that is gone on with after the last that was seen, over as many connections as it takes."""

    def __init__(self, kind: type[T], *, after: int | None, patience: flows.Patience) -> None:
        self._kind, self._after, self._patience = kind, after, patience
        self._failures = 0
        self._parser = Parser(kind)

    def feed(self, chunk: bytes) -> list[T]:
        """What is new in *chunk*."""
        fresh = []
        for event in self._parser.feed(chunk):
            if self._after is None or event.seq > self._after:
                self._after = event.seq
                self._failures = 0
                fresh.append(event)
        return fresh

    def refused(self, reply: calls.Reply) -> float:
        """Return the delay before the next connection; raises what the refusal means where it is final."""
        error = calls.refusal(reply)
        if reply.status != 503 and (reply.status != 429 or reply.retry_after_s is None):
            raise error
        if (reply.retry_after_s or 0.0) > self._patience.timeout_s:
            raise error
        return self.broken(error, at_least_s=reply.retry_after_s)

    def broken(self, error: errors.GreenroomError, *, at_least_s: float | None = None) -> float:
        """Return the delay before the next connection; raises *error* where there were too many."""
        self._failures += 1
        if self._failures >= self._patience.tries:
            raise error
        return self._patience.delay_s(self._failures, at_least_s=at_least_s)


class Following(_Resumed[models.Event]):
    """One task's events from *after* to its end."""

    def __init__(self, id: str, *, after: int | None, patience: flows.Patience) -> None:
        super().__init__(models.Event, after=after, patience=patience)
        self._id = id
        self._done = self._task_has_ended = False

    def has_ended(self) -> bool:
        return self._done

    def connect(self) -> calls.Call[None]:
        self._parser = Parser(self._kind)
        return calls.events(self._id, self._after)

    def feed(self, chunk: bytes) -> list[models.Event]:
        fresh = super().feed(chunk)
        self._done = self._done or any(event.ends for event in fresh)
        return fresh

    def closed(self, task: models.Task) -> float:
        """The node ended the stream in good order before a last event; *task* is the task as it is now.

        A task that has ended may still have events that were not sent, so there is one more connection.
        """
        self._done = self._task_has_ended
        self._task_has_ended = task.ended
        return 0.0 if task.ended else self._patience.delay_s(1, at_least_s=None)


class Lines(_Resumed[models.LogLine]):
    """Lines of the logs, from the last *limit* that there are on: it has no end."""

    def __init__(self, which: calls.LogQuery, *, limit: int, patience: flows.Patience) -> None:
        super().__init__(models.LogLine, after=None, patience=patience)
        self._which, self._limit = which, limit

    def connect(self) -> calls.Call[None]:
        self._parser = Parser(self._kind)
        return calls.log_stream(self._which, limit=self._limit, after=self._after)

    def broken(self, error: errors.GreenroomError, *, at_least_s: float | None = None) -> float:
        """Return the delay before the next connection; a node that is started again is worth a minute."""
        self._failures += 1
        if self._failures >= LOG_TRIES:
            raise error
        return min(LOG_DELAY_S, self._patience.delay_s(min(self._failures, 5), at_least_s=at_least_s))

    def closed(self) -> float:
        """The node ended the stream in good order: it stops."""
        return self._patience.delay_s(1, at_least_s=None)
