"""Pytest's entry point of bbcache: a PostgreSQL server and databases as fixtures.

A module of its own that imports nothing of bbcache before a fixture or a snapshot is used: every
run of pytest in an environment with bbcache loads it. See docs/testing.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bbcache.testing.postgres import Database, Server
    from bbcache.testing.postgres.pytest_session import PytestSession, Report

_INI = (
    ("snapshot", "string", "module:name of the snapshot; else the only one in conftest files"),
    ("bin", "string", "directory of the PostgreSQL programs"),
    ("major", "string", "major version of PostgreSQL to use"),
    ("settings", "linelist", "server settings, one name=value a line"),
    ("run_dir", "string", "where servers run; else memory, else the temporary directory"),
    ("cache_dir", "string", "where snapshots are kept; else $BBCACHE_TESTING_DIR or ~/.cache"),
    ("max_size", "string", "how much of snapshots is kept, such as 512MiB (default: 1GiB)"),
    ("pool", "string", "databases made ahead of need (default: 2)"),
    ("spares", "string", "data directories kept ready in memory (default: 2)"),
    ("lean", "bool", "leave the databases template0 and template1 out (default: no)"),
    ("tcp", "bool", "listen on 127.0.0.1, too (default: no)"),
)
_STARTED = "bbcache_pg_started_s"
_OUTPUT = "bbcache_pg"
_SESSION: pytest.StashKey[PytestSession] = pytest.StashKey()
_REPORTS: pytest.StashKey[list[Report]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; those of the ini file are named bbcache_pg_..."""
    group = parser.getgroup("bbcache", "PostgreSQL for tests (bbcache)")
    group.addoption("--pg-rebuild", action="store_true", help="make the snapshots again")
    group.addoption(
        "--pg-keep", action="store_true", help="leave servers running, and say how to connect"
    )
    for name, kind, text in _INI:
        parser.addini(f"bbcache_pg_{name}", text, type=kind)  # type: ignore[arg-type]


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; note when the whole run has begun."""
    config.addinivalue_line(
        "markers", "pg_snapshot(snapshot): the snapshot that the databases of a test come from"
    )
    started_s = getattr(config, "workerinput", {}).get(_STARTED, time.time())
    config.stash[_REPORTS] = []
    config.stash[_RUN_STARTED] = started_s


_RUN_STARTED = pytest.StashKey[float]()


def _session(config: pytest.Config) -> PytestSession:
    """Return the session of this process, made at the first call."""
    from bbcache.testing.postgres.pytest_session import PytestSession  # noqa: PLC0415 - see above

    if _SESSION not in config.stash:
        config.stash[_SESSION] = PytestSession(config, config.stash[_RUN_STARTED])
    return config.stash[_SESSION]


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what is used, where the project names a snapshot."""
    is_used = "bbcache.testing.postgres" in sys.modules or config.getini("bbcache_pg_snapshot")
    return _session(config).header() if is_used else None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist when the run has begun."""
    node.workerinput[_STARTED] = node.config.stash[_RUN_STARTED]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker of pytest-xdist has to report."""
    report = getattr(node, "workeroutput", {}).get(_OUTPUT)
    if report is not None:
        node.config.stash[_REPORTS].append(report)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have the server of `pg_server` run: that fixture is made once for all tests of a worker."""
    if _SESSION in item.config.stash and "pg_server" in getattr(item, "fixturenames", ()):
        item.config.stash[_SESSION].revive()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """End all servers."""
    config = session.config
    if _SESSION in config.stash:
        report = config.stash[_SESSION].close()
        if report is None:
            return
        if hasattr(config, "workeroutput"):
            config.workeroutput[_OUTPUT] = report
        else:
            config.stash[_REPORTS].append(report)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was built and started, and where kept servers are."""
    if config.stash[_REPORTS]:
        from bbcache.testing.postgres.pytest_session import summary  # noqa: PLC0415 - see above

        reports = config.stash[_REPORTS]
        for line in summary(reports):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def pg_server(request: pytest.FixtureRequest) -> Server:
    """A PostgreSQL server, restored from the snapshot; one for each worker."""
    return _session(request.config).shared_server()


@pytest.fixture
def pg_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database of the test's own, with the data of the snapshot."""
    server = _session(request.config).shared_server(request.node)
    with server.database() as database:
        yield database


@pytest.fixture
def pg_fresh_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A PostgreSQL server of the test's own, restored from the snapshot."""
    with _session(request.config).fresh_server(request.node) as server:
        yield server
