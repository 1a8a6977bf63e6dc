"""Syncing many files: several at once, each once, and no failure lost."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from bbcache.postgres.pgdata.sync import SYNCED_AT_ONCE, sync_all

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIMEOUT_S = 60.0


def test_each_item_once() -> None:
    """Each item is synced once, whatever thread takes it."""
    done: list[int] = []
    sync_all(range(1000), done.append)
    assert sorted(done) == list(range(1000))


def test_several_at_once() -> None:
    """Eight run together: none can end before the others have begun."""
    together = threading.Barrier(SYNCED_AT_ONCE)
    sync_all(range(2 * SYNCED_AT_ONCE), lambda _: together.wait(_TIMEOUT_S))


@pytest.mark.parametrize("failing", [0, 7, 500, 999])
def test_one_failure_fails_all(failing: int) -> None:
    """The caller gets it, wherever it was, and the rest is not begun."""
    done: list[int] = []

    def sync(number: int) -> None:
        if number == failing:
            raise OSError(5, "Input/output error")
        done.append(number)

    with pytest.raises(OSError, match="Input/output error"):
        sync_all(range(1000), sync)
    assert failing not in done


def test_a_failure_while_items_are_found_fails_all() -> None:
    """A directory that cannot be listed must not be taken for the end."""

    def find() -> Iterator[int]:
        yield from range(20)
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        sync_all(find(), lambda _: None)


def test_no_thread_is_left() -> None:
    """Whether it has failed or not."""

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    sync_all(range(100), lambda _: None)
    with pytest.raises(OSError, match="Input/output error"):
        sync_all(range(100), fail)
    assert [each for each in threading.enumerate() if "bbcache-fsync" in each.name] == []
