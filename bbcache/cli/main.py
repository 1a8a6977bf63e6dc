"""Parsing the command line, and turning the end of a command into an exit code."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from enum import IntEnum
from importlib import import_module
from typing import TYPE_CHECKING, Final

from bbcache._version import __version__
from bbcache.cli.arguments import NoCacheError
from bbcache.cli.output import (
    drop_unwritten,
    lasting_stderr,
    named_stdout,
    open_standard_streams,
)
from bbcache.cli.stop_signals import Stopped
from bbcache.errors import BbcacheError, printable, safe_str

if TYPE_CHECKING:
    from collections.abc import Sequence


class ExitCode(IntEnum):
    """How the command ended; from 128 on as a shell has it for a signal."""

    OK = 0
    FAILED = 1  # a check has failed
    ERROR = 2  # wrong arguments, something missing, a disk error
    NO_CACHE = 3  # the directory holds no cache
    HUNG_UP = 128 + signal.SIGHUP  # the terminal was closed
    INTERRUPTED = 128 + signal.SIGINT  # Ctrl-C
    BROKEN_PIPE = 128 + signal.SIGPIPE  # the reader of the output has closed it
    TERMINATED = 128 + signal.SIGTERM


_COMMANDS: Final = ("demo", "fetch", "serve", "testing", "tier", "verify", "why")  # each a module
_HINTS: Final = {
    errno.ENOENT: "Is the name spelled right, and is the file system mounted?",
    errno.ENOTDIR: "Name a directory.",
    errno.EISDIR: "Name a file.",
    errno.EACCES: "Run the command as a user with permission.",
    errno.EPERM: "Run the command as a user with permission.",
    errno.ENOSPC: "Free space on the file system.",
    errno.EDQUOT: "Raise the disk quota, or free space.",
    errno.EROFS: "Remount the file system read-write, or name another place.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.EIO: "The disk or its file system is failing; look at the kernel log.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Call it from the main thread, where signals arrive.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        An `ExitCode`.
    """
    open_standard_streams()
    try:
        with lasting_stderr(), named_stdout():
            return _run(argv)
    finally:
        drop_unwritten(sys.stdout)


def _run(argv: Sequence[str] | None) -> ExitCode:
    arguments = sys.argv[1:] if argv is None else argv
    options = argparse.Namespace(command="bbcache")
    try:
        options = make_parser(*arguments[:1]).parse_args(arguments)
        is_well = options.run(options)
        print(end="", flush=True)  # an error of the output is raised here, not at the exit
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        exit_code = ExitCode(128 + number)
        _complain(exit_code.name.lower().replace("_", " "))
        return exit_code
    except BrokenPipeError:
        return ExitCode.BROKEN_PIPE
    except NoCacheError as error:
        _complain(f"error: {error}")
        return ExitCode.NO_CACHE
    except BbcacheError as error:
        _complain(f"error: {error}")
        return ExitCode.ERROR
    except OSError as error:
        _complain(f"error: {_explain(error, options.command)}")
        return ExitCode.ERROR
    return ExitCode.OK if is_well else ExitCode.FAILED


def _explain(error: OSError, command: str) -> str:
    """Describe an error of the operating system: the command, the path and a hint."""
    paths = [os.fsdecode(each) for each in (error.filename, error.filename2) if each is not None]
    place = f" at {' and '.join(paths)}" if paths else ""
    hint = _HINTS.get(error.errno or 0)
    return (
        f"{command} has failed{place}: {error.strerror or safe_str(error)}"
        f"{f'{chr(10)}hint: {hint}' if hint else ''}"
    )


def _complain(what: str) -> None:
    """Print a message to stderr, without control characters."""
    print(*map(printable, f"bbcache: {what}".split("\n")), sep="\n", file=sys.stderr)


def make_parser(command: str = "") -> argparse.ArgumentParser:
    """Make the parser of the command line.

    Args:
        command: a command, to make the parser of this one alone: a fetch need not wait for all
            that a service imports. Any other text makes the whole parser.
    """
    parser = argparse.ArgumentParser(
        prog="bbcache",
        description="Basebackups of serverless Postgres, made ahead of need.",
        epilog="exit codes: 0 success, 1 a check failed, 2 an error, "
        "3 no cache there, 128 + n stopped by signal n",
    )
    parser.add_argument("--version", action="version", version=f"bbcache {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )
    for name in [command] if command in _COMMANDS else _COMMANDS:
        import_module(f"bbcache.cli.{name}").add_parser(commands)
    return parser
