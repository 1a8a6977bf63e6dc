"""Restored data directories that wait for a server, in memory.

A spare is complete before it gets its name, and the process that renames it away has it, so no
lock is needed to claim one.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from bbcache.errors import BbcacheError
from bbcache.postgres.pgdata.leftovers import remove_tree
from bbcache.testing.postgres.places import Place

_PREFIX: Final = "spare-"
_EXPIRE_S: Final = 3600.0
_ROOM_SHARE: Final = 0.1
_MOST_IN_ALL: Final = 4
_LOCK_NAME: Final = "spares.lock"
# The test that has just got a server runs first, and does not share the interpreter with a restore.
_PAUSE_S: Final = 0.05


class Spares:
    """The spares of one place. Thread-safe.

    Args:
        place: where they are.
        most: how many are kept of each snapshot.
        make_temporary: makes a guarded path for one that is being restored.
    """

    def __init__(self, place: Place, most: int, make_temporary: Callable[[], Path]) -> None:
        self._place = place
        self._most = most if place.is_memory else 0
        self._make_temporary = make_temporary
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()

    def claim(self, identity: str, dest: Path) -> bool:
        """Make a spare the directory `dest`; return whether there was one."""
        for path in self._paths(identity):
            with contextlib.suppress(OSError):  # another process was faster
                path.rename(dest)
                return True
        return False

    def refill(self, identity: str, size_bytes: int, restore: Callable[[Path], object]) -> None:
        """Restore what is missing, in the background.

        Args:
            identity: of the archive: its digest.
            size_bytes: the size of a data directory.
            restore: unpacks the archive into a directory.
        """
        if self._most == 0 or all(path.exists() for path in self._paths(identity)):
            return
        thread = threading.Thread(
            target=self._refill,
            args=(identity, size_bytes, restore),
            name="bbcache-spares",
            daemon=True,
        )
        self._threads.append(thread)
        thread.start()

    def wait(self) -> None:
        """Wait until all that was begun is there."""
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """Begin no more restores, and wait for the one that is under way."""
        self._closing.set()
        self.wait()

    def _refill(self, identity: str, size_bytes: int, restore: Callable[[Path], object]) -> None:
        self._closing.wait(_PAUSE_S)
        lock = FileLock(self._place.directory / _LOCK_NAME, preserve_lock_file=True, mode=0o600)
        try:
            with lock.acquire(blocking=False):
                self._make_room(identity)
                for path in self._paths(identity):
                    has_room = size_bytes * self._most <= _ROOM_SHARE * self._place.free_bytes
                    if self._closing.is_set() or not has_room:
                        return
                    if not path.exists():
                        self._make(path, restore)
        except (Timeout, OSError, BbcacheError):
            pass  # another process does it, or servers are restored without

    def _make_room(self, identity: str) -> None:
        """Remove the oldest spares of other snapshots: each change of a schema is another one."""
        own = self._paths(identity)
        others = [path for path in spare_directories(self._place) if path not in own]
        others.sort(key=lambda path: path.stat().st_ctime)
        for path in others[: max(0, len(others) + self._most - _MOST_IN_ALL)]:
            _remove(path)

    def _make(self, path: Path, restore: Callable[[Path], object]) -> None:
        temporary = self._make_temporary()
        try:
            restore(temporary)
            temporary.rename(path)
        finally:
            with contextlib.suppress(OSError):
                remove_tree(temporary)

    def _paths(self, identity: str) -> list[Path]:
        directory = self._place.directory
        return [directory / f"{_PREFIX}{identity}-{number}" for number in range(self._most)]


def spare_directories(place: Place) -> list[Path]:
    """Return the spares of all snapshots."""
    return sorted(place.directory.glob(f"{_PREFIX}*-*"))


def remove_spares(place: Place, older_than_s: float = _EXPIRE_S) -> int:
    """Remove spares that nobody has claimed for some time; return how many."""
    count = 0
    for path in spare_directories(place):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_ctime >= older_than_s:
                _remove(path)
                count += 1
    return count


def _remove(path: Path) -> None:
    """Remove a spare, of which nobody sees a part."""
    doomed = path.with_name(f"dead-{os.urandom(6).hex()}")
    path.rename(doomed)
    remove_tree(doomed)
