"""How much space the file system of a cache lacks."""

from __future__ import annotations

import os
from typing import Final

_MOST_BYTES: Final = 1 << 30
_SHARE: Final = 20


def missing_bytes(directory: str, min_free_bytes: int | None) -> int:
    """Bytes by which the free space is below the floor; 0 if it is not.

    Args:
        directory: on the file system.
        min_free_bytes: the floor; None for 1 GiB or 5 % of the file system.

    Raises:
        OSError: the file system does not say.
    """
    if min_free_bytes == 0:
        return 0
    status = os.statvfs(directory)
    if min_free_bytes is None:
        min_free_bytes = min(_MOST_BYTES, status.f_blocks * status.f_frsize // _SHARE)
    return max(0, min_free_bytes - status.f_bavail * status.f_frsize)
