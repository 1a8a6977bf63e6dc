"""Servers and databases for test runners other than pytest."""

from __future__ import annotations

import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from bbcache.testing.postgres.database import Database
from bbcache.testing.postgres.driver import TEMPLATE
from bbcache.testing.postgres.options import PostgresOptions
from bbcache.testing.postgres.runtime import runtime_of
from bbcache.testing.postgres.server import Server
from bbcache.testing.postgres.snapshots import EMPTY, Snapshot


@contextmanager
def postgres(
    snapshot: Snapshot | None = None, options: PostgresOptions | None = None
) -> Iterator[Server]:
    """Lend a server of its own, restored from a snapshot; it ends with the block.

    Args:
        snapshot: its contents; None for an empty one.
        options: how it is made.

    Raises:
        PostgresError: no PostgreSQL is found, there is no place for it, the snapshot cannot be
            built, or the server does not start.
    """
    runtime = runtime_of(options)
    server = runtime.new_server(snapshot or EMPTY)
    try:
        yield server
    finally:
        runtime.end_server(server)


def shared_server(
    snapshot: Snapshot | None = None, options: PostgresOptions | None = None
) -> Server:
    """Return the one server of a snapshot in this process, which ends with the process.

    Args:
        snapshot: its contents; None for an empty one.
        options: how it is made.

    Raises:
        PostgresError: as `postgres`.
    """
    return runtime_of(options).shared_server(snapshot or EMPTY)


class PostgresTestCase(unittest.TestCase):
    """A test case with a database for each test.

    Attributes:
        snapshot: set it in a subclass; None gives an empty database.
        options: likewise.
        server: the server that the process shares.
        database: the database of the test.
    """

    snapshot: ClassVar[Snapshot | None] = None
    options: ClassVar[PostgresOptions | None] = None
    server: ClassVar[Server]
    database: Database

    @classmethod
    def setUpClass(cls) -> None:
        """Start the server, unless a class before has."""
        super().setUpClass()
        cls.server = shared_server(cls.snapshot, cls.options)

    def setUp(self) -> None:
        """Take a database, and have it given back after the test."""
        super().setUp()
        runtime_of(self.options).revive(self.server)
        self.database = self.server.take_database()
        self.addCleanup(self.server.give_back, self.database)


def django_database(server: Server) -> dict[str, Any]:
    """Return an entry of Django's DATABASES setting for Django's own test runner.

    The runner makes its test databases as copies of the snapshot, in which the migrations have
    been applied, so that its own run of them finds nothing to do.

    Args:
        server: such as `shared_server` returns.
    """
    entry = server.maintenance_database.django
    return {**entry, "TEST": {"NAME": f"test_django_{server.cluster.pid}", "TEMPLATE": TEMPLATE}}
