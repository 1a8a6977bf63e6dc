"""A million inputs to the page service; counts on stdout, 1 on any complaint.

python tests/fuzz/run.py                          with atheris, where it is installed
python tests/fuzz/run.py --engine random --seed 7 with a seeded mutator, which knows no coverage

Every input goes to the protocol's own layers and to a whole session over a pair of sockets;
every hundredth also to a real service over TCP. atheris looks at the coverage of
bbcache.page_service, and keeps what finds new code.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NoReturn

TESTS_DIR = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS_DIR), str(TESTS_DIR.parent)]

_COUNT: Final = 1_000_000
_TELL_EACH: Final = 50_000
_OVER_TCP_EACH: Final = 100
_WARM: Final = 1000  # inputs until every thread that there can be is there


def say(what: object) -> None:
    """One line on stdout, at once."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


class Run:
    """Plays inputs, and says how many there were.

    Args:
        harness: plays them.
        wanted_count: how many there are to be.
    """

    def __init__(self, harness: Any, wanted_count: int) -> None:
        self._harness = harness
        self._wanted_count = wanted_count
        self._started_s = time.monotonic()
        self._before = (0, 0)

    def play(self, data: bytes) -> None:
        """One input; it is told of where it breaks a promise."""
        number = self._harness.counts["inputs"] + 1
        try:
            self._harness.play(data, is_over_tcp=number % _OVER_TCP_EACH == 0)
        except BaseException:
            say(f"COMPLAINT about input {number}: {data!r}")
            raise
        if number == min(_WARM, self._wanted_count):
            self._before = self._harness.traces()
        if number % _TELL_EACH == 0:
            self._tell()

    def is_done(self) -> bool:
        """Whether there were as many as there are to be."""
        return bool(self._harness.counts["inputs"] >= self._wanted_count)

    def end(self) -> bool:
        """Say how it was; returns whether nothing is left of it."""
        threads, descriptors = self._harness.traces()
        was_threads, was_descriptors = self._before
        say(f"threads {was_threads} before, {threads} after")
        say(f"descriptors {was_descriptors} before, {descriptors} after")
        has_leak = threads > was_threads + 2 or descriptors > was_descriptors + 2
        say("COMPLAINT: something is left" if has_leak else "no complaint")
        self._tell()
        return not has_leak

    def _tell(self) -> None:
        counts = ", ".join(f"{name} {count:,}" for name, count in self._harness.counts.items())
        say(f"[{time.monotonic() - self._started_s:.0f} s] {counts}")


def main() -> None:
    """Read the arguments, and play."""
    has_atheris = importlib.util.find_spec("atheris") is not None
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=_COUNT)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--engine", choices=["atheris", "random"], default="atheris" if has_atheris else "random"
    )
    args = parser.parse_args()
    say(f"{args.count:,} inputs by {args.engine}, seed {args.seed}")
    with tempfile.TemporaryDirectory() as directory:
        if args.engine == "atheris":
            _with_atheris(Path(directory), args)
        is_good = _at_random(Path(directory), args)
    sys.exit(not is_good)


def _with_atheris(directory: Path, args: argparse.Namespace) -> NoReturn:
    import atheris  # noqa: PLC0415 - may be missing

    with atheris.instrument_imports(include=["bbcache.page_service"]):
        from fuzz.harness import FuzzHarness  # noqa: PLC0415 - instrumented
    from fuzz.engines import MOST_BYTES, random_inputs  # noqa: PLC0415

    corpus = directory / "corpus"
    corpus.mkdir()
    for number, data in enumerate(itertools.islice(random_inputs(args.seed), 200)):
        (corpus / str(number)).write_bytes(data)
    with FuzzHarness(directory) as harness:
        run = Run(harness, args.count)

        def play(data: bytes) -> None:
            run.play(data)
            if run.is_done():
                is_good = run.end()
                sys.stdout.flush()
                shutil.rmtree(directory)
                os._exit(not is_good)  # atheris ends in no other way that lets us say it

        options = [f"-max_len={MOST_BYTES}", f"-seed={args.seed}", "-verbosity=0", "-timeout=60"]
        options.append(f"-artifact_prefix={directory}/")
        atheris.Setup([sys.argv[0], *options, str(corpus)], play)
        atheris.Fuzz()
    raise AssertionError("atheris has ended before its time")


def _at_random(directory: Path, args: argparse.Namespace) -> bool:
    from fuzz.engines import random_inputs  # noqa: PLC0415
    from fuzz.harness import FuzzHarness  # noqa: PLC0415 - as above

    with FuzzHarness(directory) as harness:
        run = Run(harness, args.count)
        for data in itertools.islice(random_inputs(args.seed), args.count):
            run.play(data)
        return run.end()


if __name__ == "__main__":
    main()
