"""A fill that is stopped at each of its steps while something else happens to its timeline.

Whatever that is, the caller gets bytes that the host has written for his LSN, or is told that
the cache closes. One build serves two callers, and the ledger agrees with the directory in the
end. In a normal run each of the other actions takes a fifth of the steps, and together they take
every step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from concurrency.scene import Scene, naming
from concurrency.stopped_fill import OTHERS, ask, ask_beside
from support.cache_helpers import LSN_A, Worker
from support.shares import share_of

if TYPE_CHECKING:
    from collections.abc import Callable

_STATES: Final = ("empty", "held", "outgrown and gone", "damaged", "vanished")


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


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("state", _STATES)
def test_a_fill_beside(make_state: Callable[[str], Scene], state: str, other: str) -> None:
    """Right bytes for each who asks, or the news of a close; nothing is left behind."""
    scene = make_state(state)
    assert Worker(ask, scene).result() is not None
    scene.harness.wait_idle()
    steps = scene.steps
    if state != "held":
        assert {"host: half of the tarball", "os.pwrite"} <= set(steps)
    share = share_of(steps, OTHERS.index(other))
    met = [_fill_beside(make_state(state), state, step, other) for step in share]
    assert 2 * sum(met) >= len(met) > 0, "the steps are not those that were found"


def _fill_beside(scene: Scene, state: str, step: str, other: str) -> bool:
    """Run one interleaving; two fills of what is not there share one build."""
    builds_before = len(scene.sent.get(LSN_A, ()))
    is_met = ask_beside(scene, step, other)
    if other == "fill" and state in {"empty", "vanished"}:
        with naming(step):
            assert len(scene.sent[LSN_A]) == builds_before + 1
    return is_met
