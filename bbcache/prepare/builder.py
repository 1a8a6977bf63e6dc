"""Building one archive: its temporary file, the writer, and what becomes of it.

The archive is published. If it must not be, the callers that wait get it from a file without a
name. If the disk of the cache fails and a caller waits, the host is asked once more, and the
archive is built in `unpublished_dir`.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from bbcache.archive.format import check_sealed, pack_header
from bbcache.archive.tar_head import check_tar_head
from bbcache.archive.writer import ArchiveWriter
from bbcache.errors import ArchiveError, ClosingError, LimitError, StoreError
from bbcache.outcomes import FallbackResult, FetchResult, Phase, SkipReason
from bbcache.prepare.build_space import BuildSpace
from bbcache.prepare.job import (
    PROCESS_LIMITS,
    Skip,
    both_failed,
    cause_of,
    hint_for_unpublished,
    host_call,
    reason_of,
)
from bbcache.prepare.shared_file import SharedFile
from bbcache.prepare.temp_output import FetchedArchive, TempOutput
from bbcache.storage.disk_errors import disk_step
from bbcache.storage.files import UnnamedFile
from bbcache.storage.index import Entry, Verification, split_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.archive.format import Seal
    from bbcache.config import BasebackupCacheConfig
    from bbcache.host import Timeline
    from bbcache.metrics import Metrics
    from bbcache.prepare.job import Job
    from bbcache.second_tier import ArchiveSink
    from bbcache.storage.catalog import Catalog
    from bbcache.storage.evictor import Evictor
    from bbcache.storage.files import Store, TempFile
    from bbcache.storage.index import Index

log = logging.getLogger(__name__)


class Built(NamedTuple):
    """A finished archive.

    Attributes:
        seal: its seal.
        entry: its key, LSN and size, published or not.
        shared_file: the archive for the callers that wait; None if there were none.
    """

    seal: Seal
    entry: Entry
    shared_file: SharedFile | None


@dataclass(eq=False)
class Builder:
    """Builds archives, several at once. Thread-safe.

    Attributes:
        on_published: called with each archive that was built and published, and the entry that
            it has replaced; must not raise. None without a second tier.
        is_stopping: whether builds are to end; one read of memory.
        disk_failure: how the disk refused the last archive that was to be published, in one
            line; None if that was published. Set by any worker.
    """

    config: BasebackupCacheConfig
    index: Index
    store: Store
    catalog: Catalog
    evictor: Evictor
    metrics: Metrics
    on_published: Callable[[Entry, Entry | None], None] | None
    disk_failure: str | None = field(init=False, default=None)
    is_stopping: bool = field(init=False, default=False)
    _writers: set[ArchiveWriter] = field(init=False, default_factory=set)  # changed by single steps

    def __post_init__(self) -> None:
        path = self.config.unpublished_dir
        self._unpublished_dir = None if path is None else os.path.abspath(path)
        self.metrics.degraded.read_from(lambda: self.degraded_reason is not None)

    def stop(self) -> None:
        """Make builds under way fail at their next write. Takes no lock, for finalisers."""
        self.is_stopping = True  # first: a writer that is added later sees it
        for writer in tuple(self._writers):
            writer.cancel(ClosingError("the cache is closing"))

    def check_not_stopping(self) -> None:
        """Raise `Skip` if the cache closes."""
        if self.is_stopping:
            raise Skip(SkipReason.CLOSING)

    @property
    def is_read_only(self) -> bool:
        """Whether the cache could not be written to when that was last tried."""
        return self.catalog.read_only_reason is not None

    @property
    def degraded_reason(self) -> str | None:
        """Why nothing can be published now, in one line; None if nothing is known."""
        return self.catalog.read_only_reason or self.disk_failure

    def build(self, job: Job, timeline: Timeline) -> Built:
        """Build an archive, and publish it or open it for the callers that wait.

        Raises:
            Skip: there is no room or no time, or nobody wants the archive any more.
            StoreError: the disk of the cache has failed, and no caller waits, or the build in
                `unpublished_dir` has failed as well; or the process is out of descriptors or
                memory.
            HostError: the host raised.
            ArchiveError: the host wrote no tar.
        """
        self.check_disk(job)
        try:
            if job.disk_failure is None:
                try:
                    return self._build(job, timeline)
                except StoreError as failed:
                    self._note_failure(job, failed)
            return self._build_aside(job, timeline)
        except ClosingError as error:
            raise Skip(SkipReason.CLOSING) from error
        except LimitError as error:
            raise Skip(reason_of(error), error) from error

    def check_disk(self, job: Job) -> None:
        """Find out whether the cache can be written to; if not, the archive is built elsewhere.

        Raises:
            Skip: the file system is read-only, and no caller waits.
            StoreError: as `build`.
        """
        if job.disk_failure is not None:
            return
        try:
            with disk_step("use", self.store.data_dir):
                self.catalog.ensure_directory()
        except StoreError as failed:
            self._note_failure(job, failed)
        reason = self.catalog.read_only_reason
        if reason is not None:
            job.disk_failure = job.disk_failure or StoreError(reason, errno=errno.EROFS)
            job.refuse(SkipReason.READ_ONLY)

    def _note_failure(self, job: Job, failed: StoreError) -> None:
        """Note and log a failure of the cache's disk, after which the build goes elsewhere.

        Raises:
            StoreError: the failure, if no caller waits for the archive, or if it is a limit of the
                process, which is not held against the timeline.
        """
        if failed.errno in PROCESS_LIMITS:
            job.failing = None
            raise failed
        job.disk_failure = failed
        self.disk_failure = str(failed).partition("\n")[0]
        if not job.request.is_awaited:
            raise failed
        log.error(
            "the disk of the cache fails; the basebackup of %s at %s is built in "
            "unpublished_dir: %s",
            split_key(job.request.key),
            job.request.lsn,
            failed,
        )

    def _build_aside(self, job: Job, timeline: Timeline) -> Built:
        """Build in `unpublished_dir` what the disk of the cache cannot take; raises as `build`."""
        first, result = job.disk_failure, FallbackResult.ERROR
        assert first is not None
        try:
            built = self._build(job, timeline)
            result = FallbackResult.OK
        except (Skip, ClosingError):  # a close, or no caller waits any more
            raise
        except LimitError as error:
            raise Skip(reason_of(error), both_failed(first, error)) from error
        except StoreError as failed:
            if failed is first:  # no caller waits any more
                raise
            job.failing = None  # no failure of a disk is held against the timeline
            raise both_failed(first, failed, hint_for_unpublished(failed)) from failed
        except BaseException as error:
            raise both_failed(first, cause_of(error)) from error
        finally:
            self.metrics.fallback_builds[result].inc()
        return built

    def fetch(
        self,
        job: Job,
        timeline: Timeline,
        fetch: Callable[[ArchiveSink], FetchResult],
        claim: Callable[[], bool],
    ) -> Built | None:
        """Take an archive from the second tier, and publish it or open it for those that wait.

        Args:
            job: the request.
            timeline: its timeline.
            fetch: writes the archive, or tells why not.
            claim: takes the slot of the timeline, without which nothing is published.

        Returns:
            None if there is no archive, or the disk of the cache cannot take one.

        Raises:
            Skip: the archive must not be published, and no caller waits.
            LimitError: there is no room for it.
            ClosingError: the cache closes.
            StoreError: the disk of the cache has failed.
            ArchiveError: the archive is bad, though the tier calls it a hit.
            HostError: the host raised.
        """
        room = BuildSpace(job, self.index, self.evictor)
        fetched = FetchedArchive(
            job.request, lambda: self._create_fetched(job), room, self._check_open
        )
        built: Built | None = None
        try:
            if fetch(fetched) is FetchResult.HIT:
                seal, temp = fetched.finish()
                self._admit_fetched(job, timeline, claim, room)
                built = self._finish(job, seal, temp, room)
        finally:
            if built is None and fetched.temp is not None:
                self._remove(fetched.temp, room)
            room.release()
        return built

    def _check_open(self) -> None:
        if self.is_stopping:
            raise ClosingError("the cache is closing")

    def _create_fetched(self, job: Job) -> TempFile:
        with disk_step("use", self.store.data_dir):
            self.catalog.ensure_directory()
        if self.catalog.read_only_reason is not None:
            raise StoreError(self.catalog.read_only_reason, errno=errno.EROFS)
        return self._create_temp(job)

    def _admit_fetched(
        self, job: Job, timeline: Timeline, claim: Callable[[], bool], room: BuildSpace
    ) -> None:
        """Find out whether a fetched archive may be published, and take its room as an entry."""
        with host_call():
            job.check_tip(timeline)
        if job.may_publish and not claim():
            job.refuse(SkipReason.COALESCED)
        held = self.index.newest(job.request.key)
        if job.may_publish and held is not None and held.lsn >= job.request.lsn:
            job.refuse(SkipReason.UP_TO_DATE)
        if job.may_publish:
            room.publish()

    def _build(self, job: Job, timeline: Timeline) -> Built:
        room = BuildSpace(job, self.index, self.evictor)
        try:
            temp = self._create_temp(job)
            try:
                with self.metrics.prepare_seconds[Phase.BUILD].time():
                    seal = self._write(job, timeline, temp, room)
                with host_call():
                    job.check_tip(timeline)
                with self.metrics.prepare_seconds[Phase.PUBLISH].time():
                    return self._finish(job, seal, temp, room)
            except BaseException:
                self._remove(temp, room)
                raise
        finally:
            room.release()

    def _create_temp(self, job: Job) -> TempFile:
        key, lsn = job.request.key, job.request.lsn
        if job.disk_failure is None:
            with disk_step("create a file in", self.store.tmp_dir):
                return self.catalog.create_temp(key, lsn)
        with disk_step("find", "the temporary directory"):
            directory = self._unpublished_dir or tempfile.gettempdir()
        with disk_step("create a file in", directory):
            return UnnamedFile.create(directory, self.store.new_temp_name(key, lsn))

    def _write(self, job: Job, timeline: Timeline, temp: TempFile, room: BuildSpace) -> Seal:
        output = TempOutput(temp, room)
        writer = ArchiveWriter(output.take, self.config.compression_level, check_tar_head)
        self._writers.add(writer)
        try:
            self.check_not_stopping()
            with host_call():
                timeline.send_basebackup_tarball(writer, job.request.lsn)
            seal = writer.finish()
        except BaseException:
            if writer.failure is not None:  # this is the cause, whatever the host has made of it
                raise writer.failure from None
            raise
        else:
            output.write()
            return seal
        finally:
            self._writers.discard(writer)
            writer.abort()

    def _finish(self, job: Job, seal: Seal, temp: TempFile, room: BuildSpace) -> Built:
        self.check_not_stopping()
        with disk_step("write", temp.path):
            temp.patch(pack_header(seal, job.request.key, job.request.lsn))
        if not job.may_publish:
            room.unpublish()
        entry = Entry(job.request.key, job.request.lsn, room.reservation.size_bytes)
        if self.config.verify_reads == "never":
            entry.verification = Verification.SEALED
        shared_file = self._open_shared(job, seal, temp, entry, room)
        try:
            if job.may_publish:
                self._publish(job, temp, entry, room)
            else:
                self._remove(temp, room)
        except BaseException:
            if shared_file is not None:
                shared_file.close()
            raise
        return Built(seal, entry, shared_file)

    def _open_shared(
        self, job: Job, seal: Seal, temp: TempFile, entry: Entry, room: BuildSpace
    ) -> SharedFile | None:
        """Open the archive for the callers that wait, and check it once for all of them."""
        if not job.request.is_awaited:
            if not job.may_publish:
                raise job.why_unpublished()
            return None
        name = self.store.path_of(entry.key, entry.lsn) if job.may_publish else temp.path
        reservation = None if job.may_publish else room.reservation
        with disk_step("open", temp.path):
            shared_file = SharedFile(temp.link, entry, name=name, reservation=reservation)
        try:
            if not entry.is_verified:
                with disk_step("read", temp.path):
                    _check_read_back(shared_file, seal)
                entry.verification = Verification.SEALED
        except BaseException:
            shared_file.close()
            raise
        return shared_file

    def _publish(self, job: Job, temp: TempFile, entry: Entry, room: BuildSpace) -> None:
        with disk_step("write", temp.path):
            temp.sync()
            temp.close()
        with disk_step("publish", temp.path):
            replaced = self.catalog.publish(temp, room.reservation, entry)
        self.disk_failure = None
        if self.on_published is not None and not job.is_fetch:
            self.on_published(entry, replaced)

    def _remove(self, temp: TempFile, room: BuildSpace) -> None:
        """Remove a file that is not published; a reader that has it open can go on."""
        if isinstance(temp, UnnamedFile):
            with suppress(OSError):  # the kernel frees the descriptor all the same
                temp.close()
        else:
            self.catalog.abandon(temp, room.reservation)


def _check_read_back(shared_file: SharedFile, seal: Seal) -> None:
    """Compare a finished file with what was written.

    Raises:
        OSError: it cannot be read, or has other bytes.
    """
    try:
        check_sealed(shared_file.fileno(), shared_file.entry.size_bytes, seal, with_digest=True)
    except ArchiveError as error:
        raise OSError(errno.EIO, f"{error}; the disk has not kept what was written") from error
