"""One client's conversation with the service, as a state machine without I/O.

Bytes go in by `feed`, events come out of `next_event`, what is to be sent out of
`take_output`. After an event the owner answers by the method that the event names,
and only then asks for the next one. Nobody is asked for a command before the client
has been let in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from bbcache.page_service.errors import (
    CommandError,
    PageServiceError,
    ProtocolError,
    TlsRequiredError,
)
from bbcache.page_service.protocol import backend as replies
from bbcache.page_service.protocol import frontend as m
from bbcache.page_service.protocol.frames import FrameBuffer
from bbcache.page_service.protocol.frontend import parse_message, parse_startup

_MAX_NAMES: Final = 16  # of statements, and of portals
_OPTION_PREFIX: Final = "_pq_."
_PASSWORD_WANTED: Final = "a password is wanted before anything else"  # noqa: S105 - an error


@dataclass(frozen=True, slots=True)
class TlsRequested:
    """Answer with `Conversation.answer_tls`."""


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Cancel a command of another connection, and close this one without a word."""

    process_id: int
    secret: bytes


@dataclass(frozen=True, slots=True)
class TokenGiven:
    """Answer with `Conversation.let_in`, or refuse with `Conversation.fail`."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CommandGiven:
    """Answer with `begin_copy` and `end_copy`, with `complete`, or with `fail`."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The client has said good-bye."""


Event = TlsRequested | CancelRequested | TokenGiven | CommandGiven | Ended


class _Phase(Enum):
    STARTUP = "startup"
    PASSWORD = "password"  # noqa: S105 - a phase
    READY = "ready"
    SKIPPING = "skipping"  # to the Sync behind a failed extended query
    CLOSED = "closed"


class Conversation:
    """The state of one conversation. Not thread-safe.

    Args:
        max_message_size_bytes: the longest message that a client may send.
        wants_token: whether the client must prove who it is.
        has_tls: whether TLS can be spoken, and then must be.
        process_id: what the client may cancel its commands with.
        secret: likewise; four bytes.

    Attributes:
        parameters: what the client has said of itself at the start.
        message_count: how many whole messages have come.
    """

    def __init__(
        self,
        max_message_size_bytes: int,
        *,
        wants_token: bool,
        has_tls: bool,
        process_id: int,
        secret: bytes,
    ) -> None:
        self.parameters: Mapping[str, str] = {}
        self._buffer = FrameBuffer(max_message_size_bytes)
        self._wants_token = wants_token
        self._has_tls = has_tls
        self._is_encrypted = False
        self._asked: set[type[m.StartupRequest]] = set()
        self._key = (process_id, secret)
        self._phase = _Phase.STARTUP
        self._is_extended = False  # the command that was given last
        self._statements: dict[str, str] = {}
        self._portals: dict[str, str] = {}
        self.message_count = 0
        self._out = bytearray()

    @property
    def is_let_in(self) -> bool:
        """Whether the client has been let in, and commands are taken."""
        return self._phase in (_Phase.READY, _Phase.SKIPPING)

    @property
    def is_closed(self) -> bool:
        """Whether it is over: send what is left, and close."""
        return self._phase is _Phase.CLOSED

    @property
    def is_within_message(self) -> bool:
        """Whether the client has begun a message and not ended it."""
        return len(self._buffer) > 0

    def feed(self, data: bytes) -> None:
        """Take bytes of the client."""
        self._buffer.feed(data)

    def take_output(self) -> bytearray:
        """What is to be sent now."""
        data = self._out
        if data:
            self._out = bytearray()
        return data

    def next_event(self) -> Event | None:
        """Go on with what has come, up to what the owner has to answer.

        Returns:
            None where more bytes are needed, or it is over.

        Raises:
            PageServiceError: the client must go: `fail` with it, and close.
        """
        try:
            while self._phase is not _Phase.CLOSED:
                is_start = self._phase is _Phase.STARTUP
                frame = self._buffer.next_startup() if is_start else self._buffer.next_message()
                if frame is None:
                    return None
                self.message_count += 1
                event = (
                    self._begin(parse_startup(frame))
                    if is_start
                    else self._go_on(parse_message(frame))
                )
                if event is not None:
                    return event
        except ProtocolError:
            if self._phase is not _Phase.PASSWORD:
                raise
        else:
            return None
        # The bytes may be a password without its frame, and what is wrong with them tells some.
        raise ProtocolError(_PASSWORD_WANTED)

    def answer_tls(self) -> bool:
        """Answer a request for TLS.

        Returns:
            Whether to speak TLS from now on, as soon as the answer is sent.

        Raises:
            ProtocolError: there are bytes behind the request, which nobody vouches for.
        """
        if self._has_tls and self.is_within_message:
            raise ProtocolError("there are bytes behind the request for TLS")
        self._out += replies.ENCRYPTION_GRANTED if self._has_tls else replies.ENCRYPTION_REFUSED
        self._is_encrypted = self._has_tls
        return self._has_tls

    def let_in(self) -> None:
        """The client may give commands now."""
        self._phase = _Phase.READY
        self._out += replies.AUTHENTICATION_OK
        self._out += replies.parameter_status("client_encoding", "UTF8")
        if not self._wants_token:  # as Neon's pageserver has it, for psql's sake
            self._out += replies.parameter_status("integer_datetimes", "on")
            self._out += replies.parameter_status("server_version", "14.1")
        self._out += replies.backend_key_data(*self._key) + replies.READY_FOR_QUERY

    def begin_copy(self) -> None:
        """The bytes of an archive follow, which the owner sends as CopyData."""
        self._out += replies.COPY_OUT

    def copy(self, data: memoryview) -> None:
        """Bytes of the archive, in a message of their own."""
        self._out += replies.copy_data_head(len(data))
        self._out += data

    def end_copy(self) -> None:
        """The archive was sent in full."""
        self._out += replies.COPY_DONE
        self.complete("SELECT 1")

    def complete(self, tag: str) -> None:
        """The command has ended well; an empty tag answers an empty text."""
        self._out += replies.command_complete(tag) if tag else replies.EMPTY_QUERY
        if not self._is_extended:
            self._out += replies.READY_FOR_QUERY

    def fail(self, error: PageServiceError) -> None:
        """Put an error to the client: of its command, or of the conversation."""
        is_short = not self._is_extended
        self._out += replies.error_response(
            "FATAL" if error.is_fatal else "ERROR",
            error.sqlstate,
            error.simple_text() if is_short else error.extended_text(),
            detail=error.detail() if is_short else None,
            hint=error.hint(),
        )
        if error.is_fatal or not self.is_let_in:
            self._phase = _Phase.CLOSED
        elif self._is_extended:
            self._phase = _Phase.SKIPPING
        else:
            self._out += replies.READY_FOR_QUERY

    def _begin(self, request: m.StartupRequest) -> Event | None:
        if isinstance(request, m.CancelRequest):
            self._phase = _Phase.CLOSED
            return CancelRequested(request.process_id, request.secret)
        if type(request) in self._asked or (self._is_encrypted and self._asks_encryption(request)):
            raise ProtocolError("encryption was asked for before")
        self._asked.add(type(request))
        if isinstance(request, m.SslRequest):
            return TlsRequested()
        if isinstance(request, m.GssEncRequest):
            self._out += replies.ENCRYPTION_REFUSED
            return None
        if self._has_tls and not self._is_encrypted:
            raise TlsRequiredError(
                "must connect with TLS\nhint: Add sslmode=require to the connection string."
            )
        self._start(request)
        return None

    @staticmethod
    def _asks_encryption(request: m.StartupRequest) -> bool:
        return isinstance(request, m.SslRequest | m.GssEncRequest)

    def _start(self, request: m.StartupMessage) -> None:
        self.parameters = request.parameters
        options = [name for name in request.parameters if name.startswith(_OPTION_PREFIX)]
        if request.minor_version > 0 or options:
            self._out += replies.negotiate_protocol_version(options)
        if self._wants_token:
            self._phase = _Phase.PASSWORD
            self._out += replies.CLEARTEXT_PASSWORD_WANTED
        else:
            self.let_in()

    def _go_on(self, message: m.Message) -> Event | None:
        if self._phase is _Phase.READY and isinstance(message, m.Query):  # as most often
            self._is_extended = False
            return CommandGiven(message.text)
        if isinstance(message, m.Terminate):
            self._phase = _Phase.CLOSED
            return Ended()
        if self._phase is _Phase.PASSWORD:
            if not isinstance(message, m.PasswordMessage):
                raise ProtocolError(_PASSWORD_WANTED)
            return TokenGiven(message.password)
        if isinstance(message, m.PasswordMessage):
            raise ProtocolError("no password is wanted now")
        if isinstance(message, m.Sync):
            self._sync()
        elif self._phase is _Phase.READY:
            return self._go_on_ready(message)
        return None

    def _go_on_ready(self, message: m.Message) -> Event | None:
        if isinstance(message, m.Flush | m.CopyIn):
            return None  # all is sent at once anyway; what is left of a copy means nothing
        return self._go_on_extended(message)

    def _go_on_extended(self, message: m.Message) -> Event | None:
        self._is_extended = True
        try:
            if isinstance(message, m.Execute):
                return CommandGiven(_named(self._portals, "portal", message.portal))
            _ANSWERS[type(message)](self, message)
        except CommandError as error:
            self.fail(error)
        return None

    def _sync(self) -> None:
        self._phase = _Phase.READY
        self._is_extended = False
        self._portals.clear()
        self._out += replies.READY_FOR_QUERY

    def _parse(self, message: m.Parse) -> None:
        _name(self._statements, "statement", message.statement, message.text)
        self._out += replies.PARSE_COMPLETE

    def _bind(self, message: m.Bind) -> None:
        text = _named(self._statements, "statement", message.statement)
        if message.parameter_count > 0:
            raise CommandError(f"the command takes no parameters, not {message.parameter_count}")
        _name(self._portals, "portal", message.portal, text)
        self._out += replies.BIND_COMPLETE

    def _describe(self, message: m.Describe) -> None:
        if message.is_portal:
            _named(self._portals, "portal", message.name)
        else:
            _named(self._statements, "statement", message.name)
            self._out += replies.NO_PARAMETERS
        self._out += replies.NO_DATA

    def _close(self, message: m.Close) -> None:
        (self._portals if message.is_portal else self._statements).pop(message.name, None)
        self._out += replies.CLOSE_COMPLETE


_ANSWERS: Final[Mapping[type[m.Message], Callable[[Conversation, Any], None]]] = {
    m.Parse: Conversation._parse,  # noqa: SLF001 - its own table
    m.Bind: Conversation._bind,  # noqa: SLF001
    m.Describe: Conversation._describe,  # noqa: SLF001
    m.Close: Conversation._close,  # noqa: SLF001
}


def _named(texts: Mapping[str, str], what: str, name: str) -> str:
    text = texts.get(name)
    if text is None:
        raise CommandError(f"there is no {what} {name[:40]!r}")
    return text


def _name(texts: dict[str, str], what: str, name: str, text: str) -> None:
    if name not in texts and len(texts) >= _MAX_NAMES:
        raise CommandError(f"a connection has {_MAX_NAMES} named {what}s at most")
    texts[name] = text
