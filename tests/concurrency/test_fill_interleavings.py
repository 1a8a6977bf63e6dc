"""A fill that is stopped at each of its steps while something else happens to its timeline.

Whatever that is: the caller gets bytes that the host has written for his LSN, or is told that
the cache closes; one build serves two callers; and the accounting balance in the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from concurrency.scene import ACTIONS, Scene
from support.cache_helpers import DEADLINE_S, LSN_A, Worker, disk_bytes
from support.fill_helpers import fill, filled, unpublished_bytes

from bbcache import ClosingError

if TYPE_CHECKING:
    from collections.abc import Callable

_BUILD: Final = (
    *("timeline.get_last_record_lsn", "timeline.wait_lsn", "timeline.get_last_record_lsn 2"),
    *(
        "ensure_directory: file lock",
        "index.reserve",
        "create_temp: file lock",
        "store.create_temp",
    ),
    *("timeline.send_basebackup_tarball", "host: half of the tarball"),
    *("timeline.get_last_record_lsn 3", "temp.patch", "temp.sync", "publish: file lock"),
    *("store.rename_temp", "index.commit", "queue.done"),
)
_UNNAMED: Final = (
    *("timeline.get_last_record_lsn", "timeline.wait_lsn", "timeline.get_last_record_lsn 2"),
    *("ensure_directory: file lock", "create_temp: file lock", "store.create_temp"),
    *("timeline.send_basebackup_tarball", "host: half of the tarball"),
    *("timeline.get_last_record_lsn 3", "temp.patch", "drop: file lock", "disk.unlink"),
    "queue.done",
)
STEPS: Final = {
    "empty": ("index.find", *_BUILD, "reader._check"),
    "held": ("index.find", "store.open", "reader._check"),
    "outgrown and gone": ("index.find", *_UNNAMED, "reader._check"),
    "damaged": (
        *("index.find", "store.open", "reader._check", "quarantine: file lock"),
        *("index.move_to_quarantine", "store.quarantine", *_BUILD),
    ),
    "vanished": ("index.find", "store.open", "index.remove", *_BUILD, "reader._check"),
}
# Whether the caller comes before or after the rebuild that his own read has queued, is open.
_OPEN: Final = {
    *("queue.put", "manager.list", "queue.done 2"),
    *("index.find 2", "store.open 2", "reader._check 2"),
}
CASES: Final = [
    pytest.param(state, step, id=f"{state}-{step}")
    for state, steps in STEPS.items()
    for step in steps
]


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
        scene.trace.clear()
        scene._passes.clear()
        return scene

    return make


@pytest.mark.parametrize("state", STEPS)
def test_every_step_is_in_the_table(make_state: Callable[[str], Scene], state: str) -> None:
    """`STEPS` names no step that a fill does not make, and of its build none is missing."""
    scene = make_state(state)
    assert ask(scene) is not None
    scene.harness.wait_idle()
    made = {str(step) for step in scene.trace}
    assert set(STEPS[state]) <= made
    assert made - set(STEPS[state]) <= (_OPEN if state == "damaged" else set())


@pytest.mark.parametrize("other", [*ACTIONS, "fill"])
@pytest.mark.parametrize(("state", "step"), CASES)
def test_a_fill_beside(
    make_state: Callable[[str], Scene], state: str, step: str, other: str
) -> None:
    """Right bytes for each who asks, or the news of a close; nothing is left behind."""
    scene = make_state(state)
    builds_before = len(scene.sent.get(LSN_A, ()))
    with scene.stop_at(step) as gate:
        first = Worker(ask, scene)
        gate.wait()
        # A second fill waits for the one that is stopped, or passes it.
        is_fill = other == "fill"
        second = Worker(ask, scene) if is_fill else scene.run_beside(gate, ACTIONS[other])
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
    assert harness.engine.index.total_size_bytes == disk_bytes(harness.dir)
    if other != "close":
        fill(harness, scene.timeline, scene.tip, DEADLINE_S).close()
        assert harness.holds(scene.timeline, scene.tip)
    harness.wait_idle()
    harness.check_accounting()
