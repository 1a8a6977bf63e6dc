"""A fetch from the second tier that is stopped at each of its steps while something else happens.

Whatever that is: the caller gets bytes that were sealed for his LSN, or is told that the cache
closes; a newer archive is never replaced by the older one that was fetched; and the books
balance in the end. In a normal run each of the other actions takes a fifth of the steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from concurrency.scene import ACTIONS, TAR_BYTES, Scene, naming
from support.cache_helpers import DEADLINE_S, LSN_A, Worker, disk_bytes, noise
from support.fill_helpers import fill, filled, unpublished_bytes
from support.helpers import seal_archive
from support.ledger import total_bytes
from support.shares import share_of

from bbcache import ClosingError, TierConfig
from bbcache.storage.index import make_key
from bbcache.testing import MemoryTier

if TYPE_CHECKING:
    from collections.abc import Callable

_OTHERS: Final = (*ACTIONS, "fill")
_STATES: Final = ("empty", "outgrown and gone", "vanished")
_TIER: Final = TierConfig(
    url="file:///of-another-make",
    allow_unsigned=True,
    fetch_timeout=DEADLINE_S,
    fetch_concurrency=1,
)
_STORED: Final = noise(TAR_BYTES, 77)  # the tarball that another node has stored at `LSN_A`


def ask(scene: Scene) -> tuple[str, bytes] | None:
    """Fill at `LSN_A`; None where the cache closes first."""
    try:
        found = filled(scene.harness, scene.timeline, LSN_A, DEADLINE_S)
    except ClosingError:
        return None
    assert found[1] in scene.sent[LSN_A]
    return found


@pytest.fixture
def make_state(make_scene: Callable[..., Scene]) -> Callable[[str], Scene]:
    """Make a scene in one of the states above, with a tier that has the archive."""

    def make(state: str) -> Scene:
        stored = MemoryTier()
        scene = make_scene("outgrown" if "outgrown" in state else state, stored=stored, tier=_TIER)
        if "outgrown" in state:
            scene.harness.cache.run_cleanup()
        scene.restart()
        ids = scene.harness.tenant.tenant_id, scene.timeline.timeline_id
        stored.objects[(*ids, LSN_A)] = seal_archive(_STORED, make_key(*ids), LSN_A)
        scene.sent.setdefault(LSN_A, []).append(_STORED)
        stored.on_fetch = lambda *_: scene.pass_by("tier.fetch")
        return scene

    return make


@pytest.mark.parametrize("other", _OTHERS)
@pytest.mark.parametrize("state", _STATES)
def test_a_fetch_beside(make_state: Callable[[str], Scene], state: str, other: str) -> None:
    """Right bytes for each caller, or the news of a close; nothing is left behind."""
    scene = make_state(state)
    assert Worker(ask, scene).result() == ("fetched", _STORED)
    scene.harness.wait_idle()
    steps = scene.steps
    assert {"tier.fetch", "os.pwrite"} <= set(steps)
    share = share_of(steps, _OTHERS.index(other))
    met = [_fetch_beside(make_state(state), step, other) for step in share]
    assert 2 * sum(met) >= len(met) > 0, "the steps are not those that were found"


def _fetch_beside(scene: Scene, step: str, other: str) -> bool:
    """Run one interleaving; returns whether the step was met."""
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
            scene.harness.open()
        scene.harness.wait_idle()
        harness = scene.harness
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
