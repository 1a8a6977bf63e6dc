"""File and index changed as one: load, publish, discard, quarantine, upkeep.

One file lock makes {rename + index insert} and {index check + unlink or
quarantine} exclusive, so that a late removal never hits a file that was published
meanwhile. It is never held during a build, an fsync or a callback, and neither a
hit nor a miss ever wants it.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from bbcache.errors import ClosingError, safe_str
from bbcache.storage.files import hint_for, try_unlink
from bbcache.storage.index import newest_of_each
from bbcache.storage.owned_directory import OwnedDirectory
from bbcache.storage.quarantine import Quarantine

if TYPE_CHECKING:
    from bbcache.metrics import Metrics
    from bbcache.storage.accounting import Reservation
    from bbcache.storage.dirlock import DirectoryLock
    from bbcache.storage.files import Store, TempFile
    from bbcache.storage.index import Entry, Index

log = logging.getLogger(__name__)


class LoadReport(NamedTuple):
    """What a start found.

    Attributes:
        entry_count: entries taken over.
        superseded_count: older ones of the same timelines, removed.
        foreign_files: names of everything else.
    """

    entry_count: int
    superseded_count: int
    foreign_files: list[str]


class Catalog:
    """The published files of one cache together with their index. Thread-safe.

    Args:
        store: the files.
        index: the entries; its lock is taken after the file lock, never before.
        dirlock: the lock on the directory, already held; not held where the file system
            is read-only.
        metrics: counts quarantined files and failed unlinks, and shows the ledger.
    """

    def __init__(
        self, store: Store, index: Index, dirlock: DirectoryLock, metrics: Metrics
    ) -> None:
        self._file_lock = threading.RLock()  # orders changes of files, and guards all that follows
        self._failures: deque[OSError] = deque()  # of unlinks, not yet told
        self._is_stopped = False  # no more changes but of temporary files; set without the lock
        self._is_fenced = False
        self._doubt = _Doubt()  # set without the lock
        self._store = store
        self._directory = OwnedDirectory(store, dirlock)
        self._index = index
        self._accounting = index.accounting
        self._quarantine = Quarantine(store, index)
        self._metrics = metrics
        ledger = index.accounting
        metrics.entries.read_from(lambda: ledger.entry_count)
        metrics.size_bytes.read_from(lambda: ledger.entries_size_bytes)
        metrics.nonentry_bytes.read_from(lambda: ledger.nonentry_bytes)
        metrics.unpublished_bytes.read_from(lambda: ledger.unpublished_bytes)

    def load(self) -> LoadReport:
        """Sweep ``tmp/``, scan, and take the newest entry of each timeline over.

        Safe to call again after a failure.

        Raises:
            ClosingError: the cache is closed.
            OSError: the directory cannot be listed, which is not an empty cache.
        """
        with self._file_lock:
            self._check_not_stopped_locked()
            try:
                report = self._take_over_locked()
            except Exception as error:
                self._directory.load_failure = safe_str(error)
                raise
            self._directory.load_failure = None
        self._tell()
        return report

    def ensure_directory(self) -> None:
        """Make sure that the directory at the path is the one that is locked.

        One that was removed or replaced is made and locked again, and what is in it is
        taken over. So is one that was on a read-only file system and can be written to
        again. Where it cannot, `read_only_reason` says why, and nothing is raised.

        Raises:
            OSError: it is not to be had; `DirectoryLockedError` where another cache
                has taken it.
        """
        with self._file_lock:
            if self._is_stopped:
                return
            what = "replaced" if self._directory.is_locked else "read-only"
            self._directory.come()
            report = self._take_over_locked() if self._directory.is_rescan_due else None
        self.settle_doubt()
        self._tell()
        if report is not None:
            log.warning(
                "the cache directory %s was %s; it is locked again, with %d entries",
                self._store.data_dir,
                what,
                report.entry_count,
            )

    def create_temp(self, key: bytes, lsn: int) -> TempFile:
        """A new temporary file for a build.

        Raises:
            ClosingError: the cache is closed.
            OSError: it cannot be made.
        """
        with self._file_lock:
            self._check_not_stopped_locked()
            return self._store.create_temp(key, lsn)

    def is_at_path(self) -> bool:
        """Whether the directory at the path is the locked one; one look at the disk."""
        return self._directory.is_there()

    @property
    def read_only_reason(self) -> str | None:
        """Why nothing in the directory may be changed, in one line; None where it may be."""
        return self._directory.read_only_reason

    def publish(self, temp: TempFile, reservation: Reservation, entry: Entry) -> None:
        """Put a finished file in its place and into the index, and unlink the old one.

        Raises:
            ClosingError: the cache is closed; nothing has changed.
            OSError: the file could not be put in place; nothing has changed.
        """
        with self._file_lock:
            self._check_not_stopped_locked()
            self._directory.check_there()
            self._store.rename_temp(temp, entry.key, entry.lsn)
            path = self._path_of(entry)
            name = os.path.basename(path)
            with self._index.lock:
                old = self._index.commit(reservation, entry)
                self._accounting.doomed.drop(path)  # what was there is overwritten
                self._accounting.foreign_files.drop(name)
            if old is not None and old.lsn != entry.lsn:
                self._remove_locked(self._path_of(old), old.size_bytes)
        self._tell()

    def discard(self, entry: Entry) -> bool:
        """Remove this very entry and its file.

        Returns:
            Whether the entry was still held; False, too, where the directory is not
            this cache's any more.
        """
        with self._file_lock, self._doubt:
            is_held = self._may_change_locked() and self._discard_locked(entry)
        self._tell()
        return is_held

    def forget(self, entry: Entry) -> None:
        """Drop this very entry, whose file is gone. Takes no file lock, since a read calls it."""
        with self._doubt:
            self._index.remove(entry)

    def settle_doubt(self) -> None:
        """Count what is in the directory again, where a step was broken off in the middle.

        Raises:
            OSError: the directory cannot be listed; a later call may do it.
        """
        if not self._doubt.is_there:  # one read of memory
            return
        with self._file_lock:
            if self._doubt.is_there and not self._is_stopped:
                self._rescan_locked()

    def quarantine(self, entry: Entry) -> bool:
        """Take this very entry, proven bad, out and keep its file for inspection.

        The newest files are kept. Where a refresh under way leaves no room for the
        evidence, it is unlinked instead.

        Returns:
            Whether the entry was still held; False once the cache is closed.

        Raises:
            OSError: the file cannot be moved; the entry stays, and stays unverified. On a
                read-only file system, where that would last, the entry goes and the
                file stays.
        """
        with self._file_lock, self._doubt:
            if self._is_stopped or not self._index.holds(entry):
                return False
            self._directory.check_there()
            if not self._directory.is_locked:
                self._index.remove(entry)
            else:
                self._failures.extend(self._quarantine.make_room())
                if not (self._quarantine.take(entry) or self._discard_locked(entry)):
                    return False
        self._metrics.quarantined.inc()
        self._tell()
        return True

    def abandon(self, temp: TempFile, reservation: Reservation) -> None:
        """Remove a build's temporary file, and give its room back once it is gone.

        A reader that has the file open can go on.
        """
        with suppress(OSError):  # nothing more is written
            temp.close()
        with self._file_lock:
            if self._is_fenced:
                return
            failure = try_unlink(temp.path)
            with self._index.lock:
                self._accounting.release(reservation)
                self._settle_locked(temp.path, reservation.size_bytes, failure)
        self._tell()

    def upkeep(self) -> None:
        """Retry pending unlinks; look at foreign files and quarantine as they are now."""
        doomed, foreign_files = self._accounting.doomed, self._accounting.foreign_files
        with self._file_lock:
            paths = list(doomed.sizes)
        for path in paths:
            with self._file_lock, self._doubt:
                is_due = self._may_change_locked() and path in doomed.sizes
                if is_due and try_unlink(path) is None:
                    with self._index.lock:
                        doomed.drop(path)
        with self._file_lock, self._doubt:
            if self._may_change_locked():
                there = self._store.restat(foreign_files.sizes)
                with self._index.lock:
                    foreign_files.replace(there)
                self._quarantine.refresh()

    def stop(self) -> None:
        """Let nothing but the removal of temporary files begin any more. Takes no lock."""
        self._is_stopped = True

    def fence(self, timeout_s: float) -> bool:
        """Let no rename, unlink or quarantine happen any more.

        Args:
            timeout_s: seconds to wait for a step on the disk; -1 waits without limit.

        Returns:
            False when it did not end in that time: the directory must stay locked then.
        """
        # As in BasebackupFile.open_whatever, no interrupt comes between this and the `try`.
        (is_acquired,) = map(self._file_lock.acquire, (True,), (timeout_s,))
        if not is_acquired:
            return False
        try:
            self._is_stopped = self._is_fenced = True
        finally:
            self._file_lock.release()
        return True

    def _check_not_stopped_locked(self) -> None:
        if self._is_stopped:
            raise ClosingError("the cache is closed")

    def _may_change_locked(self) -> bool:
        return not self._is_stopped and self._directory.may_change()

    def _take_over_locked(self) -> LoadReport:
        """Load the directory over what is in the index; remove what builds have left in it."""
        if self._directory.is_locked:
            self._store.make_directories()
            left = self._store.sweep_tmp() if self._directory.is_sweep_due else {}
            for path, size_bytes in left.items():
                self._remove_locked(path, size_bytes)
        report = self._rescan_locked()
        self._directory.is_rescan_due = False
        self._directory.is_sweep_due = not self._directory.is_locked
        return report

    def _rescan_locked(self) -> LoadReport:
        """Make index and ledger those of what is in the directory; older entries go."""
        found = self._store.scan()
        newest, superseded = newest_of_each(found.entries)
        self._quarantine.refresh()
        doomed = self._accounting.doomed
        left = self._store.restat(doomed.sizes)
        for entry in newest.values() if left else ():
            left.pop(self._path_of(entry), None)
        with self._index.lock:
            doomed.replace(left)
            self._accounting.foreign_files.replace(found.foreign_files)
            self._index.load(newest)
        self._doubt.is_there = False
        for entry in superseded:
            self._remove_locked(self._path_of(entry), entry.size_bytes)
        return LoadReport(len(newest), len(superseded), sorted(found.foreign_files))

    def _path_of(self, entry: Entry) -> str:
        return self._store.path_of(entry.key, entry.lsn)

    def _remove_locked(self, path: str, size_bytes: int) -> None:
        """Unlink a file; where that fails its bytes count until it is gone."""
        is_locked = self._directory.is_locked
        failure = try_unlink(path) if is_locked else OSError(errno.EROFS, "read-only")
        self._settle_locked(path, size_bytes, failure)

    def _settle_locked(self, path: str, size_bytes: int, failure: OSError | None) -> None:
        """Count what an attempt to unlink a file has left of it."""
        with self._index.lock:
            if failure is None:
                self._accounting.doomed.drop(path)
            else:
                self._accounting.doomed.put(path, size_bytes)
                self._failures.append(failure)

    def _discard_locked(self, entry: Entry) -> bool:
        """Drop this very entry and unlink its file; False where it is not held."""
        path = self._path_of(entry)
        if not self._index.doom(entry, path):
            return False
        failure = try_unlink(path)
        with self._index.lock:
            self._settle_locked(path, entry.size_bytes, failure)
            self._index.settle_credit(entry.key)
        return True

    def _tell(self) -> None:
        """Log, without a lock, what could not be removed and what the directory has become.

        Each failure is counted, but for those of a read-only file system.
        """
        self._directory.tell()
        with suppress(IndexError):  # all is told
            while True:
                failure = self._failures.popleft()
                if failure.errno != errno.EROFS:
                    self._metrics.unlink_failures.inc()
                    log.warning(
                        "cannot remove %s: %s; the next clean-up tries again%s",
                        failure.filename,
                        failure.strerror,
                        hint_for(failure),
                    )


class _Doubt:
    """Whether a step was broken off in the middle, by a KeyboardInterrupt, say.

    A context manager round each step that a caller's thread may do.
    """

    is_there = False

    def __enter__(self) -> None:
        """Begin a step."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not issubclass(kind, OSError):  # these, a step expects
            self.is_there = True
