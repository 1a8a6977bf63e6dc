"""Records of fixed size in few byte arrays."""

from __future__ import annotations

import random

from bbcache.eviction.habits import note_size, note_stop
from bbcache.eviction.records import Records


def test_records_are_found_again() -> None:
    """Each record stays with its key while others come, and old ones go for them."""
    rng, records = random.Random(1), Records(4000)
    keys = [rng.randbytes(32) for _ in range(5000)]
    for number, key in enumerate(keys):
        record, at = records.find_or_add(key, float(number))
        note_stop(record, at, float(number))
        note_size(record, at, 2 ** (number % 30))
    kept = {key: number for number, key in enumerate(keys) if records.find(key)[1] >= 0}
    assert len(records) == len(kept) == 4000
    assert max(set(range(5000)).difference(kept.values())) < 2500
    loaded = Records(100_000)
    loaded.load(records.save())
    for key, number in kept.items():
        record, at = records.find(key)
        other, other_at = loaded.find(key)
        assert record[at : at + 33] == other[other_at : other_at + 33]
        assert record[at + 32] == 1 + 7 * (number % 30)


def test_bytes_that_look_like_a_hash() -> None:
    """A hash is found at the beginning of a record only."""
    records, keys = Records(100), [bytes([number]) * 32 for number in range(3)]
    for key in keys:
        records.find_or_add(key, 0.0)
    bucket, at = records.find(keys[2])
    first_at = records.find(keys[0])[1]
    bucket[first_at : first_at + 8] = bucket[at - 8 : at]  # in the record of another key
    assert records.find(keys[2]) == (bucket, at)


def test_a_huge_capacity_costs_nothing() -> None:
    """Memory grows with the records, not with their limit."""
    records = Records(1 << 60)
    records.find_or_add(bytes(32), 0.0)
    assert len(records.save()) < 100
