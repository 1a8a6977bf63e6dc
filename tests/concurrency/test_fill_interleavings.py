"""A fill that is stopped at each of its steps while something else happens to its timeline.

Whatever that is: the caller gets bytes that the host has written for his LSN, or is told that
the cache closes; one build serves two callers; and the books balance in the end. In a normal
run each of the other actions takes a fifth of the steps, and together they take every step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from concurrency.scene import ACTIONS, Scene, naming
from support.cache_helpers import DEADLINE_S, LSN_A, Worker, disk_bytes
from support.fill_helpers import fill, filled, unpublished_bytes
from support.ledger import total_bytes
from support.shares import share_of

from bbcache import ClosingError

if TYPE_CHECKING:
    from collections.abc import Callable

_OTHERS: Final = (*ACTIONS, "fill")
_STATES: Final = ("empty", "held", "outgrown and gone", "damaged", "vanished")


def ask(scene: Scene) -> bytes | None:
    """Fill at `LSN_A`; None where the cache closes first."""
    try:
        _, tar = filled(scene.harness, scene.timeline, LSN_A, DEADLINE_S)
    except ClosingError:
        return None
    assert tar in scene.sent[LSN_A]
    return tar


@pytest.fixture
def make_state(make_scene: Callable[..., Scene]) -> Callable[[str], Scene]:
    """Make a scene in one of the states above."""

    def make(state: str) -> Scene:
        if state != "outgrown and gone":
            return make_scene(state)
        scene = make_scene("outgrown")
        scene.harness.cache.run_cleanup()
        scene.restart()
        return scene

    return make


@pytest.mark.parametrize("other", _OTHERS)
@pytest.mark.parametrize("state", _STATES)
def test_a_fill_beside(make_state: Callable[[str], Scene], state: str, other: str) -> None:
    """Right bytes for each who asks, or the news of a close; nothing is left behind."""
    scene = make_state(state)
    assert Worker(ask, scene).result() is not None
    scene.harness.wait_idle()
    steps = scene.steps
    if state != "held":
        assert {"host: half of the tarball", "os.pwrite"} <= set(steps)
    share = share_of(steps, _OTHERS.index(other))
    met = [_fill_beside(make_state(state), state, step, other) for step in share]
    assert 2 * sum(met) >= len(met) > 0, "the steps are not those that were found"


def _fill_beside(scene: Scene, state: str, step: str, other: str) -> bool:
    """Run one interleaving; returns whether the step was met."""
    builds_before = len(scene.sent.get(LSN_A, ()))
    with naming(step), scene.stop_at(step) as gate:
        first = Worker(ask, scene)
        is_met = scene.comes(gate, first)
        # A second fill waits for the one that is stopped, or passes it.
        is_fill = other == "fill"
        second = Worker(ask, scene) if is_fill else scene.run_beside(gate, ACTIONS[other])
    with naming(step):
        got = first.result()
        second.result()
        assert got is not None or other == "close"
        if other == "fill" and state in {"empty", "vanished"}:
            assert len(scene.sent[LSN_A]) == builds_before + 1
        if other == "close":
            scene.harness.open()
        scene.harness.wait_idle()
        harness = scene.harness
        assert unpublished_bytes(harness) == 0
        assert total_bytes(harness.engine.index) == disk_bytes(harness.dir)
        if other != "close":
            fill(harness, scene.timeline, scene.tip, DEADLINE_S).close()
            assert harness.holds(scene.timeline, scene.tip)
        harness.wait_idle()
        harness.check_accounting()
    return is_met
