"""What can go wrong in a conversation, and how it is put to the client.

A simple query and an extended one are told of the same error in different words, as
Neon's compute nodes and their operators know them: `simple_text` and `extended_text`.
SQLSTATEs are PostgreSQL's (errcodes.txt); Neon has ``XX000`` for most.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import ClassVar, Final

from bbcache.errors import BbcacheError, names_a_path, safe_str

_HINT: Final = "\nhint: "


class PageServiceError(BbcacheError):
    """Base class of what is put to a client.

    Attributes:
        sqlstate: the error's code.
        is_fatal: whether the connection is closed behind it.
    """

    sqlstate: ClassVar[str] = "XX000"
    is_fatal: ClassVar[bool] = False

    def simple_text(self) -> str:
        """The message for who sent a simple query: with all its causes."""
        return ": ".join(map(plain_text, self._chain()))

    def log_text(self) -> str:
        """The message for the log: with all causes, and with paths."""
        return ": ".join(map(_own_text, self._chain()))

    def _chain(self) -> Iterator[BaseException]:
        error: BaseException | None = self
        while error is not None:
            yield error
            error = error.__cause__

    def extended_text(self) -> str:
        """The message for who speaks the extended protocol: without causes."""
        return plain_text(self)

    def detail(self) -> str | None:
        """What the message of a simple query leaves out; None where that is nothing."""
        return None

    def hint(self) -> str | None:
        """What to do about it, of this error or the first of its causes that says so."""
        for error in self._chain():
            _, mark, hint = safe_str(error).partition(_HINT)
            if mark and (isinstance(error, PageServiceError) or not names_a_path(hint)):
                return hint
        return None


class ProtocolError(PageServiceError):
    """The bytes of a client are not what the protocol has at this point."""

    sqlstate = "08P01"
    is_fatal = True


class CommandError(PageServiceError):
    """A command that is not understood, or cannot be done."""


class NoRoomError(CommandError):
    """An archive cannot be published, and has no room besides.

    Other clients hold the room; it is free when they have read their archives.
    """

    sqlstate = "53400"


class NotFoundError(PageServiceError):
    """The tenant or timeline is not here."""

    def simple_text(self) -> str:
        """Short, as Neon has it."""
        return "not found"

    def extended_text(self) -> str:
        """With what was not found."""
        return f"Not found: {plain_text(self)}"

    def detail(self) -> str | None:
        """What was not found."""
        return plain_text(self)


class UnauthorizedError(PageServiceError):
    """The token does not open what the command asks for."""

    def simple_text(self) -> str:
        """Short, as Neon has it."""
        return "JWT authentication error"

    def extended_text(self) -> str:
        """With the reason."""
        return f"Unauthorized: {plain_text(self)}"

    def detail(self) -> str | None:
        """The reason."""
        return plain_text(self)


class BadTokenError(UnauthorizedError):
    """The token proves nothing. Why it does not is for the log alone."""

    is_fatal = True

    def detail(self) -> str | None:
        """Nothing: who has no token is told no more."""
        return None


class TlsRequiredError(PageServiceError):
    """The client wants to go on without TLS."""

    is_fatal = True


class FailedTransactionError(PageServiceError):
    """A command in a transaction that has failed."""

    sqlstate = "25P02"


class CanceledError(PageServiceError):
    """The client has asked for the end of its command."""

    sqlstate = "57014"


class ShutdownError(PageServiceError):
    """The service ends."""

    sqlstate = "57P01"
    is_fatal = True

    def simple_text(self) -> str:
        """Short, as Neon has it."""
        return "shutdown"


class TooManyConnectionsError(PageServiceError):
    """There is no room for one more connection."""

    sqlstate = "53300"
    is_fatal = True


class IdleTimeoutError(PageServiceError):
    """The client has been silent, or slow, for too long."""

    sqlstate = "57P05"
    is_fatal = True


class DisconnectedError(PageServiceError):
    """The client is gone, or does not take what it is sent. Nobody is told."""

    sqlstate = "08006"
    is_fatal = True


def error_kinds(base: type[PageServiceError] = PageServiceError) -> set[type[PageServiceError]]:
    """Return all classes of errors that are put to clients."""
    return {base}.union(*map(error_kinds, base.__subclasses__()))


def plain_text(error: BaseException) -> str:
    """An exception's own text without its hint; no more than the type of a foreign one.

    A foreign exception's text may have anything in it, and is for the log. So is a text that
    names a path of the service's machine: of that, clients learn what the disk has said.
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
