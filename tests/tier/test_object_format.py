"""The preamble of an object: every bit of it, of the archive and of the address is signed."""

from __future__ import annotations

import random
import secrets
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tier.lab import make_key_file

from bbcache import Lsn, TenantId, TimelineId
from bbcache.tier.keys import Key, KeyRing
from bbcache.tier.object_format import (
    PREAMBLE_SIZE_BYTES,
    Address,
    BadObjectError,
    ObjectCheck,
    sign,
)

ARCHIVE = random.Random(1).randbytes(200)
ADDRESS = Address("1", TenantId(b"t" * 16), TimelineId(b"l" * 16), Lsn(0x16B5A50))


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    """One key."""
    return KeyRing([str(make_key_file(Path(tmp_path_factory.mktemp("keys"), "key")))])


def signed(key: Key | None, address: Address = ADDRESS) -> bytes:
    """An object."""
    data = bytearray(PREAMBLE_SIZE_BYTES) + ARCHIVE
    sign(data, address, key)
    return bytes(data)


def read(
    data: bytes, ring: KeyRing, address: Address = ADDRESS, step: int = 7, size: int | None = None
) -> bytes:
    """The archive in an object that arrives in small pieces."""
    check = ObjectCheck(address, len(data) if size is None else size, ring, allow_unsigned=False)
    parts = [check.archive_part(data[at : at + step]) for at in range(0, len(data), step)]
    check.finish()
    return b"".join(parts)


@given(step=st.integers(1, 300))
def test_an_archive_comes_back_however_it_is_cut(ring: KeyRing, step: int) -> None:
    """The pieces of a stream have any size."""
    assert read(signed(ring.signing()), ring, step=step) == ARCHIVE


def test_every_bit_counts(ring: KeyRing) -> None:
    """A flipped bit anywhere is found, before the end or at it."""
    good = signed(ring.signing())
    for at in range(len(good) * 8):
        bad = bytearray(good)
        bad[at // 8] ^= 1 << at % 8
        with pytest.raises(BadObjectError):
            read(bytes(bad), ring, step=len(bad))


def test_every_length_but_one_is_refused(ring: KeyRing) -> None:
    """Cut, extended, or of another length than the store says."""
    good = signed(ring.signing())
    for count in range(len(good)):
        for size in (None, len(good)):
            with pytest.raises(BadObjectError):
                read(good[:count], ring, size=size)
    for size in (None, len(good)):
        with pytest.raises(BadObjectError):
            read(good + b"\0", ring, size=size)


@pytest.mark.parametrize(
    "other",
    [
        replace(ADDRESS, epoch="2"),
        replace(ADDRESS, tenant_id=TenantId(b"u" * 16)),
        replace(ADDRESS, timeline_id=TimelineId(b"m" * 16)),
        replace(ADDRESS, lsn=Lsn(0x16B5A51)),
    ],
    ids=["epoch", "tenant", "timeline", "lsn"],
)
def test_an_object_is_good_under_its_own_name_alone(ring: KeyRing, other: Address) -> None:
    """Moved to another name, it is bad."""
    with pytest.raises(BadObjectError, match="its signature is wrong"):
        read(signed(ring.signing()), ring, other)


def test_a_signature_of_another_key_is_named(ring: KeyRing) -> None:
    """Unknown keys, and objects without signature, have texts of their own."""
    with pytest.raises(BadObjectError, match="its key is not known here"):
        read(signed(Key.of(secrets.token_bytes(32))), ring)
    with pytest.raises(BadObjectError, match="it is not signed"):
        read(signed(None), ring)


def test_a_forger_without_the_key_has_no_signature(ring: KeyRing) -> None:
    """A key of the same id, with another secret, signs nothing that is accepted."""
    key = ring.signing()
    assert key is not None
    with pytest.raises(BadObjectError, match="its signature is wrong"):
        read(signed(key._replace(secret=secrets.token_bytes(32))), ring)


def test_a_name_leads_back_to_its_address() -> None:
    """Only the canonical form of a name is one."""
    assert Address.of_name(ADDRESS.name) == ADDRESS
    for name in (ADDRESS.name.upper(), f"{ADDRESS.name}/x", ADDRESS.name[:-1], "x", ""):
        assert Address.of_name(name) is None
