"""The directory of one process' servers, and what dead processes have left of theirs."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bbcache.postgres.pgdata.leftovers import remove_tree
from bbcache.postgres.server.guard import Guard, clean_up
from bbcache.postgres.server.user import ServerUser
from bbcache.testing.postgres.places import Place

_PREFIX: Final = "run-"
_DOOMED_PREFIX: Final = "dead-"
_KEEP_NAME: Final = "keep"


class RunDirectory:
    """A directory that is locked as long as its process lives, and then removed by a guard.

    Thread-safe.

    Args:
        place: where to make it.
        guard: what removes it when this process is killed.

    Attributes:
        path: the directory.
    """

    def __init__(self, place: Place, guard: Guard) -> None:
        self._numbers = itertools.count(1)
        with _locked(place.directory):
            self.path = guard.make_directory(place.directory, _PREFIX)
            if ServerUser.current().is_dropped:
                self.path.chmod(0o711)
            self._fd = _open_locked(self.path)
        _open.add(self)

    def new_path(self, prefix: str) -> Path:
        """Return a path in it that has not been used."""
        return self.path / f"{prefix}{next(self._numbers)}"

    def keep(self, programs: Path | None = None) -> None:
        """Have no later run take the directory for left behind.

        Args:
            programs: a directory with the programs of its servers that is removed with it.
        """
        (self.path / _KEEP_NAME).write_text(str(programs or ""))
        self.close()

    def close(self) -> None:
        """Give up the lock. The guard or a later run removes the directory."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _forget_in_child(self) -> None:
        """Close the copy of the lock in a forked child, which may outlive this process."""
        self.close()


_open: weakref.WeakSet[RunDirectory] = weakref.WeakSet()


def run_directories(place: Place) -> list[Path]:
    """Return the directories of all processes, dead or alive."""
    return sorted(place.directory.glob(f"{_PREFIX}*"))


def sweep(place: Place, *, with_kept: bool = False) -> int:
    """Remove the directories of processes that are dead, and end their servers; return how many.

    Servers that were kept on purpose are left alone, unless `with_kept` says otherwise. The
    removal continues after the return.
    """
    count = 0
    with _locked(place.directory):
        for path in run_directories(place):
            with contextlib.suppress(OSError):
                os.close(_open_locked(path))  # fails for one that is in use
                programs = _programs_kept_for(path)
                if programs is None or with_kept:
                    clean_up(path)
                    count += 1
                    if programs:
                        clean_up(programs)
        for path in place.directory.glob(f"{_DOOMED_PREFIX}*"):
            with contextlib.suppress(OSError):
                remove_tree(path)
    return count


def _programs_kept_for(path: Path) -> str | None:
    """Return what `RunDirectory.keep` was given, or an empty text; None if it was not called."""
    try:
        return (path / _KEEP_NAME).read_text()
    except FileNotFoundError:
        return None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep directories from being looked at before they are locked."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _open_locked(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _in_forked_child() -> None:
    for each in list(_open):
        each._forget_in_child()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_in_forked_child)
