"""The frontend messages of PostgreSQL's protocol 3: those of clients.

Sans I/O: a `Frame` in, a message out. Field layouts are those of PostgreSQL's manual,
"Message Formats"; request codes those of ``pqcomm.h``. Immutable, hence thread-safe.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from bbcache.page_service.errors import ProtocolError
from bbcache.page_service.protocol.frames import Frame

_CANCEL_CODE: Final = 80877102
_SSL_CODE: Final = 80877103
_GSSENC_CODE: Final = 80877104
_MAJOR_VERSION: Final = 3


@dataclass(frozen=True, slots=True)
class SslRequest:
    """A request for TLS."""


@dataclass(frozen=True, slots=True)
class GssEncRequest:
    """A request for GSSAPI encryption."""


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """A request to cancel the command of another connection.

    Attributes:
        process_id: as that connection was told in BackendKeyData.
        secret: likewise.
    """

    process_id: int
    secret: bytes


@dataclass(frozen=True, slots=True)
class StartupMessage:
    """The start of the conversation.

    Attributes:
        minor_version: of protocol 3.
        parameters: such as ``user``, ``application_name``, ``options``.
    """

    minor_version: int
    parameters: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class PasswordMessage:
    """The answer to a request for a password."""

    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Query:
    """A simple query."""

    text: str


@dataclass(frozen=True, slots=True)
class Parse:
    """Name a query; the empty name is allowed."""

    statement: str
    text: str


@dataclass(frozen=True, slots=True)
class Bind:
    """Make a portal from a named query."""

    portal: str
    statement: str
    parameter_count: int


@dataclass(frozen=True, slots=True)
class Describe:
    """Ask for the parameters and columns of a statement, or the columns of a portal."""

    is_portal: bool
    name: str


@dataclass(frozen=True, slots=True)
class Execute:
    """Run a portal."""

    portal: str


@dataclass(frozen=True, slots=True)
class Close:
    """Forget a statement or portal."""

    is_portal: bool
    name: str


@dataclass(frozen=True, slots=True)
class Sync:
    """The end of an extended query, which also ends its error state."""


@dataclass(frozen=True, slots=True)
class Flush:
    """Send all answers now."""


@dataclass(frozen=True, slots=True)
class CopyIn:
    """A message of a copy to the server, which the service does not accept."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """The client disconnects."""


StartupRequest = SslRequest | GssEncRequest | CancelRequest | StartupMessage
Message = (
    PasswordMessage
    | Query
    | Parse
    | Bind
    | Describe
    | Execute
    | Close
    | Sync
    | Flush
    | CopyIn
    | Terminate
)


def parse_startup(frame: Frame) -> StartupRequest:
    """Parse the first message of a connection.

    Raises:
        ProtocolError: the bytes are no such message.
    """
    fields = _Fields(frame)
    code = fields.number("!I")
    if code in (_SSL_CODE, _GSSENC_CODE):
        fields.end()
        return SslRequest() if code == _SSL_CODE else GssEncRequest()
    if code == _CANCEL_CODE:
        return CancelRequest(fields.number("!I"), fields.rest())
    major, minor = code >> 16, code & 0xFFFF
    if major != _MAJOR_VERSION:
        raise ProtocolError(f"protocol version {major}.{minor} is not supported; use 3.0")
    return StartupMessage(minor, fields.pairs())


def parse_message(frame: Frame) -> Message:
    """Parse a message after the first one.

    Raises:
        ProtocolError: its type is unknown, or its body has another form.
    """
    parser = _PARSERS.get(frame.kind)
    if parser is None:
        raise ProtocolError(f"no message has the type {frame.kind!r}")
    fields = _Fields(frame)
    message = parser(fields)
    fields.end()
    return message


class _Fields:
    """The fields of a body, one after the other."""

    def __init__(self, frame: Frame) -> None:
        self._kind, self._body = frame
        self._at = 0

    @property
    def _what(self) -> str:
        return f"a message of type {self._kind!r}" if self._kind else "the first message"

    def number(self, layout: str) -> int:
        (value,) = struct.unpack(layout, self.take(struct.calcsize(layout)))
        return int(value)

    def take(self, size_bytes: int) -> bytes:
        piece = self._body[self._at : self._at + size_bytes]
        if len(piece) < size_bytes:
            raise ProtocolError(f"{self._what} is cut short")
        self._at += size_bytes
        return piece

    def rest(self) -> bytes:
        return self.take(len(self._body) - self._at)

    def text(self) -> str:
        end = self._body.find(b"\0", self._at)
        if end < 0:
            raise ProtocolError(f"a text in {self._what} has no end")
        raw = self._body[self._at : end]
        self._at = end + 1
        with suppress(UnicodeDecodeError):
            return raw.decode()
        # Outside of the handler, and without the text: it may be a password.
        raise ProtocolError(f"a text in {self._what} is not UTF-8")

    def pairs(self) -> dict[str, str]:
        """Names and values, up to an empty name at the very end."""
        found: dict[str, str] = {}
        while name := self.text():
            found[name] = self.text()
        self.end()
        return found

    def count(self) -> int:
        return self.number("!H")

    def is_portal(self) -> bool:
        kind = self.take(1)
        if kind not in (b"S", b"P"):
            raise ProtocolError(f"{self._what} is about {kind!r}, not a statement or portal")
        return kind == b"P"

    def end(self) -> None:
        if self._at != len(self._body):
            raise ProtocolError(f"{self._what} is longer than its fields")


def _parse(fields: _Fields) -> Parse:
    message = Parse(fields.text(), fields.text())
    for _ in range(fields.count()):
        fields.number("!I")  # the type of a parameter
    return message


def _bind(fields: _Fields) -> Bind:
    portal, statement = fields.text(), fields.text()
    fields.take(2 * fields.count())  # the parameters' formats
    parameter_count = fields.count()
    for _ in range(parameter_count):
        size_bytes = fields.number("!i")
        if size_bytes > 0:  # -1 is NULL
            fields.take(size_bytes)
    fields.take(2 * fields.count())  # the results' formats
    return Bind(portal, statement, parameter_count)


def _execute(fields: _Fields) -> Execute:
    message = Execute(fields.text())
    fields.number("!I")  # how many rows, which a copy does not have
    return message


def _copy_in(fields: _Fields) -> CopyIn:
    fields.rest()
    return CopyIn()


_PARSERS: Final[Mapping[bytes, Callable[[_Fields], Message]]] = {
    b"p": lambda fields: PasswordMessage(fields.text()),
    b"Q": lambda fields: Query(fields.text()),
    b"P": _parse,
    b"B": _bind,
    b"D": lambda fields: Describe(fields.is_portal(), fields.text()),
    b"E": _execute,
    b"C": lambda fields: Close(fields.is_portal(), fields.text()),
    b"S": lambda _: Sync(),
    b"H": lambda _: Flush(),
    b"d": _copy_in,
    b"c": _copy_in,
    b"f": _copy_in,
    b"X": lambda _: Terminate(),
}
