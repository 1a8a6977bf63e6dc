"""The suite as a pytest plugin: options, fixtures, and where the figures of each case go."""

from __future__ import annotations

import gc
import os
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest
from pytest_benchmark.stats import Metadata

from bbcache.errors import safe_str
from benchmarks.bars import Bar, Outcome, Verdict, judge, without_figure
from benchmarks.baseline import read_baseline, regression
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.peers import PeerMissingError
from benchmarks.results import Results
from benchmarks.rounds import Rounds
from benchmarks.table import table
from benchmarks.workspace import FULL, QUICK, UNTIMED, Workspace, open_workspace

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from pytest_benchmark.fixture import BenchmarkFixture

_OUTCOMES: Final = pytest.StashKey[list[Outcome]]()
_RESULTS: Final = pytest.StashKey[Results]()
_COLUMNS: Final = ["min", "median", "iqr", "rounds"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suite."""
    group = parser.getgroup("bbcache benchmarks")
    group.addoption(
        "--quick",
        action="store_true",
        help="measure less, in about two minutes: fewer rounds, 20,000 entries in place of "
        "200,000, no slow codecs; the ratios are rough",
    )
    group.addoption(
        "--results",
        type=Path,
        metavar="FILE",
        help="append every figure to this file as it comes, one JSON object a line",
    )
    group.addoption(
        "--report", type=Path, metavar="FILE", help="write one HTML page with tables and charts"
    )
    group.addoption(
        "--check-bars",
        action="store_true",
        help="fail a case where a ratio is worse than benchmarks/baseline.toml allows",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check the options before the minutes are spent."""
    if config.option.check_bars and config.option.benchmark_disable:
        raise pytest.UsageError("--check-bars needs figures, but --benchmark-disable takes none")
    for path in (config.option.results, config.option.report):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise pytest.UsageError(f"{path} cannot be written: it is no file in a directory")
    config.option.benchmark_columns = config.option.benchmark_columns or _COLUMNS
    config.stash[_OUTCOMES] = []
    config.stash[_RESULTS] = Results(config.option.results)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let ``-k`` take the names of bars and groups.

    A case takes as long as it takes, so pytest-timeout is off.
    """
    if item.get_closest_marker("case"):
        group, bars = _case_of(item)
        item.extra_keyword_matches.update([group, *(bar.name for bar in bars)])
        item.add_marker(pytest.mark.timeout(0))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the cases in their order, whatever other plugins do.

    Restores come first: files that others remove may slow them down (see
    `benchmarks.test_restore.fresh_directories`).
    """
    cases = [item for item in items if item.get_closest_marker("case")]
    cases.sort(key=lambda item: (item.path.stem != "test_restore", item.path, item.location[1]))
    items[:] = [*(item for item in items if item not in cases), *cases]


def _case_of(item: pytest.Item) -> tuple[str, Sequence[Bar]]:
    mark = item.get_closest_marker("case")
    assert mark is not None
    group, bars = mark.args
    return group, bars


@pytest.fixture(scope="session")
def workspace(request: pytest.FixtureRequest) -> Iterator[Workspace]:
    """Inputs and directories of the session."""
    option = request.config.option
    counts = UNTIMED if option.benchmark_disable else QUICK if option.quick else FULL
    with open_workspace(counts) as made:
        request.config.stash[_RESULTS].add(
            "run",
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            counts=counts.name,
            machine=describe_machine(made.directory),
            versions=describe_versions(),
        )
        gc.freeze()  # pytest's objects; else each full collection of a case visits them
        yield made
        gc.unfreeze()


@pytest.fixture
def results(request: pytest.FixtureRequest) -> Results:
    """Records of figures that are no ratios."""
    return request.config.stash[_RESULTS]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a case has opened; it is closed behind the rounds."""
    with ExitStack() as made:
        yield made


@pytest.fixture
def rounds(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Iterator[Rounds]:
    """The contenders of a case; their rounds join pytest-benchmark's tables."""
    benchmark._mode = "rounds"
    made = Rounds()
    yield made
    group, bars = _case_of(request.node)
    absolute = {bar.what for bar in bars if not bar.against}
    for name, samples in made.samples.items():
        if name not in absolute and benchmark.enabled:
            benchmark._add_stats(_stats(request.node, group, name, samples))


def _stats(node: pytest.Item, group: str, name: str, samples: Sequence[float]) -> Any:
    """Return the rounds of a contender as pytest-benchmark keeps those of a test: a `Metadata`."""
    contender = SimpleNamespace(
        name=name, fullname=f"{node.nodeid}[{name}]", group=group, param=None, params=None,
        extra_info={}, cprofile_stats=None, has_error=False,
    )  # fmt: skip
    stats: Any = Metadata(contender, iterations=1, options={})  # type: ignore[no-untyped-call]
    for sample in samples:
        stats.update(sample)
    return stats


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Hold the bars of a case against its rounds, and record what came out."""
    if item.get_closest_marker("case") is None:
        return (yield)
    group, bars = _case_of(item)
    made: Rounds = item.funcargs["rounds"]  # type: ignore[attr-defined]  # of a Function
    try:
        yield
    except PeerMissingError as error:
        _record(item, [without_figure(bar, group, Verdict.MISSING, str(error)) for bar in bars])
        made.missing[group] = str(error)
    except Exception as error:
        _record(item, [without_figure(bar, group, Verdict.ERROR, safe_str(error)) for bar in bars])
        raise
    else:
        _record(item, [judge(bar, group, made) for bar in bars])
    _conclude(item, made)
    return None


def _record(item: pytest.Item, outcomes: Sequence[Outcome]) -> None:
    results, made = item.config.stash[_RESULTS], item.funcargs["rounds"]  # type: ignore[attr-defined]
    for outcome in outcomes:
        item.config.stash[_OUTCOMES].append(outcome)
        results.add("bar", **asdict(outcome))
    for name, quantiles in made.quantiles().items():
        results.add("latency", group=_case_of(item)[0], name=name, seconds=quantiles)
    for reason in dict.fromkeys(made.missing.values()):
        results.add("note", text=reason.splitlines()[0])


def _conclude(item: pytest.Item, made: Rounds) -> None:
    """Fail a case whose contender failed or got worse; skip one that lacks all its peers."""
    complaints = list(made.failed.values())
    if os.environ.get("BBCACHE_REQUIRE_TOOLS") == "1":
        complaints += [f"BBCACHE_REQUIRE_TOOLS is set, and {why}" for why in made.missing.values()]
    if item.config.option.check_bars:
        baseline, names = read_baseline(), {bar.name for bar in _case_of(item)[1]}
        mine = [each for each in item.config.stash[_OUTCOMES] if each.name in names]
        complaints += filter(None, (regression(each, baseline) for each in mine))
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)
    if made.missing and not made.samples:
        pytest.skip(" ".join(made.missing.values()).replace("\n", " "))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table of ratios, and write the report."""
    if config.option.benchmark_disable:
        return
    if outcomes := config.stash[_OUTCOMES]:
        terminalreporter.section("ratios, each from rounds in turn")
        for line in table(outcomes):
            terminalreporter.write_line(line)
    records = config.stash[_RESULTS].records
    if config.option.report is not None and records:
        from benchmarks.report import render  # noqa: PLC0415 - matplotlib takes a second

        config.option.report.write_text(render(records))
        terminalreporter.write_line(f"wrote {config.option.report}")


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add the bars to the file of ``--benchmark-json``."""
    output_json["bars"] = [asdict(outcome) for outcome in config.stash[_OUTCOMES]]
