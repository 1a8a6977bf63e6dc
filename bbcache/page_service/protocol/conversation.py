"""One client's conversation with the service, as a state machine without I/O.

`feed` takes bytes, `next_event` gives events, and `take_output` gives the bytes to send. The
owner answers an event by the method that the event names, before it asks for the next one.
No command is given before the client was let in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from sys import getsizeof
from typing import Any, Final

from bbcache.page_service.errors import (
    CommandError,
    FailedTransactionError,
    PageServiceError,
    ProtocolError,
    TlsRequiredError,
)
from bbcache.page_service.protocol import backend, frontend
from bbcache.page_service.protocol.command import NoOpCommand
from bbcache.page_service.protocol.frames import Frame, FrameBuffer
from bbcache.page_service.protocol.frontend import parse_message, parse_startup

_MAX_NAMES: Final = 16  # of statements, and of portals
_MAX_STATE_BYTES: Final = 16 * 1024  # names and texts of all of them
_COPY_END: Final = backend.COPY_DONE + backend.command_complete("SELECT 1")
_TLS_HELLO: Final = b"\x16\x03"
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
    """Answer with what `copy_frame` gives, with `complete`, or with `fail`."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The client has disconnected."""


Event = TlsRequested | CancelRequested | TokenGiven | CommandGiven | Ended


class _Phase(Enum):
    STARTUP = "startup"
    PASSWORD = "password"  # noqa: S105 - a phase
    READY = "ready"
    SKIPPING = "skipping"  # to the Sync after a failed extended query
    CLOSED = "closed"


class Conversation:
    """The state of one conversation. Not thread-safe.

    Args:
        max_message_size_bytes: the longest message that a client may send.
        wants_token: whether the client needs a token.
        has_tls: whether the service has a certificate; clients must use TLS then.
        process_id: the client cancels its commands with it.
        secret: likewise; four bytes.

    Attributes:
        message_count: how many whole messages have arrived.
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
        self._buffer = FrameBuffer(max_message_size_bytes)
        self._wants_token = wants_token
        self._has_tls = has_tls
        self._is_encrypted = False
        self._asked: set[type[frontend.StartupRequest]] = set()
        self._key = (process_id, secret)
        self._phase = _Phase.STARTUP
        self._is_extended = False  # the command that was given last
        self._statements: dict[str, str] = {}
        self._portals: dict[str, str] = {}
        self._ready = backend.READY_FOR_QUERY  # tells the status of the transaction
        self.message_count = 0
        self._out = bytearray()

    @property
    def is_let_in(self) -> bool:
        """Whether the client has been let in, and commands are taken."""
        return self._phase in (_Phase.READY, _Phase.SKIPPING)

    @property
    def is_closed(self) -> bool:
        """Whether the conversation is over: send the rest, and close."""
        return self._phase is _Phase.CLOSED

    @property
    def is_within_message(self) -> bool:
        """Whether a part of a message has arrived."""
        return len(self._buffer) > 0

    @property
    def has_message(self) -> bool:
        """Whether a whole message waits for `next_event`."""
        return self._phase is not _Phase.STARTUP and self._buffer.has_message

    def feed(self, data: bytes) -> None:
        """Take bytes of the client."""
        self._buffer.feed(data)

    def take_output(self) -> bytearray:
        """Return the bytes to send now."""
        data = self._out
        if data:
            self._out = bytearray()
        return data

    def next_event(self, most: int = 1 << 30) -> Event | None:
        """Go on with the bytes that have arrived, up to an event for the owner.

        Args:
            most: how many messages to go on with at most.

        Returns:
            None where more bytes are needed, so many messages had no event, or it is over.

        Raises:
            PageServiceError: the client must go: `fail` with it, and close.
        """
        try:
            for _ in range(most):
                if self._phase is _Phase.CLOSED:
                    break
                is_start = self._phase is _Phase.STARTUP
                frame = self._next_startup() if is_start else self._buffer.next_message()
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
        # The bytes may be a password without its frame, so the error must not tell of them.
        raise ProtocolError(_PASSWORD_WANTED)

    def _next_startup(self) -> Frame | None:
        if self._buffer.begins_with(_TLS_HELLO):
            when = "twice" if self._is_encrypted else "without a request for it"
            where = "" if self._has_tls else ", and the service has no certificate"
            raise ProtocolError(f"the client begins TLS {when}{where}")
        return self._buffer.next_startup()

    def begin_direct_tls(self) -> None:
        """Take note that the client has begun with TLS, without a request for it."""
        self._is_encrypted = True
        self._asked |= {frontend.SslRequest, frontend.GssEncRequest}

    def answer_tls(self) -> bool:
        """Answer a request for TLS.

        Returns:
            Whether to speak TLS from now on, as soon as the answer is sent.

        Raises:
            ProtocolError: there are bytes after the request, which may be an attacker's.
        """
        if self._has_tls and self.is_within_message:
            raise ProtocolError("there are bytes after the request for TLS")
        self._out += backend.ENCRYPTION_GRANTED if self._has_tls else backend.ENCRYPTION_REFUSED
        self._is_encrypted = self._has_tls
        return self._has_tls

    def let_in(self) -> None:
        """Let the client give commands from now on."""
        self._phase = _Phase.READY
        self._out += backend.AUTHENTICATION_OK
        self._out += backend.parameter_status("client_encoding", "UTF8")
        # libpq's target_session_attrs would otherwise send queries to find these out.
        self._out += backend.parameter_status("in_hot_standby", "off")
        self._out += backend.parameter_status("default_transaction_read_only", "off")
        if not self._wants_token:  # as Neon's pageserver has it, for psql's sake
            self._out += backend.parameter_status("integer_datetimes", "on")
            self._out += backend.parameter_status("server_version", "14.1")
        self._out += backend.backend_key_data(*self._key) + self._ready

    def copy_frame(self) -> tuple[bytearray, bytes]:
        """Return what is sent before the CopyData messages of an archive, and after them."""
        end = _COPY_END if self._is_extended else _COPY_END + self._ready
        return self.take_output() + backend.COPY_OUT, end

    def complete(self, command: NoOpCommand) -> None:
        """Answer a statement that changes the status of the transaction at most.

        Raises:
            CommandError: the transaction has failed, and the statement does not end it.
        """
        is_failed = self._ready is backend.READY_IN_FAILED_TRANSACTION
        tag = "ROLLBACK" if is_failed and command.ends_transaction else command.tag
        if command.begins_transaction:
            self.check_transaction()
            self._ready = backend.READY_IN_TRANSACTION
        elif command.ends_transaction:
            self._ready = backend.READY_FOR_QUERY
        elif is_failed and command.is_to_savepoint:
            self._ready = backend.READY_IN_TRANSACTION
        elif tag:
            self.check_transaction()
        self._out += backend.command_complete(tag) if tag else backend.EMPTY_QUERY
        if not self._is_extended:
            self._out += self._ready

    def check_transaction(self) -> None:
        """Raise `FailedTransactionError` where the transaction must be rolled back first."""
        if self._ready is backend.READY_IN_FAILED_TRANSACTION:
            raise FailedTransactionError(
                "current transaction is aborted, commands ignored until end of transaction block"
            )

    def fail(self, error: PageServiceError) -> None:
        """Tell the client an error of its command, or of the conversation."""
        if self._ready is not backend.READY_FOR_QUERY:
            self._ready = backend.READY_IN_FAILED_TRANSACTION
        is_short = not self._is_extended
        self._out += backend.error_response(
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
            self._out += self._ready

    def _begin(self, request: frontend.StartupRequest) -> Event | None:
        if isinstance(request, frontend.CancelRequest):
            self._phase = _Phase.CLOSED
            return CancelRequested(request.process_id, request.secret)
        if type(request) in self._asked or (self._is_encrypted and self._asks_encryption(request)):
            raise ProtocolError("encryption was asked for before")
        self._asked.add(type(request))
        if isinstance(request, frontend.SslRequest):
            return TlsRequested()
        if isinstance(request, frontend.GssEncRequest):
            self._out += backend.ENCRYPTION_REFUSED
            return None
        if self._has_tls and not self._is_encrypted:
            raise TlsRequiredError(
                "must connect with TLS\nhint: Add sslmode=require to the connection string."
            )
        self._start(request)
        return None

    @staticmethod
    def _asks_encryption(request: frontend.StartupRequest) -> bool:
        return isinstance(request, frontend.SslRequest | frontend.GssEncRequest)

    def _start(self, request: frontend.StartupMessage) -> None:
        options = [name for name in request.parameters if name.startswith(_OPTION_PREFIX)]
        if request.minor_version > 0 or options:
            self._out += backend.negotiate_protocol_version(options)
        if self._wants_token:
            self._phase = _Phase.PASSWORD
            self._out += backend.CLEARTEXT_PASSWORD_WANTED
        else:
            self.let_in()

    def _go_on(self, message: frontend.Message) -> Event | None:
        if self._phase is _Phase.READY and isinstance(message, frontend.Query):  # the usual case
            self._is_extended = False
            return CommandGiven(message.text)
        if isinstance(message, frontend.Terminate):
            self._phase = _Phase.CLOSED
            return Ended()
        if self._phase is _Phase.PASSWORD:
            if not isinstance(message, frontend.PasswordMessage):
                raise ProtocolError(_PASSWORD_WANTED)
            return TokenGiven(message.password)
        if isinstance(message, frontend.PasswordMessage):
            raise ProtocolError("no password is wanted now")
        if isinstance(message, frontend.Sync):
            self._sync()
        elif self._phase is _Phase.READY:
            return self._go_on_ready(message)
        return None

    def _go_on_ready(self, message: frontend.Message) -> Event | None:
        if isinstance(message, frontend.Flush | frontend.CopyIn):
            return None  # answers are sent at once anyway; the rest of a copy is ignored
        return self._go_on_extended(message)

    def _go_on_extended(self, message: frontend.Message) -> Event | None:
        self._is_extended = True
        try:
            if isinstance(message, frontend.Execute):
                return CommandGiven(_named(self._portals, "portal", message.portal))
            _ANSWERS[type(message)](self, message)
        except CommandError as error:
            self.fail(error)
        return None

    def _sync(self) -> None:
        self._phase = _Phase.READY
        self._is_extended = False
        self._portals.clear()
        self._out += self._ready

    def _parse(self, message: frontend.Parse) -> None:
        self._name(self._statements, "statement", message.statement, message.text)
        self._out += backend.PARSE_COMPLETE

    def _bind(self, message: frontend.Bind) -> None:
        text = _named(self._statements, "statement", message.statement)
        if message.parameter_count > 0:
            raise CommandError(f"the command takes no parameters, not {message.parameter_count}")
        self._name(self._portals, "portal", message.portal, text)
        self._out += backend.BIND_COMPLETE

    def _describe(self, message: frontend.Describe) -> None:
        if message.is_portal:
            _named(self._portals, "portal", message.name)
        else:
            _named(self._statements, "statement", message.name)
            self._out += backend.NO_PARAMETERS
        self._out += backend.NO_DATA

    def _name(self, texts: dict[str, str], what: str, name: str, text: str) -> None:
        if name not in texts and len(texts) >= _MAX_NAMES:
            raise CommandError(f"a connection has {_MAX_NAMES} named {what}s at most")
        kept = [*self._statements.items(), *self._portals.items(), (name, text)]
        if sum(getsizeof(each) for pair in kept for each in pair) > _MAX_STATE_BYTES:
            raise CommandError(
                f"the statements and portals of a connection have {_MAX_STATE_BYTES} bytes at most"
            )
        texts[name] = text

    def _close(self, message: frontend.Close) -> None:
        (self._portals if message.is_portal else self._statements).pop(message.name, None)
        self._out += backend.CLOSE_COMPLETE


_ANSWERS: Final[Mapping[type[frontend.Message], Callable[[Conversation, Any], None]]] = {
    frontend.Parse: Conversation._parse,  # noqa: SLF001 - its own table
    frontend.Bind: Conversation._bind,  # noqa: SLF001
    frontend.Describe: Conversation._describe,  # noqa: SLF001
    frontend.Close: Conversation._close,  # noqa: SLF001
}


def _named(texts: Mapping[str, str], what: str, name: str) -> str:
    text = texts.get(name)
    if text is None:
        raise CommandError(f"there is no {what} {name[:40]!r}")
    return text
