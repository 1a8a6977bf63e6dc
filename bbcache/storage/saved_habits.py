"""What the policy of eviction has learned, kept over a restart."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bbcache.storage.disk_errors import hint_for
from bbcache.storage.habits_file import HabitsFile

if TYPE_CHECKING:
    from bbcache.storage.catalog import Catalog
    from bbcache.storage.files import Store
    from bbcache.storage.index import Index
    from bbcache.storage.locked_policy import LockedPolicy

log = logging.getLogger(__name__)


class SavedHabits:
    """Loads the habits of timelines at a start, and saves them at each clean-up.

    Args:
        store: the files.
        index: has the ledger, in which the file counts, also while it is written.
        catalog: has the file lock, under which the file is renamed.
        policy: has learned the habits.
    """

    def __init__(self, store: Store, index: Index, catalog: Catalog, policy: LockedPolicy) -> None:
        self._file = HabitsFile(store.data_dir, store.tmp_dir)
        self._index = index
        self._catalog = catalog
        self._policy = policy

    def load(self) -> None:
        """Take the saved habits; a file that cannot be read is the same as none.

        A damaged one is removed: its bytes count, and might leave no room for the next one.
        """
        try:
            if not self._policy.load(self._file.read()):
                self._remove()
        except OSError as error:
            log.warning("cannot read %s: %s%s", self._file.path, error.strerror, hint_for(error))

    def _remove(self) -> None:
        with self._catalog.changing() as may_change:
            if may_change and self._file.remove() is None:
                with self._index.lock:
                    self._index.accounting.habits_bytes = 0

    def save(self) -> None:
        """Replace the file, if something was learned and there is room for it.

        Raises:
            OSError: it could not be written; the last one stays.
        """
        with self._policy.asked() as (policy, _):
            if not self._policy.has_news:
                return
            data = policy.save()
            self._policy.has_news = False
        if data:
            self._replace(data)

    def _replace(self, data: bytes) -> None:
        with self._index.lock:
            accounting = self._index.accounting
            if accounting.excess(0, len(data))[1]:
                return
            size_bytes = accounting.habits_bytes
            accounting.habits_bytes += len(data)
        try:
            if self._write(data):
                size_bytes = len(data)
        finally:
            with self._index.lock:
                accounting.habits_bytes = size_bytes

    def _write(self, data: bytes) -> bool:
        with self._file.replaced_by(data) as rename, self._catalog.changing() as may_change:
            if may_change:
                rename()
            return may_change
