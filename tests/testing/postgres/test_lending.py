"""Servers for other test runners than pytest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import unittest
from typing import TYPE_CHECKING

import pytest
from support.pg_snapshots import app

from bbcache.errors import PostgresError
from bbcache.testing.postgres import (
    PostgresTestCase,
    django_database,
    postgres,
    shared_server,
)
from bbcache.testing.postgres.runtime import Runtime, runtime_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bbcache.testing.postgres import PostgresOptions

pytestmark = pytest.mark.postgres

_COUNT = "SELECT count(*) FROM account"


@pytest.fixture(scope="module")
def lent(options: PostgresOptions) -> Iterator[PostgresOptions]:
    """Options whose runtime ends with the module rather than with the process."""
    yield options
    runtime_of(options).close()


def test_a_test_case(lent: PostgresOptions) -> None:
    """Each test has a database of its own, and a server that a test has ended comes back."""

    class TestAccounts(PostgresTestCase):
        snapshot = app
        options = lent

        def test_1_change(self) -> None:
            self.database.psql("DELETE FROM account")
            os.kill(self.server.pid, signal.SIGTERM)

        def test_2_count(self) -> None:
            self.assertEqual(self.database.psql(_COUNT), "2")  # noqa: PT009 - it is unittest

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(TestAccounts).run(result)
    assert (result.testsRun, result.errors, result.failures) == (2, [], [])


def test_a_block(lent: PostgresOptions) -> None:
    """It has a server of its own, without a snapshot an empty one, which ends with it."""
    with postgres(app, lent) as server, server.database() as database:
        assert database.psql(_COUNT) == "2"
        assert server.pid != shared_server(app, lent).pid
    assert not server.cluster.is_running
    with postgres(options=lent) as server:
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert server.psql(tables) == "0"


def test_other_systems(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS a server is refused, on Windows the import; both errors say why."""
    other = Runtime(runtime.options)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(PostgresError, match=r"need Linux, not darwin: .* /proc\nhint: "):
        other.new_server(app)
    # The modules of Python that look at the platform are loaded before.
    script = "import bbcache.testing, sys; sys.platform = 'win32'; import bbcache.testing.postgres"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "ImportError: servers for tests need Linux: Windows has no fork" in done.stderr


def test_the_entry_for_django(lent: PostgresOptions) -> None:
    """Django connects to an existing database to make a test database from the template."""
    server = shared_server(app, lent)
    entry = django_database(server)
    assert entry["NAME"] == "postgres"
    assert entry["TEST"]["TEMPLATE"] == "app"
    name = entry["TEST"]["NAME"]
    server.maintenance_database.psql(f"CREATE DATABASE {name} TEMPLATE app")
