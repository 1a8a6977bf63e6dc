"""The warnings about files that a tarball leaves out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

_SHOWN: Final = 5
_SHOWN_CHARACTERS: Final = 200

log = logging.getLogger(__name__)


class LeftOut:
    """The names that the tarball of a directory leaves out, by kind. Not thread-safe.

    Args:
        directory: the data directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._shown: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, kind: str, what: str) -> None:
        """Record that `what` is left out, a member of the kind `kind` (a plural)."""
        shown = self._shown.setdefault(kind, [])
        if len(shown) < _SHOWN:
            shown.append(ascii(what)[1:-1][:_SHOWN_CHARACTERS])
        self._counts[kind] = self._counts.get(kind, 0) + 1

    def warn(self) -> None:
        """Log one warning for each kind."""
        for kind, shown in self._shown.items():
            more = self._counts[kind] - len(shown)
            tail = f" and {more} more" if more else ""
            log.warning(
                "the tarball of %s leaves out %s: %s",
                self._directory,
                kind,
                ", ".join(shown) + tail,
            )
