"""The face of the second tier in object storage: offers, fetches, and the threads of uploads."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from bbcache import lifecycle
from bbcache.arguments import wrong_type
from bbcache.errors import ArchiveError
from bbcache.outcomes import FetchResult, UploadResult
from bbcache.tier.breaker import Breaker
from bbcache.tier.bucket import BucketError, ObstoreBucket
from bbcache.tier.keys import KeyRing
from bbcache.tier.object_format import (
    PREAMBLE_SIZE_BYTES,
    Address,
    BadObjectError,
    ObjectCheck,
)
from bbcache.tier.start_check import StartCheck
from bbcache.tier.upload_queue import Upload, UploadQueue
from bbcache.tier.uploader import Uploader
from bbcache.tier_config import TierConfig
from bbcache.tier_metrics import TierMetrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from bbcache.ids import Lsn, TenantId, TimelineId
    from bbcache.second_tier import ArchiveSink
    from bbcache.storage.index import EntryInfo
    from bbcache.tier.breaker import Attempt
    from bbcache.tier.bucket import Bucket

_END_TIMEOUT_S: Final = 1.0  # for a thread that has nothing left to do

log = logging.getLogger(__name__)


class ObjectTier:
    """A second tier in object storage, for `BasebackupCache.spawn`, which closes it. Thread-safe.

    It has threads from the start: one that lists the bucket once, to find a wrong one, and
    `upload_concurrency` that upload. A fetch runs in its caller's thread, which must not be the
    main thread. In a forked child a tier does nothing.

    Args:
        config: the settings.
        registry: where the metrics are registered; None for Prometheus' default registry.
        bucket: the objects, for tests of this class; None opens those of the settings.

    Attributes:
        config: the settings.

    Raises:
        ConfigError: a key cannot be used, an option is not known, or the registry has the metrics
            of another tier.
        ArgumentError: (a `TypeError`) these are no settings of a tier.
    """

    def __init__(
        self,
        config: TierConfig,
        registry: CollectorRegistry | None = None,
        bucket: Bucket | None = None,
    ) -> None:
        _check_config(config)
        self._generation = lifecycle.generation()
        self.config = config
        self._keys = KeyRing(config.key_files)
        self._bucket = bucket or _bucket_for_fetches(config)
        self._metrics = TierMetrics(registry)
        self._fetch_breaker, self._upload_breaker = Breaker(), Breaker()
        self._bad_lock = threading.Lock()  # guards _bad
        self._bad: OrderedDict[Address, None] = OrderedDict()  # the latest last
        self._queue = UploadQueue(config.upload_queue_size, self._settle)
        self._uploader = Uploader(
            config,
            bucket or _bucket_for_uploads(config),
            self._keys,
            self._queue,
            self._upload_breaker,
            self._metrics,
            self._was_bad,
        )
        self._check = StartCheck(self._bucket, config.url, config.epoch)
        self._metrics.upload_queue_size.read_from(self._queue.__len__)
        self._metrics.fetch_breaker.read_from(
            lambda: int(self._check.problem is not None or self._fetch_breaker.is_failing())
        )
        self._metrics.upload_breaker.read_from(lambda: int(self._upload_breaker.is_failing()))
        self._threads = [threading.Thread(target=self._check.run, name="bbcache-tier-check")]
        if config.may_upload:
            self._threads += [
                threading.Thread(target=self._uploader.work, name=f"bbcache-upload_{number}")
                for number in range(config.upload_concurrency)
            ]
        self._start()

    def _start(self) -> None:
        lifecycle.close_at_exit(self)
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.close(0)
            self._metrics.withdraw()
            raise

    @property
    def problem(self) -> str | None:
        """Why nothing is fetched or uploaded now, in one line; None if no reason is known."""
        if self._check.problem is not None:
            return self._check.problem
        breakers = {"fetches": self._fetch_breaker, "uploads": self._upload_breaker}
        paused = " and ".join(what for what, breaker in breakers.items() if breaker.is_failing())
        return f"{paused} pause after failures in a row" if paused else None

    def offer(
        self, info: EntryInfo, open_file: Callable[[], BinaryIO], replaced_lsn: Lsn | None
    ) -> None:
        """Queue an archive for its upload; see `bbcache.second_tier.Tier`."""
        if self._generation != lifecycle.generation():
            return
        replaced = frozenset(() if replaced_lsn is None else (replaced_lsn,))
        upload = Upload(info, open_file, replaced)
        if self.config.may_upload:
            self._queue.put(upload)
        else:
            self._settle(upload, UploadResult.SKIPPED)

    def fetch(
        self,
        tenant_id: TenantId,
        timeline_id: TimelineId,
        lsn: Lsn,
        writer: ArchiveSink,
        deadline_s: float,
    ) -> FetchResult:
        """Fetch an archive, checked before this returns; see `bbcache.second_tier.Tier`."""
        if self._generation != lifecycle.generation():
            return FetchResult.SKIPPED
        result = FetchResult.SKIPPED
        try:
            may_fetch = self.config.may_fetch and not self._queue.is_closing
            if may_fetch and self._check.problem is None:
                attempt = self._fetch_breaker.begin()
                if attempt is not None:
                    address = Address(self.config.epoch, tenant_id, timeline_id, lsn)
                    result = self._attempt(attempt, address, writer, deadline_s)
        finally:
            self._metrics.fetches[result].inc()
        return result

    def _attempt(
        self, attempt: Attempt, address: Address, writer: ArchiveSink, deadline_s: float
    ) -> FetchResult:
        has_failed: bool | None = None
        failure = ""
        try:
            result = self._fetch(address, writer, deadline_s)
            has_failed = False
        except BucketError as error:
            result, has_failed, failure = error.result, True, str(error)
            log.debug("cannot fetch %s: %s", address.name, error)
        except ArchiveError as error:
            result, has_failed = FetchResult.BAD, False
            self._note_bad(address, error)
        finally:
            has_changed = self._fetch_breaker.end(attempt, has_failed=has_failed)
        if has_changed and has_failed:
            log.error("fetches from the tier pause after failures in a row: %s", failure)
        elif has_changed:
            log.info("fetches from the tier work again")
        return result

    def _fetch(self, address: Address, writer: ArchiveSink, deadline_s: float) -> FetchResult:
        """Copy an object's archive to the writer.

        Raises:
            BucketError: the request failed.
            ArchiveError: the object is bad.
        """
        started_s = time.monotonic()
        download = self._bucket.get(address.name)
        if download is None:
            return FetchResult.ABSENT
        self._metrics.first_byte_seconds.observe(time.monotonic() - started_s)
        if not PREAMBLE_SIZE_BYTES < download.size_bytes <= self.config.max_object_size_bytes:
            raise BadObjectError(
                f"it has {download.size_bytes} bytes; from {PREAMBLE_SIZE_BYTES + 1} to "
                f"{self.config.max_object_size_bytes} (max_object_size_bytes) are read"
            )
        check = ObjectCheck(
            address, download.size_bytes, self._keys, allow_unsigned=self.config.allow_unsigned
        )
        for piece in download.pieces:
            writer.write(check.archive_part(piece))
            self._metrics.fetched_bytes.inc(len(piece))
            if time.monotonic() > deadline_s:
                raise BucketError("the fetch has taken too long", FetchResult.TIMEOUT)
        check.finish()
        writer.check()
        self._metrics.fetch_seconds.observe(time.monotonic() - started_s)
        return FetchResult.HIT

    def _note_bad(self, address: Address, error: ArchiveError) -> None:
        log.error("the object %s of the tier is bad: %s", address.name, error)
        with self._bad_lock:
            self._bad[address] = None
            self._bad.move_to_end(address)
            if len(self._bad) > self.config.upload_queue_size:
                self._bad.popitem(last=False)

    def _was_bad(self, address: Address) -> bool:
        with self._bad_lock:
            return self._bad.pop(address, True) is None

    def _settle(self, upload: Upload, result: UploadResult) -> None:
        self._uploader.settle(upload, result)

    def refresh_keys(self) -> None:
        """Read the key files again now if they have changed; else that takes a second at most."""
        self._keys.refresh()

    def wait_checked(self, timeout_s: float | None = None) -> bool:
        """Wait until the bucket was listed once, with success or not; False if time runs out."""
        return self._check.wait(timeout_s)

    def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Wait until no upload waits or runs; False if time runs out."""
        return self._generation != lifecycle.generation() or self._queue.wait_idle(timeout_s)

    def begin_close(self) -> None:
        """Take no more offers and fetches; does not wait. Idempotent."""
        if self._generation == lifecycle.generation():
            self._check.stop()
            self._queue.close(self.config.flush_timeout)

    def close(self, timeout_s: float | None = None) -> None:
        """Upload what waits, for `flush_timeout` at most, then end. Safe to call twice.

        An upload that hangs is left behind, with its thread, and ends by `upload_timeout`.

        Args:
            timeout_s: seconds to wait at most; None for those of the settings.
        """
        if self._generation != lifecycle.generation():
            return
        flush_s = self.config.flush_timeout
        if timeout_s is not None:
            flush_s = max(0.0, min(flush_s, timeout_s))
        self._check.stop()
        self._queue.close(flush_s)
        self._queue.wait_idle(flush_s)
        self._queue.drop_waiting()
        is_idle = self._queue.wait_idle(0)
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(_END_TIMEOUT_S if is_idle else 0)
        if not is_idle:
            log.warning(
                "the tier leaves an upload behind, which ends in %g s (upload_timeout) at most",
                self.config.upload_timeout,
            )
        self._metrics.close()
        lifecycle.forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_config(config: object) -> None:
    if not isinstance(config, TierConfig):
        hint = "The settings of the cache need a table `tier`, or a TierConfig as their `tier`."
        raise wrong_type("config", config, "a TierConfig", hint)


def _bucket_for_fetches(config: TierConfig) -> ObstoreBucket:
    return ObstoreBucket(
        config,
        connect_timeout_s=config.connect_timeout,
        read_timeout_s=config.first_byte_timeout,
        timeout_s=config.fetch_timeout,
    )


def _bucket_for_uploads(config: TierConfig) -> ObstoreBucket:
    timeout_s = config.upload_timeout
    return ObstoreBucket(
        config, connect_timeout_s=timeout_s, read_timeout_s=timeout_s, timeout_s=timeout_s
    )
