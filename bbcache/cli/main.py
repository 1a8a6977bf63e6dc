"""Parsing the command line, and turning the end of a command into an exit code."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from bbcache._version import __version__
from bbcache.cli import demo, verify
from bbcache.errors import BbcacheError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

_STOP_SIGNALS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class ExitCode(IntEnum):
    """How the command ended; from 128 on as a shell has it for a signal."""

    OK = 0
    FAILED = 1  # something was not as promised
    ERROR = 2  # wrong arguments, something missing, a disk that does not do its part
    HUNG_UP = 128 + signal.SIGHUP  # the terminal was closed
    INTERRUPTED = 128 + signal.SIGINT  # Ctrl-C
    BROKEN_PIPE = 128 + signal.SIGPIPE  # whoever read the output has gone
    TERMINATED = 128 + signal.SIGTERM


class _Stopped(KeyboardInterrupt):
    """A signal that asks to stop. As an exception it passes every clean-up on its way."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = ExitCode(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. To be called from the main thread: it handles signals.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        An `ExitCode`.
    """
    options = _parser().parse_args(argv)
    try:
        with _stop_signals_raise():
            is_well = options.run(options)
            print(end="", flush=True)  # what cannot be written fails here, not at the exit
            return ExitCode.OK if is_well else ExitCode.FAILED
    except _Stopped as stopped:
        _complain(stopped.exit_code.name.lower().replace("_", " "))
        return stopped.exit_code
    except BrokenPipeError:
        return ExitCode.BROKEN_PIPE
    except (BbcacheError, OSError) as error:
        _complain(f"error: {error}")
        return ExitCode.ERROR
    finally:
        _drop_what_cannot_be_written()


def _complain(what: str) -> None:
    with suppress(OSError):  # nobody may be there to read it
        print(f"bbcache: {what}", file=sys.stderr)


def _drop_what_cannot_be_written() -> None:
    """Leave nothing in the buffers that the interpreter's exit would fail on once more."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # closed before the start
            continue
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bbcache",
        description="Basebackups of serverless Postgres, made ahead of need.",
        epilog="exit codes: 0 all well, 1 something was not as promised, 2 an error, "
        "128 + n stopped by signal n",
    )
    parser.add_argument("--version", action="version", version=f"bbcache {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo.add_parser(commands)
    verify.add_parser(commands)
    return parser


@contextmanager
def _stop_signals_raise() -> Iterator[None]:
    """Turn the first signal that asks to stop into an exception, and ignore more.

    The clean-up that the first one begins, such as stopping servers, must not be cut
    short by an impatient second one. A signal that is ignored stays so.
    """
    handlers = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    wanted = [number for number in handlers if handlers[number] is not signal.SIG_IGN]

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in wanted:
            signal.signal(each, signal.SIG_IGN)
        raise _Stopped(number)

    for number in wanted:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in wanted:
            signal.signal(number, handlers[number])
