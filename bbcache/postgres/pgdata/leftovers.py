"""Removing the directories of PostgreSQL's programs."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Final

_TIMEOUT_S: Final = 5.0
_PAUSE_S: Final = 0.05
_OPEN_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: Path, *, timeout_s: float | None = None) -> None:
    """Remove a directory of any depth.

    Follows no links. Does nothing if there is no directory.

    Args:
        path: the directory.
        timeout_s: how long to retry, because processes of an interrupted initdb may
            still write to it; 5 s if None.

    Raises:
        OSError: it cannot be removed.
    """
    deadline_s = time.monotonic() + (_TIMEOUT_S if timeout_s is None else timeout_s)
    while path.exists():
        try:
            shutil.rmtree(path)
        except RecursionError:
            _flatten(path)
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            _flatten(path)  # it may be too deep for the descriptors of this process
            time.sleep(_PAUSE_S)


def _flatten(path: Path) -> None:
    """Move each directory below to the top, as far as possible, so that none is deep."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        top_fd = os.open(path, _OPEN_DIR)
        opened.callback(os.close, top_fd)
        waiting = _directories_in(top_fd)
        while waiting:
            with contextlib.suppress(OSError):
                waiting += _move_up(waiting.pop(), top_fd)


def _move_up(name: str, top_fd: int) -> list[str]:
    """Move the directories inside a top directory to the top; return the new names."""
    fd = os.open(name, _OPEN_DIR, dir_fd=top_fd)
    try:
        moved = {each: f".removing-{uuid.uuid4().hex}" for each in _directories_in(fd)}
        for old_name, new_name in moved.items():
            os.rename(old_name, new_name, src_dir_fd=fd, dst_dir_fd=top_fd)
    finally:
        os.close(fd)
    return list(moved.values())


def _directories_in(fd: int) -> list[str]:
    with os.scandir(fd) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
