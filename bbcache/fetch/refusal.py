"""Which of a service's answers would be the same again.

What is not known to last is tried again: that costs a minute at the most, and to give
up on what would have passed costs a start. A page service has one SQLSTATE for nearly
everything (``XX000``, as Neon's), and libpq gives none for what happens before a
connection is there, so words have to be looked at: those of the page service, of
PostgreSQL, and of libpq. Pure functions.
"""

from __future__ import annotations

import re
from typing import Final

from bbcache.errors import MissingExtraError
from bbcache.fetch.errors import FetchError, RefusedError, UnavailableError

try:
    from psycopg import OperationalError
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
_NO_TLS: Final = "server does not support SSL"
_NO_PASSWORD: Final = "no password supplied"  # noqa: S105 - what libpq says
_TLS_HINT: Final = (
    "hint: A password or token is not sent to another machine in clear unless the URL says "
    "`sslmode=prefer` or `sslmode=disable`."
)
_TOKEN_HINT: Final = "hint: Give the token in a file by --token-file, or in PGPASSWORD."  # noqa: S105


def of_connect(error: OperationalError) -> FetchError:
    """What it means that no connection came about."""
    text = str(error)
    found = _LASTING_CONNECTS.search(text)
    first = _one_line(found.string[found.start() :] if found else text)
    if found is None:
        return UnavailableError(first)
    hints = {_NO_TLS: _TLS_HINT, _NO_PASSWORD: _TOKEN_HINT}
    hint = next((each for mark, each in hints.items() if mark in text), None)
    return RefusedError(f"the service cannot be used: {first}" + (f"\n{hint}" if hint else ""))


def of_result(result: PGresult) -> FetchError:
    """What it means that the service has answered with an error."""
    sqlstate = _field(result, DiagnosticField.SQLSTATE) or ""
    text = _field(result, DiagnosticField.MESSAGE_PRIMARY) or _one_line(result.get_error_message())
    lasts = sqlstate[:2] in _LASTING_CLASSES or _LASTING_ANSWERS.match(text)
    detail = _field(result, DiagnosticField.MESSAGE_DETAIL)
    hint = _field(result, DiagnosticField.MESSAGE_HINT)
    message = f"the service says: {text}"
    message += f": {_one_line(detail)}" if detail else ""
    message += f" ({sqlstate})" if sqlstate else ""
    message += f"\nhint: {_one_line(hint)}" if hint else ""
    return RefusedError(message) if lasts else UnavailableError(message)


def of_broken(error: OperationalError) -> UnavailableError:
    """What it means that an established connection has failed."""
    return UnavailableError(f"the connection is broken: {_one_line(str(error))}")


def _field(result: PGresult, field: DiagnosticField) -> str | None:
    raw = result.error_field(field)
    return None if raw is None else raw.decode(errors="replace")


def _one_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
