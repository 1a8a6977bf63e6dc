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
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache.errors import ClosingError, StoreError, safe_str
from bbcache.storage.files import hint_for, unlink
from bbcache.storage.index import newest_of_each
from bbcache.storage.owned_directory import OwnedDirectory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bbcache.metrics import Metrics
    from bbcache.storage.accounting import Reservation
    from bbcache.storage.dirlock import DirectoryLock
    from bbcache.storage.files import Store, TempFile
    from bbcache.storage.index import Entry, Index

QUARANTINE_KEEPS: Final = 8

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
        metrics: counts quarantined files and failed unlinks.
    """

    def __init__(
        self, store: Store, index: Index, dirlock: DirectoryLock, metrics: Metrics
    ) -> None:
        self._file_lock = threading.RLock()  # orders changes of files, and guards all that follows
        self._pending_unlinks: dict[
            str, int
        ] = {}  # path -> bytes of files that could not be unlinked
        self._foreign_files: dict[str, int] = {}  # name -> bytes
        self._quarantined: dict[str, int] = {}  # path -> bytes, oldest first
        self._is_stopped = False  # no more changes but of temporary files; set without the lock
        self._is_fenced = False
        self._doubt = _Doubt()  # set without the lock
        self._store = store
        self._directory = OwnedDirectory(store, dirlock)
        self._index = index
        self._metrics = metrics

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
                failures = self._sweep_locked() if self._directory.is_locked else []
                report, more_failures = self._rescan_locked()
            except Exception as error:
                self._directory.load_failure = safe_str(error)
                raise
            self._directory.load_failure = None
        self._directory.tell()
        self._report([*failures, *more_failures])
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
            stock = self._take_over_locked() if self._directory.is_rescan_due else None
        self.settle_doubt()
        self._directory.tell()
        if stock is not None:
            self._report(stock[1])
            log.warning(
                "the cache directory %s was %s; it is locked again, with %d entries",
                self._store.data_dir,
                what,
                stock[0].entry_count,
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
            self._check_directory_locked()
            self._store.rename_temp(temp, entry.key, entry.lsn)
            old = self._index.commit(reservation, entry)
            self._forget_overwritten_locked(self._path_of(entry))
            failures = [] if old is None else [self._remove_replaced_locked(old, entry)]
        self._report(failures)

    def discard(self, entry: Entry) -> bool:
        """Remove this very entry and its file.

        Returns:
            Whether the entry was still held; False, too, where the directory is not
            this cache's any more.
        """
        with self._file_lock, self._doubt:
            if not self._may_change_locked() or not self._index.doom(entry):
                return False
            failure = self._unlink_doomed_locked(entry)
        self._report([failure])
        return True

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
            self._check_directory_locked()
            is_locked = self._directory.is_locked
            failures = self._trim_quarantine_locked(QUARANTINE_KEEPS - 1) if is_locked else []
            if not is_locked:
                self._index.remove(entry)
            elif self._index.move_to_quarantine(entry):
                self._move_locked(entry)
            elif self._index.doom(entry):
                failures.append(self._unlink_doomed_locked(entry))
            else:
                return False
        self._metrics.quarantined.inc()
        self._report(failures)
        return True

    def abandon(self, temp: TempFile, reservation: Reservation) -> None:
        """Remove a build's temporary file, and give its room back once it is gone."""
        with suppress(OSError):  # its bytes are not wanted any more
            temp.close()
        with self._file_lock:
            if self._is_fenced:
                return
            failure = _try_unlink(temp.path)
            if failure is None:
                self._index.release(reservation)
            else:
                self._pending_unlinks[temp.path] = reservation.held_bytes
                self._index.abandon(reservation)
        self._report([failure])

    def drop(self, temp: TempFile, size_bytes: int) -> None:
        """Remove a temporary file that has no reservation; if it stays, its bytes count."""
        with suppress(OSError):  # whoever still has the file open reads it all the same
            temp.close()
        with self._file_lock:
            failure = None if self._is_fenced else self._remove_locked(temp.path, size_bytes)
        self._report([failure])

    def upkeep(self) -> None:
        """Retry pending unlinks; look at foreign files and quarantine as they are now."""
        with self._file_lock:
            pending_unlinks = list(self._pending_unlinks)
        for path in pending_unlinks:
            with self._file_lock, self._doubt:
                if self._may_change_locked() and path in self._pending_unlinks:
                    failure = _try_unlink(path)
                    if failure is None:
                        self._unpark_locked(path)
        with self._file_lock, self._doubt:
            if self._may_change_locked():
                sizes = {
                    name: self._store.restat_foreign_file(name, size_bytes)
                    for name, size_bytes in self._foreign_files.items()
                }
                self._set_foreign_files_locked(
                    {n: size for n, size in sizes.items() if size is not None}
                )
                self._refresh_quarantine_locked()

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

    def _check_directory_locked(self) -> None:
        if not self._directory.is_there():
            raise StoreError(
                f"the cache directory {self._store.data_dir} was removed or replaced\n"
                "hint: Restore or remount it; else the next prepare or clean-up makes a new one.",
                errno=errno.ENOENT,
            )

    def _may_change_locked(self) -> bool:
        return not self._is_stopped and self._directory.may_change()

    def _take_over_locked(self) -> tuple[LoadReport, list[OSError | None]]:
        """Load a directory that was locked just now, over what is in the index."""
        self._store.make_directories()
        failures = self._sweep_locked() if self._directory.is_sweep_due else []
        report, more_failures = self._rescan_locked()
        self._directory.is_rescan_due = self._directory.is_sweep_due = False
        return report, [*failures, *more_failures]

    def _sweep_locked(self) -> list[OSError | None]:
        """Make the directories, and remove what builds have left in ``tmp/``."""
        self._store.make_directories()
        left = self._store.sweep_tmp()
        return [self._remove_locked(path, size_bytes) for path, size_bytes in left.items()]

    def _rescan_locked(self) -> tuple[LoadReport, list[OSError | None]]:
        """Make index and accounting those of what is in the directory; older entries go."""
        found = self._store.scan()
        newest, superseded = newest_of_each(found.entries)
        self._refresh_quarantine_locked()
        self._set_foreign_files_locked(found.foreign_files)
        if self._doubt.is_there:
            self._index.recount(newest, self._pending_unlinks.values())
            self._doubt.is_there = False
        else:
            self._index.load(newest)
        for entry in newest.values() if self._pending_unlinks else ():
            self._forget_overwritten_locked(self._path_of(entry))
        failures = [self._remove_locked(self._path_of(e), e.size_bytes) for e in superseded]
        report = LoadReport(len(newest), len(superseded), sorted(found.foreign_files))
        return report, failures

    def _path_of(self, entry: Entry) -> str:
        return self._store.path_of(entry.key, entry.lsn)

    def _remove_locked(self, path: str, size_bytes: int) -> OSError | None:
        """Unlink a file that is no longer accounted for, or park it."""
        failure = (
            _try_unlink(path) if self._directory.is_locked else OSError(errno.EROFS, "read-only")
        )
        if failure is None:
            self._unpark_locked(path)
        elif path not in self._pending_unlinks:
            self._pending_unlinks[path] = size_bytes
            self._index.add_doomed(size_bytes)
        return failure

    def _unpark_locked(self, path: str) -> None:
        if path in self._pending_unlinks:
            self._index.remove_doomed(self._pending_unlinks.pop(path))

    def _remove_replaced_locked(self, old: Entry, new: Entry) -> OSError | None:
        same = old.lsn == new.lsn
        return None if same else self._remove_locked(self._path_of(old), old.size_bytes)

    def _unlink_doomed_locked(self, entry: Entry) -> OSError | None:
        path = self._path_of(entry)
        failure = _try_unlink(path)
        if failure is not None:
            self._pending_unlinks[path] = entry.size_bytes
        self._index.settle_doomed(entry, is_unlinked=failure is None)
        return failure

    def _move_locked(self, entry: Entry) -> None:
        try:
            path = self._store.quarantine(entry.key, entry.lsn)
        except BaseException as error:
            path = self._path_of(entry)
            if not os.path.lexists(path):  # somebody was quicker
                self._index.remove_doomed(entry.size_bytes)
            elif isinstance(error, OSError) and error.errno == errno.EROFS:
                self._pending_unlinks[path] = entry.size_bytes
            else:
                self._index.return_from_quarantine(entry)
                raise
        else:
            self._quarantined[path] = entry.size_bytes
            self._index.settle_quarantined(entry)
        with suppress(OSError):  # what is damaged may have another size; clean-up looks again
            self._refresh_quarantine_locked()

    def _forget_overwritten_locked(self, path: str) -> None:
        """A rename has replaced whatever waited, or lay astray, at `path`."""
        self._unpark_locked(path)
        if os.path.basename(path) in self._foreign_files:
            del self._foreign_files[os.path.basename(path)]
            self._set_foreign_files_locked(self._foreign_files)

    def _set_foreign_files_locked(self, foreign_files: dict[str, int]) -> None:
        self._foreign_files = foreign_files
        self._index.set_foreign_files(len(foreign_files), sum(foreign_files.values()))

    def _trim_quarantine_locked(self, keep: int) -> list[OSError | None]:
        self._refresh_quarantine_locked()
        own = [path for path in self._quarantined if self._store.is_quarantined_name(path)]
        failures = [_try_unlink(path) for path in own[: max(0, len(own) - keep)]]
        self._refresh_quarantine_locked()
        return failures

    def _refresh_quarantine_locked(self) -> None:
        self._quarantined = self._store.quarantined(self._quarantined)
        self._index.set_quarantine(len(self._quarantined), sum(self._quarantined.values()))

    def _report(self, failures: Iterable[OSError | None]) -> None:
        """Count and log what could not be removed; a read-only file system is told of once."""
        for failure in failures:
            if failure is not None and failure.errno != errno.EROFS:
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


def _try_unlink(path: str) -> OSError | None:
    try:
        unlink(path)
    except OSError as error:
        return error
    return None
