"""One client's conversation with the service, as a state machine without I/O.

`feed` takes bytes, `next_event` gives events, and `take_output` gives the bytes to send. The
owner answers an event by the method that the event names, before it asks for the next one.
No command is given before the client was let in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from bbcache.page_service.errors import (
    CommandError,
    FailedTransactionError,
    PageServiceError,
    ProtocolError,
    TlsRequiredError,
)
from bbcache.page_service.protocol import backend
from bbcache.page_service.protocol.command import NoOpCommand
from bbcache.page_service.protocol.fields import Fields
from bbcache.page_service.protocol.frames import Frame, FrameBuffer
from bbcache.page_service.protocol.names import Names

# Of the first message (pqcomm.h).
_CANCEL_CODE: Final = 80877102
_SSL_CODE: Final = 80877103
_GSSENC_CODE: Final = 80877104
_MAJOR_VERSION: Final = 3

_SETTINGS: Final = {
    "client_encoding": "UTF8",
    # libpq's target_session_attrs would otherwise send queries to find these out.
    "in_hot_standby": "off",
    "default_transaction_read_only": "off",
    # Those of Neon's pageserver; asyncpg lets no service in that has no version.
    "integer_datetimes": "on",
    "server_version": "14.1",
}
_WELCOME: Final = backend.AUTHENTICATION_OK + b"".join(
    backend.parameter_status(*each) for each in _SETTINGS.items()
)
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
class LoginRequested:
    """Answer with `Conversation.let_in`, or refuse with `Conversation.fail`."""

    token: str | None = field(repr=False)  # None if no token is asked for


@dataclass(frozen=True, slots=True)
class CommandGiven:
    """Answer with what `copy_frame` gives, with `complete`, or with `fail`."""

    text: str


Event = TlsRequested | CancelRequested | LoginRequested | CommandGiven


class _Phase(Enum):
    STARTUP = "startup"
    PASSWORD = "password"  # noqa: S105 - a phase
    READY = "ready"
    SKIPPING = "skipping"  # to the Sync after a failed extended query
    CLOSED = "closed"


class Conversation:
    """The state of one conversation. Not thread-safe.

    Args:
        wants_token: whether the client needs a token.
        has_tls: whether the service has a certificate; clients must use TLS then.
        process_id: the client cancels its commands with it.
        secret: likewise; four bytes.

    Attributes:
        message_count: how many whole messages have arrived.
    """

    def __init__(
        self,
        *,
        wants_token: bool,
        has_tls: bool,
        process_id: int,
        secret: bytes,
    ) -> None:
        self._buffer = FrameBuffer()
        self._wants_token = wants_token
        self._has_tls = has_tls
        self._is_encrypted = False
        self._asked: set[int] = set()  # codes of requests for encryption
        self._key = (process_id, secret)
        self._phase = _Phase.STARTUP
        self._is_extended = False  # the command that was given last
        self._names = Names()
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
                if is_start:
                    self._check_no_tls()
                frame = self._buffer.next_frame(is_first=is_start)
                if frame is None:
                    return None
                self.message_count += 1
                event = self._begin(Fields(frame)) if is_start else self._go_on(frame)
                if event is not None:
                    return event
        except ProtocolError:
            if self._phase is not _Phase.PASSWORD:
                raise
        else:
            return None
        # The bytes may be a password without its frame, so the error must not tell of them.
        raise ProtocolError(_PASSWORD_WANTED)

    def _check_no_tls(self) -> None:
        if self._buffer.begins_with(_TLS_HELLO):
            when = "twice" if self._is_encrypted else "without a request for it"
            where = "" if self._has_tls else ", and the service has no certificate"
            raise ProtocolError(f"the client begins TLS {when}{where}")

    def begin_direct_tls(self) -> None:
        """Take note that the client has begun with TLS, without a request for it."""
        self._is_encrypted = True

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
        self._out += _WELCOME + backend.backend_key_data(*self._key) + self._ready

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

    def _begin(self, fields: Fields) -> Event | None:
        code = fields.number()
        if code == _CANCEL_CODE:
            event = CancelRequested(fields.number(), fields.rest())
            self._phase = _Phase.CLOSED
            return event
        if code in (_SSL_CODE, _GSSENC_CODE):
            fields.end()
            return self._ask_encryption(code)
        major, minor = divmod(code, 1 << 16)
        if major != _MAJOR_VERSION:
            raise ProtocolError(f"protocol version {major}.{minor} is not supported; use 3.0")
        options = [name for name in fields.pairs() if name.startswith(_OPTION_PREFIX)]
        if self._has_tls and not self._is_encrypted:
            raise TlsRequiredError(
                "must connect with TLS\nhint: Add sslmode=require to the connection string."
            )
        if minor > 0 or options:
            self._out += backend.negotiate_protocol_version(options)
        self._phase = _Phase.PASSWORD
        if not self._wants_token:
            return LoginRequested(None)
        self._out += backend.CLEARTEXT_PASSWORD_WANTED
        return None

    def _ask_encryption(self, code: int) -> Event | None:
        if self._is_encrypted or code in self._asked:
            raise ProtocolError("encryption was asked for before")
        self._asked.add(code)
        if code == _SSL_CODE:
            return TlsRequested()
        self._out += backend.ENCRYPTION_REFUSED
        return None

    def _go_on(self, frame: Frame) -> Event | None:
        answer = _ANSWERS.get(frame.kind)
        if answer is None:
            raise ProtocolError(f"no message has the type {frame.kind!r}")
        if self._phase is _Phase.PASSWORD and frame.kind not in b"pX":
            raise ProtocolError(_PASSWORD_WANTED)
        if self._phase is _Phase.SKIPPING and frame.kind not in b"pSX":
            return None
        self._is_extended = frame.kind in b"PBDEC"
        try:
            return answer(self, Fields(frame))
        except CommandError as error:
            self.fail(error)
            return None

    def _password(self, fields: Fields) -> Event:
        token = fields.last_text()
        if self._phase is not _Phase.PASSWORD:
            raise ProtocolError("no password is wanted now")
        return LoginRequested(token)

    def _query(self, fields: Fields) -> Event:
        return CommandGiven(fields.last_text())

    def _execute(self, fields: Fields) -> Event:
        portal = fields.text()
        fields.take(4)  # how many rows, which a copy does not have
        fields.end()
        return CommandGiven(self._names.text_of(portal, is_portal=True))

    def _sync(self, fields: Fields) -> None:
        fields.end()
        self._phase = _Phase.READY
        self._names.close_portals()
        self._out += self._ready

    def _terminate(self, fields: Fields) -> None:
        fields.end()
        self._phase = _Phase.CLOSED

    def _flush(self, fields: Fields) -> None:
        fields.end()  # answers are sent at once anyway

    def _ignore_copy(self, fields: Fields) -> None:
        """Ignore the rest of a copy to the server, which no command here begins."""

    def _parse(self, fields: Fields) -> None:
        statement, text = fields.text(), fields.text()
        fields.take(4 * fields.count())  # the types of parameters
        fields.end()
        self._names.keep(statement, text, is_portal=False)
        self._out += backend.PARSE_COMPLETE

    def _bind(self, fields: Fields) -> None:
        portal, statement = fields.text(), fields.text()
        fields.take(2 * fields.count())  # the parameters' formats
        parameter_count = fields.count()
        for _ in range(parameter_count):
            fields.take(max(0, fields.number("!i")))  # -1 is NULL
        fields.take(2 * fields.count())  # the results' formats
        fields.end()
        text = self._names.text_of(statement, is_portal=False)
        if parameter_count > 0:
            raise CommandError(f"the command takes no parameters, not {parameter_count}")
        self._names.keep(portal, text, is_portal=True)
        self._out += backend.BIND_COMPLETE

    def _describe(self, fields: Fields) -> None:
        is_portal, name = fields.portal_or_statement()
        self._names.text_of(name, is_portal=is_portal)
        self._out += backend.NO_DATA if is_portal else backend.NO_PARAMETERS + backend.NO_DATA

    def _close(self, fields: Fields) -> None:
        is_portal, name = fields.portal_or_statement()
        self._names.close(name, is_portal=is_portal)
        self._out += backend.CLOSE_COMPLETE


# By the type of the message.
_ANSWERS: Final[Mapping[bytes, Callable[[Conversation, Fields], Event | None]]] = {
    b"p": Conversation._password,  # noqa: SLF001 - its own table
    b"Q": Conversation._query,  # noqa: SLF001
    b"P": Conversation._parse,  # noqa: SLF001
    b"B": Conversation._bind,  # noqa: SLF001
    b"D": Conversation._describe,  # noqa: SLF001
    b"E": Conversation._execute,  # noqa: SLF001
    b"C": Conversation._close,  # noqa: SLF001
    b"S": Conversation._sync,  # noqa: SLF001
    b"H": Conversation._flush,  # noqa: SLF001
    b"d": Conversation._ignore_copy,  # noqa: SLF001
    b"c": Conversation._ignore_copy,  # noqa: SLF001
    b"f": Conversation._ignore_copy,  # noqa: SLF001
    b"X": Conversation._terminate,  # noqa: SLF001
}
