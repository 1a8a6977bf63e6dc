"""How good are the tests? Break bbcache in many small ways, and see which ways they notice.

python tests/mutation/run.py                    every module of settings.toml
python tests/mutation/run.py storage.index      only this one
python tests/mutation/run.py --resume FILE      go on: what FILE says is killed is not run again
python tests/mutation/run.py --quick 60         60 mutants of all modules under `pytest -m quick`

Prints each survivor as it is found, and a table at the end. The exit code is 1 where a
module is below the bar, or a survivor is not in accepted.toml, with the reason why it may,
or accepted.toml speaks of a line that is not there any more.
With --quick it is 1 where less than two thirds of the mutants are noticed.
Each mutant is run in a copy of the repository, never in place.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))

from mutation.mutants import Mutant, mutant_at, mutants_of, places_of  # noqa: E402 - found by the line above

# In one order and with one seed, so that two runs find the same survivors; only the plugins
# that are needed, since loading all of them takes longer than most of the tests.
PYTEST: Final = (
    *("-x", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout", "--timeout=60"),
    *("-p", "_hypothesis_pytestplugin", "--hypothesis-seed=0", "--no-header", "--tb=line"),
)
ENVIRONMENT: Final = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
COPIED: Final = (
    "bbcache",
    "benchmarks",
    "tests",
    "docs",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
)
IS_QUICK: Final = ("-m", "quick")
NO_TEST: Final = 5  # pytest's exit status where it has run none
QUICK_BAR_PERCENT: Final = 100 * 2 / 3
KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"


def say(what: object) -> None:
    """One line on stdout, at once."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


class Bench:
    """A copy of the repository in which one mutant at a time is run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tree = directory / "tree"
        self.output = directory / "output"  # of the latest run
        ignored = shutil.ignore_patterns("__pycache__", ".hypothesis", ".*_cache")
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self._tree / name, ignore=ignored)
            else:
                shutil.copy(ROOT / name, self._tree / name)

    def run(
        self, module: str, source: str, tests: list[str], timeout_s: float, *options: str
    ) -> str:
        """Run the files `tests` with `source` as `module`, then put the module back.

        Args:
            module: its name.
            source: its text.
            tests: files and directories, as globs.
            timeout_s: how long they may take.
            options: of pytest.
        """
        words = [str(path) for glob in tests for path in sorted(self._tree.glob(glob))]
        self._write(module, source)
        try:
            return self._pytest([*words, *options], timeout_s)
        finally:
            self._write(module, source_of(module))

    def _write(self, module: str, source: str) -> None:
        path = file_of(module, self._tree)
        path.write_text(source)
        # Two mutants of one size may be written within one tick of the clock.
        for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            stale.unlink()

    def _pytest(self, words: list[str], timeout_s: float) -> str:
        base_dir = self._directory / "base"
        command = [sys.executable, "-m", "pytest", *PYTEST, f"--basetemp={base_dir}", *words]
        with self.output.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=self._tree,
                env={**ENVIRONMENT, "PYTHONPATH": str(self._tree)},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            return SURVIVED if process.wait(timeout_s) in {0, NO_TEST} else KILLED
        except subprocess.TimeoutExpired:
            return TIMED_OUT
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what the tests have left
            process.wait()


class Plan(NamedTuple):
    """The tests of one module.

    Attributes:
        quick: those that mirror it.
        wide: what a survivor of those has to pass too.
        timeout_s: how long either may take.
    """

    quick: list[str]
    wide: list[str]
    timeout_s: float


class Session:
    """Runs mutants on several benches; remembers in a file what was killed."""

    def __init__(self, benches: list[Bench], file: Path | None) -> None:
        self._benches: queue.SimpleQueue[Bench] = queue.SimpleQueue()
        for bench in benches:
            self._benches.put(bench)
        self._file = file
        lines = file.read_text().splitlines() if file is not None and file.exists() else []
        self._killed = {key for key, outcome in map(json.loads, lines) if outcome != SURVIVED}

    def judge(self, plan: Plan, mutant: Mutant) -> str:
        """What the quick tests, then the wide ones, say of a mutant."""
        key = hashlib.sha256(repr((mutant.module, mutant.source)).encode()).hexdigest()
        if key in self._killed:
            return KILLED
        bench = self._benches.get()
        try:
            outcome = bench.run(mutant.module, mutant.source, plan.quick, plan.timeout_s)
            # Those tests have less to do with the module: what kills it does so twice in a row.
            for _ in range(2 if outcome == SURVIVED else 0):
                outcome = bench.run(mutant.module, mutant.source, plan.wide, plan.timeout_s)
                if outcome == SURVIVED:
                    break
        finally:
            self._benches.put(bench)
        if self._file is not None:
            with self._file.open("a") as lines:
                lines.write(json.dumps([key, outcome]) + "\n")
        return outcome

    def judge_quickly(self, module: str, source: str, tests: list[str], timeout_s: float) -> str:
        """What the tests that are marked ``quick`` say of `source` as a module.

        Most of what they notice is noticed by those of `tests`, which mirror the module.
        """
        bench = self._benches.get()
        try:
            outcome = SURVIVED
            for each in ([tests] if tests else []) + [["tests"]]:
                if outcome == SURVIVED:
                    outcome = bench.run(module, source, each, timeout_s, *IS_QUICK)
        finally:
            self._benches.put(bench)
        return outcome

    def plan(self, module: str, settings: dict[str, Any]) -> Plan:
        """Time the tests of a module as it is.

        Raises:
            SystemExit: they fail without any mutant, or pass with a module that cannot be imported.
        """
        quick, wide = settings["quick"], settings["wide"]
        bench = self._benches.get()
        try:
            if bench.run(module, "raise RuntimeError", quick, 300) != KILLED:
                raise SystemExit(f"{module}: the tests do not see the copy that is mutated")
            started_s = time.monotonic()
            if any(bench.run(module, source_of(module), t, 600) != SURVIVED for t in (quick, wide)):
                raise SystemExit(f"{bench.output.read_text()}{module}: fails without any mutant")
        finally:
            self._benches.put(bench)
        return Plan(quick, wide, 30 + 3 * (time.monotonic() - started_s))


def file_of(module: str, tree: Path = ROOT) -> Path:
    """The file of a module, such as ``storage.index``, in a copy of the repository."""
    return tree / "bbcache" / f"{module.replace('.', '/')}.py"


def source_of(module: str) -> str:
    """The text of a module as it is."""
    return file_of(module).read_text()


def is_accepted(mutant: Mutant, accepted: list[dict[str, Any]]) -> bool:
    """Whether accepted.toml gives a reason why this one may survive."""
    return any(
        (row["module"], row["where"], row["was"]) == (mutant.module, mutant.where, mutant.was)
        and mutant.now in row["now"]
        for row in accepted
    )


def stale_rows(module: str, mutants: list[Mutant], accepted: list[dict[str, Any]]) -> Iterator[str]:
    """What accepted.toml says of a module that no mutant of it is."""
    known = {(mutant.where, mutant.was, mutant.now) for mutant in mutants}
    for row in accepted:
        for now in row["now"] if row["module"] == module else ():
            if (row["where"], row["was"], now) not in known:
                yield f"{module} {row['where']}\n  - {row['was']}\n  + {now}"


class Score(NamedTuple):
    """How a module fared."""

    module: str
    killed: int
    timed_out: int
    survivors: list[Mutant]
    refused: list[Mutant]
    stale_count: int  # of rows in accepted.toml

    @property
    def percent(self) -> float:
        """The share of mutants that were killed, timeouts included."""
        total = self.killed + self.timed_out + len(self.survivors)
        return 100 * (total - len(self.survivors)) / total

    def __str__(self) -> str:
        dead, alive = self.killed + self.timed_out, len(self.survivors)
        return f"| {self.module} | {dead + alive} | {dead} | {alive} | {self.percent:.1f} % |"


def score(
    module: str, settings: dict[str, Any], session: Session, pool: concurrent.futures.Executor
) -> Score:
    """Run all mutants of one module; survivors are printed at once."""
    accepted = tomllib.loads((HERE / "accepted.toml").read_text()).get("accepted", [])
    plan = session.plan(module, settings["modules"][module])
    mutants = list(mutants_of(module, source_of(module), settings["operators"]))
    outcomes = []
    survivors = []
    for mutant, outcome in zip(
        mutants, pool.map(lambda m: session.judge(plan, m), mutants), strict=True
    ):
        outcomes.append(outcome)
        if outcome == SURVIVED:
            survivors.append(mutant)
            known = "accepted" if is_accepted(mutant, accepted) else "NOT ACCEPTED"
            say(f"survived, {known}: {mutant}")
        if outcome == TIMED_OUT:
            say(f"timed out: {mutant}")
    refused = [mutant for mutant in survivors if not is_accepted(mutant, accepted)]
    stale = list(stale_rows(module, mutants, accepted))
    for row in stale:
        say(f"accepted, but not there: {row}")
    killed, timed_out = outcomes.count(KILLED), outcomes.count(TIMED_OUT)
    return Score(module, killed, timed_out, survivors, refused, len(stale))


def score_quick(
    count: int, settings: dict[str, Any], session: Session, pool: concurrent.futures.Executor
) -> int:
    """Run some mutants of all modules under the quick tests; returns the exit status."""
    places = [
        (module, place)
        for module in settings["modules"]
        for place in places_of(source_of(module), settings["operators"])
    ]
    places = random.sample(places, min(count, len(places)))
    mutants = [mutant_at(module, source_of(module), place) for module, place in places]
    started_s = time.monotonic()
    if session.judge_quickly("storage.index", source_of("storage.index"), [], 900) != SURVIVED:
        raise SystemExit("the quick tests fail without any mutant")
    timeout_s = 30 + 3 * (time.monotonic() - started_s)
    outcomes = []
    judged = pool.map(
        lambda m: session.judge_quickly(
            m.module, m.source, settings["modules"][m.module]["quick"], timeout_s
        ),
        mutants,
    )
    for mutant, outcome in zip(mutants, judged, strict=True):
        outcomes.append(outcome)
        if outcome != KILLED:
            say(f"{outcome}: {mutant}")
    percent = 100 * (1 - outcomes.count(SURVIVED) / len(mutants))
    say(
        f"the quick tests notice {percent:.0f} % of {len(mutants)} mutants; "
        f"{outcomes.count(TIMED_OUT)} of these timed out"
    )
    return 1 if percent < QUICK_BAR_PERCENT else 0


def main() -> int:
    """Run what the command line asks for."""
    settings = tomllib.loads((HERE / "settings.toml").read_text())
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("module", nargs="*", help="default: all of settings.toml")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (2)")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="where results are kept")
    parser.add_argument("--quick", type=int, metavar="N", help="N mutants under `-m quick`")
    args = parser.parse_args()
    started_s = time.monotonic()
    # A shell's background jobs ignore it, and so would the tests that interrupt processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    scores = []
    with (
        tempfile.TemporaryDirectory(prefix="bbcache-mutation-") as directory,
        concurrent.futures.ThreadPoolExecutor(args.jobs) as pool,
    ):
        benches = [Bench(Path(directory) / str(number)) for number in range(args.jobs)]
        session = Session(benches, args.resume)
        if args.quick:
            return score_quick(args.quick, settings, session, pool)
        for module in args.module or settings["modules"]:
            scores.append(score(module, settings, session, pool))
            say(scores[-1])
    say("| module | mutants | killed | survived | score |\n| --- | --- | --- | --- | --- |")
    for row in scores:
        say(row)
    refused = sum(len(row.refused) for row in scores)
    below = [row.module for row in scores if row.percent < settings["bar_percent"]]
    say(f"{refused} survivors have no reason; below {settings['bar_percent']} %: {below or 'none'}")
    timed_out = sum(row.timed_out for row in scores)
    say(f"{timed_out} of the killed timed out; {time.monotonic() - started_s:.0f} s in all")
    return 1 if refused or below or any(row.stale_count for row in scores) else 0


if __name__ == "__main__":
    sys.exit(main())
