"""Servers and databases restored from a snapshot: their contents and their ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from support.helpers import wait_until
from support.pg_snapshots import NAMES, app, failing

from bbcache.errors import PostgresError
from bbcache.testing.postgres import Database, PostgresOptions, Server, SnapshotError
from bbcache.testing.postgres.places import run_place
from bbcache.testing.postgres.run_directory import sweep
from bbcache.testing.postgres.runtime import Runtime
from bbcache.testing.postgres.snapshots import EMPTY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bbcache.postgres.server.cluster import StopMode

pytestmark = pytest.mark.postgres

_COUNT = "SELECT count(*) FROM account"


@pytest.fixture(scope="module")
def fresh(runtime: Runtime) -> Iterator[Server]:
    """A server for the tests that restart one, or do harm to it."""
    server = runtime.new_server(app)
    yield server
    runtime.end_server(server)


def _names(database: Database) -> list[str]:
    with psycopg.connect(database.url) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM account ORDER BY id")]


def _left_in(run_dir: Path) -> list[Path]:
    return [path for path in run_dir.glob("*/*") if path.name != "spares.lock"]


def test_each_database_is_a_copy(server: Server) -> None:
    """Two at a time have the data of the snapshot, and do not see each other's changes."""
    with server.database() as first, server.database() as second:
        assert first.name != second.name
        assert _names(first) == _names(second) == list(NAMES)
        assert first.psql("DELETE FROM account RETURNING name") == "ann\nbob"
        assert _names(second) == list(NAMES)
    assert server.psql(_COUNT) == "2"
    assert server.main_database == server.main_database


def test_databases_are_dropped_two_tests_later(server: Server) -> None:
    """Also one with an open connection; the last two stay for a look."""
    names = []
    with psycopg.connect(server.maintenance_database.dsn, autocommit=True) as connection:
        with server.database() as database:
            names.append(database.name)
            left_open = psycopg.connect(database.dsn)
        for _ in range(2):
            with server.database() as database:
                names.append(database.name)
        find = "SELECT datname FROM pg_database WHERE datname = ANY(%s) ORDER BY oid"

        def is_dropped() -> bool:
            found = {name for (name,) in connection.execute(find, [names])}
            return names[0] not in found and found <= set(names[1:])

        wait_until(is_dropped)
        assert connection.execute(find, [names[1:]]).fetchall() == [(n,) for n in names[1:]]
    left_open.close()


def test_many_threads_take_databases(server: Server) -> None:
    """Each gets one of its own."""
    names: list[str] = []

    def take() -> None:
        with server.database() as database:
            names.append(database.name)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 6


def test_the_ways_to_say_where_it_is(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """URL, keywords, environment and Django's entry lead to one database."""
    with server.database() as database:
        with monkeypatch.context() as patch:
            patch.setenv("PGOPTIONS", "-c nonsense=1")
            patch.setenv("PGSERVICE", "nowhere")
            shown = database.run(["sh", "-c", "env | grep ^PG | sort; pwd"]).stdout.splitlines()
        at = database.address
        assert shown == [
            f"PGDATABASE={database.name}",
            f"PGHOST={at.host}",
            "PGPORT=5432",
            "PGUSER=postgres",
            str(app.root),
        ]
        above = database.run(["pwd"], cwd="..")
        assert above.stdout == f"{app.root.parent}\n"
        assert database.env["DATABASE_URL"] == database.url
        for conninfo in (database.url, database.dsn):
            with psycopg.connect(conninfo) as connection:
                assert connection.info.dbname == database.name
        entry = database.django
        assert (entry["NAME"], entry["HOST"], entry["PORT"]) == (database.name, at.host, "5432")
        assert database.sqlalchemy_url("asyncpg").startswith("postgresql+asyncpg://postgres@/")


def test_an_odd_directory_of_the_socket(server: Server) -> None:
    """A URL leads to it, and has no percent sign without need: configparser would expand that."""
    with server.database() as database:
        assert "%" not in database.url
        address = replace(database.address, host="/somewhere/a b+c'%/é")
        odd = replace(database, address=address)
        for conninfo in (odd.url, odd.dsn):
            assert conninfo_to_dict(conninfo)["host"] == address.host


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="this is no virtual environment")
def test_programs_of_the_virtual_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are found where it is not activated, as a migration tool has to be."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with server.database() as database:
        done = database.run(["python", "-c", "import sys; print(sys.prefix)"])
    assert done.stdout.strip() == sys.prefix


def test_psql(server: Server, tmp_path: Path) -> None:
    """Scripts with COPY, metacommands and included files run, and errors are quoted."""
    included, script = tmp_path / "b.sql", tmp_path / "a.sql"
    included.write_text("INSERT INTO account (name) VALUES ('eve');\n")
    script.write_text("\\ir b.sql\nCOPY account (name) FROM stdin;\nmallory\n\\.\n")
    with server.database() as database:
        assert database.psql_file(script) == ""
        assert database.psql(f"{_COUNT}; SELECT 'x'") == "4\nx"
        with pytest.raises(PostgresError, match='relation "nowhere" does not exist'):
            database.psql("SELECT 1; SELECT * FROM nowhere; SELECT 2")
        with pytest.raises(PostgresError, match=r"^cannot run no-such-tool: "):
            database.run(["no-such-tool"])
        with pytest.raises(PostgresError, match="exit status 3:\nsaid"):
            database.run(["sh", "-c", "echo said; exit 3"])


def test_a_server_is_restarted(fresh: Server) -> None:
    """At the same address, with what was committed right before a crash; a pool goes on."""
    before, pid = fresh.url, fresh.pid
    modes: tuple[StopMode, ...] = ("immediate", "fast", "immediate")
    for number, mode in enumerate(modes, 1):
        fresh.psql("INSERT INTO account (name) VALUES ('eve')")
        fresh.restart(mode)
        assert fresh.url == before
        assert fresh.psql(_COUNT) == str(2 + number)
        with fresh.database() as database:
            assert _names(database) == list(NAMES)
    assert fresh.pid != pid
    assert "database system was not properly shut down" in fresh.read_log()
    assert (fresh.data_dir / "PG_VERSION").exists()


def test_databases_are_copied_as_files(fresh: Server) -> None:
    """PostgreSQL would write each page to the WAL otherwise, which takes three times as long."""
    for statement in ("ALTER SYSTEM SET log_statement = ddl", "SELECT pg_reload_conf()"):
        fresh.maintenance_database.psql(statement)

    def is_logged() -> bool:
        with fresh.database():
            return "CREATE DATABASE test_" in fresh.read_log()

    wait_until(is_logged)
    (made, *_) = (line for line in fresh.read_log().splitlines() if "CREATE DATABASE test_" in line)
    has_strategies = fresh.cluster.binaries.major >= 15
    assert made.endswith("STRATEGY FILE_COPY" if has_strategies else "TEMPLATE app ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_a_shared_server_that_a_test_ends(runtime: Runtime, number: signal.Signals) -> None:
    """The next test has it again, at the same address, though the signal is still under way."""
    server = runtime.shared_server(app)
    url = server.url
    with psycopg.connect(url):  # for which a smart shutdown waits
        os.kill(server.pid, number)
        assert runtime.shared_server(app) is server
    assert server.url == url
    with server.database() as database:
        assert _names(database) == list(NAMES)


def test_shared_memory_is_in_the_data_directory(server: Server) -> None:
    """So it goes with that, also when the server was killed."""
    assert "/PostgreSQL." not in Path(f"/proc/{server.cluster.pid}/maps").read_text()


def test_who_uses_the_template(runtime: Runtime) -> None:
    """Where it cannot be copied, the error names the connection; later it can be again."""
    crowded = Runtime(replace(runtime.options, pool=0))
    try:
        server = crowded.new_server(app)
        admin = psycopg.connect(server.maintenance_database.dsn, autocommit=True)
        admin.execute("ALTER DATABASE app ALLOW_CONNECTIONS true")
        dsn = admin.info.dsn.replace("dbname=postgres", "dbname=app")
        with psycopg.connect(dsn, application_name="intruder"):
            with pytest.raises(PostgresError, match=r"process \d+ \(intruder, idle") as caught:
                server.take_database()
            assert "\nhint: Close the connections to the template database app." in str(
                caught.value
            )
        wait_until(
            lambda: not admin.execute("SELECT FROM pg_stat_activity WHERE datname = 'app'").rowcount
        )
        admin.close()
        with server.database() as database:
            assert _names(database) == list(NAMES)
    finally:
        crowded.close()


def test_a_builder_that_fails(runtime: Runtime, run_dir: Path) -> None:
    """Its traceback and the server's log are in the error; nothing is kept, nothing is left."""
    before = set(_left_in(run_dir))
    other = Runtime(runtime.options)
    with pytest.raises(SnapshotError) as caught:
        other.new_server(failing)
    text = str(caught.value)
    assert text.startswith("the builder of snapshot failing has failed: ")
    assert caught.value.__suppress_context__  # pytest would print all of it once more
    assert 'relation "nowhere" does not exist' in text
    assert "pg_snapshots.py" in text
    assert "ERROR:  relation" in text.partition("the end of the server's log:")[2]
    other.close()
    assert runtime.find(runtime.key_of(failing)) is None
    wait_until(lambda: set(_left_in(run_dir)) <= before)


def test_a_snapshot_that_was_removed_is_made_again(runtime: Runtime, tmp_path: Path) -> None:
    """Also in the middle of a run; where it cannot be read, the error names it."""
    other = Runtime(replace(runtime.options, cache_dir=str(tmp_path)))
    key = other.key_of(app)
    runtime.shared_server(app)
    archive = runtime.find(key)
    assert archive is not None
    copy = tmp_path / key.file_name
    shutil.copy(archive.path, copy)
    try:
        other.end_server(other.new_server(app))
        copy.unlink()
        assert other.new_server(app).psql(_COUNT) == "2"
        assert list(other.statistics.built_s) == [str(key)]
        copy.unlink()
        copy.mkdir()
        with pytest.raises(PostgresError, match=f"cannot use {copy}: Is a directory"):
            other.new_server(app)
    finally:
        other.close()


def test_over_tcp(runtime: Runtime) -> None:
    """With a password, on the loopback only; without the password nobody gets in."""
    tcp = Runtime(replace(runtime.options, tcp=True))
    try:
        server = tcp.new_server(app)
        with server.database() as database:
            assert database.address.host == "127.0.0.1"
            assert _names(database) == list(NAMES)
            assert database.psql(_COUNT) == "2"
            wrong = database.dsn.replace(str(database.address.password), "guess")
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(wrong)
        before = server.url
        server.restart("fast")
        assert server.url == before
        server.cluster.stop("fast")
        with socket.create_server(("127.0.0.1", server.main_database.address.port)):
            server.start()
            assert server.url != before
            assert server.psql(_COUNT) == "2"
    finally:
        tcp.close()


def test_a_damaged_snapshot_is_made_again(runtime: Runtime, tmp_path: Path) -> None:
    """That is said once. A lean one has no template0 and template1, and its own fingerprint."""
    said: list[str] = []
    lean = Runtime(replace(runtime.options, lean=True, cache_dir=str(tmp_path)), said.append)
    key = lean.key_of(EMPTY)
    assert key != runtime.key_of(EMPTY)
    tmp_path.joinpath(key.file_name).write_bytes(b"\x1f\x8b damaged")
    try:
        server = lean.new_server(EMPTY)
        with psycopg.connect(server.maintenance_database.dsn) as connection:
            rows = connection.execute("SELECT datname FROM pg_database ORDER BY 1").fetchall()
            find = "SELECT datistemplate, datallowconn FROM pg_database WHERE datname = 'app'"
            template = connection.execute(find).fetchone()
        assert rows == [("app",), ("postgres",)]
        assert template == (True, False)
        with server.database() as database:
            assert database.psql("SELECT current_database()") == database.name
    finally:
        lean.close()
    assert len(said) == 1
    assert said[0].startswith(f"snapshot {key} is made again: ")
    assert lean.find(key) is not None


def test_nothing_is_left_at_the_end(runtime: Runtime, run_dir: Path) -> None:
    """A closed runtime leaves no process, no data, no socket and no guard."""
    before = set(_left_in(run_dir))
    other = Runtime(runtime.options)
    servers = [other.new_server(app), other.shared_server(app)]
    pids = [server.pid for server in servers]
    other.end_server(servers[0])
    wait_until(lambda: not servers[0].data_dir.exists())
    with servers[1].database() as database:
        socket_dir = Path(database.address.host)
    assert other.close() == []
    wait_until(lambda: not socket_dir.exists())
    wait_until(lambda: set(_left_in(run_dir)) <= before)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.usefixtures("programs_stay")
def test_kept_servers_stay(runtime: Runtime) -> None:
    """They outlive their runtime and later sweeps, until one is told to take them, too."""
    keeping = Runtime(replace(runtime.options, keep=True))
    server = keeping.new_server(app)
    with server.database() as database:
        name = database.name
    keeping.end_server(server)
    (kept,) = keeping.close()
    place = run_place(runtime.options, 0)
    sweep(place)
    with psycopg.connect(kept.kept_dsn) as connection:
        assert connection.info.dbname == name
        (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        socket_dir = Path(connection.info.host)
    sweep(place, with_kept=True)
    wait_until(lambda: not kept.data_dir.exists() and not socket_dir.exists())
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


_FORKS = """
import os, sys, time
from support.pg_snapshots import app
from bbcache.testing.postgres import PostgresOptions, postgres, shared_server
options = PostgresOptions(bin=sys.argv[1], cache_dir=sys.argv[2], run_dir=sys.argv[3], spares=0)
server = shared_server(app, options)
pid = server.pid
child = os.fork()
if child == 0:
    with postgres(app, options) as own:
        assert own.psql("SELECT count(*) FROM account") == "2"
    assert shared_server(app, options).pid != pid
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert server.psql("SELECT count(*) FROM account") == "2"
print(server.data_dir)
"""


def test_a_forked_child_has_servers_of_its_own(options: PostgresOptions) -> None:
    """Its exit ends those and not its parent's; the exit of the interpreter ends all."""
    arguments = (options.bin, options.cache_dir, options.run_dir)
    tests = str(Path(__file__).parents[2])
    # The child has no use for a lock that a thread of the parent may hold.
    warnings = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")
    done = subprocess.run(
        [sys.executable, *warnings, "-c", _FORKS, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": tests},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    wait_until(lambda: not Path(done.stdout.strip()).exists())
