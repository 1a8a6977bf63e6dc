"""The directory of one cache: whether it is there, is this cache's, and can be written to."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from bbcache.errors import DirectoryLockedError, StoreError

if TYPE_CHECKING:
    from bbcache.storage.dirlock import DirectoryLock
    from bbcache.storage.files import Store

_READ_ONLY_MEANS: Final = (
    "entries are served, and nothing is published or removed"
    "\nhint: Make the directory writable for this cache; prepares work again by themselves."
)

log = logging.getLogger(__name__)


class OwnedDirectory:
    """The directory and its lock.

    Not thread-safe by itself: the catalog calls it under its file lock. What it says of a
    read-only file system may be read at any time.

    Args:
        store: the files.
        dirlock: the lock on the directory; not held where the file system is read-only.

    Attributes:
        read_only_reason: why nothing in the directory may be changed, in one line; None
            where it may be.
        load_failure: why what is in the directory is not known yet; None once it is.
        is_rescan_due: whether a directory was locked that has not been looked at yet.
        is_sweep_due: whether what builds have left in ``tmp/`` is still to be removed.
    """

    def __init__(self, store: Store, dirlock: DirectoryLock) -> None:
        self._store = store
        self._dirlock = dirlock
        self.load_failure: str | None = None
        self.is_rescan_due = False
        self.is_sweep_due = True
        self.read_only_reason: str | None = None
        self._news: str | None = None
        if not dirlock.is_held:
            self._become(self._read_only_text())

    def is_there(self) -> bool:
        """Whether the directory at the path is the one that was locked, or opened read-only."""
        return self._dirlock.is_at_path()

    def check_there(self) -> None:
        """Check that the directory at the path is the one that was locked.

        Raises:
            StoreError: it is not.
        """
        if not self.is_there():
            raise StoreError(
                f"the cache directory {self._store.data_dir} was removed or replaced\n"
                "hint: Restore or remount it; else the next prepare or clean-up makes a new one.",
                errno=errno.ENOENT,
            )

    def may_change(self) -> bool:
        """Whether the directory at the path is this cache's alone."""
        return self._dirlock.is_held and self._dirlock.is_at_path()

    @property
    def is_locked(self) -> bool:
        """Whether this cache has locked a directory, be it the one at the path or not."""
        return self._dirlock.is_held

    def tell(self) -> None:
        """Log, once and without a lock, that the directory has become read-only or writable."""
        news, self._news = self._news, None
        if news is not None:
            log.warning("%s", news)

    def come(self) -> None:
        """Lock the directory at the path, unless that is what is locked, or it is read-only.

        Raises:
            OSError: it is not to be had; `DirectoryLockedError` where another cache
                has taken it.
        """
        if self.load_failure is not None:
            text = f"the cache directory {self._store.data_dir} cannot be loaded"
            raise StoreError(f"{text}: {self.load_failure}")
        is_there = self._dirlock.is_at_path()
        if self._dirlock.is_held and is_there:
            self._become(self._read_only_text() if self._dirlock.is_read_only() else None)
        elif self._dirlock.is_held:
            with suppress(FileExistsError):
                os.mkdir(self._store.data_dir, 0o700)
            self._retake()
        else:
            self._leave_read_only()

    def _leave_read_only(self) -> None:
        """Take the lock that a read-only file system has not let the cache take, if it can be."""
        try:
            self._retake()
        except DirectoryLockedError as error:
            self._become(str(error).partition("\n")[0])
        except StoreError as error:
            if error.errno != errno.EROFS:
                raise
            self._become(self._read_only_text())
        else:
            self._become(None)

    def _retake(self) -> None:
        was_held = self._dirlock.is_held
        if was_held:
            self.is_rescan_due = True  # also where only freeing the old lock fails
        self._dirlock.retake()
        self.is_rescan_due = True

    def _become(self, reason: str | None) -> None:
        before, self.read_only_reason = self.read_only_reason, reason
        if reason is not None and reason != before:
            self._news = f"{reason}; {_READ_ONLY_MEANS}"
        elif reason is None and before is not None:
            self._news = f"the cache directory {self._store.data_dir} is writable again"

    def _read_only_text(self) -> str:
        return f"the cache directory {self._store.data_dir} is on a read-only file system"
