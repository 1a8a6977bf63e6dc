"""The room that the bytes of one build take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bbcache.errors import LimitError
from bbcache.prepare.job import Skip, reason_of
from bbcache.storage.accounting import Reservation

if TYPE_CHECKING:
    from bbcache.prepare.job import Job
    from bbcache.storage.index import Index


class BuildSpace:
    """Where the bytes of one build count: as an entry to be, or else as not published.

    Attributes:
        reservation: the room that is taken.
    """

    def __init__(self, job: Job, index: Index) -> None:
        self._job = job
        self._index = index
        self.reservation = self._reserve()

    def grow(self, size_bytes: int) -> None:
        """Take room for a piece before it is written.

        Where the cache has none and a caller waits, the build goes on as one that is not
        published.

        Raises:
            LimitError: there is none.
        """
        try:
            with self._index.lock:
                self._index.accounting.grow(self.reservation, size_bytes)
        except LimitError as error:
            if self.reservation.is_unpublished or not self._job.request.call.is_awaited:
                raise
            self._job.refusal = Skip(reason_of(error), error)
            self.unpublish()
            self.grow(size_bytes)

    def unpublish(self) -> None:
        """From now on the build counts as one that is not published.

        Raises:
            LimitError: there is no room for that.
        """
        with self._index.lock:
            if not self.reservation.is_unpublished:
                self._index.accounting.unpublish(self.reservation)

    def release(self) -> None:
        """The build is over; what is handed out keeps its own hold."""
        with self._index.lock:
            self._index.accounting.release(self.reservation)

    def _reserve(self) -> Reservation:
        key = self._job.request.key
        if self._job.may_publish:
            try:
                return self._index.reserve(key)
            except LimitError as error:
                self._job.refuse(reason_of(error), error)
        reservation = Reservation(key)
        with self._index.lock:
            self._index.accounting.unpublish(reservation)
        return reservation
