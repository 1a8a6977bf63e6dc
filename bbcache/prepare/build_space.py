"""The room that the bytes of one build take in the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bbcache.errors import LimitError
from bbcache.prepare.job import Skip, reason_of
from bbcache.storage.accounting import Reservation

if TYPE_CHECKING:
    from bbcache.prepare.job import Job
    from bbcache.storage.index import Index


class BuildSpace:
    """Counts the bytes of one build, as a future entry or as unpublished.

    Those of a fetch are unpublished until `publish`: a build of the timeline may run meanwhile.

    Attributes:
        reservation: the room that is taken.
    """

    def __init__(self, job: Job, index: Index) -> None:
        self._job = job
        self._index = index
        self.reservation = self._reserve()

    def _reserve(self) -> Reservation:
        key = self._job.request.key
        if self._job.may_publish and not self._job.is_fetch:
            try:
                return self._index.reserve(key)
            except LimitError as error:
                self._job.refuse(reason_of(error), error)
        reservation = Reservation(key)
        with self._index.lock:
            self._index.accounting.unpublish(reservation)
        return reservation

    def grow(self, size_bytes: int) -> None:
        """Take room for a piece before it is written.

        If the cache has none and a caller waits, the build goes on unpublished.

        Raises:
            LimitError: there is no room.
        """
        try:
            with self._index.lock:
                self._index.accounting.grow(self.reservation, size_bytes)
        except LimitError as error:
            if self.reservation.is_unpublished or not self._job.request.is_awaited:
                raise
            self._job.refusal = Skip(reason_of(error), error)
            self.unpublish()
            self.grow(size_bytes)

    def unpublish(self) -> None:
        """Count the build as unpublished from now on.

        Raises:
            LimitError: there is no room for that.
        """
        with self._index.lock:
            if not self.reservation.is_unpublished:
                self._index.accounting.unpublish(self.reservation)

    def publish(self) -> None:
        """Count a fetched archive as a future entry; if there is no room, refuse to publish it."""
        fetched = self.reservation
        try:
            with self._index.lock:
                taken = self._index.reserve(self._job.request.key)
                try:
                    self._index.accounting.grow(taken, fetched.size_bytes)
                except LimitError:
                    self._index.accounting.release(taken)
                    raise
                self._index.accounting.release(fetched)
                self.reservation = taken
        except LimitError as error:
            self._job.refuse(reason_of(error), error)

    def release(self) -> None:
        """End the build. An unpublished archive counts until its last file is closed."""
        with self._index.lock:
            self._index.accounting.release(self.reservation)
