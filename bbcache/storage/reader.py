"""One `get`: look up, open, check, and what to do about damage."""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from bbcache.archive.format import check_plain, check_sealed, read_seal
from bbcache.errors import ArchiveError, safe_str
from bbcache.ids import check_ids
from bbcache.outcomes import ReadResult
from bbcache.storage.files import hint_for
from bbcache.storage.index import Verification, make_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.ids import Lsn, TenantId, TimelineId
    from bbcache.metrics import Metrics
    from bbcache.pacer import Pacer
    from bbcache.storage.catalog import Catalog
    from bbcache.storage.files import BasebackupFile, Store
    from bbcache.storage.index import Entry, Index
    from bbcache.work_counter import WorkCounter

_WARN_PAUSE_S: Final = 1.0

log = logging.getLogger(__name__)


class Reader:
    """Reads entries. Thread-safe; a miss touches no disk, a hit no lock but the index's.

    Args:
        index: the entries.
        store: opens their files.
        catalog: takes bad ones out.
        metrics: counts hits, misses and errors.
        work_counter: knows of a quarantine under way.
        way: is told of each read.
        verify_reads: ``always``, ``first`` or ``never``.
        rebuild: called with an entry that was taken out, to queue its rebuild.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        index: Index,
        store: Store,
        catalog: Catalog,
        metrics: Metrics,
        work_counter: WorkCounter,
        pacer: Pacer,
        *,
        verify_reads: str,
        rebuild: Callable[[Entry], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index = index
        self._store = store
        self._catalog = catalog
        self._hits = metrics.reads[ReadResult.HIT]
        self._misses = metrics.reads[ReadResult.MISS]
        self._errors = metrics.reads[ReadResult.ERROR]
        self._work_counter = work_counter
        self._pacer = pacer
        self._is_always_checked = verify_reads == "always"
        self._with_digest = verify_reads != "never"
        self._rebuild = rebuild
        self._clock = clock
        self._warned_s = -math.inf  # set by any thread: a line more or less does no harm

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
            ArgumentError: (a `TypeError`) for arguments of a wrong type, which are looked at
                only where they have found nothing.
        """
        self._pacer.has_read = True
        try:
            key = make_key(tenant_id, timeline_id)
            entry = self._index.find(key, lsn)
        except TypeError:  # they cannot even be looked up
            check_ids(tenant_id, timeline_id, lsn)
            raise
        if entry is None:
            check_ids(tenant_id, timeline_id, lsn)
            if counts_misses:
                self._misses.inc()
            return None
        try:
            file = self._store.open(key, lsn, entry.size_bytes)
        except (ArchiveError, OSError) as error:
            self._failed(entry, error)
            return None
        try:
            if self._is_always_checked or not entry.is_verified:
                self._check(file, entry)
            self._hits.inc()
        except BaseException as error:
            with suppress(OSError):  # one failure is enough
                file.close()
            if not isinstance(error, (ArchiveError, OSError)):
                raise
            self._failed(entry, error)
            return None
        return file

    def check_built(self, file: BasebackupFile, entry: Entry) -> None:
        """Prove a file that was opened from a build, as far as `verify_reads` asks for that.

        Raises:
            ArchiveError: the bytes are bad.
            OSError: they cannot be read.
        """
        if self._is_always_checked or not entry.is_verified:
            self._check(file, entry)

    def _check(self, file: BasebackupFile, entry: Entry) -> None:
        """Prove the open file good.

        A file without seal (FLG.FEXTRA clear) is accepted where it was so when first
        read: one whose seal has vanished since is bad.
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
        """Count and log a failed read, and act on what it proves of the entry."""
        if isinstance(error, ArchiveError):
            with self._work_counter.under_way():
                self._take_out(entry, error)
            self._work_counter.changed()
        elif isinstance(error, FileNotFoundError) and self._catalog.is_at_path():
            # Replaced or removed since the look-up, or by somebody else: no ghost stays.
            self._catalog.forget(entry)
            self._misses.inc()
        else:
            self._errors.inc()
            self._warn(entry, error)

    def _warn(self, entry: Entry, error: OSError) -> None:
        """Log that a read failed, but not in a flood: the metric has the number."""
        now_s = self._clock()
        if now_s - self._warned_s >= _WARN_PAUSE_S:
            self._warned_s = now_s
            log.warning("cannot read %s: %s%s", entry, error, hint_for(error))

    def _take_out(self, entry: Entry, error: ArchiveError) -> None:
        try:
            is_taken_out = self._catalog.quarantine(entry)
        except OSError as move_error:
            self._errors.inc()
            reason = f"{safe_str(move_error)}{hint_for(move_error)}"
            log.error("%s is bad (%s), but cannot be moved away: %s", entry, error, reason)  # noqa: TRY400 - no news in the traceback
            return
        if not is_taken_out:
            # Another entry has come in its place between look-up and open.
            self._misses.inc()
            return
        self._errors.inc()
        log.error("%s is bad and was taken out: %s", entry, error)
        self._rebuild(entry)
