"""Framing: whatever the pieces in which bytes arrive, the same frames come out."""

from __future__ import annotations

import contextlib
import itertools
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.engine import protocol

_text, _count = st.text(max_size=20), st.integers(0, 2**31)
_bytes = st.binary(max_size=300)
_to_node = st.one_of(
    st.builds(protocol.Ready, _text, _text),
    st.builds(protocol.Refused, _text, _text, _text),
    st.builds(protocol.Emitted, _text, _count, _text, _bytes),
    st.builds(protocol.Called, _text, _count, _count, _text, _bytes, st.none() | st.floats(0, 9), st.none() | _text),
    st.builds(protocol.Ended, _text, _count, st.none() | _bytes, st.none() | _text),
    st.builds(protocol.Alive, _count),
)
_to_replica = st.one_of(
    st.builds(protocol.Invoke, _text, _count, _bytes, _count, st.floats(0, 9), st.none() | _text, st.none() | _bytes),
    st.builds(protocol.Cancel, _text, _count),
    st.builds(protocol.CallEnded, _text, _count, _count, st.none() | _bytes),
    st.builds(protocol.Probe, _count),
    st.builds(protocol.Check, _text, _count, st.floats(0, 9), st.none() | _text),
    st.builds(protocol.Migrate, _text, _count, _bytes, _count, st.floats(0, 9)),
)


def in_chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(_to_node, max_size=10), st.lists(_count, max_size=20))
def test_what_a_replica_says_arrives_in_any_pieces(messages: list[protocol.ToNode], cuts: list[int]) -> None:
    frames, heard = protocol.Frames(), []
    for chunk in in_chunks(b"".join(map(protocol.frame, messages)), cuts):
        heard += [protocol.decode_for_node(body) for body in frames.feed(chunk)]
    assert heard == messages


@given(st.lists(_to_replica, max_size=10), st.lists(_count, max_size=20))
def test_what_a_node_says_arrives_in_any_pieces(messages: list[protocol.ToReplica], cuts: list[int]) -> None:
    frames, heard = protocol.Frames(), []
    for chunk in in_chunks(b"".join(map(protocol.frame, messages)), cuts):
        heard += [protocol.decode_for_replica(body) for body in frames.feed(chunk)]
    assert heard == messages


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_told_apart_from_bugs(data: bytes) -> None:
    with contextlib.suppress(msgspec.DecodeError, ValueError):
        protocol.decode_for_node(data)


@pytest.mark.parametrize("message", [protocol.Probe(1), protocol.Cancel("t", 1)])
def test_a_side_does_not_take_what_only_itself_may_say(message: protocol.Message) -> None:
    with pytest.raises(msgspec.ValidationError):
        protocol.decode_for_node(msgspec.msgpack.encode(message))


def test_a_frame_over_the_limit_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_FRAME_BYTES", 100)
    with pytest.raises(ValueError, match="over the limit of 100"):
        protocol.frame(protocol.Emitted("t", 1, "output", bytes(101)))


def test_a_frame_over_the_limit_is_refused_when_it_is_announced() -> None:
    frames = protocol.Frames()
    before = protocol.frame(protocol.Alive(7))
    announced = struct.pack("<I", protocol.MAX_FRAME_BYTES + 1)
    with pytest.raises(ValueError, match="announced a frame of 33554433 bytes"):
        list(frames.feed(before + announced))


def test_a_frame_of_the_largest_size_passes() -> None:
    size = protocol.MAX_FRAME_BYTES
    frames = protocol.Frames()
    data = struct.pack("<I", size) + bytes(size)
    bodies = [body for start in range(0, len(data), 2**18) for body in frames.feed(data[start : start + 2**18])]
    assert [len(body) for body in bodies] == [size]
