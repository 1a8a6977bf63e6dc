"""The errors that clients are told, and their texts.

The answers to a simple and to an extended query word the same error differently, as Neon's
compute nodes and their operators know them: `simple_text` and `extended_text`.
SQLSTATEs are PostgreSQL's (errcodes.txt); Neon has ``XX000`` for most.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import ClassVar, Final

from bbcache.errors import BbcacheError, names_a_path, safe_str
from bbcache.outcomes import Outcome

_HINT: Final = "\nhint: "


class Ending(Outcome):
    """Why a connection ended."""

    CLOSED = "closed", "the client closed it"
    BROKEN = "broken", "the network or the client broke it off"
    PROTOCOL = "protocol", "the client broke the protocol"
    UNAUTHORIZED = "unauthorized", "the client had no valid token"
    TIMEOUT = "timeout", "the client was idle or slow for too long"
    REFUSED = "refused", "there were too many connections"
    SHUTDOWN = "shutdown", "the service shut down"
    FAILED = "failed", "the service failed; the log says why"


class PageServiceError(BbcacheError):
    """Base class of the errors that clients are told.

    Attributes:
        sqlstate: the error's code.
        ending: the reason under which a connection is counted that it has ended.
        is_fatal: whether the connection is closed after it.
        short_text: Neon's message for a simple query; None for the text and its causes.
        prefix: Neon's beginning of the message for an extended query.
        has_detail: whether the DETAIL of a short message is the text.
    """

    sqlstate: ClassVar[str] = "XX000"
    ending: ClassVar[Ending] = Ending.FAILED
    is_fatal: ClassVar[bool] = False
    short_text: ClassVar[str | None] = None
    prefix: ClassVar[str] = ""
    has_detail: ClassVar[bool] = True

    def simple_text(self) -> str:
        """Return the message for a simple query."""
        return self.short_text or ": ".join(map(plain_text, self._chain()))

    def extended_text(self) -> str:
        """Return the message for an extended query, without causes."""
        return self.prefix + plain_text(self)

    def detail(self) -> str | None:
        """Return what the message for a simple query leaves out; None if that is nothing."""
        return plain_text(self) if self.short_text and self.has_detail else None

    def log_text(self) -> str:
        """Return the message for the log, with all causes and with paths."""
        return ": ".join(map(_own_text, self._chain()))

    def hint(self) -> str | None:
        """Return the hint of this error, or of the first of its causes that has one."""
        for error in self._chain():
            _, mark, hint = safe_str(error).partition(_HINT)
            if mark and (isinstance(error, PageServiceError) or not names_a_path(hint)):
                return hint
        return None

    def _chain(self) -> Iterator[BaseException]:
        error: BaseException | None = self
        while error is not None:
            yield error
            error = error.__cause__


class ProtocolError(PageServiceError):
    """The bytes of a client are no message that the protocol allows at this point."""

    sqlstate = "08P01"
    ending = Ending.PROTOCOL
    is_fatal = True


class CommandError(PageServiceError):
    """A command is not understood, or cannot be done."""


class NoRoomError(CommandError):
    """An archive cannot be published, and has no room besides.

    Other clients hold the room; it is free when they have read their archives.
    """

    sqlstate = "53400"


class NotFoundError(PageServiceError):
    """The tenant or timeline is not here."""

    short_text = "not found"
    prefix = "Not found: "


class UnauthorizedError(PageServiceError):
    """The token does not allow the command."""

    short_text = "JWT authentication error"
    prefix = "Unauthorized: "


class BadTokenError(UnauthorizedError):
    """The token is not valid. Only the log has the reason."""

    ending = Ending.UNAUTHORIZED
    is_fatal = True
    has_detail = False


class TlsRequiredError(PageServiceError):
    """The client does not use TLS, which the service requires."""

    ending = Ending.UNAUTHORIZED
    is_fatal = True


class FailedTransactionError(PageServiceError):
    """A command in a transaction that has failed."""

    sqlstate = "25P02"


class CanceledError(PageServiceError):
    """The client has cancelled its command."""

    sqlstate = "57014"


class ShutdownError(PageServiceError):
    """The service shuts down."""

    sqlstate = "57P01"
    ending = Ending.SHUTDOWN
    is_fatal = True
    short_text = "shutdown"
    has_detail = False


class TooManyConnectionsError(PageServiceError):
    """There is no place, or no thread, for the connection."""

    sqlstate = "53300"
    ending = Ending.REFUSED
    is_fatal = True


class IdleTimeoutError(PageServiceError):
    """The client has been silent, or slow, for too long."""

    sqlstate = "57P05"
    ending = Ending.TIMEOUT
    is_fatal = True


class DisconnectedError(PageServiceError):
    """The client is gone, or does not read its answer, so it is not told."""

    sqlstate = "08006"
    ending = Ending.BROKEN
    is_fatal = True


def error_kinds(base: type[PageServiceError] = PageServiceError) -> set[type[PageServiceError]]:
    """Return all classes of errors that clients are told."""
    return {base}.union(*map(error_kinds, base.__subclasses__()))


def plain_text(error: BaseException) -> str:
    """Return the text of an exception of bbcache without its hint, else the exception's type.

    The text of a foreign exception may contain anything, so only the log has it. Of a text that
    names a path of the service's machine, clients are told what the operating system said.
    """
    text = _own_text(error)
    if isinstance(error, PageServiceError) or not names_a_path(text):
        return text
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number else "the log of the service has the reason"


def _own_text(error: BaseException) -> str:
    if not isinstance(error, BbcacheError):
        return type(error).__name__
    return safe_str(error).partition(_HINT)[0]
