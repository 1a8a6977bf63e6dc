"""`python -m benchmarks.fleets`: what a full cache keeps, on simulated fleets or a trace."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.fleets import figures, kernel, measure
from benchmarks.fleets.fleets import RECIPES
from benchmarks.fleets.kernel import TITLES, Policy
from benchmarks.fleets.replay import TraceError, read_trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.fleets.fleets import Fleet

DOCS: Final = Path(__file__).parents[2] / "docs"
_DESCRIPTION: Final = """\
Simulate what a full cache of basebackups keeps under each policy. A timeline runs, stops (an
archive can be built), sleeps, and starts (a get, which is a hit if the archive is there). The
fleets and their dice are fixed, so a figure is the same in each run.

  skip      what is there stays; nothing new is built (Neon's cache)
  oldest    the oldest archive goes
  SIEVE, S3-FIFO, GDSF   as published
  rule      that of bbcache.eviction.ReturnRate, in C; decides like it, to the last bit
  oracle    knows the law of each timeline's sleep, not the dice
  Belady    knows the dice: the upper bound
"""
_REPLAY: Final = """\
Try the policies on a trace of your own fleet: a CSV file with a line for each event, in any order.

  time,timeline,event,size
  1764500400.25,de200bd4.../11223344...,stop,25310
  2026-11-30T13:05:00Z,de200bd4.../11223344...,start,

time      seconds since 1970, or ISO 8601 (UTC if it names no zone)
timeline  any text that is the same for one timeline
event     stop: the compute node has stopped, so that an archive can be built;
          start: it starts again; delete: the timeline is gone (may be left out)
size      bytes of the archive; empty if it is not known: the mean of the others, or 25000

A first line of names, empty lines, and lines that begin with # are left out; so is a start of a
timeline that has not stopped before.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except (TraceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleets", description=_DESCRIPTION, formatter_class=raw
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    table = commands.add_parser("table", help="the tables of docs/eviction.md (three minutes)")
    _add_fleets(table)
    table.add_argument(
        "--no-product", action="store_true", help="leave out the product's own code (half a minute)"
    )
    table.add_argument("--json", action="store_true", help="print every figure as JSON")
    table.add_argument(
        "--write", action="store_true", help="write the tables into the page; for all fleets"
    )
    table.set_defaults(run=_table, refuse=table.error)
    plot = commands.add_parser("plot", help="the chart of docs/eviction.md")
    _add_fleets(plot, default="mixed")
    plot.add_argument(
        "--out", type=Path, default=DOCS / "images" / "eviction.svg", help="(default: %(default)s)"
    )
    plot.set_defaults(run=_plot)
    replay = commands.add_parser(
        "replay", help="try your own trace", description=_REPLAY, formatter_class=raw
    )
    replay.add_argument("trace", type=Path, metavar="TRACE", help="the CSV file")
    replay.add_argument("--entries", type=_count, metavar="N", help="a limit of entries")
    replay.add_argument("--bytes", type=_count, metavar="N", help="a limit of bytes")
    replay.add_argument(
        "--warm",
        type=_share,
        default=1 / 3,
        metavar="SHARE",
        help="the share of the time at the beginning that is not counted (default: a third)",
    )
    replay.add_argument("--json", action="store_true", help="print every figure as JSON")
    replay.set_defaults(run=_replay)
    return parser


def _add_fleets(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument(
        "--fleet",
        action="append",
        choices=RECIPES,
        help=f"a fleet; may be given several times (default: {default or 'all'})",
    )
    parser.add_argument(
        "--seeds",
        type=_count,
        metavar="N",
        default=len(measure.SEEDS),
        help="how many (default: %(default)s)",
    )


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return share


def _table(options: argparse.Namespace) -> None:
    names = options.fleet or list(RECIPES)
    if options.write and set(names) < set(RECIPES):
        options.refuse("--write: the page has the tables of all fleets; leave out --fleet")
    rows = measure.measure(names, range(1, options.seeds + 1))
    product_rows = [] if options.no_product else measure.measure_product(names)
    lines = list(figures.tables(rows, product_rows))
    if options.json:
        print(json.dumps({"kernel": rows, "product": product_rows}, indent=2))
    elif options.write:
        figures.write(DOCS / "eviction.md", lines)
    else:
        print(*lines, sep="\n")


def _plot(options: argparse.Namespace) -> None:
    from benchmarks.fleets import plot  # noqa: PLC0415 - needs matplotlib, as no other command

    (name,) = options.fleet or ["mixed"]
    rows = measure.measure_shares([name], range(1, options.seeds + 1))
    options.out.write_text(plot.draw(rows, name))
    print(options.out)


def _replay(options: argparse.Namespace) -> None:
    fleet = read_trace(options.trace, options.warm)
    limits: list[tuple[int | None, int | None]] = [(options.entries, options.bytes)]
    if limits == [(None, None)]:
        limits = [(fleet.max_entries(share), None) for share in measure.SHARES]
    rows = [row for entries, size_bytes in limits for row in _rows(fleet, entries, size_bytes)]
    if options.json:
        print(json.dumps({"trace": str(options.trace), "results": rows}, indent=2))
        return
    print(f"{options.trace}: {fleet.count} timelines, {len(fleet.times_s)} events")
    for row in rows:
        if row["policy"] == Policy.SKIP.name.lower():
            print(f"\nmax_entries {row['max_entries']}, max_size_bytes {row['max_size_bytes']}:")
        title = TITLES[Policy[row["policy"].upper()]]
        print(
            f"  {title:<12}  {row['hit_rate']:.3f} hits, {row['builds_per_get']:.2f} builds a get"
        )


def _rows(
    fleet: Fleet, max_entries: int | None, max_size_bytes: int | None
) -> list[dict[str, Any]]:
    found = []
    for policy in Policy:
        if policy is Policy.ORACLE:  # the true law of a real fleet is not known
            continue
        run = kernel.run(
            fleet,
            policy,
            max_entries=max_entries,
            max_size_bytes=max_size_bytes,
        )
        found.append(
            {
                "policy": policy.name.lower(),
                "max_entries": max_entries,
                "max_size_bytes": max_size_bytes,
                "gets": run.gets,
                "hit_rate": run.hit_rate,
                "size_share": run.size_share,
                "builds_per_get": run.builds / max(1, run.gets),
            }
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
