"""Any two actions on one timeline, one of them stopped at each of its steps.

The steps of every action in every state are found by running it. At each of them the action
is stopped, another runs until it ends or must wait, and then the first goes on. Whatever the
order, only sealed bytes are served, the ledger agrees with the directory, and nothing that was
prepared is lost. In a normal run each
pair of actions takes a fifth of the steps, and the pairs together take every step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from concurrency.scene import ACTIONS, STATES, Scene, get, naming, steps_of
from support.cache_helpers import LSN_A, LSN_B, Worker, disk_bytes
from support.helpers import wait_until
from support.ledger import total_bytes
from support.shares import share_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from bbcache import Lsn


_STOPPED: Final = sorted(ACTIONS.keys() - {"refresh"})
# At what LSN the timeline is held in the end where nothing but `get` has happened.
_HELD: Final = {"held": LSN_A, "outgrown": LSN_A, "damaged": LSN_A}
# Some of the steps that must be found, so that no action is watched in vain.
_FOUND: Final = {
    ("empty", "prepare"): (
        *("timeline.wait_lsn", "timeline.send_basebackup_tarball", "host: half of the tarball"),
        *("os.open", "os.pwrite", "os.fsync", "os.rename", "os.rename + 1", "start + 1"),
    ),
    ("outgrown", "prepare"): ("os.rename", "os.rename + 1", "os.unlink", "os.unlink + 1"),
    ("held", "get"): ("start + 1", "os.open", "os.pread"),
    ("damaged", "get"): ("os.pread", "os.rename", "os.rename 2", "host: half of the tarball"),
    ("vanished", "get"): ("start + 1", "os.open", "os.open + 1"),
    ("outgrown", "clean-up"): ("manager.list", "tenant.list_timelines", "os.unlink"),
    ("pending unlink", "clean-up"): ("os.unlink", "os.unlink + 1"),
    ("held", "close"): ("start + 1",),
}


@pytest.mark.parametrize(("state", "action"), _FOUND)
def test_steps_are_found(make_scene: Callable[..., Scene], state: str, action: str) -> None:
    """The callbacks, calls and locks that make an action what it is are among its steps."""
    assert set(_FOUND[state, action]) <= set(steps_of(make_scene, state, action))


@pytest.mark.parametrize("other", ACTIONS)
@pytest.mark.parametrize("stopped", _STOPPED)
@pytest.mark.parametrize("state", STATES)
def test_interleaving(
    make_scene: Callable[..., Scene], state: str, stopped: str, other: str
) -> None:
    """Wherever one action stops for another: right bytes or a miss, a right ledger, no loss."""
    steps = share_of(steps_of(make_scene, state, stopped), [*ACTIONS].index(other))
    met = [_interleave(make_scene(state), state, stopped, step, other) for step in steps]
    assert 2 * sum(met) >= len(met) > 0, "the steps are not those that were found"


def _interleave(scene: Scene, state: str, stopped: str, step: str, other: str) -> bool:
    """Run one interleaving; returns whether the step was met."""
    with naming(step), scene.stop_at(step) as gate:
        first = Worker(ACTIONS[stopped], scene)
        is_met = scene.comes(gate, first)
        second = scene.run_beside(gate, ACTIONS[other])
        if other == "get" and "damaged" not in state:
            wait_until(lambda: not second.is_alive())  # a hit or a miss waits for nothing
    with naming(step):
        first.result()
        second.result()
        _check(scene, state, stopped, other)
    return is_met


def _check(scene: Scene, state: str, stopped: str, other: str) -> None:
    is_closed = "close" in (stopped, other)
    if is_closed:
        scene.harness.open()
    scene.harness.wait_idle()
    scene.check_counts()
    check_end(scene, expected_lsns(state, {stopped, other}), is_cut=is_closed)


def expected_lsns(state: str, actions: Collection[str]) -> set[Lsn | None]:
    """At what LSN the timeline may be held in the end; None where it may not be held."""
    if "close" in actions:  # it may have cut the other short
        others = set(actions) - {"close"}
        return expected_lsns(state, others) | _expected_of_cut(state, others)
    tip = LSN_B if "outgrown" in state else LSN_A
    if "refresh" in actions:
        return {LSN_B}
    if state == "vanished" and "get" in actions and "prepare" in actions:
        return {None, LSN_A}  # the prepare may end before the loss is noticed
    if "prepare" in actions and state != "vanished":
        return {tip}
    if "clean-up" in actions and tip == LSN_B:
        return {None}
    return {_HELD.get(state)}


def _expected_of_cut(state: str, others: Collection[str]) -> set[Lsn | None]:
    """Likewise if a close comes first, or in the middle, and the cache starts again."""
    if state == "damaged" and ("get" in others or "refresh" in others):
        return {None}  # taken out, and not rebuilt
    if state == "pending unlink":
        return {None, LSN_A}  # a file that could not be removed is an entry again
    return expected_lsns(state, ())


def check_end(scene: Scene, expected: set[Lsn | None], *, is_cut: bool) -> None:
    """Find what damage is left, then compare cache, ledger, directory and expectation."""
    harness = scene.harness
    get(scene)
    harness.wait_idle()
    assert total_bytes(harness.engine.index) == disk_bytes(harness.dir)
    if len(harness.entry_files()) > len(harness.cache.entries()):  # an unlink has failed
        harness.cache.run_cleanup()
    harness.check_accounting()
    held: set[Lsn | None] = {entry.lsn for entry in harness.cache.entries()} or {None}
    assert held <= expected
    for lsn in held:
        if lsn is not None:
            allowed = scene.sent[lsn] if is_cut else scene.sent[lsn][-1:]
            assert harness.get(scene.timeline, lsn) in allowed, "not the newest build"
    assert len(harness.quarantined()) <= 1
    harness.cache.run_cleanup()
    harness.check_accounting()
