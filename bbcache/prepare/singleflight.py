"""One build under way, and the callers that wait for its archive."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache.errors import ClosingError
from bbcache.outcomes import SkipReason
from bbcache.waiters import Waiters

if TYPE_CHECKING:
    from bbcache.prepare.shared_file import SharedFile


class Result(NamedTuple):
    """How a request has ended. Without arguments: an error, after which callers ask again.

    Attributes:
        shared_file: the archive, for the callers that wait.
        error: the failure, for the callers that wait.
        is_built: whether a build succeeded. Without `shared_file` the archive is published.
        reason: why nothing was published; None for a published archive and for an error.
        why: the error behind `reason`, if there is one.
        published_bytes: sizes of the tarball and the archive; None if nothing was published.
    """

    shared_file: SharedFile | None = None
    error: BaseException | None = None
    is_built: bool = False
    reason: SkipReason | None = None
    why: BaseException | None = None
    published_bytes: tuple[int, int] | None = None

    @classmethod
    def skip(cls, reason: SkipReason) -> Result:
        """The end of a request that no worker has run; its callers ask again."""
        return CLOSED if reason is SkipReason.CLOSING else cls(reason=reason)


CLOSED: Final = Result(error=ClosingError("the cache is closing"), reason=SkipReason.CLOSING)


class Call:
    """The result of a build, for the callers that wait for it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # guards the next two
        self._callers: set[object] = set()
        self._result: Result | None = None
        self._waiters = Waiters()

    @property
    def is_awaited(self) -> bool:
        """Whether a caller waits now; one read of memory."""
        return bool(self._callers)

    def join(self, caller: object) -> bool:
        """Wait for the build until `leave`; False if it has ended already.

        Args:
            caller: stands for the caller; hashable.
        """
        with self._lock:
            if self._result is None:
                self._callers.add(caller)
            return self._result is None

    def wait(self, timeout_s: float | None) -> Result | None:
        """Wait for the end; None if `timeout_s` seconds pass first."""
        self._waiters.wait_for(lambda: self._result is not None, timeout_s)
        return self._result

    def finish(self, result: Result) -> None:
        """End the build and wake all callers. Only the first result counts."""
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
