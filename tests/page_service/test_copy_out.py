"""An archive is sent whole, or an error follows whole messages."""

from __future__ import annotations

import gzip
import os
import socket
from typing import TYPE_CHECKING

import pytest
from page_service import wire
from page_service.wire import copied, kinds
from support.cache_helpers import DEADLINE_S, Worker

from bbcache.page_service.copy_out import SMALL_SIZE_BYTES, CopyOut
from bbcache.page_service.errors import CanceledError, CommandError
from bbcache.page_service.protocol.backend import COPY_DONE, COPY_OUT
from bbcache.page_service.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def sent(
    path: Path, size_bytes: int, *, is_gzip: bool, check: Callable[[], None] = lambda: None
) -> tuple[list[wire.Reply], int, BaseException | None]:
    """The messages that a client gets, how many bytes are said to be sent, and the error."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(DEADLINE_S)
    failures: list[BaseException | None] = [None]

    def send() -> int:
        with path.open("rb") as file, ours:
            copy = CopyOut(Transport(ours, DEADLINE_S), file, size_bytes, is_gzip=is_gzip)
            try:
                copy.run(COPY_OUT, COPY_DONE, check)
            except (CommandError, CanceledError) as error:
                failures.append(error)
            return copy.sent_bytes

    sending = Worker(send)
    data = bytearray()
    with theirs:
        while piece := theirs.recv(1 << 20):
            data += piece
    count = sending.result()
    assert isinstance(count, int)
    replies, left = wire.split(data)
    assert not left
    return replies, count, failures[-1]


@pytest.mark.parametrize("is_gzip", [True, False])
@pytest.mark.parametrize("size_bytes", [1000, SMALL_SIZE_BYTES + 1, 3 << 20])
def test_it_is_sent_whole(tmp_path: Path, size_bytes: int, *, is_gzip: bool) -> None:
    """As it is or decompressed, small or large, and all its bytes are counted."""
    content = os.urandom(size_bytes)
    path = tmp_path / "archive"
    path.write_bytes(gzip.compress(content, 0))
    replies, count, _ = sent(path, path.stat().st_size, is_gzip=is_gzip)
    assert kinds(replies) == "Hdc"
    assert copied(replies) == (path.read_bytes() if is_gzip else content)
    assert count == len(copied(replies))


@pytest.mark.parametrize("is_gzip", [True, False])
def test_an_end_in_the_middle_follows_whole_messages(tmp_path: Path, *, is_gzip: bool) -> None:
    """Messages are whole, and the bytes sent before the end are counted."""
    path = tmp_path / "archive"
    path.write_bytes(gzip.compress(os.urandom(4 << 20), 0))
    left = iter([None, None])

    def check() -> None:
        if next(left, 1):
            raise CanceledError("stop")

    replies, count, error = sent(path, path.stat().st_size, is_gzip=is_gzip, check=check)
    assert kinds(replies) == "Hd"
    assert count == len(copied(replies)) > 0
    assert isinstance(error, CanceledError)


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    """A small one is refused before anything is sent, a large one after whole messages."""
    path = tmp_path / "archive"
    path.write_bytes(bytes(1000))
    ours, theirs = socket.socketpair()
    transport = Transport(ours, DEADLINE_S)
    with ours, theirs, path.open("rb") as file, pytest.raises(CommandError, match="to its end"):
        CopyOut(transport, file, 1001, is_gzip=True)
    replies, _, error = sent(path, 3 << 20, is_gzip=True)
    assert kinds(replies) == "Hd"
    assert isinstance(error, CommandError)
