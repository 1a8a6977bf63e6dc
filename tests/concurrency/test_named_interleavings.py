"""The races that have names: each once lost an entry, or could have, in some cache."""

from __future__ import annotations

import errno
import functools
import os
import re
from typing import TYPE_CHECKING

import pytest
from concurrency.scene import (
    Scene,
    clean_up,
    flip_bit,
    get,
    naming,
    prepare,
    refresh,
    steps_of,
)
from support.cache_helpers import LSN_A, LSN_B, MIB, Gate, Worker
from support.helpers import wait_until
from support.seams import stop_at_log
from support.shares import share_of

if TYPE_CHECKING:
    from collections.abc import Callable

_TAR_BYTES = 5 * MIB // 2
_MARGIN_BYTES = 64 * 1024
_WITH_BYTES = (
    *("host: half of the tarball", "timeline.get_last_record_lsn 3", "os.pwrite", "os.fsync"),
)


def last_before(call: str, steps: list[str]) -> str:
    """The step before a call: where the lock under which it is made is about to be taken."""
    return steps[steps.index(call) - 1]


def _lose_to_clean_up(scene: Scene) -> None:
    clean_up(scene)


def _lose_to_damage(scene: Scene) -> None:
    flip_bit(scene.harness.path(scene.timeline))
    before = scene.ended_count
    get(scene)
    wait_until(lambda: scene.ended_count > before)  # the rebuild finds no timeline


def _lose_to_an_administrator(scene: Scene) -> None:
    scene.harness.path(scene.timeline).unlink()
    get(scene)


@pytest.mark.parametrize("lose", [_lose_to_clean_up, _lose_to_damage, _lose_to_an_administrator])
@pytest.mark.parametrize("step", ["manager.list", "tenant.list_timelines + 1"])
def test_a_removal_decided_before_a_republish_at_the_same_lsn_is_dropped(
    make_scene: Callable[..., Scene], step: str, lose: Callable[[Scene], None]
) -> None:
    """A removal is of one entry, not of an LSN: an entry published since stays."""
    scene = make_scene("held")
    timelines = scene.harness.tenant.timelines
    del timelines[scene.timeline.timeline_id]
    with scene.stop_at(step) as gate:
        removal = Worker(clean_up, scene)
        gate.wait()
        lose(scene)
        timelines[scene.timeline.timeline_id] = scene.timeline
        prepare(scene)
        assert len(scene.sent[LSN_A]) == 2
    removal.result()
    scene.harness.wait_idle()
    assert scene.harness.get(scene.timeline) == scene.sent[LSN_A][1]
    scene.harness.check_accounting()


def test_an_entry_born_while_clean_up_asks_is_not_judged(
    make_scene: Callable[..., Scene],
) -> None:
    """Clean-up's answers are as old as its snapshot: what came since is not in them."""
    scene = make_scene("outgrown")
    step = "timeline.get_last_record_lsn + 1"  # the host has said all
    with scene.stop_at(step) as gate:
        cleaning = Worker(clean_up, scene)
        gate.wait()
        born = scene.harness.timeline()
        scene.harness.send(born)
        refresh(scene)
        wait_until(lambda: scene.harness.holds(born))
        wait_until(lambda: scene.harness.holds(scene.timeline, LSN_B))
    cleaning.result()
    assert scene.harness.holds(born)
    assert scene.harness.holds(scene.timeline, LSN_B)
    scene.harness.check_accounting()


def test_two_clean_ups_remove_an_entry_once(make_scene: Callable[..., Scene]) -> None:
    """The second to come finds that the entry is not held any more."""
    scene = make_scene("outgrown")
    with scene.stop_at("os.unlink") as gate:
        first = Worker(clean_up, scene)
        gate.wait()
        second = scene.run_beside(gate, clean_up)
        assert second.is_alive(), "it has not waited for the file lock"
    first.result()
    second.result()
    assert [step for step in scene.trace if re.fullmatch(r"os.unlink( \d+)?", step)] == [
        "os.unlink"
    ]
    scene.harness.check_accounting()


@pytest.mark.parametrize("step", ["os.rename", "os.rename + 1", "os.unlink"])
def test_get_while_a_file_is_published(make_scene: Callable[..., Scene], step: str) -> None:
    """Until the index has the new entry the old one is served; from then on the new one."""
    scene = make_scene("outgrown")
    with scene.stop_at(step) as gate:
        scene.harness.send(scene.timeline, LSN_B)
        gate.wait()
        old, new = (scene.harness.get(scene.timeline, lsn) for lsn in (LSN_A, LSN_B))
    scene.harness.wait_idle()
    is_published = step == "os.unlink"
    assert old == (None if is_published else scene.sent[LSN_A][0])
    assert new == (scene.sent[LSN_B][0] if is_published else None)
    assert scene.harness.get(scene.timeline, LSN_B) == scene.sent[LSN_B][0]


def test_a_ghost_dropped_late_does_not_take_the_republished_entry(
    make_scene: Callable[..., Scene],
) -> None:
    """A `get` that found no file drops the entry it looked up, not the one of today."""
    scene = make_scene("vanished")
    with scene.stop_at("os.open + 1") as gate:
        late = Worker(get, scene)
        gate.wait()
        get(scene)
        prepare(scene)
        assert scene.harness.holds(scene.timeline)
    late.result()
    assert scene.harness.get(scene.timeline) == scene.sent[LSN_A][1]
    scene.harness.check_accounting()


@pytest.mark.parametrize("is_late", [False, True])
def test_a_pending_unlink_never_hits_what_was_published_at_its_path(
    make_scene: Callable[..., Scene], *, is_late: bool
) -> None:
    """A publish ends the wait for an unlink at its path, or comes after it."""
    step = "os.unlink"
    if not is_late:
        step = last_before(step, steps_of(make_scene, "pending unlink", "clean-up"))
    scene = make_scene("pending unlink")
    with scene.stop_at(step) as gate:
        upkeep = Worker(clean_up, scene)
        gate.wait()
        publishing = scene.run_beside(gate, prepare)
        if is_late:
            wait_until(lambda: scene.is_file_lock_wanted)
        else:
            publishing.result()
    upkeep.result()
    publishing.result()
    scene.harness.wait_idle()
    assert scene.harness.get(scene.timeline) == scene.sent[LSN_A][1]
    scene.harness.check_accounting()


@pytest.mark.parametrize("is_tight", [True, False], ids=["tight", "loose"])
@pytest.mark.parametrize("stopped", ["get", "prepare"])
def test_a_refresh_while_the_old_entry_is_quarantined(
    make_scene: Callable[..., Scene], stopped: str, *, is_tight: bool
) -> None:
    """The limit holds at every step: evidence is kept only if the refresh begins later.

    A normal run takes a third of the steps, and those that write the bytes.
    """
    size_bytes = _TAR_BYTES + _MARGIN_BYTES
    limit_bytes = size_bytes if is_tight else 4 * size_bytes
    make = functools.partial(make_scene, tar_bytes=_TAR_BYTES, max_total_size_bytes=limit_bytes)
    seen = []
    steps = steps_of(make, "damaged and outgrown", stopped)
    chosen = {*share_of(steps, one_in=3)} | ({*_WITH_BYTES} if stopped == "prepare" else set())
    for step in (each for each in steps if each in chosen):
        scene = make("damaged and outgrown")
        actions = {"get": get, "prepare": prepare}
        with naming(step), scene.stop_at(step) as gate:
            first = Worker(actions.pop(stopped), scene)
            if scene.comes(gate, first):
                seen.append(step)
            second = scene.run_beside(gate, *actions.values())
        with naming(step):
            first.result()
            second.result()
            scene.harness.wait_idle()
            scene.harness.check_accounting()
            assert scene.most_bytes <= limit_bytes
            is_held = scene.harness.holds(scene.timeline, LSN_B)
            has_evidence = bool(scene.harness.quarantined())
            if is_tight:
                assert is_held != has_evidence
            else:
                assert is_held
            if stopped == "prepare" and step in _WITH_BYTES:  # more than the margin, on credit
                assert scene.harness.value("bbcache_quarantined_total") == 1
                assert not has_evidence
    assert stopped == "get" or set(_WITH_BYTES) <= set(seen)


def test_a_prepare_while_a_quarantine_fails_publishes_over_the_bad_archive(
    make_scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad file that could not be moved is replaced by the build, and not unlinked later."""
    scene, rename = make_scene("damaged"), os.rename
    with Gate() as gate:

        def fail(source: str, target: str) -> None:
            if "quarantine" not in target:
                rename(source, target)
                return
            gate()
            raise OSError(errno.EIO, "the disk fails")

        monkeypatch.setattr(os, "rename", fail)
        finding = Worker(get, scene)
        gate.wait_for()  # the index has no entry at this moment
        publishing = Worker(prepare, scene)
        wait_until(lambda: scene.is_file_lock_wanted)
        assert publishing.is_alive()
        gate.open()
    finding.result()
    publishing.result()
    scene.harness.wait_idle()
    assert scene.harness.get(scene.timeline) == scene.sent[LSN_A][1]
    scene.harness.check_accounting()


def test_a_running_prepare_that_is_not_needed_does_not_swallow_a_rebuild(
    make_scene: Callable[..., Scene],
) -> None:
    """A prepare that has relied on a bad archive does not cover the rebuild of it."""
    scene = make_scene("damaged")
    with Gate() as gate, stop_at_log("skipped (up_to_date)", gate):
        scene.harness.send(scene.timeline, LSN_A)
        gate.wait_for()  # it has seen the entry, and ends as "up to date"
        get(scene)
        gate.open()
    scene.harness.wait_idle()
    assert scene.harness.get(scene.timeline) == scene.sent[LSN_A][-1]
