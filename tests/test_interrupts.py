"""A KeyboardInterrupt anywhere in a call of the main thread does the cache no harm.

After each one, other threads find no lock held, no request and no caller counted that is
none any more, no descriptor open, and gauges that agree with the disk.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cache_helpers import Rig, Worker
from fill_helpers import unpublished_bytes
from interrupts import interrupted, interruptible, places_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SHM_DIR = Path("/dev/shm")  # noqa: S108 - mkdtemp is safe there


def _get_hit(rig: Rig) -> Callable[[], object]:
    timeline = rig.prepared()
    return functools.partial(rig.get_archive, timeline)


def _get_hit_proven(rig: Rig) -> Callable[[], object]:
    timeline = rig.prepared()
    rig.get_archive(timeline)
    return functools.partial(rig.get_archive, timeline)


def _get_miss(rig: Rig) -> Callable[[], object]:
    return functools.partial(rig.open_file, rig.timeline())


# What sets a call up, and gives it.
SCENARIOS: dict[str, Callable[[Rig], Callable[[], object]]] = {
    "get: hit": _get_hit,
    "get: hit, proven": _get_hit_proven,
    "get: miss": _get_miss,
}


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A cache in memory, where there is such a place, with one worker."""
    base = _SHM_DIR if _SHM_DIR.is_dir() and os.access(_SHM_DIR, os.W_OK) else None
    parent = Path(tempfile.mkdtemp(prefix="bbcache-", dir=base))
    with Rig(parent / "cache", prepare_concurrency=1) as made:
        yield made
    shutil.rmtree(parent)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _check(rig: Rig, descriptors: int) -> None:
    """In another thread: whatever the main thread holds, this one has to wait for."""
    rig.wait_idle()
    assert rig.value("pageserver_basebackup_cache_prepare_queue_size") == 0
    assert unpublished_bytes(rig) == 0
    rig.check_books()
    assert _descriptors() == descriptors
    timeline = rig.timeline()
    rig.prepare(timeline)
    assert rig.get(timeline) is not None
    rig.tenant.timelines.clear()
    rig.cache.run_cleanup()
    assert rig.cache.entries() == []
    rig.check_books()


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_interrupt_anywhere_does_no_harm(rig: Rig, name: str) -> None:
    """At each place that the call passes."""
    make_call, count = SCENARIOS[name], 0
    places = places_of(make_call(rig))
    rig.wait_idle()
    descriptors = _descriptors()
    with interruptible(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for place in places:
            call = make_call(rig)
            count += interrupted(call, place)
            try:
                Worker(call).result()  # it takes up what the other has begun
                Worker(_check, rig, descriptors).result()
            except BaseException as error:
                raise AssertionError(f"interrupted at {place}") from error
    assert count > len(places) / 2
