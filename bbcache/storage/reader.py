"""One `get`: look up, open, check, and act on damage."""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from bbcache.archive.format import check_plain, check_sealed, read_seal
from bbcache.errors import ArchiveError, StoreError, safe_str
from bbcache.ids import check_ids
from bbcache.outcomes import ReadResult
from bbcache.storage.disk_errors import hint_for
from bbcache.storage.index import Verification

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.history import History
    from bbcache.ids import Lsn, TenantId, TimelineId
    from bbcache.metrics import Metrics
    from bbcache.pacer import Pacer
    from bbcache.storage.catalog import Catalog
    from bbcache.storage.files import BasebackupFile, Store
    from bbcache.storage.index import Entry, Index
    from bbcache.storage.locked_policy import Start
    from bbcache.work_counter import WorkCounter

_WARN_PAUSE_S: Final = 1.0
_clock_s: Final = time.time  # one look-up less for each `get`
_MISS: Final = ReadResult.MISS

log = logging.getLogger(__name__)


class Reader:
    """Reads entries. Thread-safe. A miss touches no disk; a hit takes the index lock only.

    Args:
        index: the entries.
        store: opens their files.
        catalog: removes bad entries.
        metrics: counts hits, misses and errors.
        history: records misses and errors.
        work_counter: counts a quarantine under way.
        pacer: notes each read.
        verify_reads: ``always``, ``first`` or ``never``.
        note_start: appends the time and the key of each `get` to a queue; None if there is none.
        rebuild: called with a bad entry after its removal, to queue a prepare.
    """

    def __init__(
        self,
        index: Index,
        store: Store,
        catalog: Catalog,
        metrics: Metrics,
        history: History,
        work_counter: WorkCounter,
        pacer: Pacer,
        *,
        verify_reads: str,
        note_start: Callable[[Start], None] | None,
        rebuild: Callable[[Entry], None],
    ) -> None:
        self._index = index
        self._store = store
        self._catalog = catalog
        self._hits = metrics.reads[ReadResult.HIT]
        self._misses = metrics.reads[ReadResult.MISS]
        self._errors = metrics.reads[ReadResult.ERROR]
        self._history = history
        self._note_miss = history.append
        self._work_counter = work_counter
        self._pacer = pacer
        self._is_always_checked = verify_reads == "always"
        self._with_digest = verify_reads != "never"
        self._note_start = note_start
        self._rebuild = rebuild
        self._warned_s = -math.inf  # set by any thread: a race costs one more line

    def read(
        self,
        tenant_id: TenantId,
        timeline_id: TimelineId,
        lsn: Lsn,
        *,
        counts_misses: bool = True,
    ) -> BasebackupFile | None:
        """Open the timeline's archive at exactly `lsn`; None for a miss or an error.

        Raises:
            ArgumentError: (a `TypeError`) an argument has a wrong type. Only checked if no
                entry was found.
        """
        self._pacer.has_read, note_start = True, self._note_start
        try:
            key: bytes = tenant_id + timeline_id  # `make_key`, without a call: hits and misses pay
            entry = self._index.find(key, lsn)
        except TypeError:
            check_ids(tenant_id, timeline_id, lsn)
            raise
        if entry is None:
            check_ids(tenant_id, timeline_id, lsn)
            record = (_clock_s(), key, lsn.real, _MISS, "")
            if note_start is not None:
                note_start(record)  # a start begins with time and key, as a record does
            if counts_misses:
                self._misses.inc()
                self._note_miss(record)
            return None
        if note_start is not None:
            note_start((_clock_s(), key))
        try:
            file = self._store.open(key, lsn, entry.size_bytes)
            try:
                if self._is_always_checked or not entry.is_verified:
                    self._check(file, entry)
                self._hits.inc()
            except BaseException:
                with suppress(OSError):  # report the first failure only
                    file.close()
                raise
        except (ArchiveError, OSError) as error:
            self._failed(entry, error)
            return None
        return file

    def check_built(self, file: BasebackupFile, entry: Entry) -> None:
        """Check the open file of a build as `verify_reads` says.

        Raises:
            ArchiveError: the bytes are bad.
            OSError: they cannot be read.
        """
        if self._is_always_checked or not entry.is_verified:
            self._check(file, entry)

    def _check(self, file: BasebackupFile, entry: Entry) -> None:
        """Check an open file, and note in the entry that it is good.

        A file without seal is accepted if it had none at the first check in this life of the
        cache. A seal that has vanished since then means damage.
        """
        fd = file.fileno()
        seal = read_seal(fd, entry.key, entry.lsn)
        if seal is not None:
            check_sealed(fd, entry.size_bytes, seal, with_digest=self._with_digest)
            entry.verification = Verification.SEALED
        elif entry.verification is Verification.SEALED:
            raise ArchiveError("the file has lost its seal")
        elif entry.verification is Verification.NONE:
            check_plain(fd, entry.size_bytes)
            entry.verification = Verification.PLAIN

    def _failed(self, entry: Entry, error: ArchiveError | OSError) -> None:
        """Count and log a failed read, and remove the entry if the error proves it bad."""
        if isinstance(error, ArchiveError):
            with self._work_counter.under_way():
                self._take_out(entry, error)
            self._work_counter.changed()
        elif isinstance(error, FileNotFoundError) and self._catalog.forget(entry):
            self._missed(entry)  # it was replaced or removed since the look-up
        else:
            self._count_error(entry, error)
            self._warn(entry, error)

    def _missed(self, entry: Entry) -> None:
        self._misses.inc()
        self._history.add(entry.key, entry.lsn, ReadResult.MISS, "its file was gone")

    def _count_error(self, entry: Entry, error: BaseException) -> None:
        self._errors.inc()
        self._history.add(entry.key, entry.lsn, ReadResult.ERROR, safe_str(error))

    def _warn(self, entry: Entry, error: OSError) -> None:
        """Log a failed read, at most once per second; the metric counts all of them."""
        now_s = time.monotonic()
        if now_s - self._warned_s >= _WARN_PAUSE_S:
            self._warned_s = now_s
            log.warning("cannot read %s: %s%s", entry, error, hint_for(error))

    def _take_out(self, entry: Entry, error: ArchiveError) -> None:
        try:
            is_taken_out = self._catalog.quarantine(entry)
        except StoreError as refusal:
            self._count_error(entry, error)
            log.error("%s is bad (%s), but cannot be removed: %s", entry, error, refusal)  # noqa: TRY400 - the traceback says nothing more
            return
        if not is_taken_out:  # another entry has replaced it between look-up and open
            self._missed(entry)
            return
        self._count_error(entry, error)
        log.error("%s is bad and was removed: %s", entry, error)
        self._rebuild(entry)
