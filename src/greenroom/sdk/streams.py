"""Following a task's events over connections that break: server-sent events, resumed, without I/O.

The clients open the stream, feed bytes, and ask here how to go on when it ends.
"""

from __future__ import annotations

import msgspec

from greenroom import errors
from greenroom.sdk import calls, flows, models

NOTHING_LEFT = 204  # the node's answer to a resumed stream: the task has ended, and all of it was sent


class Parser:
    """Bytes of one connection in, events out; what was cut off is sent again by the node."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[models.Event]:
        # Not `splitlines`: the text of an event may hold U+2028 and the like.
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [event for line in lines if (event := self._take(line.removesuffix(b"\r"))) is not None]

    def _take(self, line: bytes) -> models.Event | None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            return None
        if line or not self._data:
            return None  # a comment that keeps the connection open, or a field that the data repeats
        data, self._data = b"\n".join(self._data), []
        try:
            return msgspec.json.decode(data, type=models.Event)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise errors.GreenroomError(f"cannot read an event: {error}; is the node as new as this client?") from None


class Following:
    """One task's events from *after* to its end, over as many connections as it takes."""

    def __init__(self, id: str, *, after: int | None, patience: flows.Patience) -> None:
        self._done = False
        self._id, self._after, self._patience = id, after, patience
        self._failures = 0
        self._task_has_ended = False
        self._parser = Parser()

    def has_ended(self) -> bool:
        return self._done

    def connect(self) -> calls.Call[None]:
        self._parser = Parser()
        return calls.events(self._id, self._after)

    def feed(self, chunk: bytes) -> list[models.Event]:
        """The events in *chunk* that are new."""
        fresh = []
        for event in self._parser.feed(chunk):
            if self._after is not None and event.seq <= self._after:
                continue
            self._after = event.seq
            self._failures = 0
            self._done = self._done or event.ends
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

    def closed(self, task: models.Task) -> float:
        """The node ended the stream in good order before a last event; *task* is the task as it is now.

        A task that has ended may still have events that were not sent, so there is one more connection.
        """
        self._done = self._task_has_ended
        self._task_has_ended = task.ended
        return 0.0 if task.ended else self._patience.delay_s(1, at_least_s=None)
