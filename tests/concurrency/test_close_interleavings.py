"""A directory that is lost, to a close or to a successor, at each step of what a thread does.

`close(0)` returns although a thread is stopped. From then on this cache changes nothing on
disk, and the next cache on the directory works undisturbed, whatever the thread does when it
goes on. Where it was stopped inside a change of files, the directory stays locked instead.
The same holds where the directory was replaced, and another cache has locked the new one.
A normal run takes a fifth of the steps of each test, another fifth every time.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from concurrency.scene import (
    ACTIONS,
    STATES,
    Scene,
    clean_up,
    close,
    files_in,
    get,
    naming,
    steps_of,
)
from prometheus_client import CollectorRegistry
from support.cache_helpers import (
    DEADLINE_S,
    Gate,
    Harness,
    Worker,
    stop_before,
    stop_while_sending,
)
from support.helpers import wait_until
from support.shares import share_of
from support.threads import is_waiting

import bbcache.engine
from bbcache import BasebackupCache, BasebackupCacheConfig, DirectoryLockedError
from bbcache.storage.catalog import Catalog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from concurrency.gates import StepGate

_OTHERS = sorted(ACTIONS.keys() - {"close", "refresh"})


@pytest.fixture(autouse=True)
def _does_not_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is stopped inside a change of files would keep `close(0)` for a second."""
    monkeypatch.setattr(bbcache.engine, "_FENCE_TIMEOUT_S", 0.0)


def wait_for_threads(scene: Scene, *workers: Worker) -> None:
    """Wait until every thread that was left behind has ended."""
    for worker in workers:
        worker.result()
    for thread in scene.threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def each_stop(
    make_scene: Callable[..., Scene], state: str, stopped: str
) -> Iterator[tuple[Scene, StepGate, Worker]]:
    """Scenes in which an action was stopped, at each step of its share in turn."""
    count = 0
    for step in share_of(steps_of(make_scene, state, stopped), [*STATES].index(state)):
        scene = make_scene(state)
        with naming(step), scene.stop_at(step) as gate:
            first = Worker(ACTIONS[stopped], scene)
            if scene.comes(gate, first):
                count += 1
                yield scene, gate, first
    assert count > 0


@pytest.mark.parametrize("stopped", _OTHERS)
@pytest.mark.parametrize("state", STATES)
def test_nothing_changes_after_a_close_that_left_a_thread(
    make_scene: Callable[..., Scene], state: str, stopped: str
) -> None:
    """Once close has returned no file comes or goes, though the directory may stay locked."""
    for scene, gate, left in each_stop(make_scene, state, stopped):
        is_in_change = scene.is_in_change
        close(scene, 0)
        if gate.is_in_pool:  # else a thread may be in the middle of asking, and is told later
            scene.check_counts()
        if is_in_change:
            with pytest.raises(DirectoryLockedError):
                scene.harness.open()
        before = files_in(scene.harness.dir)
        gate.open()
        wait_for_threads(scene, left)
        if not is_in_change:
            assert files_in(scene.harness.dir).keys() == before.keys()
            scene.harness.open()
            get(scene)
            scene.harness.wait_idle()
            scene.harness.cache.run_cleanup()
            scene.harness.check_accounting()
        scene.check_counts()


@pytest.mark.parametrize("stopped", _OTHERS)
@pytest.mark.parametrize("state", STATES)
def test_a_thread_left_behind_does_not_disturb_the_next_cache(
    make_scene: Callable[..., Scene], state: str, stopped: str
) -> None:
    """Once close has returned the directory is another cache's, and only that one changes it."""
    for scene, gate, left in each_stop(make_scene, state, stopped):
        harness = scene.harness
        close(scene, 0)
        if not scene.is_in_change:
            harness.open()
            get(scene)
            harness.prepare(scene.timeline, scene.tip)
        before = files_in(harness.dir)
        gate.open()
        wait_for_threads(scene, left)
        if harness.cache.wait_initialized(0):  # the next cache, not one that stays locked out
            assert files_in(harness.dir) == before
            harness.cache.run_cleanup()
            harness.check_accounting()
            get(scene)
            assert scene.got


@pytest.mark.parametrize("stopped", _OTHERS)
@pytest.mark.parametrize("state", STATES)
def test_nothing_changes_in_the_directory_of_a_successor(
    make_scene: Callable[..., Scene], state: str, stopped: str
) -> None:
    """A cache whose directory was replaced, and locked by another, leaves that one alone."""
    for scene, gate, first in each_stop(make_scene, state, stopped):
        harness, other = scene.harness, Harness(scene.harness.dir)
        other.host, other.tenant = harness.host, harness.tenant
        is_in_change = scene.is_in_change  # begun in the old directory
        harness.dir.rename(harness.dir.with_name(f"{harness.dir.name}-moved"))
        with other:
            other.prepare(scene.timeline, scene.tip)
            before = files_in(harness.dir)
            gate.open()
            first.result()
            harness.wait_idle()
            clean_up(scene)
            if not is_in_change:
                assert files_in(harness.dir) == before
                other.check_accounting()
            close(scene)
        scene.check_counts()


def test_a_close_waits_for_a_build_and_frees_the_directory(
    make_scene: Callable[..., Scene],
) -> None:
    """A close without a limit ends after the build; what it left is whole, in place, unlocked."""
    for scene, gate, first in each_stop(make_scene, "empty", "prepare"):
        if not gate.is_in_pool:
            continue
        closing = Worker(close, scene, None)
        wait_until(lambda worker=closing: is_waiting(worker, "close"))  # type: ignore[misc]
        gate.open()
        closing.result()
        first.result()
        left = files_in(scene.harness.dir)
        scene.check_counts()
        scene.harness.open()
        assert files_in(scene.harness.dir) == left
        sizes = [entry.size_bytes for entry in scene.harness.cache.entries()]
        assert sizes == [*map(len, left.values())]
        get(scene)
        scene.harness.check_accounting()


def test_a_start_that_is_closed_first_changes_nothing(data_dir: Path) -> None:
    """A start whose cache was closed does not sweep the build of the next cache away."""
    harness = Harness(data_dir)
    timeline = harness.timeline()
    with Gate() as start, Gate() as build:
        with pytest.MonkeyPatch.context() as patch:
            stop_before(patch, Catalog, "load", start)
            first = BasebackupCache.spawn(
                data_dir, BasebackupCacheConfig(), harness.host, registry=CollectorRegistry()
            )
            start.wait_for()
            first.close(0)
        loading = [t for t in threading.enumerate() if t.name == "bbcache-cleanup"]
        with harness:
            stop_while_sending(timeline, build)
            harness.send(timeline)
            build.wait_for()
            start.open()
            for thread in loading:
                thread.join(DEADLINE_S)
            build.open()
            harness.wait_idle()
            assert harness.holds(timeline)
            harness.check_accounting()
