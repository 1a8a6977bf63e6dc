"""The event that a signal handler may set."""

from __future__ import annotations

from helpers import run_threads

from bbcache.latch import Latch


def test_a_latch_is_set_once_and_stays_so() -> None:
    """Setting it twice changes nothing; a wait then returns at once."""
    latch = Latch()
    assert not latch.is_set()
    assert not latch.wait(0)
    latch.set()
    latch.set()
    assert latch.is_set()
    assert latch.wait()


def test_everyone_who_waits_is_woken() -> None:
    """However many threads wait, one call lets them all go on."""
    latch = Latch()
    run_threads([*(lambda: latch.wait(30) for _ in range(5)), latch.set])
    assert latch.is_set()


def test_the_lock_is_re_entrant() -> None:
    """A signal handler may set it in the middle of a call of the same thread."""
    latch = Latch()
    with latch._changed:
        latch.set()
    assert latch.is_set()
