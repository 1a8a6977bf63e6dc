"""Cutting a stream of bytes into the messages of PostgreSQL's protocol.

A message is a type byte, a length that counts itself, and a body; the first one of a
connection has no type byte (PostgreSQL's "Message Formats").
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from bbcache.page_service.errors import ProtocolError

MAX_STARTUP_SIZE_BYTES: Final = 10_000  # MAX_STARTUP_PACKET_LENGTH of pqcomm.h
MAX_SIZE_BYTES: Final = 32 * 1024  # of any other message, such as one with a token

_LENGTH: Final = struct.Struct("!I")


class Frame(NamedTuple):
    """One message as it came: its type, empty for the first one, and its body."""

    kind: bytes
    body: bytes


class FrameBuffer:
    """Takes bytes as they come and gives whole messages. Not thread-safe.

    A message that is too long is refused when its length is read, so that no more is kept
    than the limit and the bytes of one `feed`.
    """

    def __init__(self) -> None:
        self._data = b""
        self._at = 0  # the bytes before it were given

    def __len__(self) -> int:
        """How many bytes wait."""
        return len(self._data) - self._at

    def feed(self, data: bytes) -> None:
        """Take more bytes of the stream."""
        self._data = self._data[self._at :] + data if len(self) else data
        self._at = 0

    def begins_with(self, prefix: bytes) -> bool:
        """Whether the bytes that wait begin so."""
        return self._data.startswith(prefix, self._at)

    def next_frame(self, *, is_first: bool = False) -> Frame | None:
        """Return the next message; None until it is there in full.

        Args:
            is_first: whether it is the first one of a connection.

        Raises:
            ProtocolError: it says that it is shorter or longer than one can be.
        """
        type_size_bytes = 0 if is_first else 1
        max_size_bytes = MAX_STARTUP_SIZE_BYTES if is_first else MAX_SIZE_BYTES
        data, start = self._data, self._at
        head_size_bytes = type_size_bytes + _LENGTH.size
        if len(data) - start < head_size_bytes:
            return None
        (length,) = _LENGTH.unpack_from(data, start + type_size_bytes)
        if not _LENGTH.size <= length <= max_size_bytes:
            raise ProtocolError(
                f"a message says that it has {length} bytes; it can have "
                f"{_LENGTH.size} to {max_size_bytes}"
            )
        end = start + type_size_bytes + length
        if end > len(data):
            return None
        self._data, self._at = (data, end) if end < len(data) else (b"", 0)
        return Frame(data[start : start + type_size_bytes], data[start + head_size_bytes : end])
