"""One prepare, from the request to its result, and the callers that wait for it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache.errors import ClosingError
from bbcache.outcomes import SkipReason, Source
from bbcache.storage.index import make_place
from bbcache.waiters import Waiters

if TYPE_CHECKING:
    from bbcache.errors import StoreError
    from bbcache.ids import Lsn, TenantShardId
    from bbcache.prepare.shared_file import SharedFile


class Result(NamedTuple):
    """How a request has ended. Without arguments: an error, after which callers ask again.

    Attributes:
        shared_file: the archive, for the callers that wait.
        error: the failure, for the callers that wait.
        is_built: whether a build succeeded. Without `shared_file` the archive is published.
        reason: why nothing was published; None for a published archive and for an error.
        why: the error behind `reason`, or behind a failure after which callers ask again.
        published_bytes: sizes of the tarball and the archive; None if nothing was published.
        source: where the archive came from, for the caller that asked first.
    """

    shared_file: SharedFile | None = None
    error: BaseException | None = None
    is_built: bool = False
    reason: SkipReason | None = None
    why: BaseException | None = None
    published_bytes: tuple[int, int] | None = None
    source: Source = Source.BUILT

    @classmethod
    def skip(cls, reason: SkipReason) -> Result:
        """The end of a request that no worker has run; its callers ask again."""
        return CLOSED if reason is SkipReason.CLOSING else cls(reason=reason)


CLOSED: Final = Result(error=ClosingError("the cache is closing"), reason=SkipReason.CLOSING)


@dataclass(slots=True, eq=False)
class Request:
    """One prepare, with the callers that wait for its result. Compared by identity.

    The methods are thread-safe. The queue's lock guards the attributes that change.

    Attributes:
        key: tenant and timeline ids, 32 bytes.
        lsn: the LSN of the basebackup.
        tenant_shard_id: shard zero of the tenant; None for the rebuild of a bad archive.
        queued_at_s: time of the request, by `time.monotonic`.
        is_sent: whether `send_prepare` or a rebuild asked for it. A request of callers of
            `get_or_prepare` alone stops waiting for its LSN when they leave.
        must_build: whether an entry at the LSN is not a substitute, because it cannot be read.
        disk_failure: why a caller could not read the last archive; the next one is built in
            `unpublished_dir`. None if that has not happened.
        is_warm: whether `send_warm` asked for it: without a caller, and unless `is_sent`, it
            ends if the second tier does not give the archive.
        fetch_timeout_s: seconds for a fetch from the second tier; None if it is not asked.
        fetch_failure: why the second tier was not asked, or the fetch failed; None for any other
            end of a fetch.
        fetch_by_s: when that time is over for callers that wait, by `time.monotonic`.
        place: key and LSN as bytes.
        joined: the request that this one, of a caller, has joined; it may be itself.
        waiting_since_s: when the wait for the LSN began; None before and after it.
        is_seen: whether a worker has taken it.
        is_behind: whether a worker has put it behind the line.
        is_reached: whether the LSN is reached and the build runs.
        is_first: whether it was taken before requests that no caller waits for.
        is_counted: whether its end is counted.
    """

    key: bytes
    lsn: Lsn
    tenant_shard_id: TenantShardId | None
    queued_at_s: float
    is_sent: bool = field(default=True, kw_only=True)
    is_warm: bool = field(default=False, kw_only=True)
    fetch_timeout_s: float | None = field(default=None, kw_only=True)
    fetch_failure: BaseException | None = field(init=False, default=None)
    fetch_by_s: float = field(init=False, default=0.0)
    must_build: bool = field(init=False, default=False)
    disk_failure: StoreError | None = field(init=False, default=None)
    place: bytes = field(init=False)
    joined: Request | None = field(init=False, default=None)
    waiting_since_s: float | None = field(init=False, default=None)
    is_seen: bool = field(init=False, default=False)
    is_behind: bool = field(init=False, default=False)
    is_reached: bool = field(init=False, default=False)
    is_first: bool = field(init=False, default=False)
    is_counted: bool = field(init=False, default=False)
    _lock: threading.RLock = field(init=False)  # guards the next two
    _callers: set[object] = field(init=False, default_factory=set)
    _result: Result | None = field(init=False, default=None)
    _waiters: Waiters = field(init=False, default_factory=Waiters)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()  # here, so that tests which watch locks see it
        self.place = make_place(self.key, self.lsn)
        self.fetch_by_s = self.queued_at_s + (self.fetch_timeout_s or 0.0)

    @property
    def is_rebuild(self) -> bool:
        """Whether it replaces a bad archive, provided that the tip is still at its LSN."""
        return self.tenant_shard_id is None

    @property
    def is_awaited(self) -> bool:
        """Whether a caller waits now; one read of memory."""
        return bool(self._callers)

    def join(self, caller: object) -> bool:
        """Wait for the result until `leave`; False if there is one already.

        Args:
            caller: stands for the caller; hashable.
        """
        with self._lock:
            if self._result is None:
                self._callers.add(caller)
            return self._result is None

    def wait(self, timeout_s: float | None) -> Result | None:
        """Wait for the result; None if `timeout_s` seconds pass first."""
        self._waiters.wait_for(lambda: self._result is not None, timeout_s)
        return self._result

    def finish(self, result: Result) -> None:
        """Give all callers the result. Only the first one counts."""
        with self._lock:
            is_taken = self._result is None and self.is_awaited
            if self._result is None:
                self._result = result if is_taken else Result()
        self._waiters.wake_all()
        if result.shared_file is not None and not is_taken:
            result.shared_file.close()

    def leave(self, caller: object) -> None:
        """Stop waiting; harmless twice. The last caller closes the shared file."""
        with self._lock:
            self._callers.discard(caller)
            result = None if self._callers else self._result
        if result is not None and result.shared_file is not None:
            result.shared_file.close()
