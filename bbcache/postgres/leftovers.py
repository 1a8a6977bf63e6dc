"""Removing a directory that PostgreSQL's programs have worked in."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S: Final = 5.0
_PAUSE_S: Final = 0.05


def remove_tree(path: Path) -> None:
    """Remove a directory; what an interrupted initdb has started may still write to it.

    Raises:
        OSError: it would not go within 5 s.
    """
    deadline_s = time.monotonic() + _TIMEOUT_S
    while path.exists():
        try:
            shutil.rmtree(path)
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_PAUSE_S)
