"""Bytes that are not published: the limit, who keeps them, and giving back at any moment."""

from __future__ import annotations

import threading

import pytest
from support.helpers import run_threads
from support.locks import watched_locks

from bbcache.errors import CacheFullError
from bbcache.storage.unpublished import Spools


def test_the_limit_is_exact() -> None:
    """The last byte fits, one more does not, and a refusal takes nothing."""
    spools = Spools(10)
    one, other = spools.open("one"), spools.open("other")
    spools.grow(one, 6)
    spools.grow(other, 4)
    with pytest.raises(CacheFullError, match=r"10 \+ 1 bytes exceed max_unpublished") as caught:
        spools.grow(one, 1)
    assert "\nhint: " in str(caught.value)
    assert (spools.size_bytes, one.size_bytes, other.size_bytes) == (10, 6, 4)


def test_bytes_count_until_the_last_holder_lets_go() -> None:
    """Neither an earlier one nor a second call of the same makes room."""
    spools = Spools(10)
    spool = spools.open("builder")
    spools.grow(spool, 7)
    spool.hold("reader")
    spool.let_go("builder")
    spool.let_go("builder")
    assert spools.size_bytes == 7
    spool.let_go("reader")
    assert spools.size_bytes == 0


def test_giving_back_wants_no_lock() -> None:
    """A file may be collected while another thread, or this one, takes room."""
    with watched_locks() as locks:
        spools = Spools(10)
    spool = spools.open("reader")
    spools.grow(spool, 7)
    thread = threading.Thread(target=spool.let_go, args=("reader",), daemon=True)
    with locks[0]:
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        assert spools.size_bytes == 0


def test_the_limit_holds_between_threads() -> None:
    """Of many who grow at once exactly as many succeed as there is room for."""
    spools = Spools(1000)
    refused: list[int] = []

    def grow(holder: int) -> None:
        spool = spools.open(holder)
        for _ in range(100):
            try:
                spools.grow(spool, 1)
            except CacheFullError:
                refused.append(1)

    run_threads([lambda holder=number: grow(holder) for number in range(20)])  # type: ignore[misc]
    assert spools.size_bytes == 1000
    assert len(refused) == 1000
