"""A connection to a page service, and the bytes of one copy over it.

TLS, passwords and URLs are those of libpq, by psycopg. The copy is
read by libpq's own functions, because every wait needs a limit.
"""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import Callable
from typing import Final

from bbcache.errors import BbcacheError, ConfigError, MissingExtraError
from bbcache.fetch import refusal
from bbcache.fetch.conninfo import hidden, settings_of, without_quotes
from bbcache.fetch.errors import FetchError, RefusedError, UnavailableError

try:
    import psycopg
    from psycopg.conninfo import make_conninfo
    from psycopg.pq import ExecStatus
    from psycopg.pq.abc import PGresult
except ImportError as error:
    raise MissingExtraError("bbcache.fetch cannot be imported", "fetch", error) from error


_FINAL_STATUSES: Final = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


def connect(
    url: str, token: str | None, deadline_s: float, clock: Callable[[], float] = time.monotonic
) -> psycopg.Connection:
    """Connect to a page service.

    By default no password is sent to another machine in the clear: TLS is required unless
    the URL or PGSSLMODE says otherwise.

    Args:
        url: a libpq connection string or URL.
        token: the password, in place of the URL's; None leaves the choice to libpq.
        deadline_s: when to give up, in seconds of the clock.
        clock: seconds that only grow.

    Raises:
        ConfigError: the URL cannot be understood, or names a libpq service but no sslmode.
        RefusedError: the service refuses the login.
        UnavailableError: the service cannot be reached now.
    """
    settings = settings_of(url, token, deadline_s - clock())
    failure: BbcacheError
    secrets = [settings.get("password"), settings.get("sslpassword"), os.environ.get("PGPASSWORD")]
    try:
        return psycopg.connect(make_conninfo("", **settings), autocommit=True)
    except psycopg.OperationalError as error:
        failure = refusal.of_connect(hidden(str(error), [*secrets, _password_of(error)]))
    except (psycopg.Error, UnicodeEncodeError) as error:
        failure = ConfigError(f"the URL cannot be used: {without_quotes(error)}")
    raise failure


def _password_of(error: psycopg.OperationalError) -> str | None:
    """The password that libpq has found, for example in a password file."""
    found = getattr(error.pgconn, "password", None)
    return found.decode(errors="replace") if found else None


class CopyStream:
    """The bytes of a copy, as a file for reading. Not thread-safe.

    The file ends only when the service has ended the copy without an error: a copy that
    breaks off is an error, never a shorter file.

    Args:
        connection: the connection, used for nothing else meanwhile.
        command: the command.
        deadline_s: when the whole copy must be there, in seconds of the clock.
        read_timeout_s: seconds without data after which it fails, once the copy has begun.
        clock: seconds that only grow.

    Attributes:
        size_bytes: how many bytes were received.

    Raises:
        RefusedError: the service refuses the command.
        UnavailableError: the service fails for now, or is too slow.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        command: str,
        deadline_s: float,
        read_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pgconn = connection.pgconn
        self._password = connection.info.password
        self._deadline_s = deadline_s
        self._read_timeout_s = math.inf
        self._clock = clock
        self._fd = connection.fileno()
        self._piece = memoryview(b"")
        self._is_at_end = False
        self.size_bytes = 0
        self._begin(command)
        self._read_timeout_s = read_timeout_s

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end.

        Raises:
            RefusedError: as for the class.
            UnavailableError: likewise.
        """
        if not self._piece and not self._is_at_end:
            self._piece = self._next_piece()
        taken, self._piece = self._piece[:size], self._piece[size:]
        return bytes(taken)

    def _begin(self, command: str) -> None:
        try:
            self._pgconn.send_query(command.encode())
            while self._pgconn.flush():
                self._wait(select.POLLOUT)
        except psycopg.OperationalError as error:
            raise self._broken(error) from None
        result = self._next_result()
        if result is None or result.status != ExecStatus.COPY_OUT:
            raise self._unwanted(result)

    def _next_piece(self) -> memoryview:
        """Receive the next bytes; none at the end."""
        while True:
            self._check_deadline()
            try:
                size_bytes, data = self._pgconn.get_copy_data(1)
            except psycopg.OperationalError as error:
                raise self._broken(error) from None
            if size_bytes > 0:
                self.size_bytes += size_bytes
                return memoryview(data)
            if size_bytes < 0:
                self._finish()
                return memoryview(b"")
            self._receive()

    def _finish(self) -> None:
        """Receive the result of the copy."""
        result = self._next_result()
        if result is None or result.status != ExecStatus.COMMAND_OK:
            raise self._unwanted(result)
        if (more := self._next_result()) is not None:
            raise self._unwanted(more)
        self._is_at_end = True

    def _next_result(self) -> PGresult | None:
        while self._pgconn.is_busy():
            self._receive()
        return self._pgconn.get_result()

    def _receive(self) -> None:
        self._wait(select.POLLIN)
        try:
            self._pgconn.consume_input()
        except psycopg.OperationalError as error:
            raise self._broken(error) from None

    def _wait(self, event: int) -> None:
        left_s = self._check_deadline()
        poller = select.poll()
        poller.register(self._fd, event)
        if poller.poll(min(left_s, self._read_timeout_s) * 1000):
            return
        self._check_deadline()
        raise UnavailableError(f"the service has sent nothing for {self._read_timeout_s:g} s")

    def _check_deadline(self) -> float:
        """Return the seconds that are left; raise if there are none."""
        left_s = self._deadline_s - self._clock()
        if left_s <= 0:
            raise UnavailableError("the service did not send the whole basebackup in time")
        return left_s

    def _broken(self, error: psycopg.OperationalError) -> UnavailableError:
        return refusal.of_broken(hidden(str(error), [self._password]))

    def _unwanted(self, result: PGresult | None) -> FetchError:
        """The error for an unexpected answer."""
        if result is not None and result.status == ExecStatus.FATAL_ERROR:
            return refusal.of_result(result, lambda text: hidden(text, [self._password]))
        if result is None or result.status in _FINAL_STATUSES:
            return RefusedError(
                "the service does not answer with a copy\n"
                "hint: Does the URL lead to a page service?"
            )
        return UnavailableError(f"the service answers with {ExecStatus(result.status).name}")
