"""Bytes that are not published: the limit, who keeps them, and giving back at any moment."""

from __future__ import annotations

import threading

import pytest
from support.helpers import run_threads
from support.locks import watched_locks

from bbcache.errors import CacheFullError
from bbcache.storage.unpublished import UnpublishedBytes


def test_the_limit_is_exact() -> None:
    """The last byte fits, one more does not, and a refusal takes nothing."""
    unpublished = UnpublishedBytes(10)
    one, other = unpublished.open("one"), unpublished.open("other")
    unpublished.grow(one, 6)
    unpublished.grow(other, 4)
    with pytest.raises(CacheFullError, match=r"10 \+ 1 bytes exceed max_unpublished") as caught:
        unpublished.grow(one, 1)
    assert "\nhint: " in str(caught.value)
    assert (unpublished.size_bytes, one.size_bytes, other.size_bytes) == (10, 6, 4)


def test_bytes_count_until_the_last_holder_lets_go() -> None:
    """Neither an earlier one nor a second call of the same makes room."""
    unpublished = UnpublishedBytes(10)
    archive_bytes = unpublished.open("builder")
    unpublished.grow(archive_bytes, 7)
    archive_bytes.hold("reader")
    archive_bytes.let_go("builder")
    archive_bytes.let_go("builder")
    assert unpublished.size_bytes == 7
    archive_bytes.let_go("reader")
    assert unpublished.size_bytes == 0


def test_giving_back_wants_no_lock() -> None:
    """A file may be collected while another thread, or this one, takes room."""
    with watched_locks() as locks:
        unpublished = UnpublishedBytes(10)
    archive_bytes = unpublished.open("reader")
    unpublished.grow(archive_bytes, 7)
    thread = threading.Thread(target=archive_bytes.let_go, args=("reader",), daemon=True)
    with locks[0]:
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        assert unpublished.size_bytes == 0


def test_the_limit_holds_between_threads() -> None:
    """Of many who grow at once exactly as many succeed as there is room for."""
    unpublished = UnpublishedBytes(1000)
    refused: list[int] = []

    def grow(holder: int) -> None:
        archive_bytes = unpublished.open(holder)
        for _ in range(100):
            try:
                unpublished.grow(archive_bytes, 1)
            except CacheFullError:
                refused.append(1)

    run_threads([lambda holder=number: grow(holder) for number in range(20)])  # type: ignore[misc]
    assert unpublished.size_bytes == 1000
    assert len(refused) == 1000
