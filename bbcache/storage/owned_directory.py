"""The directory of one cache: whether it is still this cache's, and whether it is writable."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from bbcache.errors import DirectoryLockedError, StoreError

if TYPE_CHECKING:
    from bbcache.storage.dirlock import DirectoryLock

_READ_ONLY_MEANS: Final = (
    "entries are served, and nothing is published or removed"
    "\nhint: Make the directory writable for this cache; prepares work again by themselves."
)

log = logging.getLogger(__name__)


class OwnedDirectory:
    """A directory and the lock on it.

    Not thread-safe: the catalog calls it under its file lock. Only `read_only_reason` may be
    read at any time.

    Args:
        data_dir: absolute path of the directory.
        lock: its lock; not held on a read-only file system.

    Attributes:
        lock: the same.
        read_only_reason: why the cache may not change the directory, in one line; None if
            it may.
    """

    def __init__(self, data_dir: str, lock: DirectoryLock) -> None:
        self.lock = lock
        self.read_only_reason: str | None = None
        self._data_dir = data_dir
        self._news: str | None = None  # not yet logged
        if not lock.is_held:
            self._set_reason(self._read_only_text())

    def check_at_path(self) -> None:
        """Check that the directory at the path is still the locked one.

        Raises:
            StoreError: it is not.
        """
        if not self.lock.is_at_path():
            raise StoreError(
                f"the cache directory {self._data_dir} was removed or replaced\n"
                "hint: Restore or remount it; else the next prepare or clean-up makes a new one.",
                errno=errno.ENOENT,
            )

    def may_change(self) -> bool:
        """Whether the directory at the path is locked by this cache."""
        return self.lock.is_held and self.lock.is_at_path()

    def ensure(self) -> None:
        """Lock the directory at the path, unless it is locked already.

        A directory that was removed is made again. On a read-only file system nothing is
        raised: `read_only_reason` is set.

        Raises:
            OSError: the directory cannot be made or locked; `DirectoryLockedError` if another
                cache has taken it.
        """
        if not self.lock.is_held:
            self._leave_read_only()
        elif self.lock.is_at_path():
            self._set_reason(self._read_only_text() if self.lock.is_read_only() else None)
        else:
            with suppress(FileExistsError):
                os.mkdir(self._data_dir, 0o700)
            self.lock.retake()

    def log_news(self) -> None:
        """Log, once and without a lock, that the directory became read-only or writable."""
        news, self._news = self._news, None
        if news is not None:
            log.warning("%s", news)

    def _leave_read_only(self) -> None:
        """Take the lock that could not be taken at the start, if the disk is writable now."""
        reason = None
        try:
            self.lock.retake()
        except DirectoryLockedError as error:
            reason = str(error).partition("\n")[0]
        except StoreError as error:
            if error.errno != errno.EROFS:
                raise
            reason = self._read_only_text()
        self._set_reason(reason)

    def _set_reason(self, reason: str | None) -> None:
        before, self.read_only_reason = self.read_only_reason, reason
        if reason is not None and reason != before:
            self._news = f"{reason}; {_READ_ONLY_MEANS}"
        elif reason is None and before is not None:
            self._news = f"the cache directory {self._data_dir} is writable again"

    def _read_only_text(self) -> str:
        return f"the cache directory {self._data_dir} is on a read-only file system"
