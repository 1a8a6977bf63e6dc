"""The processes of `test_multiprocess_metrics`, whose counts another process reads."""

from __future__ import annotations

from pathlib import Path

from support.cache_helpers import LSN_B, Harness
from support.process_children import say, wait_for_the_test


def use_a_cache(data_dir: str) -> None:
    """One archive prepared, two hits, one miss, one prepare that fails; then wait."""
    harness = Harness(Path(data_dir))
    with harness:
        timeline = harness.prepared()
        assert harness.get(timeline) is not None
        assert harness.get(timeline) is not None
        assert harness.get(timeline, LSN_B) is None
        harness.tenant.timelines.clear()
        harness.prepare(timeline, LSN_B)
        say(str(harness.path(timeline).stat().st_size))
        wait_for_the_test()
