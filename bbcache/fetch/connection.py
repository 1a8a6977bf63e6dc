"""A connection to a page service, and the bytes of one copy over it.

Over libpq, by psycopg: TLS, passwords and URLs are as everywhere. The copy itself is
read by libpq's own functions, since every wait has to end in time.
"""

from __future__ import annotations

import ipaddress
import math
import os
import select
import time
from collections.abc import Callable
from typing import Any, Final

from bbcache.errors import ConfigError, MissingExtraError
from bbcache.fetch import refusal
from bbcache.fetch.errors import FetchError, RefusedError, UnavailableError

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.pq import ExecStatus
    from psycopg.pq.abc import PGresult
except ImportError as error:
    raise MissingExtraError("bbcache.fetch cannot be imported", "fetch", error) from error


_CONNECT_TIMEOUT_S: Final = 10
_LEAST_CONNECT_TIMEOUT_S: Final = 2  # libpq has no shorter one
_USER: Final = "bbcache"  # page services do not look at it, and a container may have no name
_DEFAULTS: Final = {
    "fallback_application_name": "bbcache fetch",
    # A machine that has vanished is noticed in half a minute, also before the first byte.
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
_FINAL_STATUSES: Final = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


def connect(
    url: str, token: str | None, deadline_s: float, clock: Callable[[], float] = time.monotonic
) -> psycopg.Connection:
    """Connect to a page service.

    To another machine, a password does not go in clear by default: unless the URL or
    PGSSLMODE says otherwise, TLS is required there.

    Args:
        url: a libpq connection string or URL.
        token: the password, whatever the URL has; None leaves it to libpq.
        deadline_s: when to give up, by the clock.
        clock: seconds that only grow.

    Raises:
        ConfigError: the URL cannot be understood, or has a service and no sslmode.
        RefusedError: the service does not let us in.
        UnavailableError: it cannot be reached now.
    """
    try:
        found = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise ConfigError(f"the URL cannot be understood: {str(error).strip()}") from None
    left_s = deadline_s - clock()
    settings: dict[str, Any] = {**_DEFAULTS, **found}
    if "user" not in found and "PGUSER" not in os.environ:
        settings["user"] = _USER
    if "connect_timeout" not in found and "PGCONNECT_TIMEOUT" not in os.environ:
        timeout_s = max(_LEAST_CONNECT_TIMEOUT_S, min(_CONNECT_TIMEOUT_S, math.ceil(left_s)))
        settings["connect_timeout"] = timeout_s
    if "sslmode" not in found and "PGSSLMODE" not in os.environ:
        settings |= _default_tls(found)
    if token is not None:
        settings["password"] = token
    try:
        return psycopg.connect(make_conninfo("", **settings), autocommit=True)
    except psycopg.OperationalError as error:
        raise refusal.of_connect(error) from error
    except psycopg.ProgrammingError as error:
        raise ConfigError(f"the URL cannot be used: {str(error).strip()}") from None


def _default_tls(found: dict[str, str | int | None]) -> dict[str, str]:
    """What is set where nothing says an sslmode."""
    if found.get("service") or os.environ.get("PGSERVICE"):
        raise ConfigError(
            "the URL has a service, and where that leads to is known to libpq alone\n"
            "hint: Say sslmode=verify-full or another one in the URL, too: without it, a password "
            "could go to another machine in clear."
        )
    return {} if _is_local(found) else {"sslmode": "require"}


def _is_local(found: dict[str, str | int | None]) -> bool:
    """Whether all hosts are this machine, over loopback or a socket of its own."""
    addresses = found.get("hostaddr") or os.environ.get("PGHOSTADDR")
    hosts = addresses or found.get("host") or os.environ.get("PGHOST") or ""
    return all(map(_is_loopback, str(hosts).split(",")))


def _is_loopback(host: str) -> bool:
    if host in ("", "localhost") or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class CopyStream:
    """The bytes that a command brings, as a file that can only be read. Not thread-safe.

    Its end is told only when the service has ended the copy and said that all is well:
    a copy that breaks off is an error, never a shorter file.

    Args:
        connection: the connection, which does nothing else meanwhile.
        command: the command.
        deadline_s: when it must have come in full, by the clock.
        silence_timeout_s: how long nothing may come once the copy has begun.
        clock: seconds that only grow.

    Attributes:
        size_bytes: how many bytes have come.

    Raises:
        RefusedError: the service says no.
        UnavailableError: it does not give it now, or not in time.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        command: str,
        deadline_s: float,
        silence_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pgconn = connection.pgconn
        self._deadline_s = deadline_s
        self._silence_timeout_s = math.inf
        self._clock = clock
        self._fd = connection.fileno()
        self._piece = memoryview(b"")
        self._is_at_end = False
        self.size_bytes = 0
        self._begin(command)
        self._silence_timeout_s = silence_timeout_s

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, at least one before the end.

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
            raise refusal.of_broken(error) from error
        result = self._next_result()
        if result is None or result.status != ExecStatus.COPY_OUT:
            raise _unwanted(result)

    def _next_piece(self) -> memoryview:
        """The next bytes; none at the end."""
        while True:
            try:
                size_bytes, data = self._pgconn.get_copy_data(1)
            except psycopg.OperationalError as error:
                raise refusal.of_broken(error) from error
            if size_bytes > 0:
                self.size_bytes += size_bytes
                return memoryview(data)
            if size_bytes < 0:
                self._finish()
                return memoryview(b"")
            self._receive()

    def _finish(self) -> None:
        """Hear how it has ended."""
        result = self._next_result()
        if result is None or result.status != ExecStatus.COMMAND_OK:
            raise _unwanted(result)
        if (more := self._next_result()) is not None:
            raise _unwanted(more)
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
            raise refusal.of_broken(error) from error

    def _wait(self, event: int) -> None:
        poller = select.poll()
        poller.register(self._fd, event)
        left_s = self._deadline_s - self._clock()
        if poller.poll(max(0.0, min(left_s, self._silence_timeout_s)) * 1000):
            return
        if left_s <= self._silence_timeout_s:
            raise UnavailableError("the service has not sent all of it in time")
        raise UnavailableError(f"the service has sent nothing for {self._silence_timeout_s:g} s")


def _unwanted(result: PGresult | None) -> FetchError:
    """What an answer means that is not the one wanted."""
    if result is not None and result.status == ExecStatus.FATAL_ERROR:
        return refusal.of_result(result)
    if result is None or result.status in _FINAL_STATUSES:
        return RefusedError(
            "the service does not answer with a copy\nhint: Does the URL lead to a page service?"
        )
    return UnavailableError(f"the service answers with {ExecStatus(result.status).name}")
