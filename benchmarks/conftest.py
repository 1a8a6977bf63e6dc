"""Options, the inputs, how a benchmark is run, and the closing tables of ratios."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

import pytest

from bbcache.bench.inputs import Inputs, make_inputs
from bbcache.bench.peers import PeerMissingError, require_postgres_tool
from bbcache.errors import PostgresError
from bbcache.postgres.server.cluster import PostgresBinaries
from benchmarks.ratios import Row, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

_ROWS: Final = pytest.StashKey[list[Row]]()
_INPUTS: Final = pytest.StashKey[Inputs]()
_MIN_ROUNDS: Final = 3
_MAX_ROUNDS: Final = 200
_ENTRIES: Final = 10_000
_UNTIMED_ENTRIES: Final = 1_000

Result = TypeVar("Result")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The suite's own options."""
    group = parser.getgroup("bbcache benchmarks")
    group.addoption(
        "--bench-scale", type=int, default=2, help="pgbench scale of the full input (default 2)"
    )
    group.addoption(
        "--bench-entries",
        type=int,
        help="entries for start and clean-up (default 10000; 1000 where timing is disabled)",
    )
    group.addoption(
        "--bench-seconds",
        type=float,
        default=1.0,
        help="time for the rounds of one benchmark (default 1.0; 0 gives one round)",
    )
    group.addoption(
        "--bench-slow",
        action="store_true",
        help="also what takes over half a minute a round (libdeflate 12 on full)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make room for the rows."""
    config.stash[_ROWS] = []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the ratios, unless nothing was timed."""
    if rows := config.stash[_ROWS]:
        terminalreporter.section("ratios, from this run alone")
        terminalreporter.write_line(f"{config.stash.get(_INPUTS, 'no input was made')}\n")
        for line in tables(rows):
            terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    """A peer that is missing skips what wants it."""
    try:
        return (yield)
    except PeerMissingError as error:
        _missing(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    """Likewise."""
    try:
        return (yield)
    except PeerMissingError as error:
        _missing(str(error))


def _missing(reason: str) -> NoReturn:
    """Skip the benchmark, or fail it where ``BBCACHE_REQUIRE_TOOLS=1`` asks for all peers."""
    if os.environ.get("BBCACHE_REQUIRE_TOOLS") == "1":
        pytest.fail(f"BBCACHE_REQUIRE_TOOLS is set, and {reason}")
    pytest.skip(reason.replace("\n", " "))


class Bench:
    """Times one row of a group. One `run` or `run_short` for each.

    Args:
        fixture: pytest-benchmark's, which keeps the figures.
        seconds: time for all rounds.
    """

    def __init__(self, fixture: BenchmarkFixture, seconds: float) -> None:
        self.fixture = fixture
        self._seconds = seconds

    def label(self, group: str, name: str, *, is_reference: bool = False) -> None:
        """Say what is timed, in which table, and whether the table refers to it."""
        self.fixture.group = group
        self.fixture.name = name
        self.fixture.extra_info["is_reference"] = is_reference

    def size(self, size_bytes: int) -> None:
        """Note the size of what came out."""
        self.fixture.extra_info["size_bytes"] = size_bytes

    def run(
        self,
        target: Callable[..., Result],
        setup: Callable[[], tuple[object, ...]] = tuple,
    ) -> Result:
        """Time something that takes milliseconds or more.

        Unless timing is disabled, one round that does not count warms up and tells
        how many rounds fit the time.

        Args:
            target: what is timed.
            setup: called before each round, untimed; returns the arguments of `target`.

        Returns:
            What `target` has returned last.
        """
        rounds = 1
        if self.fixture.enabled and self._seconds > 0:
            arguments = setup()
            started_s = time.perf_counter()
            target(*arguments)
            rounds = self._rounds(time.perf_counter() - started_s)
        pedantic: Callable[..., Result] = self.fixture.pedantic
        return pedantic(target, setup=lambda: (setup(), {}), rounds=rounds)

    def _rounds(self, round_s: float) -> int:
        if round_s >= 2 * self._seconds:
            return 1
        return min(_MAX_ROUNDS, max(_MIN_ROUNDS, math.ceil(self._seconds / round_s)))

    def run_short(self, target: Callable[[], Result]) -> Result:
        """Time something that takes microseconds, in rounds of many calls if need be.

        Returns:
            What `target` has returned last.
        """
        result: Result = self.fixture(target)
        return result

    def row(self) -> Row | None:
        """What was measured; None where timing is disabled."""
        measured = self.fixture.stats
        if measured is None or not measured.stats.data:
            return None
        info = self.fixture.extra_info
        return Row(
            self.fixture.group or "",
            self.fixture.name,
            measured.stats.median,
            measured.stats.min,
            measured.stats.iqr,
            measured.stats.rounds,
            info.get("size_bytes"),
            info.get("is_reference", False),
        )


@pytest.fixture
def bench(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Iterator[Bench]:
    """What a benchmark times itself with; its row joins the closing tables."""
    made = Bench(benchmark, request.config.getoption("--bench-seconds"))
    yield made
    if (row := made.row()) is not None:
        request.config.stash[_ROWS].append(row)


@pytest.fixture(scope="session")
def inputs(request: pytest.FixtureRequest) -> Iterator[Inputs]:
    """Both tarballs and the stopped cluster they come from."""
    try:
        binaries = PostgresBinaries.find()
    except PostgresError as error:
        raise PeerMissingError(f"no input can be made: {error}") from error
    require_postgres_tool(binaries, "pgbench")
    directory = Path(tempfile.mkdtemp(prefix="bbcache-bench-"))
    if os.geteuid() == 0:
        directory.chmod(0o711)  # PostgreSQL runs as another user then, and must pass through
    try:
        scale = request.config.getoption("--bench-scale")
        made = make_inputs(binaries, directory / "pgdata", scale)
        request.config.stash[_INPUTS] = made
        yield made
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def module_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for all benchmarks of a module, removed at the end.

    Pytest would keep it for three runs.
    """
    directory = tmp_path_factory.mktemp("bench")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def scratch_dir(module_dir: Path) -> Iterator[Path]:
    """An empty directory for one benchmark, removed after it.

    Those of a module lie side by side: how long ext4 takes to make a file depends on
    where on the disk it has put the directory's parent.
    """
    directory = module_dir / "scratch"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def entry_count(request: pytest.FixtureRequest) -> int:
    """How many entries start and clean-up are measured with."""
    wanted: int | None = request.config.getoption("--bench-entries")
    is_timed = not request.config.getoption("--benchmark-disable")
    return wanted or (_ENTRIES if is_timed else _UNTIMED_ENTRIES)
