"""Building one archive: its room, its temporary file, the writer, and what becomes of it.

It is published, or, where it must not be, handed without a name to those who wait for it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache import process
from bbcache.archive import ArchiveWriter, check_sealed, pack_header
from bbcache.errors import ClosingError, LimitError
from bbcache.handout import Handout
from bbcache.index import Entry, Proof
from bbcache.job import Skip, own_limits, reason_of
from bbcache.metrics import Phase, SkipReason
from bbcache.store import disk_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.accounting import Reservation
    from bbcache.archive import Seal
    from bbcache.config import BasebackupCacheConfig
    from bbcache.host import Timeline
    from bbcache.index import Index
    from bbcache.job import Job
    from bbcache.metrics import Metrics
    from bbcache.shelf import Shelf
    from bbcache.spool import Spools
    from bbcache.store import Store, TempFile

_WRITE_SIZE_BYTES: Final = 1 << 16


class Built(NamedTuple):
    """A finished archive.

    Attributes:
        seal: its seal.
        entry: what is in it, published or not.
        handout: for those who wait; None where nobody did.
    """

    seal: Seal
    entry: Entry
    handout: Handout | None


class _Room:
    """Where the bytes of one build count: as an entry to be, or else as not published."""

    def __init__(self, job: Job, index: Index, spools: Spools) -> None:
        self._job = job
        self._index = index
        self._spools = spools
        self.reservation: Reservation | None = None
        self.spool = spools.open(self)  # of no bytes, unless the build may not be published
        try:
            if job.refusal is None:
                self._reserve()
        except BaseException:
            self.give_back()
            raise

    @property
    def size_bytes(self) -> int:
        """What the build has taken."""
        if self.reservation is None:
            return self.spool.size_bytes
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
                if not self._job.request.flight.is_awaited:
                    raise
                self._job.refusal = Skip(reason_of(error), error)
                self.leave_index()
            else:
                return
        self._spools.grow(self.spool, size_bytes)

    def leave_index(self) -> None:
        """From now on the build counts as one that is not published.

        Raises:
            LimitError: there is no room for that.
        """
        if self.reservation is not None:
            self._spools.grow(self.spool, self.reservation.held_bytes)
            self._index.release(self.reservation)
            self.reservation = None

    def give_back(self) -> None:
        """The build is over; what is handed out keeps its own hold."""
        if self.reservation is not None:
            self._index.release(self.reservation)
        self.spool.let_go(self)

    def _reserve(self) -> None:
        try:
            self.reservation = self._index.reserve(self._job.request.key)
        except LimitError as error:
            self._job.refuse(reason_of(error), error)


class _Output:
    """Brings an archive into its temporary file, a good deal at a time."""

    def __init__(self, temp: TempFile, room: _Room) -> None:
        self._temp = temp
        self._room = room
        self._held: list[bytes] = []
        self._held_bytes = 0

    def take(self, data: bytes) -> None:
        """Take room for some bytes, and keep them, or write all that is kept.

        Raises:
            LimitError: there is no room.
            StoreError: the disk refuses it.
        """
        self._room.grow(len(data))
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= _WRITE_SIZE_BYTES:
            self.write()

    def write(self) -> None:
        """Write what is kept; raises `StoreError` where the disk refuses it."""
        held, self._held = self._held, []
        self._held_bytes = 0
        with disk_step("write", self._temp.path):
            self._temp.append(b"".join(held))


class Builder:
    """Builds archives, several at once. Thread-safe.

    Args:
        config: the compression level, and when digests are checked.
        index: where room is reserved.
        spools: where there is room for what is not published.
        store: where temporary files are made.
        shelf: where archives are published.
        metrics: told how long the phases take.
        clock: seconds that only grow.

    Attributes:
        is_stopping: whether builds are to end; one read of memory.
    """

    def __init__(
        self,
        config: BasebackupCacheConfig,
        index: Index,
        spools: Spools,
        *,
        store: Store,
        shelf: Shelf,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._index = index
        self._spools = spools
        self._store = store
        self._shelf = shelf
        self._metrics = metrics
        self._clock = clock
        self.is_stopping = False
        self._writers: set[ArchiveWriter] = set()  # changed by single steps only

    def stop(self) -> None:
        """Make builds under way fail at their next write. Takes no lock, for finalisers."""
        self.is_stopping = True  # first: a writer that is missing below has yet to see it
        for writer in tuple(self._writers):
            writer.cancel(ClosingError("the cache is closing"))

    def build(self, job: Job, timeline: Timeline) -> Built:
        """Build, and publish or hand out.

        Raises:
            Skip: there is no room, no time, or nobody who wants it.
            BbcacheError: it failed.
            BaseException: the host has raised it.
        """
        with disk_step("use", self._store.data_dir):
            self._shelf.ensure_home()
        room = _Room(job, self._index, self._spools)
        try:
            with own_limits(), disk_step("create a file in", self._store.tmp_dir):
                temp = self._shelf.create_temp(job.request.key, job.request.lsn)
            try:
                with self._metrics.timed(Phase.BUILD, self._clock):
                    seal = self._write(job, timeline, temp, room)
                with process.callback():
                    job.check_tip(timeline)
                with self._metrics.timed(Phase.PUBLISH, self._clock):
                    return self._finish(job, seal, temp, room)
            except BaseException:
                self._abandon(temp, room)
                raise
        finally:
            room.give_back()

    def check_not_stopping(self) -> None:
        """Skip what runs when the cache closes."""
        if self.is_stopping:
            raise Skip(SkipReason.CLOSING)

    def _write(self, job: Job, timeline: Timeline, temp: TempFile, room: _Room) -> Seal:
        output = _Output(temp, room)
        with own_limits():
            writer = ArchiveWriter(output.take, self._config.compression_level)
        self._writers.add(writer)
        try:
            self.check_not_stopping()
            with process.callback():
                timeline.send_basebackup_tarball(writer, job.request.lsn)
            seal = writer.finish()
            output.write()
        except BaseException:
            # What the writer has raised is the cause, whatever the host made of it.
            if writer.failure is not None:
                with own_limits():
                    raise writer.failure from None
            raise
        else:
            return seal
        finally:
            self._writers.discard(writer)
            writer.abort()

    def _finish(self, job: Job, seal: Seal, temp: TempFile, room: _Room) -> Built:
        self.check_not_stopping()
        with disk_step("write", temp.path):
            temp.patch(pack_header(seal, job.request.key, job.request.lsn))
        if job.refusal is not None:
            with own_limits():
                room.leave_index()
        entry = Entry(job.request.key, job.request.lsn, room.size_bytes)
        if self._config.verify_reads == "never":
            entry.proof = Proof.SEALED
        handout = self._hand_out(job, seal, temp, entry, room)
        try:
            if job.refusal is None:
                self._publish(temp, entry, room)
            else:
                self._shelf.drop(temp, entry.size_bytes)
        except BaseException:
            if handout is not None:
                handout.close()
            raise
        return Built(seal, entry, handout)

    def _hand_out(
        self, job: Job, seal: Seal, temp: TempFile, entry: Entry, room: _Room
    ) -> Handout | None:
        """Open the archive for those who wait, checked once for all of them."""
        if not job.request.flight.is_awaited:
            if job.refusal is not None:
                raise job.refusal
            return None
        path = self._store.path_of(entry.key, entry.lsn)
        with disk_step("open", temp.path):
            if job.refusal is None:
                handout = Handout(temp.path, entry, name=path)
            else:
                handout = Handout(temp.path, entry, name=temp.path, spool=room.spool)
        try:
            if not entry.is_proven:
                with disk_step("read", temp.path):
                    check_sealed(handout.fileno(), entry.size_bytes, seal, with_digest=True)
                entry.proof = Proof.SEALED
        except BaseException:
            handout.close()
            raise
        return handout

    def _publish(self, temp: TempFile, entry: Entry, room: _Room) -> None:
        assert room.reservation is not None
        with disk_step("write", temp.path):
            temp.sync()
            temp.close()
        with own_limits(), disk_step("publish", temp.path):
            self._shelf.publish(temp, room.reservation, entry)

    def _abandon(self, temp: TempFile, room: _Room) -> None:
        if room.reservation is None:
            self._shelf.drop(temp, room.size_bytes)
        else:
            self._shelf.abandon(temp, room.reservation)
