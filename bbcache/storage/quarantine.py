"""The bad archives of one cache that are kept for inspection, and how one gets there."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from bbcache.storage.files import try_unlink

if TYPE_CHECKING:
    from bbcache.storage.files import Store
    from bbcache.storage.index import Entry, Index

KEEPS: Final = 8


class Quarantine:
    """The directory ``quarantine/``, and what of it counts.

    Not thread-safe by itself: the catalog calls it under its file lock.

    Args:
        store: the files.
        index: has the ledger.
    """

    def __init__(self, store: Store, index: Index) -> None:
        self._store = store
        self._index = index
        self._files = index.accounting.quarantine

    def refresh(self) -> None:
        """Count what is there now.

        Raises:
            OSError: the directory cannot be listed.
        """
        sizes = self._store.quarantined(self._files.sizes)
        with self._index.lock:
            self._files.replace(sizes)

    def make_room(self) -> list[OSError]:
        """Unlink the oldest archives, so that `KEEPS` are there with the next one.

        Returns:
            What could not be unlinked.
        """
        self.refresh()
        own = [path for path in self._files.sizes if self._store.is_quarantined_name(path)]
        results = [try_unlink(path) for path in own[: max(0, len(own) - KEEPS + 1)]]
        self.refresh()
        return [failure for failure in results if failure is not None]

    def take(self, entry: Entry) -> bool:
        """Take this very entry out of the index, and move its file here.

        Returns:
            False where the entry is not held, or a build of its timeline leaves no room.

        Raises:
            OSError: the file cannot be moved; nothing has changed. On a read-only file
                system, where that would last, the entry goes and the file stays.
        """
        path, doomed = self._store.path_of(entry.key, entry.lsn), self._index.accounting.doomed
        if not self._index.doom_for_move(entry, path):
            return False
        try:
            target = self._store.quarantine(entry.key, entry.lsn)
        except BaseException as error:
            if not os.path.lexists(path):  # somebody was quicker
                with self._index.lock:
                    doomed.drop(path)
            elif not isinstance(error, OSError) or error.errno != errno.EROFS:
                self._index.restore(entry, path)
                raise
        else:
            with self._index.lock:
                doomed.drop(path)
                self._files.put(target, entry.size_bytes)
        with suppress(OSError):  # what is damaged may have another size; clean-up looks again
            self.refresh()
        return True
