"""Where the caches of these tests live: in memory where that is possible."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from concurrency.scene import Scene
from support.helpers import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SHM_DIR = Path("/dev/shm")  # noqa: S108 - mkdtemp is safe there


@pytest.fixture(autouse=True)
def _leaves_no_thread() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = {t for t in threading.enumerate() if t.name.startswith("bbcache-")} - before
    wait_until(lambda: not any(thread.is_alive() for thread in left))


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A path for a cache, on tmpfs where there is one: thousands of fsyncs cost nothing there."""
    base = _SHM_DIR if _SHM_DIR.is_dir() and os.access(_SHM_DIR, os.W_OK) else None
    parent = Path(tempfile.mkdtemp(prefix="bbcache-", dir=base))
    yield parent / "cache"
    shutil.rmtree(parent)


@pytest.fixture
def make_scene(data_dir: Path) -> Iterator[Callable[..., Scene]]:
    """Make a scene, from a state's name and settings; the one before is closed."""
    scenes: list[Scene] = []

    def make(state: str, **settings: Any) -> Scene:
        for scene in scenes:
            scene.close()
        scenes[:] = [Scene(data_dir.with_name(f"cache{next(numbers)}"), **settings)]
        scenes[0].begin(state)
        return scenes[0]

    numbers = itertools.count()
    yield make
    for scene in scenes:
        scene.close()
