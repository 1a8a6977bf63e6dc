"""Run the whole test suite many times, each time under other circumstances.

A suite that passes in a quiet terminal may fail in a cron job, beside other work, or for
another user. This script clones the repository, installs it into a fresh virtual environment
as the README says, and runs all its tests:

    plain   with nothing special
    busy    beside eight processes that never rest
    nohup   in the background of a shell under nohup: INT, QUIT and HUP arrive ignored
    user    as a plain user (for root alone; anybody else is one already)
    setsid  in a session without a terminal
    tmpfs   with TMPDIR in memory

It prints a line for each run, and exits with 1 when one of them failed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KINDS: Final = {"plain": 2, "busy": 3, "nohup": 2, "user": 1, "setsid": 1, "tmpfs": 1}
_DEFAULT: Final = " ".join(f"{kind}={count}" for kind, count in KINDS.items())
_BUSY_COUNT: Final = 8
_ALL_TESTS: Final = ("-n", "auto", "--dist", "loadfile")
_SHOWN_LINES: Final = 600  # of a run that has failed
_PROGRESS: Final = re.compile(r"[.sxXFE]+ *\[ *\d+%\]")
_TOP: Final = Path(__file__).parents[2]
_IN_BACKGROUND: Final = 'nohup "$@" & wait $!'


def say(what: object) -> None:
    """Print a line at once, also where output goes to a file."""
    print(what, flush=True)  # noqa: T201 - this is a script


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit status."""
    options = _parse(arguments)
    red_count = 0
    with tempfile.TemporaryDirectory(prefix="bbcache-runs-") as name:
        Path(name).chmod(0o755)
        pythons: dict[bool, tuple[str, Path]] = {}
        for kind in itertools.chain(*([kind] * count for kind, count in options.kinds.items())):
            is_user = kind == "user" and os.geteuid() == 0
            if is_user not in pythons:
                pythons[is_user] = _prepare(Path(name), options, is_user=is_user)
            python, checkout = pythons[is_user]
            red_count += not _run(kind, [python, "-m", "pytest", *options.pytest], checkout)
    run_count = sum(options.kinds.values())
    say(f"{red_count} of {run_count} runs failed" if red_count else "all runs passed")
    return 1 if red_count else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "kinds",
        nargs="*",
        type=_kind,
        metavar="KIND[=N]",
        help=f"what to run, and how often (default: {_DEFAULT})",
    )
    parser.add_argument(
        "--here",
        action="store_true",
        help="use this checkout and this Python rather than a clone with a fresh environment",
    )
    parser.add_argument(
        "--pytest",
        nargs=argparse.REMAINDER,
        default=list(_ALL_TESTS),
        help="arguments of pytest, the last option (default: those of the README)",
    )
    options = parser.parse_args(arguments)
    options.kinds = dict(options.kinds) or KINDS
    return options


def _kind(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if name not in KINDS or not (count or "1").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(KINDS)}, with =N")
    return name, int(count or 1)


def _prepare(directory: Path, options: argparse.Namespace, *, is_user: bool) -> tuple[str, Path]:
    """Return a Python that can run the tests, and the checkout to run them in."""
    if options.here:
        return sys.executable, _TOP
    checkout = directory / ("user" if is_user else "own")
    subprocess.run(["git", "clone", "-q", _TOP, checkout], check=True)
    # The interpreter of root may lie where no plain user gets to.
    python = shutil.which("python3", path="/usr/bin") if is_user else sys.executable
    assert python is not None, "a plain user needs /usr/bin/python3"
    subprocess.run([python, "-m", "venv", checkout / ".venv"], check=True)
    python = str(checkout / ".venv/bin/python")
    install = [python, "-m", "pip", "install", "-q", "-e", f"{checkout}[test]"]
    subprocess.run(install, check=True)
    if is_user:
        subprocess.run(["chown", "-R", "nobody:", checkout], check=True)
    return python, checkout


def _run(kind: str, command: Sequence[str], checkout: Path) -> bool:
    """Run the tests once and print how that ended; returns whether they passed."""
    begun_s = time.monotonic()
    with _circumstances(kind, command) as (args, settings), tempfile.TemporaryFile("w+") as out:
        status = subprocess.run(
            args, cwd=checkout, stdout=out, stderr=subprocess.STDOUT, check=False, **settings
        ).returncode
        out.seek(0)
        lines = out.read().splitlines()
    say(f"{kind}: status {status} after {time.monotonic() - begun_s:.0f} s: {lines[-1:]}")
    if status != 0:
        said = [line for line in lines if not _PROGRESS.fullmatch(line)]
        say("\n".join(f"    {line}" for line in said[-_SHOWN_LINES:]))
    return status == 0


@contextlib.contextmanager
def _circumstances(
    kind: str, command: Sequence[str]
) -> Iterator[tuple[Sequence[str], dict[str, Any]]]:
    """Bring about the circumstances; gives a command, and arguments of `subprocess.run`."""
    with contextlib.ExitStack() as stack:
        settings: dict[str, Any] = {}
        if kind == "busy":
            for _ in range(_BUSY_COUNT):
                process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                stack.callback(process.wait)
                stack.callback(process.kill)
        elif kind == "nohup":
            command = ["sh", "-c", _IN_BACKGROUND, "sh", *command]
        elif kind == "setsid":
            settings = {"start_new_session": True, "stdin": subprocess.DEVNULL}
        elif kind == "tmpfs":
            settings["env"] = {**os.environ, "TMPDIR": _make_tmp(stack, "/dev/shm")}  # noqa: S108
        elif kind == "user" and os.geteuid() == 0:
            tmp = _make_tmp(stack, None)
            settings = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            settings["env"] = {**os.environ, "HOME": tmp, "TMPDIR": tmp}
        yield command, settings


def _make_tmp(stack: contextlib.ExitStack, parent: str | None) -> str:
    """Make a directory for temporary files which every user can use."""
    path = stack.enter_context(tempfile.TemporaryDirectory(prefix="bbcache-tmp-", dir=parent))
    Path(path).chmod(0o1777)
    return path


if __name__ == "__main__":
    sys.exit(main())
