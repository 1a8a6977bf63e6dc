"""What counts against the limits of a cache, read under the lock that guards it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bbcache.storage.index import Index


def total_bytes(index: Index) -> int:
    """All bytes that count, those being built included."""
    with index.lock:
        return index.accounting.total_size_bytes


def total_count(index: Index) -> int:
    """All files that count, those being built included."""
    with index.lock:
        return index.accounting.total_count
