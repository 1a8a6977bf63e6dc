"""Implement `get_or_prepare`: return a hit, or wait for the single build in flight."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from bbcache.errors import (
    ArchiveError,
    BackingOffError,
    ClosingError,
    FillError,
    FillTimeoutError,
    StoreError,
    safe_str,
)
from bbcache.outcomes import FillResult, Source
from bbcache.prepare.job import PROCESS_LIMITS, both_failed
from bbcache.prepare.request import Request
from bbcache.storage.files import hint_for
from bbcache.storage.index import make_key, make_place, split_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.ids import Lsn, TenantShardId, TimelineId
    from bbcache.metrics import Metrics
    from bbcache.prepare.backoff import Backoff
    from bbcache.prepare.queue import PrepareQueue
    from bbcache.prepare.shared_file import SharedFile
    from bbcache.prepare.singleflight import Call, Result
    from bbcache.storage.files import BasebackupFile
    from bbcache.storage.reader import Reader

_SLICE_S: Final = 0.2  # how long a caller may wait before it is asked whether it still does


class _DamagedError(Exception):
    """A finished archive cannot be read back, or not as it was written.

    Attributes:
        failure: how, for the error where the next build fails too.
    """

    def __init__(self, failure: StoreError) -> None:
        super().__init__(failure)
        self.failure = failure


class _Patience:
    """How long one caller waits for a build; for one thread.

    Attributes:
        is_at_end: whether `check_cancelled` has raised.
    """

    def __init__(
        self,
        timeout_s: float | None,
        check_cancelled: Callable[[], None] | None,
        clock: Callable[[], float],
    ) -> None:
        self.is_at_end = False
        self._deadline_s = None if timeout_s is None else clock() + timeout_s
        self._check_cancelled = check_cancelled
        self._clock = clock

    def wait(self, call: Call) -> Result | None:
        """Wait for the end of a build, still joined; None when the time is up."""
        while True:
            left_s = None if self._deadline_s is None else self._deadline_s - self._clock()
            is_last = self._check_cancelled is None or (left_s is not None and left_s <= _SLICE_S)
            result = call.wait(left_s if is_last else _SLICE_S)
            if result is not None or is_last:
                return result
            self._ask()

    def _ask(self) -> None:
        assert self._check_cancelled is not None
        self.is_at_end = True
        self._check_cancelled()
        self.is_at_end = False


class Filler:
    """Gets what is held, and has built what is not. Thread-safe.

    Args:
        reader: for hits.
        queue: of prepares.
        backoff: knows what has failed lately.
        metrics: counts how each call ends.
        is_own_thread: whether the caller is one of the threads that builds need.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        reader: Reader,
        queue: PrepareQueue,
        *,
        backoff: Backoff,
        metrics: Metrics,
        is_own_thread: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._queue = queue
        self._backoff = backoff
        self._metrics = metrics
        self._is_own_thread = is_own_thread
        self._clock = clock

    def get(
        self,
        tenant_shard_id: TenantShardId,
        timeline_id: TimelineId,
        lsn: Lsn,
        timeout_s: float | None,
        check_cancelled: Callable[[], None] | None = None,
    ) -> BasebackupFile:
        """See `BasebackupCache.get_or_prepare`."""
        patience = _Patience(timeout_s, check_cancelled, self._clock)
        file: BasebackupFile | None = None
        try:
            file = self._get(tenant_shard_id, timeline_id, lsn, patience)
            self._metrics.fills[FillResult(file.source)].inc()
        except BaseException as error:
            if file is not None:  # interrupted in the last line
                with suppress(OSError):  # one failure is enough
                    file.close()
            else:
                result = FillResult.CANCELLED if patience.is_at_end else _result(error)
                self._metrics.fills[result].inc()
            raise
        return file

    def _get(
        self,
        tenant_shard_id: TenantShardId,
        timeline_id: TimelineId,
        lsn: Lsn,
        patience: _Patience,
    ) -> BasebackupFile:
        if not tenant_shard_id.is_shard_zero:
            raise FillError(
                f"shard {tenant_shard_id} makes no basebackups\n"
                "hint: Ask the host that has shard zero of the tenant."
            )
        key = make_key(tenant_shard_id.tenant_id, timeline_id)
        source, must_build = Source.HIT, False
        disk_failure: StoreError | None = None
        while True:
            file = self._reader.read(tenant_shard_id.tenant_id, timeline_id, lsn)
            if file is not None:
                file.source = source
                return file
            self._check_may_wait(key, lsn)
            fill = Request(
                key,
                lsn,
                tenant_shard_id,
                self._clock(),
                is_sent=False,
                must_build=must_build,
                disk_failure=disk_failure,
            )
            try:
                file, result = self._fly(fill, patience)
            except _DamagedError as error:
                disk_failure, must_build = error.failure, True
                continue
            if file is not None:
                return file
            # It is held after all: if it cannot be read even so, it is built beside that.
            source, must_build = Source.JOINED if result.is_built else Source.HIT, True

    def _check_may_wait(self, key: bytes, lsn: Lsn) -> None:
        if self._is_own_thread():
            raise FillError(
                f"the basebackup of {split_key(key)} at {lsn} is not held, and a callback of the "
                "cache cannot wait for it\n"
                "hint: Call get_or_prepare from a thread of your own, and do not wait for that "
                "thread in a callback."
            )
        if self._queue.has(key, lsn):
            return
        for what, name in (
            (key, str(split_key(key))),
            (make_place(key, lsn), f"{split_key(key)} at {lsn}"),
        ):
            refusal = self._backoff.refusal(what, name)
            if refusal is not None:
                raise refusal

    def _fly(self, fill: Request, patience: _Patience) -> tuple[BasebackupFile | None, Result]:
        """Wait for the one build; a file where it has handed one out."""
        try:
            request = self._queue.join(fill)
            if request is None:
                raise _closing()
            result = patience.wait(request.call)
            if result is None:
                raise _timed_out(request)
            if isinstance(result.error, ClosingError):
                raise _closing() from result.error
            if result.error is not None:
                raise _failed(fill, result.error) from result.error
            if result.shared_file is None:
                return None, result
            source = Source.BUILT if request is fill else Source.JOINED
            return self._open(fill, result.shared_file, source), result
        finally:
            try:
                self._queue.leave(fill)
            except BaseException:  # interrupted: it may not even have begun
                self._queue.leave(fill)
                raise

    def _open(self, fill: Request, shared_file: SharedFile, source: Source) -> BasebackupFile:
        """Open what was built; raises `_DamagedError` where it has to be built elsewhere."""
        try:
            file = shared_file.open_file(source)
            try:
                self._reader.check_built(file, shared_file.entry)
            except BaseException:
                with suppress(OSError):  # one failure is enough
                    file.close()
                raise
        except (ArchiveError, OSError) as error:
            if fill.disk_failure is not None:
                raise _failed(fill, both_failed(fill.disk_failure, error)) from error
            what = f"cannot read the finished archive back: {safe_str(error)}"
            if isinstance(error, OSError) and error.errno in PROCESS_LIMITS:
                raise _failed(fill, StoreError(what + hint_for(error))) from error
            raise _DamagedError(StoreError(what)) from error
        return file


def _result(error: BaseException) -> FillResult:
    """Under what a call that has raised is counted."""
    for kind, result in (
        (ClosingError, FillResult.CLOSING),
        (FillTimeoutError, FillResult.TIMEOUT),
        (BackingOffError, FillResult.BACKING_OFF),
    ):
        if isinstance(error, kind):
            return result
    return FillResult.ERROR


def _failed(fill: Request, cause: BaseException) -> FillError:
    text = safe_str(cause)
    if "\nhint: " not in text:
        text += "\nhint: The log of the cache has more; ask again later."
    return FillError(f"cannot get the basebackup of {split_key(fill.key)} at {fill.lsn}: {text}")


def _timed_out(request: Request) -> FillTimeoutError:
    if request.waiting_since_s is None:
        hint = "Its build goes on: ask again, or give it a longer timeout_s."
    else:
        hint = "Its timeline has not reached the LSN: ask for the tip, or again later."
    return FillTimeoutError(
        f"the basebackup of {split_key(request.key)} at {request.lsn} was not ready in time\n"
        f"hint: {hint}"
    )


def _closing() -> ClosingError:
    return ClosingError("the cache is closing\nhint: Ask the cache that is started next.")
