"""Parsing the command line, and turning the end of a command into an exit code."""

from __future__ import annotations

import argparse
import signal
import sys
from enum import IntEnum
from typing import TYPE_CHECKING

from bbcache._version import __version__
from bbcache.cli import demo
from bbcache.errors import BbcacheError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType


class ExitCode(IntEnum):
    """How the command ended."""

    OK = 0
    FAILED = 1  # something was not as promised
    ERROR = 2  # wrong arguments, something missing, a disk that does not do its part
    INTERRUPTED = 130  # Ctrl-C, as a shell has it
    TERMINATED = 143  # SIGTERM, as a shell has it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        An `ExitCode`.
    """
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return ExitCode.OK if options.run(options) else ExitCode.FAILED
    except KeyboardInterrupt:
        print("bbcache: interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except (BbcacheError, OSError) as error:
        print(f"bbcache: error: {error}", file=sys.stderr)
        return ExitCode.ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bbcache",
        description="Basebackups of serverless Postgres, made ahead of need.",
        epilog="exit codes: 0 all well, 1 something was not as promised, 2 an error, "
        "130 interrupted, 143 terminated",
    )
    parser.add_argument("--version", action="version", version=f"bbcache {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo.add_parser(commands)
    return parser


def _terminate(_number: int, _frame: FrameType | None) -> None:
    # As an exception, so that servers are stopped and temporary directories removed.
    raise SystemExit(ExitCode.TERMINATED)
