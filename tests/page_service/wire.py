"""A hand-written client: the bytes of PostgreSQL's protocol, by the manual and nothing else."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """One backend message."""

    kind: str
    body: bytes

    def fields(self) -> dict[str, str]:
        """The fields of an ErrorResponse, by their letters."""
        assert self.kind == "E", self
        return {each[:1].decode(): each[1:].decode() for each in self.body.split(b"\0") if each}


def packed(kind: bytes, body: bytes = b"") -> bytes:
    """A frontend message."""
    return kind + struct.pack("!I", len(body) + 4) + body


def text(*values: str) -> bytes:
    """Texts, each with its end."""
    return b"".join(value.encode() + b"\0" for value in values)


def startup(minor: int = 0, **parameters: str) -> bytes:
    """A StartupMessage."""
    pairs = [each for pair in parameters.items() for each in pair]
    return packed(b"", struct.pack("!I", 3 << 16 | minor) + text(*pairs) + b"\0")


def ssl_request() -> bytes:
    """An SSLRequest."""
    return packed(b"", struct.pack("!I", 80877103))


def gss_request() -> bytes:
    """A GSSENCRequest."""
    return packed(b"", struct.pack("!I", 80877104))


def cancel_request(key: bytes) -> bytes:
    """A CancelRequest with the body of a BackendKeyData."""
    return packed(b"", struct.pack("!I", 80877102) + key)


def password(token: str) -> bytes:
    """A PasswordMessage."""
    return packed(b"p", text(token))


def query(command: str) -> bytes:
    """A simple query."""
    return packed(b"Q", text(command))


def parse(command: str, statement: str = "") -> bytes:
    """A Parse without parameters."""
    return packed(b"P", text(statement, command) + b"\0\0")


def bind(statement: str = "", portal: str = "") -> bytes:
    """A Bind without parameters."""
    return packed(b"B", text(portal, statement) + b"\0\0\0\0\0\0")


def describe(statement: str = "") -> bytes:
    """A Describe of a statement."""
    return packed(b"D", b"S" + text(statement))


def execute(portal: str = "") -> bytes:
    """An Execute without a limit of rows."""
    return packed(b"E", text(portal) + b"\0\0\0\0")


SYNC = packed(b"S")
FLUSH = packed(b"H")
TERMINATE = packed(b"X")


def split(data: bytes | bytearray) -> tuple[list[Reply], bytes]:
    """The whole backend messages in `data`, and what is left."""
    replies, data = [], bytes(data)
    while len(data) >= 5:
        end = 1 + struct.unpack_from("!I", data, 1)[0]
        if len(data) < end:
            break
        replies.append(Reply(data[:1].decode(), data[5:end]))
        data = data[end:]
    return replies, data


def kinds(replies: list[Reply]) -> str:
    """Their types, as one word; repeated pieces of a copy count once."""
    word = "".join(reply.kind for reply in replies)
    while "dd" in word:
        word = word.replace("dd", "d")
    return word


class WireClient:
    """A connected socket that speaks the protocol. Every wait has a deadline.

    Args:
        sock: the socket, plain or with TLS.
    """

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.sock.settimeout(30.0)
        self._data = b""
        self._replies: list[Reply] = []

    def send(self, *messages: bytes) -> None:
        """Send messages in one piece."""
        self.sock.sendall(b"".join(messages))

    def receive(self) -> Reply | None:
        """The next message; None at the end of the stream."""
        while not self._replies:
            piece = self.sock.recv(1 << 20)
            if not piece:
                assert not self._data, f"the stream ends within a message: {self._data!r}"
                return None
            self._replies, self._data = split(self._data + piece)
        return self._replies.pop(0)

    def until(self, kind: str) -> list[Reply]:
        """All messages up to one of a type, or to the end of the stream."""
        found = []
        while (reply := self.receive()) is not None:
            found.append(reply)
            if reply.kind == kind:
                break
        return found

    def rest(self) -> list[Reply]:
        """All messages up to the end of the stream."""
        return self.until("")

    def log_in(self, token: str | None = None, **parameters: str) -> list[Reply]:
        """Begin, and give a token where one is wanted."""
        self.send(startup(0, user="u", **parameters))
        if token is None:
            return self.until("Z")
        first = self.receive()
        assert first == Reply("R", b"\0\0\0\3"), first
        self.send(password(token))
        return self.until("Z")

    def ask(self, command: str) -> list[Reply]:
        """All answers to a simple query."""
        self.send(query(command))
        return self.until("Z")

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


def copied(replies: list[Reply]) -> bytes:
    """The bytes of a copy."""
    return b"".join(reply.body for reply in replies if reply.kind == "d")
