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

from bbcache.errors import ClosingError, StoreError
from bbcache.store import hint_for, unlink

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bbcache.accounting import Reservation
    from bbcache.dirlock import DirectoryLock
    from bbcache.index import Entry, Index
    from bbcache.metrics import Metrics
    from bbcache.store import Store, TempFile

QUARANTINE_KEEPS: Final = 8

log = logging.getLogger(__name__)


class LoadReport(NamedTuple):
    """What a start found.

    Attributes:
        entry_count: entries taken over.
        superseded_count: older ones of the same timelines, removed.
        strays: names of everything else.
    """

    entry_count: int
    superseded_count: int
    strays: list[str]


class Shelf:
    """The published files of one cache together with their index. Thread-safe.

    Args:
        store: the files.
        index: the entries; its lock is taken after the file lock, never before.
        dirlock: the lock on the directory, already held.
        metrics: counts quarantined files and failed unlinks.
    """

    def __init__(
        self, store: Store, index: Index, dirlock: DirectoryLock, metrics: Metrics
    ) -> None:
        self._file_lock = threading.RLock()  # orders changes of files, and guards all that follows
        self._parked: dict[str, int] = {}  # path -> bytes of files that could not be unlinked
        self._strays: dict[str, int] = {}  # name -> bytes
        self._quarantined: dict[str, int] = {}  # path -> bytes, oldest first
        self._is_stock_due = False  # another directory was locked, but not looked at yet
        self._is_stopped = False  # no more changes but of temporary files; set without the lock
        self._is_fenced = False
        self._dirlock = dirlock
        self._store = store
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
            self._store.make_directories()
            failures = [
                self._remove_locked(path, size_bytes)
                for path, size_bytes in self._store.sweep_tmp().items()
            ]
            report, more_failures = self._take_stock_locked()
        self._report([*failures, *more_failures])
        return report

    def ensure_home(self) -> None:
        """Make sure that the directory at the path is the one that is locked.

        One that was removed or replaced is made and locked again, and what is in it is
        taken over.

        Raises:
            OSError: it is not to be had; `DirectoryLockedError` where another cache
                has taken it.
        """
        with self._file_lock:
            is_home = self._dirlock.is_home()
            if self._is_stopped or (is_home and not self._is_stock_due):
                return
            if not is_home:
                with suppress(FileExistsError):
                    os.mkdir(self._store.data_dir, 0o700)
                self._is_stock_due = True  # also where only freeing the old lock fails
                self._dirlock.retake()
            self._store.make_directories()
            report, failures = self._take_stock_locked()
            self._is_stock_due = False
        self._report(failures)
        log.warning(
            "the cache directory %s was replaced; it is locked again, with %d entries",
            self._store.data_dir,
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

    def is_home(self) -> bool:
        """Whether the directory at the path is the locked one; one look at the disk."""
        return self._dirlock.is_home()

    def publish(self, temp: TempFile, reservation: Reservation, entry: Entry) -> None:
        """Put a finished file in its place and into the index, and unlink the old one.

        Raises:
            ClosingError: the cache is closed; nothing has changed.
            OSError: the file could not be put in place; nothing has changed.
        """
        with self._file_lock:
            self._check_not_stopped_locked()
            self._check_home_locked()
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
        with self._file_lock:
            if not self._may_change_locked() or not self._index.doom(entry):
                return False
            failure = self._unlink_doomed_locked(entry)
        self._report([failure])
        return True

    def quarantine(self, entry: Entry) -> bool:
        """Take this very entry, proven bad, out and keep its file for inspection.

        The newest files are kept. Where a refresh under way leaves no room for the
        evidence, it is unlinked instead.

        Returns:
            Whether the entry was still held; False once the cache is closed.

        Raises:
            OSError: the file cannot be moved; the entry stays, and stays unproven.
        """
        with self._file_lock:
            if self._is_stopped or not self._index.holds(entry):
                return False
            self._check_home_locked()
            failures = self._trim_quarantine_locked(QUARANTINE_KEEPS - 1)
            if self._index.move_to_quarantine(entry):
                self._move_locked(entry)
            elif self._index.doom(entry):
                failures.append(self._unlink_doomed_locked(entry))
            else:
                return False
        self._metrics.quarantined()
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
                self._parked[temp.path] = reservation.held_bytes
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
        """Try parked unlinks again; look at strays and quarantine as they are now."""
        with self._file_lock:
            parked = list(self._parked)
        for path in parked:
            with self._file_lock:
                if self._may_change_locked() and path in self._parked:
                    failure = _try_unlink(path)
                    if failure is None:
                        self._index.remove_doomed(self._parked.pop(path))
        with self._file_lock:
            if self._may_change_locked():
                sizes = {
                    name: self._store.restat_stray(name, size_bytes)
                    for name, size_bytes in self._strays.items()
                }
                self._set_strays_locked({n: size for n, size in sizes.items() if size is not None})
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
        if not self._file_lock.acquire(timeout=timeout_s):
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
        return not self._is_stopped and self._dirlock.is_home()

    def _check_home_locked(self) -> None:
        if not self._dirlock.is_home():
            raise StoreError(
                f"the cache directory {self._store.data_dir} was removed or replaced\n"
                "hint: Restore or remount it; else the next prepare or clean-up makes a new one.",
                errno=errno.ENOENT,
            )

    def _take_stock_locked(self) -> tuple[LoadReport, list[OSError | None]]:
        """Make index and books those of what is in the directory; older entries go."""
        found = self._store.scan()
        newest, superseded = _newest_of_each(found.entries)
        self._refresh_quarantine_locked()
        self._set_strays_locked(found.strays)
        self._index.load(newest)
        for entry in newest.values() if self._parked else ():
            self._forget_overwritten_locked(self._path_of(entry))
        failures = [self._remove_locked(self._path_of(e), e.size_bytes) for e in superseded]
        report = LoadReport(len(newest), len(superseded), sorted(found.strays))
        return report, failures

    def _path_of(self, entry: Entry) -> str:
        return self._store.path_of(entry.key, entry.lsn)

    def _remove_locked(self, path: str, size_bytes: int) -> OSError | None:
        """Unlink a file that is off the books, or park it."""
        failure = _try_unlink(path)
        if failure is not None and path not in self._parked:
            self._parked[path] = size_bytes
            self._index.add_doomed(size_bytes)
        return failure

    def _remove_replaced_locked(self, old: Entry, new: Entry) -> OSError | None:
        same = old.lsn == new.lsn
        return None if same else self._remove_locked(self._path_of(old), old.size_bytes)

    def _unlink_doomed_locked(self, entry: Entry) -> OSError | None:
        path = self._path_of(entry)
        failure = _try_unlink(path)
        if failure is not None:
            self._parked[path] = entry.size_bytes
        self._index.settle_doomed(entry, is_unlinked=failure is None)
        return failure

    def _move_locked(self, entry: Entry) -> None:
        try:
            path = self._store.quarantine(entry.key, entry.lsn)
        except BaseException:
            if os.path.lexists(self._path_of(entry)):
                self._index.return_from_quarantine(entry)
                raise
            self._index.remove_doomed(entry.size_bytes)  # somebody was quicker
        else:
            self._quarantined[path] = entry.size_bytes
            self._index.settle_quarantined(entry)
        with suppress(OSError):  # what is damaged may have another size; clean-up looks again
            self._refresh_quarantine_locked()

    def _forget_overwritten_locked(self, path: str) -> None:
        """A rename has replaced whatever waited, or lay astray, at `path`."""
        if path in self._parked:
            self._index.remove_doomed(self._parked.pop(path))
        if os.path.basename(path) in self._strays:
            del self._strays[os.path.basename(path)]
            self._set_strays_locked(self._strays)

    def _set_strays_locked(self, strays: dict[str, int]) -> None:
        self._strays = strays
        self._index.set_strays(len(strays), sum(strays.values()))

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
        for failure in failures:
            if failure is not None:
                self._metrics.unlink_failed()
                log.warning(
                    "cannot remove %s: %s; the next clean-up tries again%s",
                    failure.filename,
                    failure.strerror,
                    hint_for(failure),
                )


def _newest_of_each(found: list[Entry]) -> tuple[dict[bytes, Entry], list[Entry]]:
    """Split what a scan found into the newest of each timeline, by its key, and the others."""
    newest = {entry.key: entry for entry in found}
    if len(newest) == len(found):
        return newest, []
    newest.clear()
    superseded = []
    for entry in found:
        held = newest.setdefault(entry.key, entry)
        if held is entry:
            continue
        if held.lsn > entry.lsn:
            superseded.append(entry)
        else:
            newest[entry.key] = entry
            superseded.append(held)
    return newest, superseded


def _try_unlink(path: str) -> OSError | None:
    try:
        unlink(path)
    except OSError as error:
        return error
    return None
