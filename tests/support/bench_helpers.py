"""Counts that make measurements tiny, a scene without PostgreSQL, and a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bbcache import TimelineId
from bbcache.bench.bars import Bar, Outcome, Sense, Verdict, judge
from bbcache.bench.contest import CodecPoint, Curve, Figures
from bbcache.bench.entries import LSN
from bbcache.bench.inputs import Inputs
from bbcache.bench.latency import Distribution
from bbcache.bench.report import Report
from bbcache.bench.scene import Counts, Scene
from bbcache.testing import make_tarball

if TYPE_CHECKING:
    from pathlib import Path

TINY = Counts(
    name="tiny",
    scale=1,
    grown_scale=1,
    entries=300,
    calls=50,
    latency_s=0.05,
    budget_s=0.0,
    least_rounds=2,
    least_slow_rounds=1,
    is_slow_left_out=True,
)
COST = Bar("prepare-a", "ours", "theirs", Sense.AT_MOST, 1.5)
GAIN = Bar("prepare-b", "ours", "others", Sense.AT_LEAST, 2.0)
SIZE = Bar("memory-a", "ours", "", Sense.AT_MOST, 220.0, "bytes")


def make_scene(directory: Path) -> Scene:
    """A scene whose inputs are two small tarballs that no PostgreSQL has made."""
    scene = Scene(directory, TINY)
    lean, full = (make_tarball(TimelineId.generate(), LSN, size) for size in (100_000, 300_000))
    scene.inputs = Inputs(lean, full, directory / "nowhere", "none")
    return scene


def make_report(text: str = "plain") -> Report:
    """A report with one of everything.

    Args:
        text: stands wherever a text may come from outside.
    """
    samples = {"ours": [1.0, 1.1, 0.9], "theirs": [1.0, 1.0, 1.0]}
    outcomes = [
        judge(COST._replace(what="ours"), "prepare", samples, {}, {}),
        judge(GAIN, "prepare", samples, {"others": f"{text} is missing\nhint: Get {text}."}, {}),
        judge(SIZE, "memory", {"ours": [300.0]}, {}, {}),
        Outcome(SIZE._replace(name="memory-b"), "memory", Verdict.ERROR, reason=f"{text} failed"),
    ]
    figures = Figures(
        codecs=[
            CodecPoint("lean", f"{text}-1", 0.001, 20_000, 1_000_000),
            CodecPoint("lean", f"{text}-9", 0.1, 10_000, 1_000_000),
        ],
        distributions={text: Distribution([0.0, 0.5, 0.9, 0.99], [1e-6, 2e-6, 3e-6, 4e-4], 200)},
        curves=[Curve(text, {text: [(100.0, 1e-5), (1000.0, 1.1e-5)]})],
        notes=[f"{text} was left out"],
    )
    return Report(
        "2026-01-02T03:04:05+00:00",
        TINY._asdict(),
        {"CPU": text},
        {text: "1.0"},
        outcomes,
        figures,
    )
