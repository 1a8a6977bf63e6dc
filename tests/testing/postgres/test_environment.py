"""Servers for tests work whatever PG* variables say of other servers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Final

import psycopg
import pytest
from support.helpers import wait_until
from support.pg_snapshots import app
from support.threads import is_waiting

from bbcache.testing.postgres.environment import steering_variables

if TYPE_CHECKING:
    from bbcache.testing.postgres import PostgresOptions
    from bbcache.testing.postgres.runtime import Runtime

pytestmark = pytest.mark.postgres

# Each makes libpq or asyncpg fail or go elsewhere with a URL of a host, a port, a user and a
# database, unless that overrules it.
_HOSTILE: Final = {
    "PGCHANNELBINDING": "require",
    "PGGSSENCMODE": "require",
    "PGHOSTADDR": "127.0.0.9",
    "PGMINPROTOCOLVERSION": "3.2",
    "PGOPTIONS": "-c nonsense=1",
    "PGPORT": "1",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGSSLCERTMODE": "require",
    "PGSSLMAXPROTOCOLVERSION": "TLSv1.1",
    "PGSSLMODE": "verify-full",
    "PGSSLNEGOTIATION": "direct",
    "PGTARGETSESSIONATTRS": "standby",
}
_ANY: Final = "nowhere"
# Not in libpq's list of parameters, or not in that of each version.
_OTHERS: Final = ("PGCLIENTENCODING", "PGDATESTYLE", "PGGEQO", "PGSERVICE", "PGSERVICEFILE", "PGTZ")
# A timeout that is no number is refused by each driver, wherever it connects to.
_LEFT_OUT: Final = "PGCONNECT_TIMEOUT"

_CLIENTS: Final = """
import asyncio, contextlib, os, sys
import psycopg, psycopg2
from support.pg_snapshots import app
from bbcache.testing.postgres import PostgresOptions, shared_server
options = PostgresOptions(bin=sys.argv[1], cache_dir=sys.argv[2], run_dir=sys.argv[3], spares=0)
server = shared_server(app, options)
kinds = [psycopg.connect, psycopg2.connect]
for connect, text in [(kind, text) for kind in kinds for text in (server.url, server.dsn)]:
    with contextlib.closing(connect(text)) as connection:
        assert connection.info.host == server.main_database.address.host
        cursor = connection.cursor()
        cursor.execute("SELECT count(*) FROM account")
        assert cursor.fetchone() == (2,)
assert server.psql("SELECT count(*) FROM account") == "2"
try:
    import asyncpg
except ImportError:
    pass
else:
    async def count():
        connection = await asyncpg.connect(server.url)
        assert await connection.fetchval("SELECT count(*) FROM account") == 2
        await connection.close()
    asyncio.run(count())
assert os.environ["PGHOST"] == "nowhere"
"""


def _hostile_variables() -> dict[str, str]:
    known = {each.envvar.decode() for each in psycopg.pq.Conninfo.get_defaults() if each.envvar}
    names = {*known, *_HOSTILE, *_OTHERS} - {_LEFT_OUT}
    return {name: _HOSTILE.get(name, _ANY) for name in names}


def test_every_variable_of_the_harness(options: PostgresOptions) -> None:
    """All that libpq and asyncpg know are set: each driver reaches the server by URL and keywords.

    A variable that a later libpq adds is among them.
    """
    hostile = _hostile_variables()
    assert {"PGHOST", "PGPASSFILE", "PGREQUIREPEER", "PGUSER"} < set(hostile)
    arguments = (options.bin, options.cache_dir, options.run_dir)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _CLIENTS, *map(str, arguments)],
        env={**os.environ, **hostile, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_variables_of_a_test(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is shared meanwhile disregards them, and the test keeps them."""
    server = runtime.shared_server(app)
    hostile = _hostile_variables()
    for name, value in hostile.items():
        monkeypatch.setenv(name, value)
    own = runtime.new_server(app)
    try:
        server.restart("fast")
        with server.database() as first, own.database() as second:
            assert first.psql("SELECT 1") == second.psql("SELECT 1") == "1"
        assert {name: os.environ[name] for name in hostile} == hostile
    finally:
        runtime.end_server(own)


def test_a_test_that_waits_for_nothing_keeps_its_variables(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that makes databases ahead takes none out of the environment behind a test.

    It has to connect again after the restart.
    """
    server = runtime.new_server(app)
    removed_by = []

    def note(name: bytes) -> None:
        removed_by.append(threading.current_thread())
        unsetenv(name)

    unsetenv = os.unsetenv
    try:
        others = threading.enumerate()
        with server.database():
            pass
        new = (each for each in threading.enumerate() if each not in others)
        (maker,) = (each for each in new if each.name == "bbcache-databases")
        wait_until(lambda: is_waiting(maker, "_next_step"))
        server.restart("fast")
        monkeypatch.setenv("PGSERVICE", "nowhere")
        monkeypatch.setattr(os, "unsetenv", note)
        for _ in range(runtime.options.pool):  # made before
            with server.database():
                wait_until(lambda: is_waiting(maker, "_next_step"))
        assert maker not in removed_by
        with server.database() as made_now:
            assert made_now.psql("SELECT 1") == "1"
        assert maker in removed_by
    finally:
        runtime.end_server(server)


def test_which_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that a connection string overrules stay, and so do those of other programs."""
    for name in steering_variables():
        monkeypatch.delenv(name)
    for name in ("PGHOST", "PGUSER", "PGPASSWORD", "PGDATA", "PGADMIN_SETUP", "PGTZ", "PGSERVICE"):
        monkeypatch.setenv(name, "x")
    assert steering_variables() == ["PGSERVICE", "PGTZ"]
