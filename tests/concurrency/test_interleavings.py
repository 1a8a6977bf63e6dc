"""Any two actions on one timeline, one of them stopped at each of its steps.

`STEPS` names every step of every action in every state, and a test proves that it names
them all. At each of them the action is stopped, another runs to its end or to where it
must wait, and then the first goes on. Whatever the order: only sealed bytes are served, the
accounting balance with the directory, and nothing that was prepared is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from concurrency.scene import ACTIONS, STATES, Scene, get
from support.cache_helpers import LSN_A, LSN_B, Worker, disk_bytes
from support.helpers import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from bbcache import Lsn


def _steps(*lines: str) -> tuple[str, ...]:
    return tuple(step.strip() for line in lines for step in line.split(","))


_BUILD = (
    "timeline.get_last_record_lsn, timeline.wait_lsn, timeline.get_last_record_lsn 2",
    "ensure_directory: file lock, index.reserve, create_temp: file lock, store.create_temp",
    "timeline.send_basebackup_tarball, host: half of the tarball",
    "timeline.get_last_record_lsn 3, temp.patch, temp.sync",
    "publish: file lock, store.rename_temp, index.commit",
)
_PREPARE = _steps("queue.put", *_BUILD, "queue.done")
_REFRESH = _steps("queue.put", *_BUILD, "disk.unlink, queue.done")
_NOT_NEEDED = _steps("queue.put, queue.done")
_FIND_DAMAGE = _steps(
    "index.find, store.open, reader._check, quarantine: file lock",
    "index.move_to_quarantine, store.quarantine, queue.put",
)
_JUDGE = _steps(
    "ensure_directory: file lock, index.by_key, manager.list, tenant.list_timelines",
    "timeline.get_last_record_lsn",
)
_REMOVE = _steps("discard: file lock, index.doom, disk.unlink, index.settle_doomed")
_UPKEEP = _steps("upkeep: file lock, upkeep: file lock 2")
_CLOSE = _steps(
    "engine.begin_close, queue.close, preparer.stop, engine._join",
    "fence: file lock, dirlock.release",
)

STEPS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "empty": {
        "prepare": _PREPARE,
        "get": _steps("index.find"),
        "clean-up": _steps("ensure_directory: file lock, index.by_key", *_UPKEEP),
        "close": _CLOSE,
    },
    "held": {
        "prepare": _NOT_NEEDED,
        "get": _steps("index.find, store.open, reader._check"),
        "clean-up": _JUDGE + _UPKEEP,
        "close": _CLOSE,
    },
    "outgrown": {
        "prepare": _REFRESH,
        "get": _steps("index.find, store.open, reader._check, index.find 2"),
        "clean-up": _JUDGE + _REMOVE + _UPKEEP,
        "close": _CLOSE,
    },
    "damaged": {
        "prepare": _NOT_NEEDED,
        "get": _FIND_DAMAGE + _steps("manager.list", *_BUILD, "queue.done"),
        "clean-up": _JUDGE + _UPKEEP,
        "close": _CLOSE,
    },
    "damaged and outgrown": {
        "prepare": _REFRESH,
        "get": _FIND_DAMAGE
        + _steps("index.find 2, manager.list, timeline.get_last_record_lsn, queue.done"),
        "clean-up": _JUDGE + _REMOVE + _UPKEEP,
        "close": _CLOSE,
    },
    "vanished": {
        "prepare": _NOT_NEEDED,
        "get": _steps("index.find, store.open, index.remove"),
        "clean-up": _JUDGE + _UPKEEP,
        "close": _CLOSE,
    },
    "pending unlink": {
        "prepare": _PREPARE,
        "get": _steps("index.find"),
        "clean-up": _steps(
            "ensure_directory: file lock, index.by_key",
            *_UPKEEP,
            "disk.unlink, upkeep: file lock 3",
        ),
        "close": _CLOSE,
    },
}
CASES: Final = [
    pytest.param(state, stopped, step, id=f"{state}-{stopped}-{step}")
    for state, actions in STEPS.items()
    for stopped, steps in actions.items()
    for step in steps
]
# At what LSN the timeline is held in the end where nothing but `get` has happened.
_HELD: Final = {"held": LSN_A, "outgrown": LSN_A, "damaged": LSN_A}


@pytest.mark.parametrize("action", sorted(ACTIONS.keys() - {"refresh"}))
@pytest.mark.parametrize("state", STATES)
def test_every_step_is_in_the_table(
    make_scene: Callable[..., Scene], state: str, action: str
) -> None:
    """`STEPS` names exactly the steps that each action makes, so that none goes untested."""
    scene = make_scene(state)
    ACTIONS[action](scene)
    if action != "close":
        scene.harness.wait_idle()
    assert sorted(map(str, scene.trace)) == sorted(STEPS[state][action])


@pytest.mark.parametrize("other", ACTIONS)
@pytest.mark.parametrize(("state", "stopped", "step"), CASES)
def test_interleaving(
    make_scene: Callable[..., Scene], state: str, stopped: str, step: str, other: str
) -> None:
    """Wherever one action stops for another: right bytes or a miss, exact accounting, no loss."""
    scene = make_scene(state)
    with scene.stop_at(step) as gate:
        first = Worker(ACTIONS[stopped], scene)
        gate.wait()
        second = scene.run_beside(gate, ACTIONS[other])
        if other == "get" and "damaged" not in state:
            wait_until(lambda: not second.is_alive())  # a hit or a miss waits for nothing
    first.result()
    second.result()
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
        return {None, LSN_A}  # the prepare may have come before the loss was noticed
    if "prepare" in actions and state != "vanished":
        return {tip}
    if "clean-up" in actions and tip == LSN_B:
        return {None}
    return {_HELD.get(state)}


def _expected_of_cut(state: str, others: Collection[str]) -> set[Lsn | None]:
    """Likewise where a close has come first, or in the middle, and the cache starts again."""
    if state == "damaged" and ("get" in others or "refresh" in others):
        return {None}  # taken out, and not rebuilt
    if state == "pending unlink":
        return {None, LSN_A}  # a file that could not be removed is an entry again
    return expected_lsns(state, ())


def check_end(scene: Scene, expected: set[Lsn | None], *, is_cut: bool) -> None:
    """Find what damage is left, then compare cache, accounting, directory and expectation."""
    harness = scene.harness
    get(scene)
    harness.wait_idle()
    assert harness.engine.index.total_size_bytes == disk_bytes(harness.dir)
    if harness.engine._catalog._pending_unlinks:
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
