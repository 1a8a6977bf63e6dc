"""``bbcache demo``: its arguments, its directory, and what it prints."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import uuid
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbcache.cli import arguments
from bbcache.cli.stop_signals import stop_signals_raise
from bbcache.errors import ConfigError, MissingExtraError
from bbcache.postgres.pgdata.leftovers import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

_DESCRIPTION = """\
Run PostgreSQL the serverless way, and watch the cache at work.

The demo creates a tenant, then starts a compute node, runs some SQL on it and stops it,
several times. The first start builds its basebackup on request. Every later start finds
it in the cache, which built it in the background when the node before stopped. The demo
checks everything that it shows, and the data in every round.

With --two-nodes the tenant moves between two pageservers, and each start but the first
finds its basebackup fetched from the store that they share: the second tier.

With --via-page-service every start fetches its basebackup over the network, by
PostgreSQL's protocol. The first start is a miss then, and fills the cache.
"""


_MAX_SCALE = 100  # about 60 MB more in each round's archive; several must fit into the cache


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``demo`` command."""
    parser = commands.add_parser(
        "demo",
        help="run PostgreSQL the serverless way, and watch the cache at work",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rounds",
        type=_whole_number(2),
        default=4,
        metavar="N",
        help="how often a compute node starts and stops, at least 2 (default: %(default)s)",
    )
    parser.add_argument(
        "--scale",
        type=_whole_number(1, _MAX_SCALE),
        default=1,
        metavar="N",
        help="how much each round writes: N times 20,000 rows, N from 1 to 100 "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--dir",
        type=arguments.path,
        metavar="DIR",
        help="the directory for everything, which is kept at the end "
        "(default: a temporary directory, removed at the end)",
    )
    parser.add_argument(
        "--pg-bin",
        type=arguments.path,
        metavar="DIR",
        help="PostgreSQL's programs (default: $BBCACHE_PG_BIN, those on PATH, Debian's, "
        "else the embedded ones)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--two-nodes",
        action="store_true",
        help="run two pageservers with one store: the tenant moves between the rounds, and its "
        "basebackup is fetched before the start",
    )
    how.add_argument(
        "--via-page-service",
        action="store_true",
        help="fetch each basebackup from a page service over the network, as compute nodes do",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the figures as JSON, and progress to stderr"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> bool:
    """Run the demo.

    Returns:
        Whether every check has passed.

    Raises:
        BbcacheError: PostgreSQL or an extra is missing, or PostgreSQL failed.
    """
    try:
        from bbcache.cli.demo_report import Progress, print_report  # noqa: PLC0415 - an extra
        from bbcache.cli.demo_scenario import EXTRA_STEPS, Scenario  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError("the demo cannot start", "demo", error) from error
    scenario_class, extra_steps = Scenario, EXTRA_STEPS
    if options.two_nodes:
        from bbcache.cli.demo_nodes import TwoNodes  # noqa: PLC0415 - an extra

        scenario_class, extra_steps = TwoNodes, options.rounds + 1

    with (
        stop_signals_raise(),
        _directory(options.dir) as directory,
        Progress(options.rounds, extra_steps) as progress,
    ):
        scenario = scenario_class(
            directory,
            options.pg_bin,
            options.rounds,
            options.scale,
            progress.advance,
            is_via_page_service=options.via_page_service,
        )
        report = scenario.run()
    if options.json:
        print(json.dumps(_jsonable(asdict(report)), indent=2))
    else:
        print_report(report)
    for failure in report.failures:
        print(f"bbcache: not as promised: {failure}", file=sys.stderr)
    return not report.failures


@contextmanager
def _directory(wanted: Path | None) -> Iterator[Path]:
    """The directory to work in; a temporary one is removed at the end and after a failure."""
    if wanted is not None:
        if wanted.exists() and not wanted.is_dir():
            raise ConfigError(f"{wanted} is not a directory")
        yield wanted.absolute()
        return
    # Named before it is made, so that a Ctrl-C in between leaves nothing.
    path = Path(tempfile.gettempdir(), f"bbcache-demo-{uuid.uuid4().hex}")
    try:
        path.mkdir(mode=0o700)
        # If this process is root, PostgreSQL's user must be able to enter it.
        path.chmod(0o711)
        yield path
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    """Remove the directory, also if a Ctrl-C interrupts the removal once."""
    try:
        remove_tree(path)
    except KeyboardInterrupt:
        remove_tree(path)
        raise


def _whole_number(least: int, most: int | None = None) -> Any:
    def parse(text: str) -> int:
        number = int(text) if text.isdecimal() else -1
        if number < least or (most is not None and number > most):
            limits = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {limits}")
        return number

    return parse


def _jsonable(value: object) -> object:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    is_plain = value is None or type(value) in (str, int, float, bool)  # an Lsn is an int, too
    return value if is_plain else str(value)
