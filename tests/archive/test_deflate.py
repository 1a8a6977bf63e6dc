"""One raw deflate stream of pieces, some of which are zeros."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import isal_zlib

from bbcache.archive.deflate import PIECE_SIZE_BYTES, ZEROS, Deflate

NOISE = random.Random(3).randbytes(PIECE_SIZE_BYTES)
TEXT = (b"some text that comes again and again, %d\n" * 30_000)[:PIECE_SIZE_BYTES]
NEARLY = bytes(PIECE_SIZE_BYTES - 1) + b"\1"
PIECES = {"0": bytes(ZEROS), "n": NOISE, "t": TEXT, "z": NEARLY}


def deflated(pieces: list[bytes], level: int = 2) -> tuple[list[bytes], Deflate]:
    """The stream of these pieces, and the parts that were put."""
    put: list[bytes] = []
    deflate = Deflate(put.append, level)
    for piece in pieces:
        deflate.add(memoryview(piece))
    put.append(deflate.finish())
    return put, deflate


@settings(max_examples=25, deadline=None)
@given(names=st.text("0ntz", max_size=6), rest=st.integers(1, 5000), level=st.integers(0, 3))
def test_pieces_in_any_order_come_back(names: str, rest: int, level: int) -> None:
    """With their size and CRC-32, by zlib and by ISA-L, at every level."""
    pieces = [PIECES[name] for name in names] + [TEXT[:rest]]
    put, deflate = deflated(pieces, level)
    stream, tar = b"".join(put), b"".join(pieces)
    assert zlib.decompress(stream, -15) == isal_zlib.decompress(stream, -15) == tar
    assert (deflate.size_bytes, deflate.crc) == (len(tar), zlib.crc32(tar))


def test_zeros_by_number_are_zeros_by_content() -> None:
    """`add_zeros` is `add` of zeros."""
    by_content, _ = deflated([TEXT, bytes(ZEROS), bytes(ZEROS), TEXT])
    by_number: list[bytes] = []
    deflate = Deflate(by_number.append, 2)
    deflate.add(TEXT)
    deflate.add_zeros()
    deflate.add_zeros()
    deflate.add(TEXT)
    by_number.append(deflate.finish())
    assert b"".join(by_number) == b"".join(by_content)


@pytest.mark.parametrize("level", range(4))
def test_zeros_take_a_thousandth(level: int) -> None:
    """At every level: it is the most that deflate can do."""
    put, _ = deflated([bytes(ZEROS)] * 20, level)
    assert len(b"".join(put)) < 20 * PIECE_SIZE_BYTES // 1000


def test_zeros_add_the_same_wherever_they_stand() -> None:
    """The stream is flushed before the first piece of zeros only."""

    def size_bytes(pieces: list[bytes]) -> int:
        return len(b"".join(deflated(pieces)[0]))

    zeros = bytes(ZEROS)
    at_start = size_bytes([zeros] * 3) - size_bytes([zeros] * 2)
    behind_text = size_bytes([TEXT, *[zeros] * 3]) - size_bytes([TEXT, *[zeros] * 2])
    assert behind_text == at_start


def test_a_run_is_put_in_portions() -> None:
    """They are put in batches."""
    put, _ = deflated([bytes(ZEROS)] * 200)
    assert 4 <= len(put) <= 6
    assert max(map(len, put)) < 100_000


def test_a_stream_of_nothing_is_empty() -> None:
    """An end alone is a stream."""
    put, deflate = deflated([])
    assert zlib.decompress(b"".join(put), -15) == b""
    assert (deflate.size_bytes, deflate.crc) == (0, 0)


def test_zeros_are_never_written_to() -> None:
    """No other test has written to them."""
    deflated([*PIECES.values()])
    assert bytes(PIECE_SIZE_BYTES) == ZEROS
