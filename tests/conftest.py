"""Real PostgreSQL clusters for every test that wants one.

`pg` runs a test on the newest PostgreSQL that is installed, or on those that ``--postgres``
names. `make_cluster` gives it as many clusters as it asks for, copied from a template that
initdb made once, all below one short directory, on tmpfs where there is room.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.signals import give_children_default_signals
from support.warm_python import WarmPython

from bbcache.errors import PostgresError
from bbcache.postgres.server.cluster import Cluster, PostgresBinaries

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from support.scheduling import BedScheduling
    from xdist.remote import Producer  # type: ignore[import-untyped]

# A store of objects asks there for credentials that it was not given. Nobody listens on this port,
# so no test leaves loopback.
NOWHERE = "127.0.0.1:9"
os.environ |= {
    **dict.fromkeys(("AWS_METADATA_ENDPOINT", "AZURE_MSI_ENDPOINT"), f"http://{NOWHERE}"),
    **dict.fromkeys(("GCE_METADATA_HOST", "GCE_METADATA_IP"), NOWHERE),
}

_SHM_DIR = Path("/dev/shm")  # noqa: S108 - mkdtemp is safe there
_WANTED_SHM_BYTES = 2 << 30

# Neither lasting nor busy in the background: what a test sees is what it did itself.
FAST_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "16MB",
    "max_connections": "20",
    "max_prepared_transactions": "4",
}
# PostgreSQL's own size of a WAL segment, 16 MiB, is two thirds of a small data directory.
_INITDB_ARGS = ("--no-sync", "--wal-segsize=1")

# The rooms of the core, and the tests of what lies in no room.
_CORE = frozenset((".", "archive", "cache", "prepare", "storage", "upkeep"))
# Tests of the core that start processes, or take their time; the others of the core are `quick`.
_NOT_QUICK = frozenset(
    {
        *("test_cache_faults.py", "test_damage.py", "test_docs.py"),
        *("test_extras.py", "test_on_demand_close.py", "test_interrupts.py", "test_lifecycle.py"),
        *("test_multiprocess_metrics.py", "test_packaging.py", "test_public_api.py"),
        *("test_read_only.py", "test_reader_races.py"),
        # Each of these takes half a second or more of processor time.
        "test_a_bad_archive_without_seal_is_never_served",
        "test_a_build_that_has_ended_leaves_no_object",
        "test_a_get_says_which_argument_is_wrong",
        "test_an_argument_of_a_program",
        "test_five_hundred_callers_cause_one_build",
        "test_five_hundred_callers_cause_one_fallback",
        "test_gzip_of_whole_pieces_is_not_taken_for_cut",
        "test_impatient_callers_starve_no_prepare",
        "test_of_two_failing_checks_the_earlier_decides",
        "test_programs_get_the_exact_bytes",
        "test_python_readers_get_the_exact_bytes",
        "test_records_and_readers_at_once",
        "test_whatever_a_callback_raises_is_counted_and_logged",
        "test_zeros_come_back_however_they_are_cut",
    }
)


_TESTS_DIR = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Look for quick tests in the core alone: to find the others would take seconds."""
    is_room = collection_path.parent == _TESTS_DIR and collection_path.is_dir()
    if config.option.markexpr == "quick" and is_room and collection_path.name not in _CORE:
        return True
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the quick tests of the core; leave out what has run without ``--postgres older``."""
    if config.getoption("--postgres") == "older":
        left_out = {i for i in items if "pg" not in getattr(i, "fixturenames", ())}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [i for i in items if i not in left_out]
    for item in items:
        room = item.path.parent.relative_to(_TESTS_DIR)
        names = {item.path.name, item.name.partition("[")[0]}
        if str(room) in _CORE and not names & _NOT_QUICK:
            item.add_marker(pytest.mark.quick)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect thousands of tests without looking for garbage among them, then or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the caller choose the versions of PostgreSQL."""
    parser.addoption(
        "--postgres",
        choices=["newest", "older", "all"],
        default="newest",
        help="on which of the installed versions the tests with the fixture `pg` run; "
        "with `older` these tests alone",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Twice as many workers as there are cores: tests wait for servers and disks."""
    return 2 * len(os.sched_getaffinity(0))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> BedScheduling | None:
    """Give a worker whole files, as ``--dist loadfile`` does, and all fault tests together."""
    if config.getoption("dist") != "loadfile":
        return None
    from support.scheduling import BedScheduling  # noqa: PLC0415 - xdist may not be installed

    return BedScheduling(config, log)


def pytest_configure() -> None:
    """Make the suite the same in the foreground and in the background."""
    give_children_default_signals()
    # A run starts hundreds of interpreters, of which each would compile the package again.
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@functools.cache
def _installations() -> list[PostgresBinaries]:
    """The first installation of each major version, oldest version first."""
    by_major: dict[int, PostgresBinaries] = {}
    for binaries in PostgresBinaries.find_all():
        by_major.setdefault(binaries.major, binaries)
    return [by_major[major] for major in sorted(by_major)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `pg` on the versions of PostgreSQL that ``--postgres`` names."""
    if "pg" in metafunc.fixturenames:
        found = _installations()
        wanted = metafunc.config.getoption("--postgres")
        if wanted != "all":
            found = found[-1:] if wanted == "newest" else found[:-1]
        ids = [f"pg{binaries.major}" for binaries in found]
        metafunc.parametrize("pg", found, ids=ids, indirect=True, scope="session")


@pytest.fixture(scope="session")
def pg(request: pytest.FixtureRequest) -> PostgresBinaries:
    """One PostgreSQL installation of those that ``--postgres`` names."""
    binaries: PostgresBinaries = request.param
    return binaries


@pytest.fixture(scope="session")
def newest_pg() -> PostgresBinaries:
    """The newest PostgreSQL, for tests to which the version does not matter."""
    found = _installations()
    if not found:
        pytest.skip("no PostgreSQL is installed")
    return found[-1]


@pytest.fixture(scope="session")
def pg_dir() -> Iterator[Path]:
    """A short directory for data directories, which the server's user can pass through."""
    has_shm = _SHM_DIR.is_dir() and os.access(_SHM_DIR, os.W_OK)
    has_room = has_shm and shutil.disk_usage(_SHM_DIR).free >= _WANTED_SHM_BYTES
    path = Path(tempfile.mkdtemp(prefix="bbcache-", dir=_SHM_DIR if has_room else None))
    if os.geteuid() == 0:
        path.chmod(0o711)
    yield path
    shutil.rmtree(path)


class Templates:
    """Data directories, made once for each version and initdb's arguments.

    They are fresh from initdb but for the two template databases, which are dropped: with a
    third of the files, all that is done to a copy costs half as much. Some have been used.
    WAL segments have 1 MiB unless the arguments say otherwise.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[tuple[PostgresBinaries, tuple[str, ...], str], Path] = {}

    def copy(
        self,
        binaries: PostgresBinaries,
        initdb_args: Sequence[str],
        pgdata_dir: Path,
        sql: str = "",
    ) -> None:
        """Copy the template for `binaries` and `initdb_args`, in which `sql` was run."""
        args = tuple(arg for arg in initdb_args if arg not in _INITDB_ARGS)
        template = self._template(binaries, args, sql)
        subprocess.run(["cp", "-a", "--", template, pgdata_dir], check=True)

    def _template(self, binaries: PostgresBinaries, initdb_args: tuple[str, ...], sql: str) -> Path:
        key = (binaries, initdb_args, sql)
        if key not in self._made:
            fresh = self._template(binaries, initdb_args, "") if sql else None
            template = self._directory / f"template{len(self._made)}"
            with Cluster(binaries, template, settings=FAST_SETTINGS) as cluster:
                if fresh is None:
                    self._make_fresh(cluster, initdb_args)
                else:
                    subprocess.run(["cp", "-a", "--", fresh, template], check=True)
                    cluster.start()
                    cluster.psql(sql)
            template.with_name(f"{template.name}.log").unlink()
            self._made[key] = template
        return self._made[key]

    def _make_fresh(self, cluster: Cluster, initdb_args: tuple[str, ...]) -> None:
        cluster.initdb([*_INITDB_ARGS, *initdb_args])
        cluster.start()
        cluster.psql("update pg_database set datistemplate = false")
        for name in ("template0", "template1"):
            cluster.psql(f"drop database {name}")


@pytest.fixture(scope="session")
def templates(pg_dir: Path) -> Templates:
    """The session's initdb templates."""
    return Templates(pg_dir)


@pytest.fixture(scope="session")
def warm_python() -> Iterator[WarmPython]:
    """What starts processes of Python in a tenth of the time."""
    with WarmPython() as warm:
        yield warm


class ClusterFactory:
    """Makes clusters below one directory and stops them all at the end."""

    def __init__(self, templates: Templates, directory: Path) -> None:
        self.directory = directory
        self._templates = templates
        self._made: list[Cluster] = []
        self._numbers = itertools.count()

    def __call__(
        self,
        binaries: PostgresBinaries,
        *,
        initdb_args: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
    ) -> Cluster:
        """A fresh cluster, not started, with settings that make tests fast."""
        pgdata_dir = self.new_dir()
        self._templates.copy(binaries, initdb_args, pgdata_dir)
        return self.on(binaries, pgdata_dir, settings=settings)

    def on(
        self,
        binaries: PostgresBinaries,
        pgdata_dir: Path,
        *,
        settings: Mapping[str, str] | None = None,
    ) -> Cluster:
        """A cluster on a data directory that is there already, such as a restored one."""
        cluster = Cluster(binaries, pgdata_dir, settings={**FAST_SETTINGS, **(settings or {})})
        self._made.append(cluster)
        return cluster

    def new_dir(self) -> Path:
        """A path in this test's directory at which nothing is yet."""
        return self.directory / f"d{next(self._numbers)}"

    def end(self) -> None:
        """Crash what still runs and remove everything."""
        for cluster in self._made:
            with contextlib.suppress(PostgresError):
                cluster.stop("immediate")
        shutil.rmtree(self.directory)


@pytest.fixture
def make_cluster(templates: Templates, pg_dir: Path) -> Iterator[ClusterFactory]:
    """Make clusters: ``make_cluster(pg)``, then ``start()``; stopped and removed for you."""
    directory = Path(tempfile.mkdtemp(prefix="t-", dir=pg_dir))
    if os.geteuid() == 0:
        directory.chmod(0o711)
    factory = ClusterFactory(templates, directory)
    yield factory
    factory.end()
