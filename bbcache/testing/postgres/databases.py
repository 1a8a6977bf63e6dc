"""Databases for tests, copied from the template ahead of need and dropped behind it.

A thread does both. A test that takes a database which is ready waits for nothing, and a drop
never waits for the connections of the test that has just ended.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from bbcache.errors import PostgresError
from bbcache.testing.postgres.driver import MAINTENANCE, TEMPLATE, Connection, DriverError
from bbcache.testing.postgres.environment import steering_variables

_DROPS_BEHIND: Final = 2
_STRATEGY_MAJOR: Final = 15  # CREATE DATABASE has had STRATEGY since then
_CLONE_MAJOR: Final = 18  # likewise file_copy_method
_POLL_S: Final = 0.002
_END_TIMEOUT_S: Final = 1.0
_IN_USE: Final = "55006"  # object_in_use (PostgreSQL's errcodes.txt)
_WHO: Final = f"""
    SELECT pid, application_name, state, left(query, 60) FROM pg_stat_activity
    WHERE datname = '{TEMPLATE}' ORDER BY pid
"""  # noqa: S608 - of constants


class DatabasePool:
    """Makes and drops the databases of one server. Thread-safe.

    The thread starts with the first database that is taken.

    Args:
        connect: opens a connection to a database of the server by its name.
        major: the server's major version.
        size: how many databases are made ahead.
        keep: whether none is dropped.
    """

    def __init__(
        self, connect: Callable[[str], Connection], major: int, size: int, *, keep: bool
    ) -> None:
        self._connect = connect
        self._major = major
        self._size = size
        self._keep = keep
        self._can_clone = major >= _CLONE_MAJOR  # this and the next three: of the thread alone
        self._made_count = 0
        self._is_warm = False
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # guards all that follows
        self._thread: threading.Thread | None = None
        self._ready: deque[str] = deque()
        self._returned: deque[str] = deque()
        self._waiting_count = 0
        self._error: Exception | None = None  # for those that wait
        self._is_resting = False  # since a failure that nobody has waited for
        self._has_made = False
        self._is_closing = False

    def take(self) -> str:
        """Return the name of a database that nobody else gets.

        Raises:
            PostgresError: it cannot be made.
        """
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="bbcache-databases", daemon=True
                )
                self._thread.start()
            self._waiting_count += 1
            self._is_resting = False
            self._changed.notify_all()
            try:
                while not self._ready:
                    if self._error is not None:
                        raise self._error
                    if self._is_closing:
                        raise PostgresError("the server of this database has been stopped")
                    self._changed.wait()
                return self._ready.popleft()
            finally:
                self._waiting_count -= 1
                if self._waiting_count == 0:
                    self._error = None
                self._changed.notify_all()

    def give_back(self, name: str) -> None:
        """Have a database dropped, once two others have been given back."""
        with self._changed:
            self._returned.append(name)
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread; databases stay as they are."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while (step := self._next_step()) is not None:
            try:
                step()
            except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
                with self._changed:
                    if self._waiting_count:
                        self._error = error
                    else:
                        self._is_resting = True
                    self._changed.notify_all()
        if self._connection is not None:
            self._connection.close()

    def _next_step(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._is_closing:
                if self._has_made and not self._is_warm:
                    return self._warm_template
                wanted = self._waiting_count + self._size
                is_well = self._error is None and not self._is_resting
                if is_well and len(self._ready) < wanted:
                    return self._make
                if len(self._returned) > _DROPS_BEHIND and not self._keep:
                    name = self._returned.popleft()
                    return lambda: self._drop(name)
                self._changed.wait()
        return None

    def _make(self) -> None:
        self._made_count += 1  # a failure may have made it all the same
        name = f"test_{self._made_count}"
        strategy = "STRATEGY FILE_COPY" if self._major >= _STRATEGY_MAJOR else ""
        self._run(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} {strategy}")
        with self._changed:
            self._has_made = True
            self._ready.append(name)
            self._changed.notify_all()

    def _warm_template(self) -> None:
        """Let PostgreSQL write its cache of the catalog into the template, once.

        The copies have it then, and a first connection to one takes half the time. It waits
        until the first database was made: nobody waits for this.
        """
        self._is_warm = True
        if steering_variables():
            return  # see _reconnect
        allow = f"ALTER DATABASE {TEMPLATE} ALLOW_CONNECTIONS"
        with contextlib.suppress(PostgresError, DriverError):
            self._run(f"{allow} true")
            try:
                self._connect(TEMPLATE).close()
            finally:
                self._run(f"{allow} false")
            self._wait_until_unused()

    def _wait_until_unused(self) -> None:
        """Wait for the end of a closed connection, for which a copy would wait in longer steps."""
        deadline_s = time.monotonic() + _END_TIMEOUT_S
        assert self._connection is not None
        while self._connection.run(_WHO) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)

    def _drop(self, name: str) -> None:
        with contextlib.suppress(
            PostgresError
        ):  # the server is stopped, or the test has dropped it
            self._run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _run(self, sql: str) -> None:
        is_new = self._connection is None or not self._connection.is_open
        if is_new:
            self._reconnect()
        assert self._connection is not None
        if is_new and self._can_clone:
            self._connection.run("SET file_copy_method = clone")
        try:
            self._connection.run(sql)
        except DriverError as error:
            if not self._connection.is_open and not is_new:
                self._run(sql)  # the server was restarted
            elif self._can_clone and sql.startswith("CREATE") and error.sqlstate != _IN_USE:
                self._can_clone = False  # the file system cannot
                self._connection.run("SET file_copy_method = copy")
                self._run(sql)
            else:
                raise self._explained(sql, error) from error

    def _reconnect(self) -> None:
        """Connect, which takes variables out of the environment for a moment.

        No test may notice that. If one has set such variables, this fails, unless a caller waits
        for a database meanwhile.
        """
        with self._changed:
            if not self._waiting_count and steering_variables():
                raise PostgresError("a test uses the environment variables of PostgreSQL's clients")
        self._connection = self._connect(MAINTENANCE)

    def _explained(self, sql: str, error: DriverError) -> PostgresError:
        text = f"{' '.join(sql.split())}: {error}"
        if error.sqlstate == _IN_USE and self._connection is not None:
            with contextlib.suppress(DriverError):
                rows = self._connection.run(_WHO)
                text += "".join(
                    f"\n    connected: process {pid} ({name or 'unnamed'}, {state}): {query}"
                    for pid, name, state, query in rows
                )
            text += f"\nhint: Close the connections to the template database {TEMPLATE}."
        return PostgresError(text)
