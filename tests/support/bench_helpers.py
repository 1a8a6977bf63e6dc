"""Bars, rounds that were measured before, a workspace without PostgreSQL, and records."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bbcache import TimelineId
from bbcache.testing import make_tarball
from benchmarks.bars import Bar, Outcome, Sense, Verdict, judge, without_figure
from benchmarks.entries import LSN
from benchmarks.inputs import Inputs
from benchmarks.rounds import Rounds
from benchmarks.workspace import UNTIMED, Workspace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

COST = Bar("prepare-a", "ours", "theirs", Sense.AT_MOST, 1.5)
GAIN = Bar("prepare-b", "ours", "others", Sense.AT_LEAST, 2.0)
MACHINE = ("CPU", "file system", "system", "Python", "load at the start")
SIZE = Bar("memory-a", "ours", "", Sense.AT_MOST, 220.0, "bytes")


def rounds_of(
    samples: Mapping[str, Sequence[float]],
    missing: Mapping[str, str] | None = None,
    failed: Mapping[str, str] | None = None,
) -> Rounds:
    """Return rounds that were run before."""
    rounds = Rounds()
    rounds.samples = {name: list(values) for name, values in samples.items()}
    rounds.missing, rounds.failed = dict(missing or {}), dict(failed or {})
    return rounds


def make_workspace(directory: Path) -> Workspace:
    """Return a workspace with two small tarballs that no PostgreSQL has made."""
    workspace = Workspace(directory, UNTIMED)
    lean, full = (make_tarball(TimelineId.generate(), LSN, size) for size in (100_000, 300_000))
    workspace.inputs = Inputs(lean, full, directory / "nowhere", "none")
    return workspace


def make_outcomes(text: str = "plain") -> list[Outcome]:
    """Return a bar that is met, one without its peer, one that is not met, and an error.

    Args:
        text: stands where a text may come from outside.
    """
    samples = {"ours": [1.0, 1.1, 0.9], "theirs": [1.0, 1.0, 1.0]}
    missing = {"others": f"{text} is missing\nhint: Get {text}."}
    return [
        judge(COST, "prepare", rounds_of(samples)),
        judge(GAIN, "prepare", rounds_of(samples, missing)),
        judge(SIZE, "memory", rounds_of({"ours": [300.0]})),
        without_figure(Bar(**{**asdict(SIZE), "name": "memory-b"}), "memory", Verdict.ERROR, text),
    ]


def make_records(text: str = "plain") -> list[dict[str, Any]]:
    """Return one record of everything.

    Args:
        text: stands where a text may come from outside.
    """
    sizes = {"ISA-L 2": (1.0, 20_000), "ISA-L 3": (30.0, 60_000), "zlib 6": (80.0, 19_000)}
    seconds = {"p50": 1e-6, "p90": 2e-6, "p99": 3e-6, "p99.9": 4e-4}
    return [
        {
            "kind": "run",
            "started_at": "2026-01-02T03:04:05+00:00",
            "counts": "tiny",
            "machine": dict.fromkeys(MACHINE, text)
            | {"CPU": f"2 of 2, {text}", "load at the start": "9.0 1.0 1.0"},
            "versions": {text: "1.0", "bbcache": "1.0"},
        },
        *({"kind": "bar", **asdict(outcome)} for outcome in make_outcomes(text)),
        *(
            {
                "kind": "codec",
                "input": "lean",
                "input_bytes": 1_000_000,
                "codec": codec,
                "seconds": ratio * 1e-3,
                "in_isal_2": ratio,
                "size_bytes": size_bytes,
                "decompress_seconds": 1e-3,
            }
            for codec, (ratio, size_bytes) in sizes.items()
        ),
        {"kind": "latency", "group": text, "name": text, "seconds": seconds},
        {"kind": "growth", "name": text, "entries": 100, "seconds": 1e-5},
        {"kind": "growth", "name": text, "entries": 1000, "seconds": 1.1e-5},
        {"kind": "note", "text": f"{text} was left out"},
    ]
