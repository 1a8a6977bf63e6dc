"""The records of many timelines in little memory: about 45 bytes each."""

from __future__ import annotations

from typing import Final

from xxhash import xxh3_64_digest

from bbcache.eviction.habits import NEW_RECORD, last_stop_s

_DIGEST_SIZE_BYTES: Final = 8
_SIZE_BYTES: Final = _DIGEST_SIZE_BYTES + len(NEW_RECORD)
_PER_BUCKET: Final = 32
SAMPLE: Final = 4


class Records:
    """A map from keys to records of fixed size. Not thread-safe.

    A dict of Python objects takes five times the memory. So a record stands behind 8 bytes of
    its key's hash in one of many byte arrays, which has about 32 records. Two of a million
    timelines share a hash, and their habits, once in 40 million caches. The arrays grow in
    number one by one (linear hashing), so that no addition has to move all records.

    Args:
        capacity: records to keep. If there are more, the one of the same array that stopped
            first is forgotten.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._buckets = [bytearray()]
        self._base = 1  # the greatest power of two that there are as many arrays of
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @staticmethod
    def is_sampled(key: bytes) -> bool:
        """Whether the returns of this timeline are counted: one in four, by its hash."""
        return xxh3_64_digest(key)[-1] % SAMPLE == 0

    @staticmethod
    def is_sampled_at(bucket: bytearray, at: int) -> bool:
        """Like `is_sampled`, for the record at an offset, which is behind its hash."""
        return bucket[at - 1] % SAMPLE == 0

    def find(self, key: bytes) -> tuple[bytearray, int]:
        """The array and the offset of a record; the offset is -1 if there is none."""
        digest = xxh3_64_digest(key)
        bucket = self._bucket(digest)
        begin = bucket.find(digest)
        if begin > 0 and begin % _SIZE_BYTES:
            begin = _find_on(bucket, digest, begin)
        return bucket, begin + _DIGEST_SIZE_BYTES if begin >= 0 else -1

    def find_or_add(self, key: bytes, now_s: float) -> tuple[bytearray, int]:
        """The array and the offset of a record, which is made if there is none."""
        bucket, at = self.find(key)
        if at < 0:
            if self._count >= self._capacity and bucket:
                self._remove(bucket, _oldest(bucket, now_s))
            self._add(xxh3_64_digest(key) + NEW_RECORD)
            bucket, at = self.find(key)
        return bucket, at

    def save(self) -> bytes:
        """All records as bytes."""
        return b"".join(self._buckets)

    def load(self, data: bytes) -> None:
        """Take the records that `save` has returned, as far as there is room."""
        for begin in range(0, min(len(data), self._capacity * _SIZE_BYTES), _SIZE_BYTES):
            self._add(data[begin : begin + _SIZE_BYTES])

    def _bucket(self, digest: bytes) -> bytearray:
        number = int.from_bytes(digest[:4], "big") & (2 * self._base - 1)
        if number >= len(self._buckets):
            number -= self._base
        return self._buckets[number]

    def _add(self, item: bytes) -> None:
        self._bucket(item).extend(item)
        self._count += 1
        if self._count > _PER_BUCKET * len(self._buckets):
            self._split()

    def _split(self) -> None:
        """Add an array, and move those records of another one to it that belong there."""
        old = self._buckets[len(self._buckets) - self._base]
        items = [bytes(old[at : at + _SIZE_BYTES]) for at in range(0, len(old), _SIZE_BYTES)]
        self._buckets.append(bytearray())
        old.clear()
        for item in items:
            self._bucket(item).extend(item)
        if len(self._buckets) == 2 * self._base:
            self._base *= 2

    def _remove(self, bucket: bytearray, at: int) -> None:
        begin = at - _DIGEST_SIZE_BYTES
        bucket[begin : begin + _SIZE_BYTES] = bucket[-_SIZE_BYTES:]
        del bucket[-_SIZE_BYTES:]
        self._count -= 1


def _find_on(bucket: bytearray, digest: bytes, begin: int) -> int:
    """Find a hash behind the bytes of a record that look like it; -1 if it is not there."""
    while begin > 0 and begin % _SIZE_BYTES:
        begin = bucket.find(digest, begin + 1)
    return begin


def _oldest(bucket: bytearray, now_s: float) -> int:
    offsets = range(_DIGEST_SIZE_BYTES, len(bucket), _SIZE_BYTES)
    return min(offsets, key=lambda at: last_stop_s(bucket, at, now_s))
