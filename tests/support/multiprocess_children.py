"""The processes of `test_multiprocess_metrics`, whose counts another process reads."""

from __future__ import annotations

from pathlib import Path

from support.cache_helpers import LSN_B, Rig
from support.process_children import say, wait_for_the_test


def use_a_cache(data_dir: str) -> None:
    """One archive prepared, two hits, one miss, one prepare that fails; then wait."""
    rig = Rig(Path(data_dir))
    with rig:
        timeline = rig.prepared()
        assert rig.get(timeline) is not None
        assert rig.get(timeline) is not None
        assert rig.get(timeline, LSN_B) is None
        rig.tenant.timelines.clear()
        rig.prepare(timeline, LSN_B)
        say(str(rig.path(timeline).stat().st_size))
        wait_for_the_test()
