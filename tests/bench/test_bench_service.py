"""The page service beside nginx and beside crowds: every bar once, in small."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.bench_helpers import TINY, make_scene

from bbcache.bench import service, service_crowds
from bbcache.bench.bars import Verdict
from bbcache.bench.exchanges import Exchange
from bbcache.bench.suite import run, select

if TYPE_CHECKING:
    from pathlib import Path


def test_bars_are_measured_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers are checked; nginx is named where it is missing; nothing is left behind."""
    monkeypatch.setattr(service, "_BIG_SIZE_BYTES", 3_000_000)
    monkeypatch.setattr(
        service_crowds,
        "CROWDS",
        {name: (idle // 100, slow // 100) for name, (idle, slow) in service_crowds.CROWDS.items()},
    )
    contests = select(["service-*"])
    outcomes, _ = run(contests, make_scene(tmp_path), lambda *_: None)
    assert [outcome.bar.name for outcome in outcomes] == [
        *("service-lean", "service-big", "service-first-byte"),
        *("service-p99-idle", "service-p99-slow"),
    ]
    for outcome in outcomes:
        is_measured = outcome.value is not None and outcome.value > 0
        is_missing = outcome.verdict is Verdict.MISSING and "nginx" in outcome.reason
        assert is_measured or is_missing, outcome
    assert outcomes[-1].value is not None
    assert len(outcomes[-1].values) == TINY.least_rounds
    assert list(tmp_path.iterdir()) == []


def test_other_bytes_are_noticed(tmp_path: Path) -> None:
    """An answer that is not the archive is an error, and no figure."""
    scene = make_scene(tmp_path)
    with (
        service.written(scene, scene.inputs.lean, 2) as archives,
        service.served(archives) as server,
        Exchange(server, 3) as exchange,
    ):
        contents = archives.contents()
        exchange.check(contents)
        assert len(exchange.latencies(20, 60.0)) == 20
        assert exchange.seconds_a_request(0.01) > 0
        exchange.check(contents)
        with pytest.raises(ValueError, match="other bytes"):
            exchange.check(contents[:1])


def test_who_is_refused_is_an_error(tmp_path: Path) -> None:
    """And not a fast answer."""
    scene = make_scene(tmp_path)
    with (
        service.written(scene, scene.inputs.lean, 1) as archives,
        service.served(archives) as server,
        Exchange(server._replace(requests=[b"Q\0\0\0\7no\0"])) as exchange,
        pytest.raises(ValueError, match="refused"),
    ):
        exchange.check(archives.contents())
