"""The harness can fail: a cache that breaks a promise is found out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from faults import fixed_host, matrix, mutations, shim
from faults.shim import Fault

if TYPE_CHECKING:
    from faults.harness import FaultHarness

_FOUND_OUT_BY: Final = {
    "serves what it has not checked": "WRONG BYTES: bad at",
    "raises from get": "get of bad raised ArchiveError",
    "hangs": "hung:",
    "crashes": "ended with -11",
    "leaves temporary files": "left in tmp/",
    "leaves replaced files": "files without entry",
    "says gone what is there": "bytes booked",
    "counts too many": "entries on the gauge",
    "keeps its lock": "descriptors left open",
}


@pytest.mark.parametrize("mutation", mutations.PROMISES)
def test_a_broken_promise_is_found(harness: FaultHarness, mutation: str) -> None:
    """A life of a cache that does not keep the promise ends with a complaint about it."""
    bench = harness.benches[0]
    data_dir = bench.directory / "mutant"
    fixed_host.seed(data_dir)
    hang_s = 2.0 if mutation == "hangs" else 60.0
    lived = bench.fork_server.run("life", data_dir, mutation=mutation, hang_s=hang_s)
    assert _FOUND_OUT_BY[mutation] in "\n".join(lived.complaints())


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "open"])
def test_a_start_that_a_sick_disk_stops_is_found(harness: FaultHarness, call: str) -> None:
    """A cache that fails its callers with its disk ends with a complaint; ours does not."""
    bench = harness.benches[0]
    data_dir = bench.directory / "sick"
    for mutation in ("does not fall back", None):
        fixed_host.seed(data_dir)
        told = shim.settings(data_dir, Fault("error", 9, only=call, count=0))
        lived = bench.fork_server.run(
            "life", data_dir, told=told, mutation=mutation, is_lasting=True
        )
        stopped = [each for each in lived.complaints() if each.startswith("get_or_prepare of")]
        assert bool(stopped) == bool(mutation)


def test_a_lost_entry_is_found(harness: FaultHarness) -> None:
    """A start that lacks what must have survived complains."""
    bench = harness.benches[0]
    data_dir = bench.directory / "lossy"
    fixed_host.seed(data_dir)
    (data_dir / fixed_host.file_name(fixed_host.STEADY, fixed_host.LSN_A)).unlink()
    assert any("entries lost" in c for c in bench.fork_server.run("restart", data_dir).complaints())


def test_a_good_archive_in_quarantine_is_found(harness: FaultHarness) -> None:
    """Only proof of badness may send a file there."""
    bench = harness.benches[0]
    data_dir = bench.directory / "hasty"
    fixed_host.seed(data_dir)
    name = fixed_host.file_name(fixed_host.FIRST, fixed_host.LSN_A)
    evidence = data_dir / "quarantine" / f"20240201T000000.000000Z_{name}"
    evidence.write_bytes(fixed_host.sealed(fixed_host.FIRST, fixed_host.LSN_A))
    complaints = bench.fork_server.run("restart", data_dir).complaints()
    assert any("good archive is in quarantine" in complaint for complaint in complaints)


def test_a_kill_that_does_not_come_is_found(harness: FaultHarness) -> None:
    """A life that should have been killed at its first call, and was, is told apart."""
    killed = matrix.live_and_restart(harness.benches[0], Fault("kill-before", 1))
    assert (killed.complaints, killed.met is not None) == ([], True)
    beyond = matrix.live_and_restart(harness.benches[0], Fault("kill-before", 1_000_000))
    assert (beyond.complaints, beyond.met) == ([], None)
