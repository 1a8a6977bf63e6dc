"""Implement `get_or_prepare`: return a hit, or wait for the single build in flight."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
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
from bbcache.storage.disk_errors import hint_for
from bbcache.storage.index import make_key, make_place, split_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.history import History
    from bbcache.ids import Lsn, TenantShardId, TimelineId
    from bbcache.metrics import Metrics
    from bbcache.prepare.backoff import Backoff
    from bbcache.prepare.queue import PrepareQueue
    from bbcache.prepare.request import Result
    from bbcache.prepare.shared_file import SharedFile
    from bbcache.storage.files import BasebackupFile
    from bbcache.storage.reader import Reader

_SLICE_S: Final = 0.2  # between two calls of `check_cancelled`


class _DamagedError(Exception):
    """A finished archive cannot be read back as it was written.

    Attributes:
        failure: the cause, for the error if the next build fails too.
    """

    def __init__(self, failure: StoreError) -> None:
        super().__init__(failure)
        self.failure = failure


@dataclass
class _Patience:
    """How long one caller waits for a build; for one thread.

    Attributes:
        deadline_s: when the wait ends, by `time.monotonic`; None if it has no limit.
        is_cancelled: whether `check_cancelled` has raised.
    """

    deadline_s: float | None
    check_cancelled: Callable[[], None] | None
    is_cancelled: bool = False

    def wait(self, request: Request) -> Result | None:
        """Wait for the end of a build that was joined; None when the time is up."""
        while True:
            left_s = None if self.deadline_s is None else self.deadline_s - time.monotonic()
            if self.check_cancelled is None or (left_s is not None and left_s <= _SLICE_S):
                return request.wait(left_s)
            result = request.wait(_SLICE_S)
            if result is not None:
                return result
            self.is_cancelled = True
            self.check_cancelled()
            self.is_cancelled = False


@dataclass(eq=False)
class Filler:
    """Returns hits, and waits for builds of what is missing. Thread-safe.

    Attributes:
        is_own_thread: whether the caller is one of the threads that builds need.
        fetch_timeout_s: seconds that the second tier has; None if there is none.
    """

    reader: Reader
    queue: PrepareQueue
    backoff: Backoff
    metrics: Metrics
    history: History
    is_own_thread: Callable[[], bool]
    fetch_timeout_s: float | None = None

    def get(
        self,
        tenant_shard_id: TenantShardId,
        timeline_id: TimelineId,
        lsn: Lsn,
        timeout_s: float | None,
        check_cancelled: Callable[[], None] | None = None,
    ) -> BasebackupFile:
        """See `BasebackupCache.get_or_prepare`."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        patience = _Patience(deadline_s, check_cancelled)
        key = make_key(tenant_shard_id.tenant_id, timeline_id)
        file: BasebackupFile | None = None
        try:
            file = self._get(tenant_shard_id, timeline_id, lsn, patience)
            self.metrics.fills[FillResult(file.source)].inc()
            if file.source is not Source.HIT:
                self.history.add(key, lsn, FillResult(file.source))
        except BaseException as error:
            if file is not None:  # the count was interrupted
                with suppress(OSError):  # the first failure is the one that counts
                    file.close()
            else:
                result = FillResult.CANCELLED if patience.is_cancelled else _result(error)
                self.metrics.fills[result].inc()
                self.history.add(key, lsn, result, safe_str(error))
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
            file = self.reader.read(tenant_shard_id.tenant_id, timeline_id, lsn)
            if file is not None:
                file.source = source
                return file
            self._check_may_wait(key, lsn)
            fill = Request(
                key,
                lsn,
                tenant_shard_id,
                time.monotonic(),
                is_sent=False,
                fetch_timeout_s=None if must_build else self.fetch_timeout_s,
            )
            fill.must_build, fill.disk_failure = must_build, disk_failure
            try:
                file, result = self._wait(fill, patience)
            except _DamagedError as error:
                disk_failure, must_build = error.failure, True
                continue
            if file is not None:
                return file
            # There is an entry now. If it cannot be read, the next round builds another archive.
            source, must_build = Source.JOINED if result.is_built else Source.HIT, True

    def _check_may_wait(self, key: bytes, lsn: Lsn) -> None:
        name = f"{split_key(key)} at {lsn}"
        if self.is_own_thread():
            raise FillError(
                f"the cache has no basebackup of {name}, and a callback of the cache cannot "
                "wait for it\n"
                "hint: Call get_or_prepare from a thread of your own, and do not wait for that "
                "thread in a callback."
            )
        if self.queue.has(key, lsn):
            return
        refusal = self.backoff.refusal(key, str(split_key(key)))
        refusal = refusal or self.backoff.refusal(make_place(key, lsn), name)
        if refusal is not None:
            raise refusal

    def _wait(self, fill: Request, patience: _Patience) -> tuple[BasebackupFile | None, Result]:
        """Wait for the single build; the file is None if the caller must look up again."""
        try:
            request = self.queue.join(fill)
            if request is None:
                raise _closing()
            result = patience.wait(request)
            if result is None:
                raise _timed_out(request)
            if isinstance(result.error, ClosingError):
                raise _closing() from result.error
            if result.error is not None:
                raise _failed(fill, result.error) from result.error
            if result.shared_file is None:
                return None, result
            source = result.source if request is fill else Source.JOINED
            return self._open(fill, result.shared_file, source), result
        finally:
            try:
                self.queue.leave(fill)
            except BaseException:  # interrupted, maybe before it had any effect
                self.queue.leave(fill)
                raise

    def _open(self, fill: Request, shared_file: SharedFile, source: Source) -> BasebackupFile:
        """Open a finished archive; raises `_DamagedError` if it has to be built elsewhere."""
        try:
            file = shared_file.open_file(source)
            try:
                self.reader.check_built(file, shared_file.entry)
            except BaseException:
                with suppress(OSError):  # the first failure is the one that counts
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
    """How a call that raised `error` is counted."""
    match error:
        case ClosingError():
            return FillResult.CLOSING
        case FillTimeoutError():
            return FillResult.TIMEOUT
        case BackingOffError():
            return FillResult.BACKING_OFF
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
