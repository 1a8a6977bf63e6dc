"""Building one archive: its temporary file, the writer, and what becomes of it.

It is published, or, where it must not be, handed without a name to those who wait for it.
Where the disk of the cache fails and somebody waits, the host is asked once more, and the
archive is built in `unpublished_dir`.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache import lifecycle
from bbcache.archive.format import ArchiveWriter, check_sealed, pack_header
from bbcache.archive.tar_head import check_tar_head
from bbcache.errors import ArchiveError, ClosingError, StoreError
from bbcache.outcomes import FallbackResult, Phase, SkipReason
from bbcache.prepare.build_space import BuildSpace
from bbcache.prepare.job import (
    PROCESS_LIMITS,
    DiskError,
    Skip,
    both_failed,
    hint_for_unpublished,
    own_disk,
    own_limits,
)
from bbcache.prepare.shared_file import SharedFile
from bbcache.storage.files import disk_step
from bbcache.storage.index import Entry, Verification, split_key
from bbcache.storage.unnamed_file import UnnamedFile

if TYPE_CHECKING:
    from bbcache.archive.format import Seal
    from bbcache.config import BasebackupCacheConfig
    from bbcache.host import Timeline
    from bbcache.metrics import Metrics
    from bbcache.prepare.job import Job
    from bbcache.storage.catalog import Catalog
    from bbcache.storage.files import Store, TempFile
    from bbcache.storage.index import Index

_WRITE_SIZE_BYTES: Final = 1 << 16

log = logging.getLogger(__name__)


class Built(NamedTuple):
    """A finished archive.

    Attributes:
        seal: its seal.
        entry: what is in it, published or not.
        shared_file: for those who wait; None where nobody did.
    """

    seal: Seal
    entry: Entry
    shared_file: SharedFile | None


class _Output:
    """Brings an archive into its temporary file, a good deal at a time."""

    def __init__(self, temp: TempFile, room: BuildSpace) -> None:
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
        store: where temporary files are made.
        catalog: where archives are published.
        metrics: told how long the phases take.

    Attributes:
        is_stopping: whether builds are to end; one read of memory.
        disk_failure: what the disk has refused the last build that was to be published, in
            one line; None where it was published.
    """

    def __init__(
        self,
        config: BasebackupCacheConfig,
        index: Index,
        *,
        store: Store,
        catalog: Catalog,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._index = index
        self._store = store
        self._catalog = catalog
        self._metrics = metrics
        metrics.degraded.read_from(lambda: self.degraded_reason is not None)
        self._unpublished_dir = (
            None if config.unpublished_dir is None else os.path.abspath(config.unpublished_dir)
        )
        self.disk_failure: str | None = None  # set by any worker: the last one counts
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
            DiskError: the disk of the cache has failed, and nobody waits.
            StoreError: it has failed, and so has the build in `unpublished_dir`; or the
                process is out of descriptors or memory.
            BbcacheError: it failed.
            BaseException: the host has raised it.
        """
        self.check_disk(job)
        if job.disk_failure is None:
            try:
                return self._build(job, timeline)
            except DiskError as failed:
                self._meet(job, failed)
        return self._build_aside(job, timeline)

    @property
    def is_read_only(self) -> bool:
        """Whether the cache could not be written to when it was last looked at."""
        return self._catalog.read_only_reason is not None

    @property
    def degraded_reason(self) -> str | None:
        """Why nothing can be published now, in one line; None where nothing is known."""
        return self._catalog.read_only_reason or self.disk_failure

    def check_disk(self, job: Job) -> None:
        """Look whether the cache can be written to; where not, the archive is built elsewhere.

        Raises:
            Skip: the file system is read-only, and nobody waits.
            DiskError: the directory cannot be used, and nobody waits.
        """
        if job.disk_failure is not None:
            return
        try:
            with own_disk("use", self._store.data_dir):
                self._catalog.ensure_directory()
        except DiskError as failed:
            self._meet(job, failed)
        reason = self._catalog.read_only_reason
        if reason is not None:
            job.disk_failure = job.disk_failure or StoreError(reason, errno=errno.EROFS)
            job.refuse(SkipReason.READ_ONLY)

    def _meet(self, job: Job, failed: DiskError) -> None:
        """Make a failure of the disk known.

        Raises:
            DiskError: it is the disk's, and nobody waits for the archive.
            StoreError: it is a limit of the process, which is held against nobody.
        """
        if failed.error.errno in PROCESS_LIMITS:
            job.failing = None
            raise failed.error
        job.disk_failure = failed.error
        self.disk_failure = str(failed.error).partition("\n")[0]
        if not job.request.call.is_awaited:
            raise failed
        log.error(
            "the basebackup of %s at %s is built in unpublished_dir, since the cache's disk fails: "
            "%s",
            split_key(job.request.key),
            job.request.lsn,
            failed.error,
        )

    def _build_aside(self, job: Job, timeline: Timeline) -> Built:
        """Build what the disk of the cache cannot take; raises as `build`."""
        first, result = job.disk_failure, FallbackResult.ERROR
        assert first is not None
        try:
            built = self._build(job, timeline)
            result = FallbackResult.OK
        except Skip as skip:
            if skip.why is None or skip is job.refusal:  # a close, or nobody waits any more
                raise
            raise Skip(skip.reason, both_failed(first, skip.why)) from skip
        except DiskError as failed:
            if failed.error is first:  # nobody waits any more
                raise
            job.failing = None  # no failure of a disk is held against the timeline
            raise both_failed(
                first, failed.error, hint_for_unpublished(failed.error)
            ) from failed.error
        except BaseException as error:
            raise both_failed(first, error) from error
        finally:
            self._metrics.fallback_builds[result].inc()
        return built

    def _build(self, job: Job, timeline: Timeline) -> Built:
        room = BuildSpace(job, self._index)
        try:
            temp = self._create_temp(job)
            try:
                with self._metrics.prepare_seconds[Phase.BUILD].time():
                    seal = self._write(job, timeline, temp, room)
                with lifecycle.callback():
                    job.check_tip(timeline)
                with self._metrics.prepare_seconds[Phase.PUBLISH].time():
                    return self._finish(job, seal, temp, room)
            except BaseException:
                self._remove(temp, room)
                raise
        finally:
            room.release()

    def _create_temp(self, job: Job) -> TempFile:
        key, lsn = job.request.key, job.request.lsn
        if job.disk_failure is None:
            with own_limits(), own_disk("create a file in", self._store.tmp_dir):
                return self._catalog.create_temp(key, lsn)
        with own_disk("find", "the temporary directory"):
            directory = self._unpublished_dir or tempfile.gettempdir()
        with own_disk("create a file in", directory):
            return UnnamedFile.create(directory, self._store.new_temp_name(key, lsn))

    def check_not_stopping(self) -> None:
        """Skip what runs when the cache closes."""
        if self.is_stopping:
            raise Skip(SkipReason.CLOSING)

    def _write(self, job: Job, timeline: Timeline, temp: TempFile, room: BuildSpace) -> Seal:
        output = _Output(temp, room)
        with own_limits():
            writer = ArchiveWriter(output.take, self._config.compression_level, check_tar_head)
        self._writers.add(writer)
        try:
            self.check_not_stopping()
            with lifecycle.callback():
                timeline.send_basebackup_tarball(writer, job.request.lsn)
            seal = writer.finish()
        except BaseException:
            # What the writer has raised is the cause, whatever the host made of it.
            if isinstance(writer.failure, StoreError):
                raise DiskError(writer.failure) from None
            if writer.failure is not None:
                with own_limits():
                    raise writer.failure from None
            raise
        else:
            with own_disk("write", temp.path):
                output.write()
            return seal
        finally:
            self._writers.discard(writer)
            writer.abort()

    def _finish(self, job: Job, seal: Seal, temp: TempFile, room: BuildSpace) -> Built:
        self.check_not_stopping()
        with own_disk("write", temp.path):
            temp.patch(pack_header(seal, job.request.key, job.request.lsn))
        if not job.may_publish:
            with own_limits():
                room.unpublish()
        entry = Entry(job.request.key, job.request.lsn, room.reservation.size_bytes)
        if self._config.verify_reads == "never":
            entry.verification = Verification.SEALED
        shared_file = self._hand_out(job, seal, temp, entry, room)
        try:
            if job.may_publish:
                self._publish(temp, entry, room)
            else:
                self._remove(temp, room)
        except BaseException:
            if shared_file is not None:
                shared_file.close()
            raise
        return Built(seal, entry, shared_file)

    def _hand_out(
        self, job: Job, seal: Seal, temp: TempFile, entry: Entry, room: BuildSpace
    ) -> SharedFile | None:
        """Open the archive for those who wait, checked once for all of them."""
        if not job.request.call.is_awaited:
            if not job.may_publish:
                raise job.why_unpublished()
            return None
        path = self._store.path_of(entry.key, entry.lsn)
        with own_disk("open", temp.path):
            if job.may_publish:
                shared_file = SharedFile(temp.link, entry, name=path)
            else:
                shared_file = SharedFile(
                    temp.link, entry, name=temp.path, reservation=room.reservation
                )
        try:
            if not entry.is_verified:
                with own_disk("read", temp.path):
                    _check_read_back(shared_file, seal)
                entry.verification = Verification.SEALED
        except BaseException:
            shared_file.close()
            raise
        return shared_file

    def _publish(self, temp: TempFile, entry: Entry, room: BuildSpace) -> None:
        with own_disk("write", temp.path):
            temp.sync()
            temp.close()
        with own_limits(), own_disk("publish", temp.path):
            self._catalog.publish(temp, room.reservation, entry)
        self.disk_failure = None

    def _remove(self, temp: TempFile, room: BuildSpace) -> None:
        """Remove a file that is not published; a reader that has it open can go on."""
        if isinstance(temp, UnnamedFile):
            with suppress(OSError):  # the kernel frees the descriptor even so
                temp.close()
        else:
            self._catalog.abandon(temp, room.reservation)


def _check_read_back(shared_file: SharedFile, seal: Seal) -> None:
    """Compare a finished file with what was written.

    Raises:
        OSError: it cannot be read, or other bytes come back.
    """
    try:
        check_sealed(shared_file.fileno(), shared_file.entry.size_bytes, seal, with_digest=True)
    except ArchiveError as error:
        raise OSError(errno.EIO, f"{error}; the disk has not kept what was written") from error
