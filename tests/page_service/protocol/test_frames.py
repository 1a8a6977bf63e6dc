"""Bytes are cut into messages, however they come, and never more is kept than allowed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbcache.page_service.errors import ProtocolError
from bbcache.page_service.protocol.frames import (
    MAX_SIZE_BYTES,
    MAX_STARTUP_SIZE_BYTES,
    Frame,
    FrameBuffer,
)

FRAMES = st.lists(st.builds(Frame, st.binary(min_size=1, max_size=1), st.binary(max_size=1000)))


def packed(frame: Frame) -> bytes:
    """The bytes of a message."""
    return frame.kind + struct.pack("!I", len(frame.body) + 4) + frame.body


def drained(buffer: FrameBuffer) -> list[Frame]:
    """All whole messages."""
    found = []
    while (frame := buffer.next_frame()) is not None:
        found.append(frame)
    return found


@given(frames=FRAMES, data=st.data())
def test_however_the_bytes_are_cut(frames: list[Frame], data: st.DataObject) -> None:
    """The messages do not depend on the pieces in which their bytes arrive."""
    stream = b"".join(map(packed, frames))
    buffer = FrameBuffer()
    found: list[Frame] = []
    while stream:
        size_bytes = data.draw(st.integers(1, len(stream)))
        buffer.feed(stream[:size_bytes])
        stream = stream[size_bytes:]
        found += drained(buffer)
    assert found == frames
    assert len(buffer) == 0


@pytest.mark.parametrize("length", [0, 3, MAX_SIZE_BYTES + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_length_that_cannot_be(length: int) -> None:
    """It is refused as soon as it is read, and is named."""
    buffer = FrameBuffer()
    buffer.feed(b"Q" + struct.pack("!I", length))
    with pytest.raises(ProtocolError, match=f"says that it has {length} bytes"):
        buffer.next_frame()


def test_the_longest_message() -> None:
    """A message of exactly the limit is accepted."""
    frame = Frame(b"Q", bytes(MAX_SIZE_BYTES - 4))
    buffer = FrameBuffer()
    buffer.feed(packed(frame))
    assert drained(buffer) == [frame]


def test_the_first_message_has_a_limit_of_its_own() -> None:
    """It has no type, and PostgreSQL's limit."""
    buffer = FrameBuffer()
    body = bytes(MAX_STARTUP_SIZE_BYTES - 4)
    buffer.feed(struct.pack("!I", MAX_STARTUP_SIZE_BYTES) + body[1:])
    assert buffer.next_frame(is_first=True) is None
    buffer.feed(b"\0")
    assert buffer.next_frame(is_first=True) == Frame(b"", body)
    buffer.feed(struct.pack("!I", MAX_STARTUP_SIZE_BYTES + 1))
    with pytest.raises(ProtocolError):
        buffer.next_frame(is_first=True)


@given(pieces=st.lists(st.binary(max_size=64), max_size=40))
def test_hostile_bytes(pieces: list[bytes]) -> None:
    """Any bytes are messages or a ProtocolError, and no more is kept than the limit."""
    buffer = FrameBuffer()
    for piece in pieces:
        buffer.feed(piece)
        try:
            drained(buffer)
        except ProtocolError:
            return
        assert len(buffer) <= MAX_SIZE_BYTES
