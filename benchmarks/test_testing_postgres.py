"""Tests on a real PostgreSQL: `bbcache.testing.postgres` beside what people use for that.

The contenders run one project of 20 tests by `pytest` in a process of its own, and the figure is
the time from the start of pytest's session to its end: the interpreter's start and the imports
before it are the same for all. PostgreSQL refuses to run as root, and so do the peers; as root
all contenders run as a plain user.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from bbcache.postgres.pgdata.leftovers import remove_tree
from bbcache.postgres.server.cluster import Cluster
from bbcache.testing.postgres import PostgresOptions, snapshot
from bbcache.testing.postgres.runtime import Runtime
from benchmarks.bars import Bar, Sense, case
from benchmarks.peers import require_package, require_tool
from benchmarks.rounds import Pace, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack

    from bbcache.testing.postgres import Database, Server
    from benchmarks.rounds import Rounds
    from benchmarks.workspace import Workspace

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a directory with a random name is made there
_NOBODY: Final = 65534
_ROUNDS: Final = {"full": 15, "quick": 3, "untimed": 1}
_OURS: Final = "bbcache.testing.postgres"
_OURS_ON_DISK: Final = "bbcache.testing.postgres, on disk"
_PLUGIN: Final = "pytest-postgresql"
_TUNED: Final = "pytest-postgresql, tuned, in memory"
_CACHED: Final = "testing.postgresql, cached, in memory"
_SPARE: Final = "a spare and a start"
_RESTORED: Final = "a restore and a start"
_INITDB: Final = "initdb and a start"
_POOL: Final = "a database from the pool, and a connection"
_CONNECT: Final = "a connection"
_TEST_S: Final = 0.05  # what a test takes, while the pool makes the next database
_FAST: Final = (
    "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c autovacuum=off "
    "-c shared_buffers=16MB"
)
_TABLE: Final = """
CREATE TABLE t{0} (id serial PRIMARY KEY, name text UNIQUE, at timestamptz);
INSERT INTO t{0} (name) SELECT 'n' || i FROM generate_series(1, 50) i;
"""
_TABLES: Final = "".join(_TABLE.format(number) for number in range(20))
_CLOCK: Final = """
import os, time
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    session.config.started_s = time.perf_counter()

def pytest_runtest_call(item):
    if not hasattr(item.config, "ready_s"):
        item.config.ready_s = time.perf_counter()

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    yield
    config = session.config
    times_s = config.ready_s - config.started_s, time.perf_counter() - config.started_s
    with open(os.environ["CLOCK"], "w") as file:
        file.write(" ".join(map(str, times_s)))
"""
_TESTS: Final = """
import psycopg, pytest

@pytest.mark.parametrize("number", range(20))
def test_rows(database, number):
    with psycopg.connect(**database) as connection:
        connection.execute("INSERT INTO t1 (name) VALUES ('new')")
        assert connection.execute("SELECT count(*) FROM t1").fetchone() == (51,)
"""
_CONFTEST_OURS: Final = """
import pytest
from bbcache.testing.postgres import snapshot

@snapshot(inputs=["schema.sql"])
def app(db):
    db.psql_file("schema.sql")

@pytest.fixture
def database(pg_database):
    return {"conninfo": pg_database.dsn}
"""
_CONFTEST_PLUGIN: Final = """
from pathlib import Path
import pytest
from pytest_postgresql import factories

proc = factories.postgresql_proc(
    executable="{bindir}/pg_ctl",
    postgres_options="{options}",
    load=[Path(__file__).with_name("schema.sql")],
)
own = factories.postgresql("proc")

@pytest.fixture
def database(own):
    at = own.info
    return {{"host": at.host, "port": at.port, "user": at.user, "dbname": at.dbname}}
"""
_CONFTEST_CACHED: Final = """
from pathlib import Path
import psycopg, pytest
from testing.postgresql import PostgresqlFactory

def fill(server):
    with psycopg.connect(server.url()) as connection:
        connection.execute(Path(__file__).with_name("schema.sql").read_text())

make = PostgresqlFactory(
    cache_initialized_db=True,
    on_initialized=fill,
    initdb="{bindir}/initdb",
    postgres="{bindir}/postgres",
)

@pytest.fixture
def database():
    with make() as server:
        yield {{"conninfo": server.url()}}

@pytest.fixture(scope="session", autouse=True)
def cleared():
    yield
    make.clear_cache()
"""


class Suite:
    """A project of 20 tests that get their databases in one way.

    Args:
        directory: an empty one.
        conftest: the way.
        plugin: the module of pytest's plugin.
        temp_dir: where data directories are made.
    """

    def __init__(self, directory: Path, conftest: str, plugin: str, temp_dir: Path) -> None:
        self._directory = directory
        self._command = [
            *_plain_user(),
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "clock"),
            *(("-p", plugin) if plugin else ()),
        ]
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "CLOCK": str(directory / "seconds"),
            "TMPDIR": str(temp_dir),
            "PYTHONPATH": str(directory),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        temp_dir.mkdir()
        for name, text in (
            ("conftest.py", conftest),
            ("test_it.py", _TESTS),
            ("clock.py", _CLOCK),
            ("schema.sql", _TABLES),
            ("pytest.ini", "[pytest]\n"),
        ):
            (directory / name).write_text(text)
        if os.geteuid() == 0:
            for path in (directory, temp_dir, *directory.rglob("*")):
                os.chown(path, _NOBODY, _NOBODY)

    def run(self) -> float:
        """Run the tests; return the seconds of the session."""
        return self._run()[1]

    def run_one(self) -> float:
        """Run one test; return the seconds from the start of the session to the test itself."""
        return self._run("-k", "test_rows and 7")[0]

    def _run(self, *arguments: str) -> list[float]:
        done = subprocess.run(
            [*self._command, *arguments],
            cwd=self._directory,
            env=self._env,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ValueError(f"the tests have failed:\n{done.stdout}{done.stderr}")
        return [float(text) for text in (self._directory / "seconds").read_text().split()]


def _plain_user() -> tuple[str, ...]:
    if os.geteuid() != 0:
        return ()
    ids = (f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups")
    # Python itself may be in root's home.
    reads = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    return require_tool("setpriv", "util-linux"), *ids, *reads


class Suites:
    """The suites of all contenders.

    Args:
        workspace: for PostgreSQL, and for what is on disk.
        memory_dir: for the data directories in memory.
    """

    def __init__(self, workspace: Workspace, memory_dir: Path) -> None:
        self._bindir = workspace.binaries.bindir
        self._disk_dir = workspace.directory
        self._memory_dir = memory_dir
        self._numbers = itertools.count()

    def ours(self, *, on_disk: bool = False) -> Suite:
        """Our own, with its snapshot made."""
        suite = self._make(_CONFTEST_OURS, "pytest_bbcache", on_disk=on_disk)
        settings = [f"bbcache_pg_bin = {self._bindir}"]
        settings += [f"bbcache_pg_run_dir = {suite._env['TMPDIR']}"]
        (suite._directory / "pytest.ini").write_text("[pytest]\n" + "\n".join(settings) + "\n")
        suite.run_one()
        return suite

    def plugin(self, *, is_tuned: bool) -> Suite:
        """pytest-postgresql, as it is or with fast settings in memory."""
        require_package("pytest_postgresql", "pytest-postgresql")
        options = _FAST if is_tuned else ""
        conftest = _CONFTEST_PLUGIN.format(bindir=self._bindir, options=options)
        return self._make(conftest, "pytest_postgresql.plugin", on_disk=not is_tuned)

    def cached(self) -> Suite:
        """testing.postgresql with its cache."""
        require_package("testing.postgresql", "testing.postgresql")
        conftest = _CONFTEST_CACHED.format(bindir=self._bindir)
        return self._make(conftest, "", on_disk=False)

    def _make(self, conftest: str, plugin: str, *, on_disk: bool) -> Suite:
        parent = self._disk_dir if on_disk else self._memory_dir
        directory = parent / f"suite{next(self._numbers)}"
        directory.mkdir()
        # Beside the project, or pytest would look for tests in data directories.
        return Suite(directory, conftest, plugin, parent / f"{directory.name}-temporary")


@pytest.fixture
def memory_dir() -> Iterator[Path]:
    """A directory in memory."""
    if not os.access(_MEMORY, os.W_OK):
        pytest.skip(f"{_MEMORY} cannot be written to")
    path = Path(tempfile.mkdtemp(prefix="bb-", dir=_MEMORY))
    path.chmod(0o711)
    yield path
    remove_tree(path)


def _pace(workspace: Workspace) -> Pace:
    count = _ROUNDS[workspace.counts.name]
    return Pace(0, count, count)


@case(
    "suite of 20 tests",
    Bar("testing-plugin", _OURS, _PLUGIN, Sense.AT_LEAST, 5),
    Bar("testing-tuned", _OURS, _TUNED, Sense.AT_LEAST, 2.5),
    Bar("testing-cached", _OURS, _CACHED, Sense.AT_LEAST, 8),
    Bar("testing-disk", _OURS_ON_DISK, _PLUGIN, Sense.AT_LEAST, 1),
)
def test_suite(workspace: Workspace, rounds: Rounds, memory_dir: Path) -> None:
    """20 tests with a database each; the snapshot of our own suites was made before."""
    suites = Suites(workspace, memory_dir)
    rounds.add(_OURS, lambda: suites.ours().run)
    rounds.add(_OURS_ON_DISK, lambda: suites.ours(on_disk=True).run)
    rounds.add(_PLUGIN, lambda: suites.plugin(is_tuned=False).run)
    rounds.add(_TUNED, lambda: suites.plugin(is_tuned=True).run)
    rounds.add(_CACHED, lambda: suites.cached().run)
    is_quick = workspace.counts.name == "quick"  # one round of all takes some twenty seconds
    rounds.run(Pace(0, 1, 1) if is_quick else _pace(workspace))


@case("set-up of the first test", Bar("testing-first", _OURS, _TUNED, Sense.AT_LEAST, 4))
def test_first_test(workspace: Workspace, rounds: Rounds, memory_dir: Path) -> None:
    """What the first test of a run waits for."""
    suites = Suites(workspace, memory_dir)
    rounds.add(_OURS, lambda: suites.ours().run_one)
    rounds.add(_TUNED, lambda: suites.plugin(is_tuned=True).run_one)
    rounds.run(_pace(workspace))


@snapshot(inputs=[Path(__file__).name])
def app(db: Database) -> None:
    """The tables of the suites."""
    db.psql(_TABLES)


def _runtime(workspace: Workspace, memory_dir: Path, spares: int) -> Runtime:
    options = PostgresOptions(
        bin=str(workspace.binaries.bindir),
        cache_dir=str(memory_dir / "cache"),
        run_dir=str(memory_dir),
        spares=spares,
    )
    return Runtime(options)


@case(
    "a server of its own",
    Bar("testing-spare", _SPARE, _RESTORED, Sense.AT_MOST, 0.4),
    Bar("testing-initdb", _RESTORED, _INITDB, Sense.AT_LEAST, 5),
)
def test_fresh_server(
    workspace: Workspace, rounds: Rounds, stack: ExitStack, memory_dir: Path
) -> None:
    """From nothing to a server that answers."""
    runtimes = [_runtime(workspace, memory_dir, spares) for spares in (0, 1)]
    for runtime in runtimes:
        stack.callback(runtime.close)
    without, with_spares = runtimes
    numbers = itertools.count()

    def timed_server(runtime: Runtime) -> Callable[[], float]:
        def run() -> float:
            started_s = time.perf_counter()
            server = runtime.new_server(app)
            took_s = time.perf_counter() - started_s
            runtime.wait_for_spares()
            runtime.end_server(server)
            return took_s

        run()
        return run

    def initdb() -> None:
        with Cluster(workspace.binaries, memory_dir / f"initdb{next(numbers)}") as cluster:
            cluster.initdb(["--no-sync"])
            cluster.start(without.settings_of(app))
            cluster.stop("immediate")
            shutil.rmtree(cluster.pgdata_dir)

    rounds.add(_SPARE, lambda: timed_server(with_spares))
    rounds.add(_RESTORED, lambda: timed_server(without))
    rounds.add(_INITDB, lambda: timed(initdb))
    rounds.run(_pace(workspace))


@case("a database of its own", Bar("testing-pool", _POOL, _CONNECT, Sense.AT_MOST, 1.5))
def test_pool(workspace: Workspace, rounds: Rounds, stack: ExitStack, memory_dir: Path) -> None:
    """Beside a connection to a database that is there already; tests take 50 ms."""
    psycopg = require_package("psycopg", "psycopg[binary]")
    runtime = _runtime(workspace, memory_dir, 0)
    stack.callback(runtime.close)
    server: Server = runtime.new_server(app)
    url = server.url

    def from_pool() -> float:
        started_s = time.perf_counter()
        with server.database() as database, closing(psycopg.connect(database.url)):
            took_s = time.perf_counter() - started_s
            time.sleep(_TEST_S)
        return took_s

    def connect() -> float:
        started_s = time.perf_counter()
        with closing(psycopg.connect(url)):
            took_s = time.perf_counter() - started_s
            time.sleep(_TEST_S)
        return took_s

    rounds.add(_POOL, lambda: from_pool)
    rounds.add(_CONNECT, lambda: connect)
    rounds.run(_pace(workspace)._replace(most=60))
