"""What sends an archive, and when it says that it may take long."""

from __future__ import annotations

import errno
import gzip
import os
from typing import TYPE_CHECKING

import pytest

from bbcache.page_service.copy_out import SMALL_SIZE_BYTES, CopyOut

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small archive, which has just been written and is in memory yet."""
    path = tmp_path / "archive"
    path.write_bytes(gzip.compress(os.urandom(1000)))
    return path


def waits_of(path: Path, *, is_gzip: bool) -> tuple[bytes | None, int]:
    """What is read of it whole, and how often the copy said that it waits."""
    waits: list[int] = []
    with path.open("rb") as file:
        copy = CopyOut(
            file, path.stat().st_size, is_gzip=is_gzip, before_wait=lambda: waits.append(1)
        )
        return None if copy.whole is None else bytes(copy.whole), len(waits)


def test_a_small_one_in_memory(path: Path) -> None:
    """It is read whole, and no disk is waited for."""
    assert waits_of(path, is_gzip=True) == (path.read_bytes(), 0)


@pytest.mark.parametrize(("number", "count"), [(errno.EAGAIN, 1), (errno.EOPNOTSUPP, 0)])
def test_a_small_one_that_is_not_in_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, count: int
) -> None:
    """It is read whole all the same, after the word that this may take long, if that is known."""
    preadv = os.preadv

    def evicted(fd: int, buffers: Sequence[bytearray], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise OSError(number, os.strerror(number))
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", evicted)
    assert waits_of(path, is_gzip=True) == (path.read_bytes(), count)


def test_a_small_one_that_is_in_memory_in_part(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of it may take long, too."""
    preadv = os.preadv

    def half_evicted(fd: int, buffers: Sequence[bytearray], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            return preadv(fd, [memoryview(buffers[0])[:500]], offset)  # tmpfs knows no flag
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", half_evicted)
    assert waits_of(path, is_gzip=True) == (path.read_bytes(), 1)


def test_what_is_decompressed(path: Path) -> None:
    """That may take long, too."""
    assert waits_of(path, is_gzip=False) == (None, 1)


def test_a_large_one(path: Path) -> None:
    """It is sent piece by piece."""
    path.write_bytes(bytes(SMALL_SIZE_BYTES + 1))
    assert waits_of(path, is_gzip=True) == (None, 1)
