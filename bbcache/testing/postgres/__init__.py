"""A real PostgreSQL for every test, restored from a snapshot of its schema and seed data.

The fixtures of pytest are ``pg_server``, ``pg_database`` and ``pg_fresh_server``; other test
runners use `postgres`, `shared_server` and `PostgresTestCase`. See docs/testing.md. It needs
the extra ``testing``. Must not import pytest.
"""

import sys

if sys.platform == "win32":
    raise ImportError(
        "servers for tests need Linux: Windows has no fork, no Unix users and no /proc\n"
        "hint: Use WSL or a container."
    )

from bbcache.testing.postgres.database import Address, Database
from bbcache.testing.postgres.errors import NoRoomError, SnapshotError
from bbcache.testing.postgres.lending import (
    PostgresTestCase,
    django_database,
    postgres,
    shared_server,
)
from bbcache.testing.postgres.options import PostgresOptions
from bbcache.testing.postgres.server import Server
from bbcache.testing.postgres.snapshots import Snapshot, snapshot

__all__ = [
    "Address",
    "Database",
    "NoRoomError",
    "PostgresOptions",
    "PostgresTestCase",
    "Server",
    "Snapshot",
    "SnapshotError",
    "django_database",
    "postgres",
    "shared_server",
    "snapshot",
]
