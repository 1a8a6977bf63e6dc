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

_HINT: Final = "\nhint: "


class PageServiceError(BbcacheError):
    """Base class of the errors that clients are told.

    Attributes:
        sqlstate: the error's code.
        is_fatal: whether the connection is closed after it.
    """

    sqlstate: ClassVar[str] = "XX000"
    is_fatal: ClassVar[bool] = False

    def simple_text(self) -> str:
        """Return the message for a simple query, with all causes."""
        return ": ".join(map(plain_text, self._chain()))

    def log_text(self) -> str:
        """Return the message for the log, with all causes and with paths."""
        return ": ".join(map(_own_text, self._chain()))

    def _chain(self) -> Iterator[BaseException]:
        error: BaseException | None = self
        while error is not None:
            yield error
            error = error.__cause__

    def extended_text(self) -> str:
        """Return the message for an extended query, without causes."""
        return plain_text(self)

    def detail(self) -> str | None:
        """Return what the message for a simple query leaves out; None if that is nothing."""
        return None

    def hint(self) -> str | None:
        """Return the hint of this error, or of the first of its causes that has one."""
        for error in self._chain():
            _, mark, hint = safe_str(error).partition(_HINT)
            if mark and (isinstance(error, PageServiceError) or not names_a_path(hint)):
                return hint
        return None


class ProtocolError(PageServiceError):
    """The bytes of a client are no message that the protocol allows at this point."""

    sqlstate = "08P01"
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

    def simple_text(self) -> str:
        """Return Neon's short text."""
        return "not found"

    def extended_text(self) -> str:
        """Return the text with the name of the missing object."""
        return f"Not found: {plain_text(self)}"

    def detail(self) -> str | None:
        """Return the name of the missing object."""
        return plain_text(self)


class UnauthorizedError(PageServiceError):
    """The token does not allow the command."""

    def simple_text(self) -> str:
        """Return Neon's short text."""
        return "JWT authentication error"

    def extended_text(self) -> str:
        """Return the text with the reason."""
        return f"Unauthorized: {plain_text(self)}"

    def detail(self) -> str | None:
        """Return the reason."""
        return plain_text(self)


class BadTokenError(UnauthorizedError):
    """The token is not valid. Only the log has the reason."""

    is_fatal = True

    def detail(self) -> str | None:
        """Return None: a client without a valid token is told no more."""
        return None


class TlsRequiredError(PageServiceError):
    """The client does not use TLS, which the service requires."""

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
    is_fatal = True

    def simple_text(self) -> str:
        """Return Neon's short text."""
        return "shutdown"


class TooManyConnectionsError(PageServiceError):
    """There is no place, or no thread, for the connection."""

    sqlstate = "53300"
    is_fatal = True


class IdleTimeoutError(PageServiceError):
    """The client has been silent, or slow, for too long."""

    sqlstate = "57P05"
    is_fatal = True


class DisconnectedError(PageServiceError):
    """The client is gone, or does not read its answer, so it is not told."""

    sqlstate = "08006"
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
