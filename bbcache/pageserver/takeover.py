"""The takeover: a data directory becomes a timeline's directory, durably and atomically.

One rename cannot replace a directory that is not empty, so there are two. The names between
them let a start after a crash finish the takeover:

1. ``<timeline>.new`` appears, complete and on disk. From here on it is the state.
2. ``<timeline>`` is renamed to ``<timeline>.old``.
3. ``<timeline>.new`` is renamed to ``<timeline>``.
4. ``<timeline>.old`` is removed.

A crash before step 1 leaves the old state, a crash after it the new state.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bbcache.postgres.pgdata.leftovers import remove_tree
from bbcache.postgres.pgdata.slots import replication_slots
from bbcache.postgres.pgdata.sync import sync_all

_NEW: Final = ".new"
_OLD: Final = ".old"
_STUCK: Final = ".old-"  # and random digits: an old state that cannot be removed
_TABLESPACE_PREFIX: Final = "PG_"  # of the part of a tablespace that is a server's own
_NOT_THERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

log = logging.getLogger(__name__)


def take_over(source: Path, place: Path) -> None:
    """Move the directory `source` to `place`, and replace the directory there.

    Not thread-safe: one caller for one place at a time, and no reader of it.

    Args:
        source: a data directory without a server, on the file system of `place`.
        place: a timeline's directory, which need not exist.

    Raises:
        OSError: a step failed. If `source` still exists, nothing has changed; otherwise
            `finish_takeover` does the remaining steps.
    """
    _warn_of_slots(source, place)
    sync_tree(source)
    os.rename(source, _beside(place, _NEW))
    sync_directory(source.parent)
    sync_directory(place.parent)
    finish_takeover(place)


def finish_takeover(place: Path) -> None:
    """Finish a takeover that a crash has interrupted; do nothing if there is none.

    An old state that cannot be removed is logged, and stays beside the new one.

    Raises:
        OSError: the new state could not be put in its place.
    """
    new, old = _beside(place, _NEW), _beside(place, _OLD)
    if new.exists():
        if place.exists():
            _remove_old(old)
            if old.exists():
                os.rename(old, _beside(place, _STUCK + uuid.uuid4().hex))
            _set_aside(place, old)
        os.rename(new, place)
        sync_directory(place.parent)
    _remove_old(old)


def _set_aside(place: Path, old: Path) -> None:
    """Give the old state its other name.

    On overlayfs a directory of a lower layer, such as that of a container's image, cannot be
    renamed. It is removed instead: the new state is complete beside it.
    """
    try:
        os.rename(place, old)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        remove_tree(place)


def timeline_names(directory: Path) -> set[str]:
    """The names of the timelines in `directory`, also of those in the middle of a takeover."""
    names = (name for name in os.listdir(directory) if _STUCK not in name)
    return {name.removesuffix(_NEW).removesuffix(_OLD) for name in names}


def pending_takeover(source: Path, place: Path) -> Path:
    """The directory that a failed takeover of `source` has left."""
    places = (source, _beside(place, _NEW), place)
    return next((path for path in places if path.exists()), place)


def sync_tree(directory: Path) -> None:
    """Sync every file and directory of a data directory, eight at a time.

    Links are followed where PostgreSQL follows them: ``pg_wal`` and those in ``pg_tblspc``.
    Other links, pipes and sockets are left alone.

    Raises:
        OSError: something could not be read or synced.
    """
    sync_all(_paths_below(directory), _sync_path)


def sync_directory(directory: Path) -> None:
    """Sync a directory, so that the names in it are on disk."""
    _sync(os.open(directory, _OPEN_DIR))


def _paths_below(directory: Path) -> Iterator[tuple[str, int]]:
    """All files and directories of a data directory, each with the flags to open it."""
    top = os.fspath(directory)
    waiting = [top, *_linked_directories(top)]
    while waiting:
        path = waiting.pop()
        yield path, _OPEN_DIR
        for entry in _entries(path):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield entry.path, _OPEN_FILE


def _linked_directories(top: str) -> Iterator[str]:
    """The targets of the links that PostgreSQL follows."""
    wal_dir = os.path.join(top, "pg_wal")
    if os.path.islink(wal_dir) and _is_directory(wal_dir):
        yield wal_dir
    for link in _entries(os.path.join(top, "pg_tblspc")):
        if link.is_symlink() and _is_directory(link.path):
            for entry in _entries(link.path):
                if entry.name.startswith(_TABLESPACE_PREFIX) and entry.is_dir():
                    yield entry.path


def _is_directory(path: str) -> bool:
    """Whether the path is a directory; unlike `os.path.isdir` it raises errors of the disk."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return False
        raise


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except FileNotFoundError:  # it was removed meanwhile
        return []


def _sync_path(what: tuple[str, int]) -> None:
    path, flags = what
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:  # it was removed meanwhile
        return
    _sync(fd)


def _sync(fd: int) -> None:
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_old(old: Path) -> None:
    """Remove an old state as far as possible; it is not needed any more."""
    try:
        remove_tree(old, timeout_s=0.0)
    except OSError as error:
        log.warning("the old state %s of a timeline cannot be removed: %s", old, error)


def _warn_of_slots(source: Path, place: Path) -> None:
    slots = replication_slots(source)
    if slots:
        log.warning(
            "timeline %s has the replication slots %s, which the next compute node will not "
            "have: a subscriber or standby that used one may miss changes",
            place.name,
            ", ".join(slots),
        )


def _beside(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)
