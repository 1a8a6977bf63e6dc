"""Fixtures by the names of pytest-postgresql, on request.

Write ``pytest_plugins = ["bbcache.testing.postgres.aliases"]`` in the top-level conftest file.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from bbcache.testing.postgres.database import Database


@pytest.fixture
def postgresql(pg_database: Database) -> Iterator[psycopg.Connection]:
    """A connection of psycopg 3 to a database of the test's own."""
    with psycopg.connect(pg_database.dsn) as connection:
        yield connection
        connection.rollback()
