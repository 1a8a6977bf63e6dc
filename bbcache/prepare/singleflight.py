"""One build that is under way, and those who wait for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from bbcache.waiters import Waiters

if TYPE_CHECKING:
    from bbcache.prepare.shared_file import Handout


class Landing(NamedTuple):
    """How a build has ended.

    Attributes:
        handout: its archive.
        error: why there is none, for everyone who has waited.
        is_built: whether a build has succeeded. Without a handout the archive is in the
            index then. Where nothing was built and nothing failed, it is to be asked again.
    """

    handout: Handout | None = None
    error: BaseException | None = None
    is_built: bool = False


class Flight:
    """The result of a build, for the callers that wait for it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # guards the next two
        self._seats: set[object] = set()  # one for each caller that waits
        self._landing: Landing | None = None
        self._waiters = Waiters()

    @property
    def is_awaited(self) -> bool:
        """Whether anybody waits at this moment; one read of memory."""
        return bool(self._seats)

    def board(self, seat: object) -> bool:
        """Take a seat, which is hashable, until `leave`; False where it is too late for that."""
        with self._lock:
            if self._landing is not None:
                return False
            self._seats.add(seat)
            return True

    def wait(self, timeout_s: float | None) -> Landing | None:
        """Wait for the end; None when `timeout_s` seconds passed first."""
        self._waiters.wait_for(lambda: self._landing is not None, timeout_s)
        return self._landing

    def land(self, landing: Landing) -> None:
        """The build has ended; the first call counts, and wakes everyone at once."""
        with self._lock:
            is_taken = self._landing is None and self.is_awaited
            if self._landing is None:
                self._landing = landing if is_taken else Landing()
        self._waiters.wake_all()
        if landing.handout is not None and not is_taken:
            landing.handout.close()

    def leave(self, seat: object) -> None:
        """Give a seat up; harmless twice. The last caller closes what was handed out."""
        with self._lock:
            self._seats.discard(seat)
            is_last = not self._seats
            handout = self._landing.handout if self._landing is not None and is_last else None
        if handout is not None:
            handout.close()
