"""Prometheus' multi-process mode: the metrics of two processes, seen by a third."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from support.cache_helpers import end_child, start_child
from support.helpers import samples

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

NEON = "pageserver_basebackup_cache_"


def scrape(shared_dir: Path) -> dict[str, float]:
    """The metrics that a process without a cache gives Prometheus."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(shared_dir))  # type: ignore[no-untyped-call]
    return samples(registry)


def test_counters_and_gauges_add_up_over_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters keep the counts of ended processes; gauges show living ones."""
    shared_dir = tmp_path / "shared"
    shared_dir.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(shared_dir))
    children = [
        start_child("support.multiprocess_children:use_a_cache", tmp_path / name)
        for name in ("a", "b")
    ]
    try:
        assert all(child.stdout is not None for child in children)
        sizes = [int(child.stdout.readline()) for child in children if child.stdout]
        seen = scrape(shared_dir)
        assert seen[f"{NEON}read_total{{result=hit}}"] == 4
        assert seen[f"{NEON}read_total{{result=miss}}"] == 2
        assert seen[f"{NEON}read_total{{result=error}}"] == 0
        assert seen[f"{NEON}prepare_total{{result=ok}}"] == 2
        assert seen[f"{NEON}prepare_total{{result=error}}"] == 2
        assert seen["bbcache_prepare_skips_total{reason=full}"] == 0
        assert seen["bbcache_prepare_seconds_count{phase=build}"] == 2
        assert seen["bbcache_prepare_archive_bytes_total"] == sum(sizes)
        assert seen[f"{NEON}entries_total"] == 2
        assert seen[f"{NEON}size_bytes"] == sum(sizes)
        assert seen[f"{NEON}prepare_queue_size"] == 0
        assert seen["bbcache_loaded_entries"] == 0
        children[0].send_signal(signal.SIGKILL)
        children[0].wait()
        mark_process_dead(children[0].pid)  # type: ignore[no-untyped-call]
        seen = scrape(shared_dir)
        assert seen[f"{NEON}read_total{{result=hit}}"] == 4
        assert seen[f"{NEON}entries_total"] == 1
        assert seen[f"{NEON}size_bytes"] == sizes[1]
    finally:
        for child in children:
            child.kill()
            end_child(child)
