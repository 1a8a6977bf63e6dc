"""Putting a data directory in a timeline's place, durably and all at once.

A directory that is not empty cannot be replaced by one rename, so there are two,
with names between them from which a start after a crash goes on:

1. ``<timeline>.new`` appears, complete and on disk: from here on it is the state.
2. ``<timeline>`` is renamed to ``<timeline>.old``.
3. ``<timeline>.new`` is renamed to ``<timeline>``.
4. ``<timeline>.old`` is removed.

A crash before the first step leaves the old state, one after it the new.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

_NEW: Final = ".new"
_OLD: Final = ".old"


def take_over(source: Path, place: Path) -> None:
    """Move the directory `source` to `place`, in the place of what is there.

    Not thread-safe: one caller for one place at a time, and nobody may be reading it.

    Args:
        source: a data directory that nobody writes to, on the file system of `place`.
        place: a timeline's directory, which need not exist.

    Raises:
        OSError: a step failed. `finish_takeover` goes on from wherever that was.
    """
    sync_tree(source)
    os.rename(source, _beside(place, _NEW))
    sync_directory(source.parent)
    sync_directory(place.parent)
    finish_takeover(place)


def finish_takeover(place: Path) -> None:
    """Go on with a takeover that a crash has cut short; does nothing where none was."""
    new, old = _beside(place, _NEW), _beside(place, _OLD)
    if new.exists():
        if place.exists():
            os.rename(place, old)
        os.rename(new, place)
        sync_directory(place.parent)
    if old.exists():
        shutil.rmtree(old)


def timeline_names(directory: Path) -> set[str]:
    """All names in `directory`; a timeline in the middle of a takeover has its own name."""
    names = os.listdir(directory)
    return {name.removesuffix(_NEW).removesuffix(_OLD) for name in names}


def sync_tree(directory: Path) -> None:
    """Bring every file and directory below `directory` to the disk.

    A tablespace or pg_wal that is a link to another place is part of it.
    """
    for parent, _, names, parent_fd in os.fwalk(directory, follow_symlinks=True):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                _sync(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=parent_fd))
        os.fsync(parent_fd)


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk."""
    _sync(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))


def _sync(fd: int) -> None:
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _beside(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)
