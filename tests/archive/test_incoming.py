"""An archive that arrives in pieces is compared with its seal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.helpers import KEY, LSN, seal_archive

from bbcache.archive.format import HEADER_SIZE_BYTES, Seal
from bbcache.archive.incoming import IncomingArchive
from bbcache.errors import ArchiveError

TAR = b"restart.lsn" + b"\0" * 501 + b"x" * 512
SEALED = seal_archive(TAR)


def arrive(data: bytes, key: bytes = KEY, lsn: int = LSN, step: int = 100) -> Seal:
    """The seal of an archive that arrives in pieces."""
    incoming = IncomingArchive(key, lsn)
    for start in range(0, len(data), step):
        incoming.add(data[start : start + step])
    return incoming.finish()


@given(step=st.integers(1, 2000))
def test_the_seal_is_that_of_the_archive(step: int) -> None:
    """However the bytes are cut."""
    seal = arrive(SEALED, step=step)
    assert (seal.tar_bytes, seal.body_bytes) == (len(TAR), len(SEALED) - HEADER_SIZE_BYTES)


def test_every_byte_and_every_length_counts() -> None:
    """A flipped byte, a missing byte or one more is found at the end."""
    for at in range(len(SEALED)):
        with pytest.raises(ArchiveError):
            arrive(SEALED[:at] + bytes([SEALED[at] ^ 1]) + SEALED[at + 1 :])
        with pytest.raises(ArchiveError):
            arrive(SEALED[:at])
    with pytest.raises(ArchiveError, match="but its seal says"):
        arrive(SEALED + b"\0")


def test_an_archive_without_seal_or_of_another_name_is_refused() -> None:
    """Neon's archives have no seal, so they cannot be told from damaged ones."""
    plain = b"\x1f\x8b\x08\x00" + bytes(100)
    with pytest.raises(ArchiveError, match="no seal"):
        arrive(plain)
    for key, lsn in ((b"k" * 32, LSN), (KEY, LSN + 1)):
        with pytest.raises(ArchiveError, match="another timeline or LSN"):
            arrive(SEALED, key, lsn)
