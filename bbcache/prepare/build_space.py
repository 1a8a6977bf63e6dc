"""The room that the bytes of one build take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bbcache.errors import LimitError
from bbcache.prepare.job import Skip, reason_of

if TYPE_CHECKING:
    from bbcache.prepare.job import Job
    from bbcache.storage.accounting import Reservation
    from bbcache.storage.index import Index
    from bbcache.storage.unpublished import UnpublishedBytes


class BuildSpace:
    """Where the bytes of one build count: as an entry to be, or else as not published."""

    def __init__(self, job: Job, index: Index, unpublished: UnpublishedBytes) -> None:
        self._job = job
        self._index = index
        self._unpublished = unpublished
        self.reservation: Reservation | None = None
        self.archive_bytes = unpublished.open(
            self
        )  # of no bytes, unless the build may not be published
        try:
            if job.may_publish:
                self._reserve()
        except BaseException:
            self.give_back()
            raise

    @property
    def size_bytes(self) -> int:
        """What the build has taken."""
        if self.reservation is None:
            return self.archive_bytes.size_bytes
        return self.reservation.held_bytes

    def grow(self, size_bytes: int) -> None:
        """Take room for a piece before it is written.

        Raises:
            LimitError: there is none.
        """
        if self.reservation is not None:
            try:
                self._index.grow(self.reservation, size_bytes)
            except LimitError as error:
                if not self._job.request.call.is_awaited:
                    raise
                self._job.refusal = Skip(reason_of(error), error)
                self.leave_index()
            else:
                return
        self._unpublished.grow(self.archive_bytes, size_bytes)

    def leave_index(self) -> None:
        """From now on the build counts as one that is not published.

        Raises:
            LimitError: there is no room for that.
        """
        if self.reservation is not None:
            self._unpublished.grow(self.archive_bytes, self.reservation.held_bytes)
            self._index.release(self.reservation)
            self.reservation = None

    def give_back(self) -> None:
        """The build is over; what is handed out keeps its own hold."""
        if self.reservation is not None:
            self._index.release(self.reservation)
        self.archive_bytes.let_go(self)

    def _reserve(self) -> None:
        try:
            self.reservation = self._index.reserve(self._job.request.key)
        except LimitError as error:
            self._job.refuse(reason_of(error), error)
