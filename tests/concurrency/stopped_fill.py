"""A `get_or_prepare` that is stopped at one of its steps, and what must hold afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from concurrency.scene import ACTIONS, naming
from support.cache_helpers import DEADLINE_S, LSN_A, Worker, disk_bytes
from support.fill_helpers import fill, filled, unpublished_bytes
from support.ledger import total_bytes

from bbcache import ClosingError

if TYPE_CHECKING:
    from concurrency.scene import Scene

OTHERS: Final = (*ACTIONS, "fill")


def ask(scene: Scene) -> tuple[str, bytes] | None:
    """Fill at `LSN_A`; None where the cache closes first."""
    try:
        found = filled(scene.harness, scene.timeline, LSN_A, DEADLINE_S)
    except ClosingError:
        return None
    assert found[1] in scene.sent[LSN_A]
    return found


def ask_beside(scene: Scene, step: str, other: str) -> bool:
    """Run one of `OTHERS` while a fill is stopped at a step; returns whether it came there.

    A second fill waits for the one that is stopped, or passes it.
    """
    harness = scene.harness
    with naming(step), scene.stop_at(step) as gate:
        first = Worker(ask, scene)
        is_met = scene.comes(gate, first)
        is_fill = other == "fill"
        second = Worker(ask, scene) if is_fill else scene.run_beside(gate, ACTIONS[other])
    with naming(step):
        got = first.result()
        second.result()
        assert got is not None or other == "close"
        if other == "close":
            harness.open()
        harness.wait_idle()
        if other == "refresh":
            assert harness.holds(scene.timeline, scene.tip)
        assert unpublished_bytes(harness) == 0
        assert total_bytes(harness.engine.index) == disk_bytes(harness.dir)
        if other != "close":
            fill(harness, scene.timeline, scene.tip, DEADLINE_S).close()
            assert harness.holds(scene.timeline, scene.tip)
        harness.wait_idle()
        harness.check_accounting()
    return is_met
