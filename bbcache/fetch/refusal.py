"""Which errors of a service are permanent.

Any other error is retried: a needless retry costs at most a minute, and giving up on an
error that passes costs a start. A page service has one SQLSTATE for nearly
everything (``XX000``, as Neon's), and libpq has none for errors before the
connection, so these functions look at the texts: of the page service, of
PostgreSQL, and of libpq. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from bbcache.errors import MissingExtraError, printable
from bbcache.fetch.errors import FetchError, RefusedError, UnavailableError

try:
    from psycopg.pq import DiagnosticField
    from psycopg.pq.abc import PGresult
except ImportError as error:
    raise MissingExtraError("bbcache.fetch cannot be imported", "fetch", error) from error


# SQLSTATE classes (errcodes.txt): no feature, no authorization, no database, no syntax.
_LASTING_CLASSES: Final = ("0A", "28", "3D", "42")
_LASTING_ANSWERS: Final = re.compile(
    r"JWT authentication error|Unauthorized|not found|Not found|invalid basebackup lsn"
    r"|unsupported command|cannot parse query"
)
_LASTING_CONNECTS: Final = re.compile(
    r"FATAL: +(JWT authentication error|must connect with TLS|password authentication failed"
    r"|no pg_hba.conf entry|(role|database) .* does not exist)"
    r"|no password supplied|certificate verify failed|server certificate for "
    r"|root certificate file|server does not support SSL|invalid (port number|[a-z_]+ value)"
)
_MOST_CHARACTERS: Final = 500  # of each text of a service that is shown
_SQLSTATE_CHARACTERS: Final = 5
_NO_TLS: Final = "server does not support SSL"
_NO_PASSWORD: Final = "no password supplied"  # noqa: S105 - what libpq says
_TLS_HINT: Final = (
    "hint: A password or token is not sent to another machine in the clear unless the URL says "
    "`sslmode=prefer` or `sslmode=disable`."
)
_TOKEN_HINT: Final = "hint: Give the token in a file by --token-file, or in PGPASSWORD."  # noqa: S105


def of_connect(text: str) -> FetchError:
    """The error for a connection that failed, from the text of libpq."""
    found = _LASTING_CONNECTS.search(text)
    first = _one_line(found.string[found.start() :] if found else text)
    if found is None:
        return UnavailableError(first)
    hints = {_NO_TLS: _TLS_HINT, _NO_PASSWORD: _TOKEN_HINT}
    hint = next((each for mark, each in hints.items() if mark in text), None)
    return RefusedError(f"the service cannot be used: {first}" + (f"\n{hint}" if hint else ""))


def of_result(result: PGresult, hide: Callable[[str], str]) -> FetchError:
    """The error for an error response of the service.

    Args:
        result: the answer.
        hide: removes secrets from a text of the service.
    """

    def field(name: DiagnosticField) -> str:
        raw = result.error_field(name)
        return "" if raw is None else hide(raw.decode(errors="replace"))

    sqlstate = printable(field(DiagnosticField.SQLSTATE), _SQLSTATE_CHARACTERS)
    text = field(DiagnosticField.MESSAGE_PRIMARY) or _one_line(hide(result.get_error_message()))
    lasts = sqlstate[:2] in _LASTING_CLASSES or _LASTING_ANSWERS.match(text)
    detail, hint = field(DiagnosticField.MESSAGE_DETAIL), field(DiagnosticField.MESSAGE_HINT)
    message = f"the service says: {printable(text.strip(), _MOST_CHARACTERS)}"
    message += f": {_one_line(detail)}" if detail else ""
    message += f" ({sqlstate})" if sqlstate else ""
    message += f"\nhint: {_one_line(hint)}" if hint else ""
    return RefusedError(message) if lasts else UnavailableError(message)


def of_broken(text: str) -> UnavailableError:
    """The error for an established connection that failed, from the text of libpq."""
    return UnavailableError(f"the connection is broken: {_one_line(text)}")


def _one_line(text: str) -> str:
    """The first line that is not empty, without control characters."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return printable(first, _MOST_CHARACTERS)
