"""What a node and a replica say to each other: length-prefixed msgpack frames over one socket pair. Sans I/O.

Each message is a tagged array, so that decoding is the schema check; a frame that does not decode ends the replica.
Values that belong to agents (inputs, outputs, states, event data) travel as encoded JSON and are never interpreted
here. A task's messages carry ``(task, epoch)``: the attempt they speak for, and the only capability that a replica has.
Imported by both sides: standard library and msgspec only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

MAX_FRAME_BYTES = 32 * 1024 * 1024
_LENGTH = struct.Struct("<I")


class Message(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", gc=False):
    """The base of every message; the tag is the class's name."""


MAX_TIMEOUT_S = 7 * 86_400  # of a sub-task, as of a submission
Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
SpanId = Annotated[str, msgspec.Meta(pattern=r"^(?!0{16})[0-9a-f]{16}(?!\n)$")]


# --- node to replica


class Invoke(Message, frozen=True, tag=1, array_like=True, gc=False):
    """Run one attempt of a task."""

    task: str
    epoch: int
    input: bytes  # JSON
    attempt: int  # 1 for the first that is charged
    remaining_s: float  # until the attempt's deadline
    session: str | None = None
    state: bytes | None = None  # the session's state as JSON, committed by its last task
    state_revision: int | None = None  # the revision that wrote it
    metadata: bytes | None = None  # JSON
    is_check: bool = False  # an example task of a rollout, no user's: nothing is emitted, and no sub-task can be made
    trace: str | None = None  # the attempt's span: a traceparent and, after a space, the tracestate


class Cancel(Message, frozen=True, tag=2, array_like=True, gc=False):
    """End this attempt: the framework's token first, then the asyncio task after *grace_s*; answered by `Ended`."""

    task: str
    epoch: int
    grace_s: float = 2.0


class CallEnded(Message, frozen=True, tag=3, array_like=True, gc=False):
    """The sub-task that ``Context.call`` asked for has ended, or could not be submitted."""

    task: str
    epoch: int
    ordinal: int
    output: bytes | None = None  # JSON, when it succeeded
    error_type: str | None = None
    error_message: str = ""


class Probe(Message, frozen=True, tag=4, array_like=True, gc=False):
    """Are you there? Answered by `Alive` with the same number."""

    number: int


class Check(Message, frozen=True, tag=5, array_like=True, gc=False):
    """Try the agent without a user's task; answered by `Ended`, whose output is ``true`` when it has passed.

    *function* is "module:attribute" of the revision's own code; None: build an instance as for a task, and close it.
    """

    task: str
    epoch: int
    remaining_s: float  # then it ends as ``check_timeout``
    function: str | None = None


class Migrate(Message, frozen=True, tag=6, array_like=True, gc=False):
    """Try whether this revision can take over a session's state; answered as a `Check` is. Nothing of it is kept."""

    task: str
    epoch: int
    state: bytes  # JSON
    state_revision: int  # the revision that wrote it
    remaining_s: float


# --- replica to node


class Ready(Message, frozen=True, tag=16, array_like=True, gc=False):
    """The agent can be built and is one that *adapter* knows."""

    adapter: str
    took: str  # what the factory was taken for, in words for people


class Refused(Message, frozen=True, tag=17, array_like=True, gc=False):
    """The agent cannot be built: *message* names the exception and the fix. The replica then exits."""

    error_type: str
    message: str
    traceback: str = ""


EVENT_TYPES = frozenset({"message", "tool", "output", "progress", "log"})


class Emitted(Message, frozen=True, tag=18, array_like=True, gc=False):
    """One event of a running attempt: *type* is one of `EVENT_TYPES`."""

    task: str
    epoch: int
    type: str
    data: bytes  # JSON


class Called(Message, frozen=True, tag=19, array_like=True, gc=False):
    """``Context.call``: a durable sub-task, the *ordinal*-th of this task (from 0)."""

    task: str
    epoch: int
    ordinal: int
    agent: str
    input: bytes  # JSON
    timeout_s: float | None = None
    session: str | None = None
    span_id: SpanId | None = None  # of the call, where the attempt is traced


class Ended(Message, frozen=True, tag=20, array_like=True, gc=False):
    """The attempt is over, in one of three ways: *output* is set, *error_type* is set, or *cancelled* is true."""

    task: str
    epoch: int
    output: bytes | None = None  # JSON
    error_type: str | None = None
    error_message: str = ""
    retryable: bool = False
    cancelled: bool = False
    state: bytes | None = None  # the session's new state as JSON; None leaves it as it was
    input_tokens: Tokens = 0
    output_tokens: Tokens = 0


class Alive(Message, frozen=True, tag=21, array_like=True, gc=False):
    """The answer to `Probe`; *number* 0 is a heartbeat of the replica's loop."""

    number: int = 0


MAX_SPANS, MAX_SPAN_EVENTS, MAX_SPAN_ATTRIBUTES = 64, 128, 64  # of a message, a span, a span or event
SpanAttributes = Annotated[dict[str, Any], msgspec.Meta(max_length=MAX_SPAN_ATTRIBUTES)]


class Span(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Something that an attempt has done, and when, by its replica's clock."""

    span_id: SpanId
    parent_id: SpanId
    name: str
    kind: Annotated[int, msgspec.Meta(ge=0, le=4)]  # OpenTelemetry's
    start_ns: int
    end_ns: int
    attributes: SpanAttributes = {}
    events: Annotated[list[tuple[str, int, SpanAttributes]], msgspec.Meta(max_length=MAX_SPAN_EVENTS)] = []
    error: str | None = None  # the type of what it failed with
    scope: str = "greenroom"  # what has made it


class Spans(Message, frozen=True, tag=22, array_like=True, gc=False):
    """Spans of a running attempt, in the trace that its `Invoke` named."""

    task: str
    epoch: int
    spans: Annotated[list[Span], msgspec.Meta(max_length=MAX_SPANS)]


OfAttempt = Emitted | Called | Ended | Spans
ToReplica = Invoke | Cancel | CallEnded | Probe | Check | Migrate
ToNode = Ready | Refused | OfAttempt | Alive

_encode_into = msgspec.msgpack.Encoder().encode
decode_for_replica = msgspec.msgpack.Decoder(ToReplica).decode
decode_for_node = msgspec.msgpack.Decoder(ToNode).decode


def frame(message: Message) -> bytes:
    """Encode *message* with its length in front; raises ValueError above `MAX_FRAME_BYTES`."""
    body = _encode_into(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Bytes in, frame bodies out; keeps what is incomplete."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield every whole body; raises ValueError when the peer announces more than `MAX_FRAME_BYTES`."""
        buffer = self._buffer
        buffer += data
        start, end = 0, len(buffer)
        try:
            while end - start >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(buffer, start)
                if size > MAX_FRAME_BYTES:
                    raise ValueError(f"the peer announced a frame of {size} bytes")
                if end - start - _LENGTH.size < size:
                    break
                start += _LENGTH.size
                yield bytes(buffer[start : start + size])
                start += size
        finally:
            del buffer[:start]
