"""Policies in C over the events of a fleet; the C compiler is called at the first use."""

from __future__ import annotations

import atexit
import ctypes
import functools
import math
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bbcache.eviction.records import Records
from bbcache.eviction.return_rate import ALL_COUNTED
from benchmarks.fleets.fleets import STOP, keys_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.fleets.fleets import Fleet

_COMPILER: Final = "cc"
_SOURCE: Final = Path(__file__).with_name("kernel.c")
# No contraction into fused operations and no folding of calls: the last bit decides.
_FLAGS: Final = ("-O2", "-std=c11", "-ffp-contract=off", "-fno-builtin", "-shared", "-fPIC")
_TOTALS: Final = 10
LOG_BUILT, LOG_DECLINED = -1, -2


class Policy(IntEnum):
    """A policy of the kernel, by its number there."""

    SKIP = 0
    OLDEST = 1
    SIEVE = 2
    S3FIFO = 3
    GDSF = 4
    BELADY = 5
    ORACLE = 6
    RULE = 7


TITLES: Final = {
    Policy.SKIP: "skip (Neon)",
    Policy.OLDEST: "oldest first",
    Policy.SIEVE: "SIEVE",
    Policy.S3FIFO: "S3-FIFO",
    Policy.GDSF: "GDSF",
    Policy.RULE: "rule",
    Policy.ORACLE: "oracle",
    Policy.BELADY: "Belady",
}


class Footprint(StrEnum):
    """The share of the cache that an entry takes, by which the rule and the oracle divide."""

    BOTH = "both"  # of entries or bytes, whichever is more
    ENTRIES = "entries"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """The results of one policy on one fleet, after its first third.

    Attributes:
        gets: starts.
        hits: starts that found an entry.
        size_share: the share of the bytes asked for that were hits.
        cost_share: the share of the seconds that misses would cost that was saved.
        builds: archives built.
        vain: archives that were evicted or deleted before they were used.
        evicted: archives evicted.
        declined: archives not built.
        log: for each stop the evicted timelines, then `LOG_BUILT` or
            `LOG_DECLINED`.
    """

    gets: int
    hits: int
    size_share: float
    cost_share: float
    builds: int
    vain: int
    evicted: int
    declined: int
    log: NDArray[np.int32]

    @property
    def hit_rate(self) -> float:
        """The share of the starts that found an entry."""
        return self.hits / max(1, self.gets)


class _Fleet(ctypes.Structure):
    _fields_ = (
        ("events", ctypes.c_int64),
        ("times_s", ctypes.c_void_p),
        ("kinds", ctypes.c_void_p),
        ("timelines", ctypes.c_void_p),
        ("returns_s", ctypes.c_void_p),
        ("count", ctypes.c_int32),
        ("sizes", ctypes.c_void_p),
        ("costs", ctypes.c_void_p),
        ("is_sampled", ctypes.c_void_p),
        ("draws", ctypes.c_int32),
        ("sleeps", ctypes.c_void_p),
        ("draw_rows", ctypes.c_void_p),
    )


class _Options(ctypes.Structure):
    _fields_ = (
        ("max_entries", ctypes.c_double),
        ("max_size", ctypes.c_double),
        ("per_entry", ctypes.c_double),
        ("per_size", ctypes.c_double),
        ("ghosts", ctypes.c_double),
        ("warm_s", ctypes.c_double),
        ("all_counted", ctypes.c_int32),
    )


def run(
    fleet: Fleet,
    policy: Policy,
    *,
    max_entries: int | None = None,
    max_size_bytes: int | None = None,
    all_counted: int = ALL_COUNTED,
    footprint: Footprint = Footprint.BOTH,
) -> Run:
    """Run a policy over a fleet.

    Args:
        fleet: the fleet; for the oracle with draws.
        policy: the policy.
        max_entries: entries to hold at most; None for no limit.
        max_size_bytes: bytes to hold at most; None for no limit.
        all_counted: up to how many timelines the rule learns from each, and not from a sample.
        footprint: what a score is divided by.

    Raises:
        ValueError: the oracle is asked for a fleet without draws.
        OSError: there is no C compiler.
    """
    if policy is Policy.ORACLE and not fleet.sleeps_s.size:
        raise ValueError("the oracle needs a fleet with draws of the true law")
    draw_rows = np.cumsum(fleet.kinds == STOP) - 1
    arrays: dict[str, NDArray[Any]] = {
        "times_s": np.ascontiguousarray(fleet.times_s, np.float64),
        "kinds": np.ascontiguousarray(fleet.kinds, np.int8),
        "timelines": np.ascontiguousarray(fleet.timelines, np.int32),
        "returns_s": np.ascontiguousarray(fleet.returns_s, np.float64),
        "sizes": np.ascontiguousarray(fleet.sizes_bytes, np.float64),
        "costs": np.ascontiguousarray(fleet.costs_s, np.float64),
        "is_sampled": np.array(list(map(Records.is_sampled, keys_of(fleet))), np.uint8),
        "sleeps": np.ascontiguousarray(fleet.sleeps_s, np.float32),
        "draw_rows": np.ascontiguousarray(draw_rows, np.int64),
    }
    c_fleet = _Fleet(
        events=len(fleet.times_s),
        count=fleet.count,
        draws=fleet.sleeps_s.shape[1],
        **{name: array.ctypes.data for name, array in arrays.items()},
    )
    most_entries = math.inf if max_entries is None else max_entries
    most_bytes = math.inf if max_size_bytes is None else max_size_bytes
    per_entry = 0.0 if footprint is Footprint.BYTES else 1 / most_entries
    per_byte = 0.0 if footprint is Footprint.ENTRIES else 1 / most_bytes
    ghosts = min(most_entries, most_bytes / fleet.mean_size_bytes)
    options = _Options(
        most_entries, most_bytes, per_entry, per_byte, ghosts, fleet.warm_s, all_counted
    )
    totals = np.zeros(_TOTALS)
    log = np.empty(2 * len(fleet.times_s) + 1, np.int32)
    length = _library().simulate(
        ctypes.byref(c_fleet),
        ctypes.byref(options),
        int(policy),
        ctypes.c_void_p(totals.ctypes.data),
        ctypes.c_void_p(log.ctypes.data),
    )
    return _result(totals, log[:length].copy())


def _result(totals: NDArray[np.float64], log: NDArray[np.int32]) -> Run:
    gets, hits, size_asked, size_hit, cost_asked, cost_saved, *counts = totals.tolist()
    builds, vain, evicted, declined = map(int, counts)
    return Run(
        gets=int(gets),
        hits=int(hits),
        size_share=size_hit / max(1.0, size_asked),
        cost_share=cost_saved / max(1e-9, cost_asked),
        builds=builds,
        vain=vain,
        evicted=evicted,
        declined=declined,
        log=log,
    )


@functools.cache
def _library() -> ctypes.CDLL:
    """Compile the kernel and load it; the file goes when the process ends.

    Raises:
        OSError: there is no C compiler.
    """
    if shutil.which(_COMPILER) is None:
        raise OSError(f"{_COMPILER} is not on PATH\nhint: Install a C compiler, such as gcc.")
    directory = tempfile.mkdtemp(prefix="bbcache-fleets-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = Path(directory, "kernel.so")
    subprocess.run([_COMPILER, *_FLAGS, "-o", str(path), str(_SOURCE), "-lm"], check=True)
    library = ctypes.CDLL(str(path))
    library.simulate.restype = ctypes.c_int64
    library.simulate.argtypes = (
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
    )
    return library
