"""One build that is under way, and those who wait for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from bbcache.waiters import Waiters

if TYPE_CHECKING:
    from bbcache.prepare.shared_file import SharedFile


class Result(NamedTuple):
    """How a build has ended.

    Attributes:
        shared_file: its archive.
        error: the failure, for each caller that waited.
        is_built: whether a build has succeeded. Without a shared file the archive is in the
            index then. Where nothing was built and nothing failed, it is to be asked again.
    """

    shared_file: SharedFile | None = None
    error: BaseException | None = None
    is_built: bool = False


class Call:
    """The result of a build, for the callers that wait for it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # guards the next two
        self._callers: set[object] = set()  # one for each caller that waits
        self._result: Result | None = None
        self._waiters = Waiters()

    @property
    def is_awaited(self) -> bool:
        """Whether anybody waits at this moment; one read of memory."""
        return bool(self._callers)

    def join(self, caller: object) -> bool:
        """Wait for the build until `leave`; False where it has ended already.

        Args:
            caller: stands for the caller; hashable.
        """
        with self._lock:
            if self._result is not None:
                return False
            self._callers.add(caller)
            return True

    def wait(self, timeout_s: float | None) -> Result | None:
        """Wait for the end; None when `timeout_s` seconds passed first."""
        self._waiters.wait_for(lambda: self._result is not None, timeout_s)
        return self._result

    def finish(self, result: Result) -> None:
        """The build has ended; the first call counts, and wakes everyone at once."""
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
            is_last = not self._callers
            shared_file = self._result.shared_file if self._result is not None and is_last else None
        if shared_file is not None:
            shared_file.close()
