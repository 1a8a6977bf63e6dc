"""Directories of tenants and timelines: the ids among their names, and what can be believed.

A file system that is not mounted, or that has failed, looks like a directory without names.
A pageserver that believed it would forget every tenant.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from bbcache.errors import ParseError, PostgresError, StoreError
from bbcache.ids import TenantId, TimelineId

_IdT = TypeVar("_IdT", TenantId, TimelineId)


class Listing:
    """The names in one directory, listed again and again. For one thread at a time.

    Args:
        directory: the directory.
        list_names: lists it.
    """

    def __init__(
        self, directory: Path, list_names: Callable[[Path], Iterable[str]] = os.listdir
    ) -> None:
        self._directory = directory
        self._list_names = list_names
        self._device: int | None = None
        self._had_names = False

    def names(self) -> set[str]:
        """List the directory.

        Raises:
            StoreError: it lies on another device than before, or has lost all its names at
                once.
            OSError: it cannot be listed.
        """
        device = os.stat(self._directory).st_dev
        names = set(self._list_names(self._directory))
        if self._device is not None and device != self._device:
            raise StoreError(
                f"{self._directory} lies on another device than before\n"
                "hint: Is its file system mounted?"
            )
        if self._had_names and not names:
            raise StoreError(
                f"{self._directory} is suddenly empty\n"
                "hint: Is its file system mounted? If everything was removed on purpose, start "
                "the service again."
            )
        self._device = device
        self._had_names = bool(names)
        return names


def names_by_id(kind: type[_IdT], names: Iterable[str]) -> tuple[dict[_IdT, list[str]], list[str]]:
    """Split names into those that are ids, by id, and the others."""
    found: dict[_IdT, list[str]] = {}
    foreign: list[str] = []
    for name in sorted(names):
        try:
            found.setdefault(kind.from_str(name), []).append(name)
        except ParseError:
            foreign.append(name)
    return found, foreign


def check_one_spelling(names: list[str]) -> None:
    """Refuse an id that has two directories, since either may be the right one."""
    if len(names) > 1:
        raise PostgresError(f"there are {len(names)} directories of this id: {', '.join(names)}")
