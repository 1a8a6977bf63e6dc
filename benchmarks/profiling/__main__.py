"""The command: profiles of bars, as tables, as pictures, and into the docs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bbcache.bench.scene import FULL, QUICK, open_scene
from bbcache.bench.suite import select
from bbcache.errors import BbcacheError, ConfigError
from benchmarks.profiling import flame, tables
from benchmarks.profiling.accounts import functions
from benchmarks.profiling.sampler import find_py_spy
from benchmarks.profiling.stage import Plan, Profile, profile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bbcache.bench.bars import Bar
    from bbcache.bench.contest import Contest
    from bbcache.bench.scene import Counts

_DURATION_S: Final = 10
_RATE_HZ: Final = 100


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profiling",
        description="Sample both sides of a bar of `bbcache bench`, and tell by steps where the "
        "time goes. The ratio that stands with it is measured before, without a profiler.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="bars, as `bbcache bench --only` takes them"
    )
    parser.add_argument(
        "--seconds", type=int, default=_DURATION_S, help="of sampling each side (default 10)"
    )
    parser.add_argument("--rate", type=int, default=_RATE_HZ, help="samples a second (default 100)")
    parser.add_argument("--quick", action="store_true", help="20,000 entries in place of 200,000")
    parser.add_argument(
        "--svg", type=Path, metavar="DIR", help="write a flame graph of each bar there"
    )
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FILE",
        help="put the tables into this page, and draw its pictures; without NAME of all bars "
        "that it has",
    )
    parser.add_argument("--dir", type=Path, metavar="DIR", help="a directory to work below")
    parser.add_argument("--pg-bin", type=Path, metavar="DIR", help="PostgreSQL's programs")
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> list[tuple[Contest, Bar]]:
    """The bars that are wanted, each with its contest.

    Raises:
        ConfigError: there are none, or nothing says which.
    """
    names = options.names
    if not names and options.docs is not None:
        names = tables.marked_bars(options.docs.read_text())
    found = [(contest, bar) for contest in select(names) for bar in contest.bars] if names else []
    if not found:
        raise ConfigError(
            "no bar is wanted, or none is called like that\n"
            "hint: `bbcache bench --list` names them all."
        )
    return found


def run(options: argparse.Namespace) -> None:
    """Profile what is wanted; print, draw and write it as soon as it is there.

    Raises:
        BbcacheError: a profiler is missing, or a bar cannot be profiled.
        OSError: a file cannot be read or written.
    """
    plan = Plan(find_py_spy(), options.seconds, options.rate)
    for path in (options.svg, options.dir):
        if path is not None and not path.is_dir():
            raise ConfigError(f"{path} is not a directory")
    wanted = chosen(options)
    counts: Counts = (QUICK if options.quick else FULL)._replace(budget_s=float(options.seconds))
    with open_scene(counts, options.dir, options.pg_bin, _note) as scene:
        for contest, bar in wanted:
            _note(f"profiling {bar.name}")
            _report(profile(contest, bar, scene, plan), options)


def _report(found: Profile, options: argparse.Namespace) -> None:
    table = "".join(f"{line}\n" for line in tables.lines(found))
    sys.stdout.write(f"\n{table}")
    sys.stdout.write("\nfunctions, each without what it calls in bbcache:\n")
    sys.stdout.writelines(
        f"{line}\n" for line in tables.function_lines(functions(found.samples.ours))
    )
    calls = [f"{line}\n" for line in tables.call_lines(found.samples.calls or {})]
    if calls:
        sys.stdout.write("\nsystem calls a round:\n")
        sys.stdout.writelines(calls)
    sys.stdout.flush()
    if options.docs is not None:
        page = options.docs.read_text()
        options.docs.write_text(tables.put_into(page, found.bar.name, table))
    for path in _pictures(found.bar.name, options):
        title = f"{found.bar.name}: {found.bar.what}"
        path.write_text(flame.picture(title, found.samples.ours.stacks))


def _pictures(name: str, options: argparse.Namespace) -> Iterator[Path]:
    if options.svg is not None:
        yield options.svg / f"profile-{name}.svg"
    if options.docs is not None:
        shown = tables.picture_in(options.docs.read_text(), name)
        if shown is not None:
            yield options.docs.parent / shown


def _note(what: str) -> None:
    sys.stderr.write(f"{what}\n")


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    try:
        run(parse_arguments(arguments))
    except (BbcacheError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
