"""Bringing archives out: read, sign, put, and remove the object of an older archive."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from bbcache.errors import safe_str
from bbcache.outcomes import DeleteResult, UploadResult
from bbcache.tier.bucket import BucketError
from bbcache.tier.object_format import PREAMBLE_SIZE_BYTES, Address, sign

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.tier.breaker import Attempt, Breaker
    from bbcache.tier.bucket import Bucket
    from bbcache.tier.keys import KeyRing
    from bbcache.tier.upload_queue import Upload, UploadQueue
    from bbcache.tier_config import TierConfig
    from bbcache.tier_metrics import TierMetrics

_RETRY_PAUSES_S: Final = (0.1, 0.4)  # before the second and the third attempt

log = logging.getLogger(__name__)


class _GoneError(Exception):
    """The archive is not in the cache any more."""


class Uploader:
    """Uploads what its queue gives, in threads that run `work`. Thread-safe.

    Args:
        config: the settings.
        bucket: takes the objects.
        keys: sign them.
        queue: the uploads.
        breaker: pauses after failures.
        metrics: counts.
        was_bad: whether a fetch has found the object at an address bad, which is then overwritten.
    """

    def __init__(
        self,
        config: TierConfig,
        bucket: Bucket,
        keys: KeyRing,
        queue: UploadQueue,
        breaker: Breaker,
        metrics: TierMetrics,
        was_bad: Callable[[Address], bool],
    ) -> None:
        self._config = config
        self._bucket = bucket
        self._keys = keys
        self._queue = queue
        self._breaker = breaker
        self._metrics = metrics
        self._was_bad = was_bad

    def work(self) -> None:
        """Upload until the queue is closed: the life of one thread."""
        while True:
            pause_s = self._breaker.pause_s()
            if pause_s and not self._queue.is_closing:
                self._queue.pause(pause_s)
                continue
            upload = self._queue.take()
            if upload is None:
                return
            try:
                self.run(upload)
            except Exception:  # must not end the thread
                log.exception("an upload failed")
            finally:
                self._queue.done(upload)

    def run(self, upload: Upload) -> None:
        """Upload one archive, then remove the objects of those it has replaced."""
        result = UploadResult.FAILED
        try:
            result = self._upload(upload)
        except _GoneError:
            result = UploadResult.GONE
        finally:
            self.settle(upload, result)
        if result is UploadResult.STORED:
            self._delete_older(upload)

    def settle(self, upload: Upload, result: UploadResult) -> None:
        """Count how an offer ended."""
        self._metrics.uploads[result].inc()
        log.debug("upload of the basebackup of %s/%s at %s: %s", *upload.info[:3], result)

    def _upload(self, upload: Upload) -> UploadResult:
        size_bytes = PREAMBLE_SIZE_BYTES + upload.info.size_bytes
        if size_bytes > self._config.max_object_size_bytes:
            return UploadResult.TOO_BIG
        address = self._address(upload)
        data = _read(upload)
        sign(data, address, self._keys.signing())
        started_s = time.monotonic()
        is_new = self._put_with_retries(address, data)
        if is_new is None:
            return UploadResult.FAILED
        if not is_new:
            return UploadResult.EXISTS
        self._metrics.uploaded_bytes.inc(size_bytes)
        self._metrics.upload_seconds.observe(time.monotonic() - started_s)
        return UploadResult.STORED

    def _put_with_retries(self, address: Address, data: bytearray) -> bool | None:
        """Put an object; False if there is one already, None if that fails."""
        overwrite, is_new = self._was_bad(address), None
        for pause_s in (*_RETRY_PAUSES_S, None):
            attempt = self._breaker.begin()
            if attempt is None:  # others have failed meanwhile
                break
            is_new = self._put(attempt, address, data, overwrite=overwrite)
            if is_new is not None or pause_s is None or self._queue.is_closing:
                break
            self._queue.pause(pause_s)
        return is_new

    def _put(
        self, attempt: Attempt, address: Address, data: bytearray, *, overwrite: bool
    ) -> bool | None:
        """Put an object once; as `_put_with_retries`."""
        is_new: bool | None = None
        failure = "the attempt was broken off"
        try:
            is_new = self._bucket.put(address.name, data, overwrite=overwrite)
        except BucketError as error:
            failure = str(error)
            log.debug("cannot put %s: %s", address.name, failure)
        finally:
            has_changed = self._breaker.end(attempt, has_failed=is_new is None)
        if has_changed and is_new is None:
            log.error("uploads to the tier pause after failures in a row: %s", failure)
        elif has_changed:
            log.info("uploads to the tier work again")
        return is_new

    def _delete_older(self, upload: Upload) -> None:
        """Remove what this upload has replaced: never an object at its own LSN or a higher one."""
        for lsn in upload.replaced_lsns:
            if lsn >= upload.info.lsn:
                continue
            name = Address(self._config.epoch, *upload.timeline, lsn).name
            result = DeleteResult.FAILED
            try:
                is_there = self._bucket.delete(name)
                result = DeleteResult.DELETED if is_there else DeleteResult.ABSENT
            except BucketError as error:
                log.warning("cannot delete %s from the tier: %s", name, error)
            finally:
                self._metrics.deletes[result].inc()

    def _address(self, upload: Upload) -> Address:
        return Address(self._config.epoch, *upload.timeline, upload.info.lsn)


def _read(upload: Upload) -> bytearray:
    """The object without its preamble; raises `_GoneError`."""
    data = bytearray(PREAMBLE_SIZE_BYTES + upload.info.size_bytes)
    try:
        with upload.open_file() as file, memoryview(data) as view:
            rest = view[PREAMBLE_SIZE_BYTES:]
            while rest:
                count = file.readinto(rest)  # type: ignore[attr-defined]  # a raw or buffered file
                if not count:
                    raise _GoneError
                rest = rest[count:]
    except OSError as error:
        log.debug("cannot read the archive to upload: %s", safe_str(error))
        raise _GoneError from error
    return data
