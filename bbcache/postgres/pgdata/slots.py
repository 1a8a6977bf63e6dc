"""The replication slots of a data directory without a running server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_SLOTS_DIR: Final = "pg_replslot"  # one directory for each slot, named after it (slot.c)
_UNFINISHED: Final = ".tmp"


def replication_slots(pgdata_dir: Path) -> list[str]:
    """The names of the replication slots, sorted. Thread-safe.

    Raises:
        OSError: the directory cannot be listed.
    """
    try:
        with os.scandir(pgdata_dir / _SLOTS_DIR) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if not name.endswith(_UNFINISHED))
