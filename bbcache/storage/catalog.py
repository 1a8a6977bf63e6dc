"""Files and index changed as one: load, publish, discard, quarantine, upkeep.

One file lock makes {rename + index insert} and {index check + unlink or quarantine} exclusive,
so a late removal never hits a file that was published meanwhile. It is not held during a
build, an fsync or a callback, and `get` takes it only to quarantine a bad archive.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from bbcache.errors import ClosingError, StoreError, safe_str
from bbcache.storage.disk_errors import hint_for
from bbcache.storage.doubt import Doubt
from bbcache.storage.files import HABITS_NAME, try_unlink
from bbcache.storage.index import newest_of_each
from bbcache.storage.quarantine import Quarantine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bbcache.metrics import Metrics
    from bbcache.storage.accounting import Reservation
    from bbcache.storage.dirlock import DirectoryLock
    from bbcache.storage.files import Store, TempFile
    from bbcache.storage.index import Entry, Index

log = logging.getLogger(__name__)


class LoadReport(NamedTuple):
    """What a scan of the directory found.

    Attributes:
        entry_count: entries in the index.
        superseded_count: older entries of the same timelines, which were removed.
        foreign_files: names of everything else.
    """

    entry_count: int
    superseded_count: int
    foreign_files: list[str]


class Catalog:
    """The published files of one cache together with their index. Thread-safe.

    Args:
        store: the files.
        index: the entries and the ledger. Its lock is taken after the file lock, never before.
        dirlock: the lock on the directory; not held on a read-only file system.
        metrics: counts quarantined files and failed unlinks, and shows the ledger.
    """

    def __init__(
        self, store: Store, index: Index, dirlock: DirectoryLock, metrics: Metrics
    ) -> None:
        self._file_lock = threading.RLock()  # orders changes of files; guards the next five
        self._dirlock = dirlock
        self._quarantine = Quarantine(store, index)
        self._scanned: tuple[int, int] | None = None  # identity of the directory in the index
        self._is_swept = False  # whether ``tmp/`` was swept
        self._load_failure: str | None = None  # why the last load failed
        self._failures: deque[OSError] = deque()  # of removals, not yet logged
        self._is_fenced = False  # set under the file lock
        self._doubt = Doubt()  # set without the lock
        self._store = store
        self._index = index
        self._accounting = ledger = index.accounting
        self._metrics = metrics
        metrics.entries.read_from(lambda: ledger.entry_count)
        metrics.size_bytes.read_from(lambda: ledger.entries_size_bytes)
        metrics.nonentry_bytes.read_from(lambda: ledger.nonentry_bytes)
        metrics.unpublished_bytes.read_from(lambda: ledger.unpublished_bytes)

    @property
    def read_only_reason(self) -> str | None:
        """Why the cache may not change the directory, in one line; None if it may."""
        return self._dirlock.read_only_reason

    def load(self) -> LoadReport:
        """Sweep ``tmp/``, scan the directory, and index the newest entry of each timeline.

        May be called again after a failure.

        Raises:
            ClosingError: the cache is closed.
            OSError: the directory cannot be listed, so it is not an empty cache.
        """
        with self._file_lock:
            self._check_not_fenced_locked()
            try:
                report = self._take_over_locked()
            except Exception as error:
                self._load_failure = safe_str(error)
                raise
            self._load_failure = None
        self._log_news()
        return report

    def ensure_directory(self) -> None:
        """Make sure that the directory at the path is locked and indexed.

        A directory that was removed or replaced is made, locked and scanned again. So is one
        that has become writable. Nothing is raised for a read-only file system; see
        `read_only_reason`.

        Raises:
            OSError: it cannot be made, locked or listed; `DirectoryLockedError` if another
                cache has taken it.
        """
        report, was_locked = None, self._dirlock.is_held
        with self._file_lock:
            if self._is_fenced:
                return
            if self._load_failure is not None:
                text = f"the cache directory {self._store.data_dir} cannot be loaded"
                raise StoreError(f"{text}: {self._load_failure}")
            self._dirlock.ensure()
            if self._scanned != self._dirlock.identity:
                report = self._take_over_locked()
        self.settle_doubt()
        self._log_news()
        if report is not None:
            log.warning(
                "the cache directory %s was %s; it is locked again, with %d entries",
                self._store.data_dir,
                "replaced" if was_locked else "read-only",
                report.entry_count,
            )

    def create_temp(self, key: bytes, lsn: int) -> TempFile:
        """Create a temporary file for a build.

        Raises:
            ClosingError: the cache is closed.
            OSError: the file cannot be created.
        """
        with self._file_lock:
            self._check_not_fenced_locked()
            return self._store.create_temp(key, lsn)

    def publish(self, temp: TempFile, reservation: Reservation, entry: Entry) -> Entry | None:
        """Rename a finished file into place, index it, and unlink the file it replaces.

        Returns:
            The entry that it has replaced.

        Raises:
            ClosingError: the cache is closed; nothing has changed.
            OSError: the file could not be renamed; nothing has changed.
        """
        with self._file_lock:
            self._check_not_fenced_locked()
            self._dirlock.check_at_path()
            self._store.rename_temp(temp, entry.key, entry.lsn)
            path = self._path_of(entry)
            name = os.path.basename(path)
            with self._index.lock:
                old = self._index.commit(reservation, entry)
                self._accounting.doomed.drop(path)  # an earlier file there is overwritten
                self._accounting.foreign_files.drop(name)
            if old is not None and old.lsn != entry.lsn:
                self._remove_locked(self._path_of(old), old.size_bytes)
        self._log_news()
        return old

    def discard(self, entry: Entry) -> bool:
        """Remove this very entry and its file.

        Returns:
            False if the entry is not in the index any more, or the directory is not this
            cache's.
        """
        with self._file_lock, self._doubt:
            is_removed = self._may_change_locked() and self._take_out_locked(entry, try_unlink)
        self._log_news()
        return is_removed

    @contextmanager
    def changing(self) -> Iterator[bool]:
        """Hold the file lock for a block, which is given whether it may change files."""
        with self._file_lock, self._doubt:
            yield self._may_change_locked()

    def drop_oldest_quarantined(self) -> bool:
        """Remove the oldest quarantined archive; False if there is none that can be removed."""
        with self.changing() as may_change:
            return may_change and self._quarantine.drop_oldest()

    def forget(self, entry: Entry) -> bool:
        """Drop this very entry, whose file is gone. Takes no file lock, so `get` may call it.

        Returns:
            False if the directory itself is gone or replaced; the entry stays.
        """
        if not self._dirlock.is_at_path():
            return False
        with self._doubt:
            self._index.remove(entry)
        return True

    def quarantine(self, entry: Entry) -> bool:
        """Remove this very entry, which is bad, and keep its file for inspection.

        The file is unlinked instead while its timeline is built, because the build needs its
        room. A file that can be neither moved nor unlinked now is removed by a later clean-up.

        Returns:
            False if the entry is not in the index any more, or the cache is closed.

        Raises:
            StoreError: the directory was removed or replaced; the entry stays.
        """
        with self._file_lock, self._doubt:
            if self._is_fenced or self._index.newest(entry.key) is not entry:
                return False
            self._dirlock.check_at_path()
            if not self._take_out_locked(entry, lambda _path: self._keep_locked(entry)):
                return False
            if self._dirlock.is_held:
                with suppress(OSError):  # the next clean-up counts the files again
                    self._failures.extend(self._quarantine.trim())
        self._metrics.quarantined.inc()
        self._log_news()
        return True

    def abandon(self, temp: TempFile, reservation: Reservation) -> None:
        """Unlink a build's temporary file, and free its room.

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
        self._log_news()

    def upkeep(self) -> None:
        """Unlink doomed files again; count foreign files and quarantine again.

        Raises:
            OSError: the quarantine cannot be listed.
        """
        doomed, foreign_files = self._accounting.doomed, self._accounting.foreign_files
        with self._file_lock, self._doubt:
            if not self._may_change_locked():
                return
            gone = [path for path in doomed.sizes if try_unlink(path) is None]
            there = self._store.restat(foreign_files.sizes)
            habits_bytes = self._habits_bytes_locked()
            with self._index.lock:
                self._accounting.habits_bytes = habits_bytes
                for path in gone:
                    doomed.drop(path)
                foreign_files.replace(there)
            self._quarantine.refresh()

    def settle_doubt(self) -> None:
        """Scan the directory again if a KeyboardInterrupt has broken off a step.

        Raises:
            OSError: the directory cannot be listed; a later call tries again.
        """
        if not self._doubt.is_there:  # one read of memory
            return
        with self._file_lock:
            if self._doubt.is_there and not self._is_fenced:
                self._rescan_locked()

    def fence(self, timeout_s: float) -> bool:
        """Let no rename, unlink or quarantine happen any more.

        Args:
            timeout_s: seconds to wait for a step on the disk; -1 waits without limit.

        Returns:
            False if a step did not end in that time: the directory must stay locked then.
        """
        # As in BasebackupFile.open_whatever, no interrupt comes between this and the `try`.
        (is_acquired,) = map(self._file_lock.acquire, (True,), (timeout_s,))
        if not is_acquired:
            return False
        try:
            self._is_fenced = True
        finally:
            self._file_lock.release()
        return True

    def _check_not_fenced_locked(self) -> None:
        if self._is_fenced:
            raise ClosingError("the cache is closed")

    def _may_change_locked(self) -> bool:
        return not self._is_fenced and self._dirlock.is_held and self._dirlock.is_at_path()

    def _take_over_locked(self) -> LoadReport:
        """Index the directory that is at the path now; sweep ``tmp/`` once, before any build."""
        self._scanned = None
        if self._dirlock.is_held:
            self._store.make_directories()
            left = {} if self._is_swept else self._store.sweep_tmp()
            self._is_swept = True
            for path, size_bytes in left.items():
                self._remove_locked(path, size_bytes)
        report = self._rescan_locked()
        self._scanned = self._dirlock.identity
        return report

    def _rescan_locked(self) -> LoadReport:
        """Make index and ledger agree with the directory; remove superseded entries."""
        found = self._store.scan()
        newest, superseded = newest_of_each(found.entries)
        self._quarantine.refresh()
        habits_bytes = self._habits_bytes_locked()
        doomed = self._accounting.doomed
        left = self._store.restat(doomed.sizes)
        for entry in newest.values() if left else ():
            left.pop(self._path_of(entry), None)
        with self._index.lock:
            doomed.replace(left)
            self._accounting.foreign_files.replace(found.foreign_files)
            self._accounting.habits_bytes = habits_bytes
            self._index.load(newest)
        self._doubt.is_there = False
        for entry in superseded:
            self._remove_locked(self._path_of(entry), entry.size_bytes)
        return LoadReport(len(newest), len(superseded), sorted(found.foreign_files))

    def _habits_bytes_locked(self) -> int:
        """The size of the saved habits; the last known one if they cannot be examined."""
        last = {HABITS_NAME: self._accounting.habits_bytes}
        return self._store.restat(last).get(HABITS_NAME, 0)

    def _path_of(self, entry: Entry) -> str:
        return self._store.path_of(entry.key, entry.lsn)

    def _take_out_locked(self, entry: Entry, remove: Callable[[str], OSError | None]) -> bool:
        """Drop this very entry, and remove its file; False if it is not in the index."""
        path = self._path_of(entry)
        if not self._index.doom(entry, path):
            return False
        failure = remove(path)
        with self._index.lock:
            self._settle_locked(path, entry.size_bytes, failure)
            self._index.settle_credit(entry.key)
        return True

    def _keep_locked(self, entry: Entry) -> OSError | None:
        """Quarantine the file of a doomed entry; returns why it could not be removed."""
        if not self._dirlock.is_held:
            return OSError(errno.EROFS, "read-only")
        with self._index.lock:
            is_rebuilt = entry.key in self._accounting.reservations
        return try_unlink(self._path_of(entry)) if is_rebuilt else self._quarantine.take(entry)

    def _remove_locked(self, path: str, size_bytes: int) -> None:
        """Unlink a file; if that fails its bytes count until it is gone."""
        is_locked = self._dirlock.is_held
        failure = try_unlink(path) if is_locked else OSError(errno.EROFS, "read-only")
        self._settle_locked(path, size_bytes, failure)

    def _settle_locked(self, path: str, size_bytes: int, failure: OSError | None) -> None:
        """Stop counting a file that was removed; count one that was not as doomed."""
        with self._index.lock:
            if failure is None:
                self._accounting.doomed.drop(path)
            else:
                self._accounting.doomed.put(path, size_bytes)
                self._failures.append(failure)

    def _log_news(self) -> None:
        """Log, without a lock, failed removals and changes of the directory."""
        self._dirlock.log_news()
        with suppress(IndexError):  # until the deque is empty
            while True:
                failure = self._failures.popleft()
                if failure.errno != errno.EROFS:  # which is not a failure of this file
                    self._metrics.unlink_failures.inc()
                    log.warning(
                        "cannot remove %s: %s; the next clean-up tries again%s",
                        failure.filename,
                        failure.strerror,
                        hint_for(failure),
                    )
