"""The records of many timelines in little memory: about 45 bytes each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_digest

from bbcache.eviction.habits import NEW_RECORD, last_stop_s

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIGEST_SIZE_BYTES: Final = 8
_SIZE_BYTES: Final = _DIGEST_SIZE_BYTES + len(NEW_RECORD)
_PER_BUCKET: Final = 32
SAMPLE: Final = 4


class Records:
    """A map from keys to records of fixed size. Not thread-safe.

    A dict of Python objects takes five times the memory. So a record stands behind 8 bytes of
    its key's hash in one of many byte arrays, which has about 32 records. Two of a million
    timelines share a hash, and their habits, once in 40 million caches.

    Args:
        capacity: records to keep. If there are more, the one of the same array that stopped
            first is forgotten.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._mask = (1 << max(0, (capacity // _PER_BUCKET).bit_length())) - 1
        self._buckets = [bytearray() for _ in range(self._mask + 1)]
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
        return bucket, _find(bucket, digest)

    def find_or_add(self, key: bytes, now_s: float) -> tuple[bytearray, int]:
        """The array and the offset of a record, which is made if there is none."""
        digest = xxh3_64_digest(key)
        bucket = self._bucket(digest)
        at = _find(bucket, digest)
        if at < 0:
            if self._count >= self._capacity and bucket:
                self._remove(bucket, _oldest(bucket, now_s))
            at = len(bucket) + _DIGEST_SIZE_BYTES
            bucket += digest + NEW_RECORD
            self._count += 1
        return bucket, at

    def remove(self, key: bytes) -> None:
        """Forget a timeline, if it is known."""
        bucket, at = self.find(key)
        if at >= 0:
            self._remove(bucket, at)

    def save(self) -> bytes:
        """All records as bytes."""
        return b"".join(self._buckets)

    def load(self, data: bytes) -> None:
        """Take the records that `save` has returned, as far as there is room."""
        for begin in range(0, min(len(data), self._capacity * _SIZE_BYTES), _SIZE_BYTES):
            item = data[begin : begin + _SIZE_BYTES]
            self._bucket(item).extend(item)
            self._count += 1

    def _bucket(self, digest: bytes) -> bytearray:
        return self._buckets[(digest[0] << 16 | digest[1] << 8 | digest[2]) & self._mask]

    def _remove(self, bucket: bytearray, at: int) -> None:
        begin = at - _DIGEST_SIZE_BYTES
        last = bucket[-_SIZE_BYTES:]
        bucket[begin : begin + _SIZE_BYTES] = last
        del bucket[-_SIZE_BYTES:]
        self._count -= 1


def _find(bucket: bytearray, digest: bytes) -> int:
    begin = bucket.find(digest)
    while begin > 0 and begin % _SIZE_BYTES:  # the bytes of a record look like the hash
        begin = bucket.find(digest, begin + 1)
    return begin + _DIGEST_SIZE_BYTES if begin >= 0 else -1


def _offsets(bucket: bytearray) -> Iterator[int]:
    return iter(range(_DIGEST_SIZE_BYTES, len(bucket), _SIZE_BYTES))


def _oldest(bucket: bytearray, now_s: float) -> int:
    return min(_offsets(bucket), key=lambda at: last_stop_s(bucket, at, now_s))
