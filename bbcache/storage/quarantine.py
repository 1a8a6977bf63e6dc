"""The directory ``quarantine/``: bad archives that are kept for inspection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bbcache.storage.files import try_unlink

if TYPE_CHECKING:
    from bbcache.storage.files import Store
    from bbcache.storage.index import Entry, Index

KEEPS: Final = 8


class Quarantine:
    """The newest bad archives of one cache, and their bytes in the ledger.

    Not thread-safe: the catalog calls it under its file lock.

    Args:
        store: the files.
        index: has the ledger.
    """

    def __init__(self, store: Store, index: Index) -> None:
        self._store = store
        self._index = index
        self._files = index.accounting.quarantine

    def refresh(self) -> None:
        """Count the files that are in the directory now.

        Raises:
            OSError: the directory cannot be listed.
        """
        sizes = self._store.quarantined(self._files.sizes)
        with self._index.lock:
            self._files.replace(sizes)

    def take(self, entry: Entry) -> OSError | None:
        """Move the file of a doomed entry here.

        Returns:
            Why the file was not moved; None if it was, or is gone.
        """
        try:
            path = self._store.quarantine(entry.key, entry.lsn)
        except FileNotFoundError:
            return None
        except OSError as error:
            return error
        with self._index.lock:
            self._index.accounting.doomed.drop(self._store.path_of(entry.key, entry.lsn))
            self._files.put(path, entry.size_bytes)
        return None

    def drop_oldest(self) -> bool:
        """Remove the oldest archive to make room; False if there is none that can be removed."""
        own = [path for path in self._files.sizes if self._store.is_quarantined_name(path)]
        if not own or try_unlink(own[0]) is not None:
            return False
        with self._index.lock:
            self._files.drop(own[0])
        return True

    def trim(self) -> list[OSError]:
        """Remove the oldest archives beyond `KEEPS`, and count the rest.

        Returns:
            Why some archives could not be removed.

        Raises:
            OSError: the directory cannot be listed.
        """
        self.refresh()
        own = [path for path in self._files.sizes if self._store.is_quarantined_name(path)]
        failures = [failure for path in own[:-KEEPS] if (failure := try_unlink(path))]
        self.refresh()
        return failures
