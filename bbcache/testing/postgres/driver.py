"""The driver that servers for tests are administered with: psycopg 3, of the extra `testing`."""

from __future__ import annotations

from typing import Any, Final, Self, TypeAlias

from bbcache.errors import MissingExtraError, PostgresError
from bbcache.testing.postgres.database import Database
from bbcache.testing.postgres.environment import without_steering_variables

try:
    import psycopg
except ImportError as error:
    raise MissingExtraError(
        "bbcache.testing.postgres cannot be imported", "testing", error
    ) from error

DriverError: TypeAlias = psycopg.Error
TEMPLATE: Final = "app"  # the database that a builder fills, and that all others are copies of
MAINTENANCE: Final = "postgres"  # the database for statements on the whole server
_TIMEOUT_S: Final = 60


class Connection:
    """A connection without transactions. For one thread at a time."""

    def __init__(self, database: Database) -> None:
        with without_steering_variables():
            self._connection = psycopg.connect(
                database.dsn,
                autocommit=True,
                connect_timeout=_TIMEOUT_S,
                application_name="bbcache",
            )

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows.

        Raises:
            DriverError: it failed.
        """
        cursor = self._connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []

    @property
    def is_open(self) -> bool:
        """Whether statements can be run."""
        return not self._connection.closed and not self._connection.broken

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(database: Database) -> Connection:
    """Connect to a database.

    Raises:
        PostgresError: that was refused.
    """
    try:
        return Connection(database)
    except DriverError as error:
        raise PostgresError(f"cannot connect to {database.dsn}: {error}") from error
