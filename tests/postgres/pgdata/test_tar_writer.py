"""The tar that is written is one that any tar reads, in pieces of a useful size."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

import pytest

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.tar_writer import TarWriter

if TYPE_CHECKING:
    from pathlib import Path

PIECE_BYTES = 1024 * 1024


class Taking:
    """Takes at most so many bytes at a time, and counts the pieces offered."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.tar = io.BytesIO()
        self.offered: list[int] = []

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Take the start of a piece."""
        self.offered.append(len(data))
        return self.tar.write(data[: self._limit_bytes])


def write_sample(writer: Taking) -> TarWriter:
    """Write a directory, some small files, and one larger than the buffer."""
    tar = TarWriter(writer)
    tar.add_directory("d")
    for number in range(20):
        tar.add_bytes(f"d/{number}", bytes([number]) * number * 100)
    tar.add_bytes("large", os.urandom(1) * (3 * PIECE_BYTES + 1))
    tar.finish()
    return tar


def test_pieces() -> None:
    """All pieces but the last have the size of the buffer, and are counted."""
    writer = Taking(1 << 30)
    tar = write_sample(writer)
    assert set(writer.offered[:-1]) == {PIECE_BYTES}
    assert tar.size_bytes == sum(writer.offered) == len(writer.tar.getvalue())
    assert tar.member_count == 22
    with tarfile.open(fileobj=io.BytesIO(writer.tar.getvalue())) as opened:
        assert len(opened.getmembers()) == 22


def test_writer_that_takes_less() -> None:
    """What a writer does not take is offered again, until it takes nothing."""
    content = bytes(range(256)) * 9
    whole, part = Taking(1 << 30), Taking(1000)
    for writer in (whole, part):
        tar = TarWriter(writer)
        tar.add_bytes("f", content)
        tar.finish()
    assert whole.tar.getvalue() == part.tar.getvalue()
    assert len(part.offered) > len(whole.offered)
    with pytest.raises(ValueError, match=r"the writer took 0 of \d+ bytes"):
        write_sample(Taking(0))


@pytest.mark.parametrize("size_bytes", [0, 1, 511, 512, 513, 8**11 - 1, 8**11, 1 << 40])
@pytest.mark.parametrize("name", ["short", "n" * 100, "n" * 101, "d/" * 150 + "é"])
def test_headers(tmp_path: Path, name: str, size_bytes: int) -> None:
    """Any name and size is read back by the standard library's tarfile."""
    (tmp_path / "empty").touch()
    writer = Taking(1 << 30)
    tar = TarWriter(writer)
    fd = os.open(tmp_path / "empty", os.O_RDONLY)
    try:
        tar.add_file(name, fd, min(size_bytes, 600), used_bytes=0)
        tar._add_header(name, tarfile.REGTYPE, 0o600, size_bytes)
    finally:
        os.close(fd)
    tar._flush()
    with tarfile.open(fileobj=io.BytesIO(writer.tar.getvalue() + bytes(1024))) as opened:
        first, second = opened.next(), opened.next()
    assert first is not None
    assert second is not None
    assert (first.name, first.size) == (name, min(size_bytes, 600))
    assert (second.name, second.size, second.mode) == (name, size_bytes, 0o600)


def test_zeros_behind_the_used_part(tmp_path: Path) -> None:
    """Only the used part of a file is read; zeros make up the rest, over several pieces."""
    (tmp_path / "f").write_bytes(b"x" * 700_000)
    writer = Taking(1 << 30)
    tar = TarWriter(writer)
    with (tmp_path / "f").open("rb") as file:
        tar.add_file("f", file.fileno(), 2_000_001, used_bytes=600_000)
    tar.finish()
    with tarfile.open(fileobj=io.BytesIO(writer.tar.getvalue())) as opened:
        content = opened.extractfile("f")
        assert content is not None
        assert content.read() == b"x" * 600_000 + bytes(1_400_001)


@pytest.mark.parametrize("used_bytes", [None, 20_000_000, 9_000_000, 5])
@pytest.mark.parametrize("places", [(), (0,), (8_000_001, 31_999_999), (12_345_678, 12_400_000)])
def test_holes_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: tuple[int, ...], used_bytes: int | None
) -> None:
    """A sparse file costs the reading of its data, and gives the same bytes as a full one."""
    path = tmp_path / "f"
    with path.open("wb") as file:
        for place in places:
            file.seek(place)
            file.write(b"x")
        file.truncate(32_000_000)
    got = 0
    real_readv = os.readv

    def readv(fd: int, buffers: list[memoryview]) -> int:
        nonlocal got
        got += (count := real_readv(fd, buffers))
        return count

    monkeypatch.setattr(os, "readv", readv)
    writer = Taking(1 << 30)
    tar = TarWriter(writer)
    with path.open("rb") as opened:
        tar.add_file("f", opened.fileno(), 32_000_000, used_bytes=used_bytes)
    expected = path.read_bytes()[:used_bytes].ljust(32_000_000, b"\0")
    tar.finish()
    assert writer.tar.getvalue()[512:][:32_000_000] == expected
    assert got <= len(places) * 2 * PIECE_BYTES


def test_unreadable(tmp_path: Path) -> None:
    """A descriptor that cannot be read, or ends early, is an error that names the member."""
    for path, reason in ((tmp_path, "cannot read it: Is a"), (tmp_path / "f", "it became shorter")):
        if path != tmp_path:
            path.write_bytes(b"xyz")
        fd = os.open(path, os.O_RDONLY)
        try:
            with pytest.raises(PostgresError, match=reason):
                TarWriter(Taking(1 << 30)).add_file("it", fd, 4)
        finally:
            os.close(fd)


def test_short_reads() -> None:
    """A descriptor that gives its bytes in small pieces gives all of them."""
    read_fd, write_fd = os.pipe()
    writer = Taking(1 << 30)
    tar = TarWriter(writer)
    try:
        os.write(write_fd, b"ab")
        pieces = iter([b"cd", b"e"])
        real_readv = os.readv

        def readv(fd: int, buffers: list[memoryview]) -> int:
            got = real_readv(fd, buffers)
            os.write(write_fd, next(pieces, b""))
            return got

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "readv", readv)
            tar.add_file("f", read_fd, 5)
    finally:
        os.close(read_fd)
        os.close(write_fd)
    tar.finish()
    assert writer.tar.getvalue()[512:1024] == b"abcde".ljust(512, b"\0")
