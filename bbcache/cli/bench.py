"""``bbcache bench``: its arguments, its progress, and where its results go."""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bbcache.cli.stop_signals import stop_signals_raise
from bbcache.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bbcache.bench.contest import Contest
    from bbcache.bench.report import Report

_DESCRIPTION: Final = """\
Measure bbcache beside its peers, and beside the least work that must be done anyway.

Every line of the table is a *bar*: a ratio of two things that this run has done in
turn, round by round, on the same input and the same disk. What is compared is checked
to be right, and fsync, seal and checks stay on. A ratio mostly survives a change of
machine; a time does not, so none is in the table. Everything is measured in a directory
of its own, which is removed at the end: put it (--dir) on the disk that matters.

The inputs come from a PostgreSQL cluster that is made on the spot (`bbcache demo --help`
says which PostgreSQL is taken): *lean* is what a serverless pageserver sends, *full* a
whole data directory with pgbench's tables. A peer that is not installed is named.
"""
_EPILOG: Final = """\
examples:
  bbcache bench --quick                     a first look, in under two minutes
  bbcache bench --html run.html             all of it, some ten minutes, with plots
  bbcache bench --only get                  what has "get" in its name or its group
  bbcache bench --only 'prepare-*-igzip'    likewise, by a pattern of the shell
  bbcache bench --json new.json --compare old.json

The exit code is 0 whatever the ratios are, since they belong to this machine; with
--check it is 1 where one is worse than what was reached once. It is 1, too, where a
line could not be measured.
"""
_QUICK_NOTE: Final = (
    "quick: fewer rounds, and 20,000 entries in place of 200,000; the ratios are rough\n"
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``bench`` command."""
    parser = commands.add_parser(
        "bench",
        help="measure bbcache beside its peers: ratios, and whether they are as wanted",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure less, in under two minutes; rough ratios"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only bars whose name, or whose group's, is this, matches it or has it in it; "
        "may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="name the bars, and measure nothing")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything there, with every sample"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write one page with table and plots there"
    )
    parser.add_argument(
        "--svg", type=Path, metavar="DIR", help="write each plot as a picture into that directory"
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="FILE",
        help="put the ratios of an earlier --json beside those of this run",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 where a ratio is worse than was reached once, by more than its slack "
        "(or where a peer is missing, with BBCACHE_REQUIRE_TOOLS=1)",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        help="an existing directory to work below (default: that of temporary files)",
    )
    parser.add_argument(
        "--pg-bin", type=Path, metavar="DIR", help="PostgreSQL's programs (default: those found)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> bool:
    """Measure, print the table, write what was asked for.

    Returns:
        Whether every bar could be measured, and with ``--check`` none has got worse.

    Raises:
        BbcacheError: something that all of it needs is missing, or no bar is meant.
        OSError: a file cannot be read or written.
    """
    try:
        from bbcache.bench import table  # noqa: PLC0415 - heavy
        from bbcache.bench.page import page  # noqa: PLC0415 - heavy
        from bbcache.bench.plots import plots  # noqa: PLC0415 - heavy
        from bbcache.bench.report import read_report  # noqa: PLC0415 - heavy
        from bbcache.bench.suite import select  # noqa: PLC0415 - needs an extra
        from bbcache.bench.svg import standalone  # noqa: PLC0415 - heavy
    except ImportError as error:
        raise MissingExtraError("the benchmarks cannot start", "bench", error) from error

    contests = select(options.only)
    if not contests:
        raise ConfigError(
            f"no bar is called like {', '.join(options.only)}\n"
            "hint: `bbcache bench --list` names them all."
        )
    if options.list:
        _print_lines(table.listing(contests))
        return True
    _check_places(options)
    old = None if options.compare is None else read_report(options.compare)
    report = _measure(options, contests)
    if options.json is not None:
        options.json.write_text(report.to_json())
    if options.html is not None:
        options.html.write_text(page(report))
    if options.svg is not None:
        for plot in plots(report.figures):
            (options.svg / f"{plot.name}.svg").write_text(standalone(plot))
    _print_lines(table.table(report))
    if old is not None:
        _print_lines(["", *table.comparison(old, report)])
    return _is_well(report, is_checked=options.check)


def _check_places(options: argparse.Namespace) -> None:
    """Complain before the minutes are spent, not after them."""
    for path in (options.dir, options.svg):
        if path is not None and not path.is_dir():
            raise ConfigError(f"{path} is not a directory")
    for path in (options.json, options.html):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ConfigError(f"{path} cannot be written: it is, or lies in, no such place")


def _measure(options: argparse.Namespace, contests: list[Contest]) -> Report:
    from bbcache.bench import scene as scenes  # noqa: PLC0415 - heavy
    from bbcache.bench.machine import describe_machine, describe_versions  # noqa: PLC0415 - heavy
    from bbcache.bench.report import Report  # noqa: PLC0415 - heavy
    from bbcache.bench.suite import run as run_suite  # noqa: PLC0415 - heavy

    counts = scenes.QUICK if options.quick else scenes.FULL
    progress = _Progress(len(contests))
    if options.quick:
        progress.say(_QUICK_NOTE.strip())
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    with (
        stop_signals_raise(),
        scenes.open_scene(counts, options.dir, options.pg_bin, progress.note) as scene,
    ):
        machine = describe_machine(scene.directory)
        outcomes, figures = run_suite(contests, scene, progress.begin)
        versions = describe_versions() | scene.postgres_version()
    progress.end()
    return Report(started_at, counts._asdict(), machine, versions, outcomes, figures)


class _Progress:
    """Lines on stderr: what is measured now, and which of how many that is."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._started_s = time.monotonic()

    def begin(self, number: int, contest: Contest) -> None:
        bars = f", {len(contest.bars)} bar{'s' * (len(contest.bars) != 1)}" * bool(contest.bars)
        self.say(f"{number:>2} of {self._total}  {contest.group}{bars}")

    def note(self, what: str) -> None:
        self.say(f"          {what}")

    def end(self) -> None:
        self.say("done")

    def say(self, what: str) -> None:
        passed_s = time.monotonic() - self._started_s
        print(f"[{passed_s:5.0f} s]  {what}", file=sys.stderr, flush=True)


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _is_well(report: Report, *, is_checked: bool) -> bool:
    from bbcache.bench.bars import Verdict  # noqa: PLC0415 - heavy
    from bbcache.bench.regressions import read_locked, regressions  # noqa: PLC0415 - heavy

    if not is_checked:
        return not any(outcome.verdict is Verdict.ERROR for outcome in report.outcomes)
    needs_peers = os.environ.get("BBCACHE_REQUIRE_TOOLS") == "1"
    found = list(regressions(report.outcomes, read_locked(), needs_peers=needs_peers))
    for line in found:
        print(f"bbcache: worse than before: {line}", file=sys.stderr)
    return not found
