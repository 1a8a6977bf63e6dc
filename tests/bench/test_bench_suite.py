"""The suite: choosing bars, running them, and one run of each."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import pytest
from support.bench_helpers import COST, GAIN, TINY, make_scene

from bbcache.bench.bars import Verdict
from bbcache.bench.codec_plots import SLOW, VERY_SLOW
from bbcache.bench.codecs import CODECS
from bbcache.bench.contest import Contest, Figures
from bbcache.bench.peers import PeerMissingError
from bbcache.bench.scene import open_scene
from bbcache.bench.suite import CONTESTS, run, select
from bbcache.errors import PostgresError

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ClusterFactory

    from bbcache.bench.codecs import Codec
    from bbcache.bench.rounds import Lineup
    from bbcache.bench.scene import Scene


def names(contests: list[Contest]) -> list[str]:
    """The bars that are chosen."""
    return [bar.name for contest in contests for bar in contest.bars]


def test_names_tell_bars_and_groups_apart() -> None:
    """No two have the same."""
    bars, groups = names(list(CONTESTS)), [contest.group for contest in CONTESTS]
    assert len(set(bars)) == len(bars)
    assert len(set(groups)) == len(groups)


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        ([], names(list(CONTESTS))),
        (["get-miss"], ["get-miss"]),
        (["diskcache"], ["get-hit-diskcache"]),
        (["get-hit"], ["get-hit"]),
        (["hit"], ["get-hit", "get-hit-diskcache"]),
        (["memory-*"], ["memory-entry", "memory-prepare"]),
        (["restore, full"], ["restore-igzip", "restore-tar"]),
        (["get-miss", "start"], ["get-miss", "start"]),
        (["nothing like it"], []),
    ],
)
def test_only_what_is_asked_for(patterns: list[str], wanted: list[str]) -> None:
    """By a name in full, by a part of one, or by a pattern."""
    assert names(select(patterns)) == wanted


def test_a_part_of_a_group_needs_no_other_peers() -> None:
    """One bar of five asks for its own two contestants alone."""
    (contest,) = select(["prepare-lean-gzip"])
    wanted = contest.contestants()
    assert wanted == {contest.bars[0].what, contest.bars[0].against}
    (whole,) = select(["prepare, lean"])
    assert whole.contestants() is None


def test_a_failure_is_kept_to_its_bars(tmp_path: Path) -> None:
    """It is said, and the next contest runs."""

    def fail(_scene: Scene, _lineup: Lineup) -> NoReturn:
        raise PostgresError("it broke\nhint: Mend it.")

    def work(scene: Scene, lineup: Lineup) -> Figures:
        for name in ("ours", "others"):
            lineup.add(name, lambda: lambda: 1.0)
        lineup.race(scene.counts.pace)
        return Figures(notes=["noted"])

    begun: list[tuple[int, str]] = []
    contests = [Contest("bad", (COST,), fail), Contest("good", (GAIN,), work)]
    outcomes, figures = run(
        contests, make_scene(tmp_path), lambda number, each: begun.append((number, each.group))
    )
    assert begun == [(1, "bad"), (2, "good")]
    bad, good = outcomes
    assert (bad.verdict, bad.reason) == (Verdict.ERROR, "it broke\nhint: Mend it.")
    assert good.value == 1.0
    assert figures.notes == ["noted"]


def test_entries_are_measured_in_small(tmp_path: Path) -> None:
    """Start, clean-up, memory, growth, a miss and hits beside a clean-up, on real directories."""
    patterns = [*("start", "cleanup", "memory-entry", "get-growth", "get-miss", "get-p99-cleanup")]
    outcomes, figures = run(select(patterns), make_scene(tmp_path), lambda *_: None)
    assert {outcome.bar.name for outcome in outcomes} == set(patterns)
    for outcome in outcomes:
        assert outcome.value is not None, outcome
        assert outcome.value > 0
        assert len(outcome.values) == TINY.least_rounds
    assert [[x for x, _ in points] for points in figures.curves[0].series.values()] == [
        [100, 300],
        [100, 300],
    ]


def is_installed(codec: Codec) -> bool:
    """Whether its library is here."""
    with suppress(PeerMissingError):
        return bool(codec.load())
    return False


def test_codecs_are_measured_in_small(tmp_path: Path) -> None:
    """Every one of them on both inputs, but for those that are named as left out."""
    outcomes, figures = run(select(["codecs"]), make_scene(tmp_path), lambda *_: None)
    assert outcomes == []
    on_lean = {point.codec for point in figures.codecs if point.input_name == "lean"}
    on_full = {point.codec for point in figures.codecs if point.input_name == "full"}
    installed = {codec.name for codec in CODECS if is_installed(codec)}
    assert on_lean == installed
    assert on_full == installed - (VERY_SLOW | SLOW)
    for name in VERY_SLOW | SLOW:
        assert any(name in note for note in figures.notes)
    has_missing = len(installed) < len(CODECS)
    assert any("is not installed" in note for note in figures.notes) is has_missing
    assert all(0 < point.size_bytes < point.input_bytes for point in figures.codecs)


@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_takes_a_cluster_is_measured(make_cluster: ClusterFactory) -> None:
    """In tiny counts; a missing peer is named, and nothing is left behind."""
    directory = make_cluster.new_dir()  # which PostgreSQL's user can reach
    directory.mkdir(mode=0o711)
    patterns = ["prepare-lean", "prepare-four*", "get-p99-builds*", "restore*", "memory-prepare"]
    wanted = [each for each in select(patterns) if "slow" not in each.group]
    with open_scene(TINY, directory) as scene:
        outcomes, figures = run(wanted, scene, lambda *_: None)
    assert [outcome.bar.name for outcome in outcomes] == names(wanted)
    for outcome in outcomes:
        is_measured = outcome.value is not None and outcome.value > 0
        assert is_measured or outcome.verdict is Verdict.MISSING, outcome
    assert len(figures.distributions) == 3
    assert list(directory.iterdir()) == []
