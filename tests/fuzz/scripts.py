"""What a hostile client says, made of arbitrary bytes, so that any fuzzer can drive it.

Bytes decide the kind of the client, how its stream is cut into pieces, whether it begins well, and
message by message what it says: a good message, a good one with a flipped byte, a well-framed
one with any type and body, or raw bytes.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from page_service import wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOST_MESSAGES: Final = 48
TOKEN: Final = "%TOKEN%"  # noqa: S105 - a place for one
_MOST_RAW_BYTES: Final = 255
_KINDS: Final = b"pQPBDECSHdcfX\0zR"
_PIECE_SIZES: Final = (0, 1, 7, 100)  # 0 is all at once


class ClientKind(Enum):
    """The kinds of clients."""

    ANYONE = "anyone, of a service that asks for no token"
    STRANGER = "a stranger, of a service that asks for one"
    NEIGHBOUR = "a client with a good token for another tenant"


class Script(NamedTuple):
    """What a client says.

    Attributes:
        client: its kind of client.
        messages: one after the other; not all of them are messages.
        piece_size_bytes: how many bytes come at once; 0 for all.
    """

    client: ClientKind
    messages: Sequence[bytes]
    piece_size_bytes: int

    def pieces(self) -> list[bytes]:
        """The stream as it comes."""
        stream = b"".join(self.messages)
        size_bytes = self.piece_size_bytes or len(stream) or 1
        return [stream[at : at + size_bytes] for at in range(0, len(stream), size_bytes)]


class Vocabulary:
    """The good messages of a script.

    Args:
        commands: the commands that it sends.
        token: a good one, for another tenant than that of the commands.
    """

    def __init__(self, commands: Iterable[str], token: str) -> None:
        self.token = token
        self._beginnings = [
            wire.startup(user="u"),
            wire.ssl_request(),
            wire.gss_request(),
            wire.cancel_request(bytes(8)),
            wire.startup(2, **{"user": "u", "_pq_.x": "y"}),
            wire.packed(b"", struct.pack("!I", 2 << 16)),
        ]
        self._rest = [
            wire.password(TOKEN),
            wire.password("x.y.z"),
            *(wire.query(command) for command in commands),
            *(wire.parse(command, "s") for command in commands),
            wire.parse("", ""),
            wire.bind("s", "p"),
            wire.bind(),
            wire.describe("s"),
            wire.packed(b"D", b"P" + wire.text("p")),
            wire.execute("p"),
            wire.execute(),
            wire.packed(b"C", b"P" + wire.text("p")),
            wire.packed(b"d", b"x"),
            wire.packed(b"f", wire.text("x")),
            b"Q\xff\xff\xff\xff",
            *(wire.SYNC, wire.FLUSH, wire.TERMINATE),
        ]

    @property
    def messages(self) -> Sequence[bytes]:
        """The good ones behind the first."""
        return self._rest

    def script(self, data: bytes) -> Script:
        """The script that bytes stand for."""
        reader = _Reader(data)
        head = reader.number()
        client = [*ClientKind][head % len(ClientKind)]
        size_bytes = _PIECE_SIZES[head // len(ClientKind) % len(_PIECE_SIZES)]
        begins_well = head // len(ClientKind) // len(_PIECE_SIZES) % 4 > 0
        messages = self._good_beginning(client) if begins_well else []
        while reader.has_more() and len(messages) < MOST_MESSAGES:
            messages.append(self._message(reader, is_first=not messages))
        if client is ClientKind.NEIGHBOUR:
            place, token = wire.password(TOKEN), wire.password(self.token)
            messages = [token if each == place else each for each in messages]
        return Script(client, messages, size_bytes)

    def _good_beginning(self, client: ClientKind) -> list[bytes]:
        password = [wire.password(TOKEN)] if client is ClientKind.NEIGHBOUR else []
        return [wire.startup(user="u"), *password]

    def _message(self, reader: _Reader, *, is_first: bool) -> bytes:
        kind, number = divmod(reader.number(), 64)
        if kind == 0:
            return self._good(number, is_first=is_first)
        if kind == 1:
            good = bytearray(self._good(number, is_first=is_first))
            good[reader.number() % len(good)] ^= reader.number()
            return bytes(good)
        if kind == 2:
            type_byte = _KINDS[number % len(_KINDS) :][:1]
            return wire.packed(type_byte, reader.take(reader.number()))
        return reader.take(min(reader.number(), _MOST_RAW_BYTES))

    def _good(self, number: int, *, is_first: bool) -> bytes:
        """One of the good messages; beginnings mostly stand at the beginning."""
        choices = self._beginnings if is_first else self._rest
        if number == 63:
            choices = self._rest if is_first else self._beginnings
        return choices[number % len(choices)]


class _Reader:
    """Bytes, one decision after the other; zeros behind the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def has_more(self) -> bool:
        return self._at < len(self._data)

    def number(self) -> int:
        return (self.take(1) or b"\0")[0]

    def take(self, size_bytes: int) -> bytes:
        piece = self._data[self._at : self._at + size_bytes]
        self._at += size_bytes
        return piece
