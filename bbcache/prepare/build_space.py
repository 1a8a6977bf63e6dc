"""The room that the bytes of one build take in the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bbcache.errors import LimitError
from bbcache.prepare.job import Skip, reason_of
from bbcache.storage.accounting import Reservation

if TYPE_CHECKING:
    from bbcache.prepare.job import Job
    from bbcache.storage.evictor import Evictor
    from bbcache.storage.index import Index


class BuildSpace:
    """Counts the bytes of one build, as a future entry or as unpublished.

    Those of a fetch are unpublished until `publish`: a build of the timeline may run meanwhile.

    Attributes:
        reservation: the room that is taken.
    """

    def __init__(self, job: Job, index: Index, evictor: Evictor) -> None:
        self._job = job
        self._index = index
        self._evictor = evictor
        self.reservation = self._reserve()

    def _reserve(self) -> Reservation:
        job, key = self._job, self._job.request.key
        if job.may_publish and not job.is_fetch:
            try:
                return self._evictor.reserve(key, is_stop=job.is_stop, may_evict=job.may_evict)
            except LimitError as error:
                job.refuse(reason_of(error), error)
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
            self._evictor.grow(self.reservation, size_bytes)
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
        job, fetched = self._job, self.reservation
        key, may_evict = job.request.key, job.may_evict
        try:
            taken = self._evictor.reserve(key, is_stop=job.is_stop, may_evict=may_evict)
            try:
                self._evictor.grow(taken, fetched.size_bytes)
            except LimitError:
                self._evictor.release(taken)
                raise
            with self._index.lock:
                self._index.accounting.release(fetched)
            self.reservation = taken
        except LimitError as error:
            job.refuse(reason_of(error), error)

    def release(self) -> None:
        """End the build. An unpublished archive counts until its last file is closed."""
        self._evictor.release(self.reservation)
