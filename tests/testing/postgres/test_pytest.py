"""The pytest plugin in projects of its users: fixtures, options, header, summary, workers."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from support.helpers import tool, wait_until

import pytest_bbcache
from bbcache.testing.postgres import PostgresOptions
from bbcache.testing.postgres.places import run_place
from bbcache.testing.postgres.run_directory import sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _pytest.pytester import RunResult

    from bbcache.postgres.server.binaries import PostgresBinaries

pytestmark = pytest.mark.postgres
pytest_plugins = ["pytester"]

_NOBODY = 65534

_TESTS = """
    import os, signal
    import psycopg, pytest
    from bbcache.testing.postgres import snapshot

    @snapshot(inputs=["conftest.py"])
    def other(db):
        db.psql("CREATE TABLE other (id int)")

    def rows(url, table="account"):
        with psycopg.connect(url) as connection:
            connection.execute(f"INSERT INTO {table} VALUES (1)")
            return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]

    @pytest.mark.parametrize("number", range(3))
    def test_own_database(pg_database, number):
        assert rows(pg_database.url) == 1

    def test_shared_server(pg_server, pg_database):
        assert pg_database.address == pg_server.main_database.address

    def test_own_server(pg_fresh_server, pg_server):
        assert pg_fresh_server.pid != pg_server.pid
        assert rows(pg_fresh_server.url) == 1
        os.kill(pg_server.pid, signal.SIGTERM)  # the tests below have it again

    def test_the_server_that_was_ended(pg_server):
        assert pg_server.psql("SELECT count(*) FROM account") == "0"
        os.kill(pg_server.pid, signal.SIGKILL)

    def test_settings(pg_database):
        assert pg_database.psql("SHOW work_mem; SHOW fsync") == "7MB\\noff"

    @pytest.mark.pg_snapshot(other)
    def test_marked(pg_database):
        assert rows(pg_database.url, "other") == 1

    def test_without():
        pass
"""


def _in(project: pytest.Pytester, *arguments: str) -> RunResult:
    return project.runpytest_inprocess(*arguments)


def _set(project: pytest.Pytester, name: str, value: str) -> None:
    """Set an option of the ini file, in place of the one that is there."""
    path = project.path / "tox.ini"
    others = re.sub(f"bbcache_pg_{name} = .*", "", path.read_text())
    path.write_text(f"{others}\nbbcache_pg_{name} = {value}\n")


def test_cold_and_warm(project: pytest.Pytester, tmp_path: Path) -> None:
    """Workers share one build; the next run finds the snapshot, ``--pg-rebuild`` builds again."""
    _set(project, "cache_dir", str(tmp_path))
    project.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(pg_database, number):
            assert pg_database.psql("TABLE account") == ""
        """
    )
    results = [
        project.runpytest_subprocess("-p", "xdist.plugin", "-n", "2"),
        _in(project),
        _in(project, "--pg-rebuild"),
    ]
    for result in results:
        result.assert_outcomes(passed=4)
    cold, warm, rebuilt = (result.stdout.str() for result in results)
    header = (
        r"bbcache: PostgreSQL \d+\S+ \(.*\), snapshot app [0-9a-f]{8}\.\.\. \({}\), servers on /"
    )
    assert re.search(header.replace("{}", "to be built"), cold)
    assert re.search(header.replace("{}", r"hit, \d\.\d MB"), warm)
    built = r"built snapshot app [0-9a-f]{8} in \d+\.\d s"
    assert [len(re.findall(built, text)) for text in (cold, warm, rebuilt)] == [1, 0, 1]
    assert re.search(r"bbcache: built .*, started [12] servers? \(", cold)
    assert "bbcache: started 1 server (" in warm


def test_what_the_fixtures_give(project: pytest.Pytester) -> None:
    """Databases, the worker's server, a fresh one, settings, another snapshot by the marker."""
    _add_second_snapshot(project)
    _set(project, "snapshot", "conftest:app")
    project.makepyfile(_TESTS)
    result = _in(project, "-p", "bbcache.testing.plugin", "-W", "error")
    result.assert_outcomes(passed=9)
    result.stdout.fnmatch_lines(["*started 3 servers (*"])


def test_switches(project: pytest.Pytester, newest_pg: PostgresBinaries) -> None:
    """Each option of the ini file takes effect; the header says which speed is not in use."""
    values = {"major": str(newest_pg.major), "pool": "0", "lean": "yes", "tcp": "yes"}
    for name, value in {**values, "max_size": "512MiB"}.items():
        _set(project, name, value)
    project.makepyfile(
        """
        def test_it(pg_database, pg_server):
            assert pg_database.address.host == "127.0.0.1"
            count = "SELECT count(*) FROM pg_database WHERE datname LIKE 'template%'"
            assert pg_database.psql(count) == "0"
            assert pg_database.name == "test_1"
        """
    )
    result = _in(project)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["bbcache: *, no spares, no pool of databases"])


@pytest.fixture
def disk_dir() -> Iterator[Path]:
    """A directory that is not in memory."""
    path = Path(tempfile.mkdtemp(dir="/var/tmp"))
    path.chmod(0o711)
    place = run_place(PostgresOptions(run_dir=str(path)), 0)
    if place.is_memory:
        pytest.skip("that directory is in memory")
    yield path
    shutil.rmtree(path)


def test_a_disk(project: pytest.Pytester, disk_dir: Path) -> None:
    """The header says so, because all is slower there; a run without a test starts nothing."""
    _set(project, "run_dir", str(disk_dir))
    _set(project, "spares", "2")
    project.makepyfile("def test_it(pg_database): pass")
    result = _in(project, "--collect-only")
    header = f"bbcache: *, servers on {disk_dir} (a disk, so slower), no spares"
    result.stdout.fnmatch_lines([header])
    assert list(disk_dir.glob("*/*")) == []


def test_a_builder_that_fails(project: pytest.Pytester) -> None:
    """It runs once in a run: the first test has the whole error, the others its first line."""
    project.makeconftest(
        """
        from bbcache.testing.postgres import snapshot

        @snapshot(inputs=["migrations/**"])
        def app(db):
            with open("calls", "a") as calls:
                calls.write("called")
            db.psql("SELEKT 1")
        """
    )
    project.makepyfile(
        """
        def test_first(pg_database): pass
        def test_second(pg_database): pass
        def test_third(pg_fresh_server): pass
        """
    )
    result = _in(project)
    result.assert_outcomes(errors=3)
    assert (project.path / "calls").read_text() == "called"
    text = result.stdout.str()
    assert len(re.findall("^E +the end of the server's log:", text, re.MULTILINE)) == 1
    hint = "^E +hint: The error of the first test that wanted this snapshot has the rest"
    assert len(re.findall(hint, text, re.MULTILINE)) == 2


def test_which_snapshot(project: pytest.Pytester) -> None:
    """A module chooses one by its marker; where there is none, a database is empty."""
    project.makeconftest("")
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    project.makepyfile(
        test_empty=f"""
            def test_empty(pg_database):
                assert pg_database.psql("{tables}") == "0"
        """,
        test_marked=f"""
            import pytest
            from bbcache.testing.postgres import snapshot

            @snapshot(inputs=["test_marked.py"])
            def own(db):
                db.psql("CREATE TABLE own ()")

            pytestmark = pytest.mark.pg_snapshot(own)

            def test_module(pg_database, pg_fresh_server):
                assert pg_database.psql("{tables}") == "1"
                assert pg_fresh_server.psql("{tables}") == "1"
        """,
    )
    _in(project).assert_outcomes(passed=2)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a plain user")
def test_a_plain_user(project: pytest.Pytester, own_dir: Path, options: PostgresOptions) -> None:
    """The servers of a plain user run as that user, in directories that are closed to others."""
    copy = shutil.copytree(project.path, own_dir / "project")
    if Path(str(options.cache_dir)).exists():  # a build would take a second
        unpublished = shutil.ignore_patterns(".*")
        shutil.copytree(str(options.cache_dir), own_dir / "cache", ignore=unpublished)
    ini = (copy / "tox.ini").read_text().replace(str(options.cache_dir), f"{own_dir}/cache")
    (copy / "tox.ini").write_text(ini.replace(str(options.run_dir), f"{own_dir}/run"))
    test = """
        def test_it(pg_database, pg_server):
            assert pg_database.psql("TABLE account") == ""
            assert pg_server.data_dir.owner() == "nobody"
            modes = {path.stat().st_mode & 0o777 for path in list(pg_server.data_dir.parents)[:2]}
            assert modes == {0o700}
    """
    (copy / "test_it.py").write_text(textwrap.dedent(test))
    (own_dir / "run").mkdir()
    for path in (own_dir, *own_dir.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY)
    # Python itself may be in root's home.
    done = subprocess.run(
        [
            *(tool("setpriv"), f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"),
            *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
            *(sys.executable, "-m", "pytest", "-q", "-p", "pytest_bbcache"),
        ],
        cwd=copy,
        env={"PATH": os.environ["PATH"], "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HOME": "/"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_entry_point() -> None:
    """Pytest finds the plugin by itself."""
    (found,) = importlib.metadata.entry_points(group="pytest11", name="bbcache_postgres")
    assert found.load() is pytest_bbcache


def test_a_run_without_databases(project: pytest.Pytester) -> None:
    """Nothing of bbcache is imported, and nothing is said."""
    project.makeconftest("")
    project.makepyfile(
        """
        import sys

        def test_it():
            assert [name for name in sys.modules if name.split(".")[0] == "bbcache"] == []
        """
    )
    result = project.runpytest_subprocess()
    result.assert_outcomes(passed=1)
    assert "bbcache: " not in result.stdout.str()


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("snapshot", "nowhere:app", "bbcache_pg_snapshot = nowhere:app: No module named"),
        ("snapshot", "conftest:nothing", "has no attribute 'nothing'"),
        ("snapshot", "conftest:pytest", "this is not a snapshot but a module"),
        ("settings", "work_mem", "bbcache_pg_settings: 'work_mem' is not name=value"),
        ("pool", "many", "bbcache_pg_pool: 'many' is not a whole number"),
        ("max_size", "1GB", "bbcache_pg_max_size: '1GB' is not a size such as 512MiB"),
        ("bin", "/nowhere", "no initdb in /nowhere"),
        ("run_dir", "/nowhere", "/nowhere cannot be used: No such file or directory"),
        ("snapshot", "", "the conftest files have 2 snapshots: app, second"),
    ],
)
def test_wrong_options(project: pytest.Pytester, name: str, value: str, complaint: str) -> None:
    """Each is named in the header and where a fixture fails; other tests pass."""
    _set(project, name, value)
    _add_second_snapshot(project)
    if name != "snapshot":
        _set(project, "snapshot", "conftest:app")
    project.makepyfile("def test_db(pg_database): pass\ndef test_other(): pass")
    result = _in(project)
    result.assert_outcomes(passed=1, errors=1)
    text = result.stdout.str()
    (header,) = (line for line in text.splitlines() if line.startswith("bbcache: "))
    assert complaint in header
    assert complaint in text.partition(header)[2]


def _add_second_snapshot(project: pytest.Pytester) -> None:
    conftest = (project.path / "conftest.py").read_text()
    second = conftest.partition("\n")[2].replace("def app", "def second")
    project.makeconftest(f"import pytest\n{conftest}\n{second}")


@pytest.mark.usefixtures("programs_stay")
def test_kept_servers(project: pytest.Pytester, options: PostgresOptions) -> None:
    """``--pg-keep`` says how to reach the database of the last test, which is as it left it."""
    project.makepyfile("def test_it(pg_database): pg_database.psql('CREATE TABLE mine ()')")
    result = _in(project, "--pg-keep")
    result.assert_outcomes(passed=1)
    (dsn,) = re.findall(r'bbcache: kept: psql "(.*)"', result.stdout.str())
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM mine").fetchone() == (0,)
        directory = connection.execute("SHOW data_directory").fetchone()
    assert directory is not None
    sweep(run_place(options, 0), with_kept=True)
    wait_until(lambda: not Path(directory[0]).exists())
