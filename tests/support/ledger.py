"""The entries of an index, and the totals of its ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bbcache.storage.index import Entry, Index


def total_bytes(index: Index) -> int:
    """All bytes that count, those being built included."""
    with index.lock:
        return index.accounting.total_size_bytes


def total_count(index: Index) -> int:
    """All files that count, those being built included."""
    with index.lock:
        return index.accounting.total_count


def entries_of(index: Index) -> list[Entry]:
    """All entries of an index, in the order in which they came."""
    return list(index.by_key().values())


def holds(index: Index, entry: Entry) -> bool:
    """Whether this very entry is in an index."""
    return index.newest(entry.key) is entry
