"""The geometry of the WAL, by itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbcache.errors import PostgresError
from bbcache.ids import Lsn
from bbcache.postgres.wal import WalError, canonical_lsn, record_end_lsn, segment_name

_PAGE = 8192
_SEGMENT = 16 << 20


@pytest.mark.parametrize(
    ("lsn", "canonical"),
    [
        ("0/1502018", "0/1502000"),  # behind a short header
        ("0/1502000", "0/1502000"),
        ("0/2000028", "0/2000000"),  # behind a long header
        ("0/2000000", "0/2000000"),
        ("0/2000018", "0/2000018"),  # no position at which anything ends
        ("0/1502028", "0/1502028"),
        ("0/1502020", "0/1502020"),
        ("0/16B5A50", "0/16B5A50"),
        ("A/FF000028", "A/FF000000"),
        ("0/0", "0/0"),
    ],
)
def test_canonical_lsn_is_the_page_boundary(lsn: str, canonical: str) -> None:
    """Of the two names of a page boundary the one before the header is taken."""
    assert str(canonical_lsn(Lsn.from_str(lsn), _SEGMENT)) == canonical


def test_canonical_lsn_depends_on_the_segment_size() -> None:
    """A page is the first of its segment, or not."""
    assert canonical_lsn(Lsn(0x1100028), 1 << 20) == 0x1100000
    assert canonical_lsn(Lsn(0x1100028), 16 << 20) == 0x1100028
    assert canonical_lsn(Lsn(0x1100018), 16 << 20) == 0x1100000


@given(st.integers(0, 2**64 - 1), st.integers(20, 30).map(lambda n: 1 << n))
def test_canonical_lsn_is_idempotent(lsn: int, size_bytes: int) -> None:
    """A canonical name is its own, and never behind the position by more than a header."""
    canonical = canonical_lsn(Lsn(lsn), size_bytes)
    assert canonical_lsn(canonical, size_bytes) == canonical
    assert lsn - canonical in {0, 24, 40}


@pytest.mark.parametrize(
    ("start", "length_bytes", "end"),
    [
        (0x1500708, 114, 0x1500780),  # padded to a multiple of 8
        (0x1500708, 120, 0x1500780),
        (0x1501F88, 114, 0x1502000),  # ends where the page does
        (0x1501F88, 120, 0x1502000),
        (0x1501F88, 121, 0x1502020),  # one byte on the next page
        (0x1501F90, 114, 0x1502020),
        (0x1FFFF88, 114, 0x2000000),  # ends where the segment does
        (0x1FFFF90, 114, 0x2000030),
        (0x1502018, 24 + 2 * _PAGE, 0x1506060),
    ],
)
def test_record_end_lsn_counts_padding_and_headers(start: int, length_bytes: int, end: int) -> None:
    """The end is that of the record, with the headers of the pages that it enters."""
    assert record_end_lsn(Lsn(start), length_bytes, _SEGMENT) == end


@pytest.mark.parametrize("size_bytes", [0, -1, 1, 1 << 19, 1 << 31, 3 << 20, (16 << 20) + 1])
def test_segment_sizes_are_checked(size_bytes: int) -> None:
    """Only powers of two from 1 MiB to 1 GiB are segment sizes."""
    with pytest.raises(WalError, match=f"not {size_bytes}$"):
        canonical_lsn(Lsn(0), size_bytes)
    with pytest.raises(PostgresError, match="a WAL segment size is"):
        record_end_lsn(Lsn(0), 24, size_bytes)
    with pytest.raises(WalError):
        segment_name(1, 0, size_bytes)


@pytest.mark.parametrize(
    ("tli", "lsn", "size_bytes", "name"),
    [
        (1, 0x1000000, 16 << 20, "000000010000000000000001"),
        (1, 0x1FFFFFF, 16 << 20, "000000010000000000000001"),
        (0xAB, 0x5_FF000000, 16 << 20, "000000AB00000005000000FF"),
        (2, 0x5_FFFFFFFF, 1 << 20, "000000020000000500000FFF"),
        (2, 0x5_C0000000, 1 << 30, "000000020000000500000003"),
    ],
)
def test_segment_name_is_as_postgres_has_it(tli: int, lsn: int, size_bytes: int, name: str) -> None:
    """Timeline, upper half of the LSN and number within it, eight hex digits each."""
    assert segment_name(tli, lsn, size_bytes) == name
