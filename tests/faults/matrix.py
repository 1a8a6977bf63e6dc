"""Every call of a life fails in turn, in every way; and after each, a start without faults."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from faults import fixed_host, shim
from faults.calls import Call, read_log
from faults.shim import Fault

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from faults.harness import Bench, FaultHarness

_TRIALS: Final = 3  # lives without fault, of which the longest is taken


class Column(NamedTuple):
    """One way to fail, which each call meets in turn.

    Attributes:
        kind: what happens.
        errno: the error, where there is one.
        only: names of the calls that it can happen to, by commas; all where empty.
        is_lasting: whether it happens to all calls that follow as well.
    """

    kind: shim.Kind
    errno: int = errno.EIO
    only: str = ""
    is_lasting: bool = False

    def fault_at(self, number: int) -> Fault:
        """The fault at one call of those that it can happen to."""
        return Fault(self.kind, number, self.errno, self.only, count=0 if self.is_lasting else 1)


COLUMNS: Final = {
    "EIO": Column("error", errno.EIO),
    "ENOSPC": Column("error", errno.ENOSPC),
    "EROFS": Column("error", errno.EROFS),
    "EACCES": Column("error", errno.EACCES),
    "EMFILE": Column("error", errno.EMFILE),
    "short write of one byte": Column("short-one", only="write,pwrite"),
    "short write of half": Column("short-half", only="write,pwrite"),
    "short read of one byte": Column("short-one", only="read,pread"),
    "short read of half": Column("short-half", only="read,pread"),
    "kill before the call": Column("kill-before"),
    "kill after the call": Column("kill-after"),
    "dead disk": Column("error", errno.EIO, is_lasting=True),
}


@dataclass(slots=True)
class Result:
    """What one fault has led to.

    Attributes:
        fault: the fault; None for a life without.
        met: the call that it was injected into; None where the life ended before it.
        complaints: everything that is not as it must be, in the life and after.
        notes: what happened and may: starts that failed, reads that the caller lost.
    """

    fault: Fault | None
    met: Call | None
    complaints: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        call = f", {self.met.op} of {self.met.path}" if self.met else ""
        return f"{self.fault}{call}:\n  " + "\n  ".join(self.complaints)


def live_and_restart(bench: Bench, fault: Fault | None, story: str = "used") -> Result:
    """Live under a fault, then start again without."""
    data_dir, log = bench.directory / "cache", bench.directory / "log"
    for path in bench.directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    log.unlink(missing_ok=True)
    fixed_host.seed(data_dir)
    is_lasting = fault is not None and fault.count == 0
    told = shim.settings(data_dir, fault, log)
    lived = bench.fork_server.run("life", data_dir, told=told, story=story, is_lasting=is_lasting)
    met = next((call for call in read_log(log) if call.is_injected), None)
    complaints = lived.complaints(may_be_killed=fault is not None and fault.kills)
    if fault is not None and fault.kills and met is not None and not lived.is_killed:
        complaints.append(f"not killed, but ended with {lived.status}")
    # Where no refresh can succeed, clean-up rightly takes what the tip has passed.
    survivors = set(fixed_host.UNTOUCHED if is_lasting else fixed_host.SURVIVORS)
    if story == "replaced":  # by a directory without them
        survivors.clear()
    after = bench.fork_server.run("restart", data_dir, survivors=sorted(survivors))
    complaints += [f"after it: {line}" for line in after.complaints()]
    return Result(fault, met, complaints, lived.notes)


def fault_free_calls(bench: Bench, story: str = "used") -> list[Call]:
    """The calls of a life without fault, the longest of a few."""
    lives = []
    for _ in range(_TRIALS):
        result = live_and_restart(bench, None, story)
        assert not result.complaints, str(result)
        lives.append([call for call in read_log(bench.directory / "log") if call.number])
    return max(lives, key=len)


def whole_column(column: Column, calls: list[Call]) -> list[Fault]:
    """The fault at every call of a life that it can happen to."""
    return [column.fault_at(number) for number, _ in _numbered(column, calls)]


def share_of_column(
    column: Column, calls: list[Call], rng: random.Random, groups: slice = slice(None)
) -> list[Fault]:
    """The fault at one call, chosen at random, of each group of calls that are alike.

    Args:
        column: how they fail.
        calls: of a life without fault.
        rng: chooses.
        groups: which groups, of all that there are in their order.
    """
    alike: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for number, call in _numbered(column, calls):
        alike[call.op, _kind_of_file(call.path)].append(number)
    return [column.fault_at(rng.choice(numbers)) for _, numbers in sorted(alike.items())[groups]]


def _numbered(column: Column, calls: list[Call]) -> list[tuple[int, Call]]:
    ops = column.only.split(",") if column.only else None
    return list(enumerate((call for call in calls if ops is None or call.op in ops), 1))


def _kind_of_file(path: str) -> str:
    name = os.path.basename(path)
    if fixed_host.parse_name(name) is not None:
        return "entry"
    for folder in ("tmp", "quarantine"):
        if f"/{folder}/" in path:
            return f"file in {folder}"
    return name


class Summary:
    """Counts over many results."""

    def __init__(self) -> None:
        self.bad: list[Result] = []
        self._counts: Counter[str] = Counter()
        self._ops: Counter[str] = Counter()

    def add(self, result: Result) -> None:
        """Count one."""
        self._counts["lives"] += 1
        self._counts["faults met"] += result.met is not None
        self._counts["starts that failed as documented"] += any(
            note.startswith("start failed") for note in result.notes
        )
        self._counts["archives that the caller could not read"] += any(
            note.startswith("caller") for note in result.notes
        )
        if result.met is not None:
            self._ops[result.met.op] += 1
        if result.complaints:
            self.bad.append(result)

    @property
    def met_count(self) -> int:
        """How many faults met a call before the life was over."""
        return self._counts["faults met"]

    def __str__(self) -> str:
        lines = [f"{count} {what}" for what, count in self._counts.items()]
        ops = ", ".join(f"{op} {count}" for op, count in self._ops.most_common())
        return ", ".join([*lines, f"{len(self.bad)} with complaints"]) + f"\n  by call: {ops}"


def run(harness: FaultHarness, faults: Iterable[Fault], story: str = "used") -> Summary:
    """One life for each fault."""
    summary = Summary()
    for result in harness.each(lambda bench, fault: live_and_restart(bench, fault, story), faults):
        summary.add(result)
    return summary
