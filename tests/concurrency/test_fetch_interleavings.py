"""A fetch from the second tier that is stopped at each of its steps while something else happens.

Whatever that is, the caller gets bytes that were sealed for his LSN, or is told that the cache
closes. The older archive that was fetched never replaces a newer one, and the ledger agrees with
the directory in the end. In a normal run each of the other actions takes a fifth of the steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from concurrency.scene import TAR_BYTES, Scene
from concurrency.stopped_fill import OTHERS, ask, ask_beside
from support.cache_helpers import DEADLINE_S, LSN_A, Worker, noise
from support.helpers import seal_archive
from support.shares import share_of

from bbcache import TierConfig
from bbcache.storage.index import make_key
from bbcache.testing import MemoryTier

if TYPE_CHECKING:
    from collections.abc import Callable

_STATES: Final = ("empty", "outgrown and gone", "vanished")
_TIER: Final = TierConfig(
    url="file:///of-another-make",
    allow_unsigned=True,
    fetch_timeout=DEADLINE_S,
    fetch_concurrency=1,
)
_STORED: Final = noise(TAR_BYTES, 77)  # the tarball that another node has stored at `LSN_A`


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


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("state", _STATES)
def test_aask_beside(make_state: Callable[[str], Scene], state: str, other: str) -> None:
    """Right bytes for each caller, or the news of a close; nothing is left behind."""
    scene = make_state(state)
    assert Worker(ask, scene).result() == ("fetched", _STORED)
    scene.harness.wait_idle()
    steps = scene.steps
    assert {"tier.fetch", "os.pwrite"} <= set(steps)
    share = share_of(steps, OTHERS.index(other))
    met = [ask_beside(make_state(state), step, other) for step in share]
    assert 2 * sum(met) >= len(met) > 0, "the steps are not those that were found"
