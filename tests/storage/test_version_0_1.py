"""A directory of version 0.1 is taken over and served: names, layout and seal have not changed.

``directory_of_0_1`` was written by the first published code, and copied while that built its
fifth basebackup, as a kill leaves it. Its files are never to be made again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Final, Literal

import pytest
from prometheus_client import CollectorRegistry
from support.helpers import file_names, samples

from bbcache import BasebackupCache, BasebackupCacheConfig, Lsn, TenantId, TimelineId
from bbcache.archive.format import HEADER_SIZE_BYTES, pack_header, read_seal
from bbcache.storage.files import Store
from bbcache.storage.index import make_key
from bbcache.testing import MemoryHost

WRITTEN: Final = Path(__file__).parent / "directory_of_0_1"
TENANT: Final = TenantId.from_str("de200bd42b49cc1814412c7e592dd6e9")
# Timeline (each byte of its id), LSN, and the digest of the archive.
ENTRIES: Final = [
    (1, 0x16B5A50, "d6b0867045f7b2d6ce08aa2f9c5308736d8074e6678c69ed3d92adc4649a173e"),
    (2, 2**64 - 8, "fd96034d6a48c4f87be7a8683f990774993b7d1f8b382efdb13a4dc747a292ee"),
    (3, 0x2000, "f069f1ef8c20788a7fbbd853e4b69d571129bb5aeb91203a04fdfa53dcc09a28"),
]
QUARANTINED_BYTES: Final = 193


def _timeline(byte: int) -> TimelineId:
    return TimelineId(bytes([byte]) * 16)


@pytest.mark.parametrize("verify_reads", ["always", "first", "never"])
def test_a_directory_of_version_0_1_is_taken_over_and_served(
    tmp_path: Path, verify_reads: Literal["always", "first", "never"]
) -> None:
    """Every entry is a hit of the very bytes; what a kill has left is gone, evidence is kept."""
    directory = tmp_path / "cache"
    shutil.copytree(WRITTEN, directory)
    quarantined = file_names(directory / "quarantine")
    registry = CollectorRegistry()
    config = BasebackupCacheConfig(verify_reads=verify_reads)
    with BasebackupCache.spawn(directory, config, MemoryHost(), registry) as cache:
        assert cache.wait_initialized(60)
        found = {(entry.timeline_id, entry.lsn) for entry in cache.entries()}
        assert found == {(_timeline(byte), lsn) for byte, lsn, _ in ENTRIES}
        for byte, lsn, digest in ENTRIES * 2:
            file = cache.get(TENANT, _timeline(byte), Lsn(lsn))
            assert file is not None
            with file:
                assert hashlib.sha256(file.read()).hexdigest() == digest
        assert cache.get(TENANT, _timeline(3), Lsn(0x1000)) is None  # superseded
        found_samples = samples(registry)
    assert file_names(directory / "tmp") == set()
    assert file_names(directory / "quarantine") == quarantined
    assert found_samples["bbcache_nonentry_bytes"] == QUARANTINED_BYTES
    assert found_samples["bbcache_quarantined_total"] == 0


@pytest.mark.parametrize(("byte", "lsn", "digest"), ENTRIES)
def test_names_and_seals_are_still_those_of_version_0_1(byte: int, lsn: int, digest: str) -> None:
    """Today's code gives each archive the same name and, bit by bit, the same header."""
    key = make_key(TENANT, _timeline(byte))
    path = Path(Store(str(WRITTEN)).path_of(key, lsn))
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
    fd = os.open(path, os.O_RDONLY)
    try:
        seal = read_seal(fd, key, lsn)
    finally:
        os.close(fd)
    assert seal is not None
    assert pack_header(seal, key, lsn) == data[:HEADER_SIZE_BYTES]
