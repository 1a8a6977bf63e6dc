"""The lock on a cache directory: one cache at a time, in any process.

A pageserver locks its root in the same way.

The lock is a `flock` on ``.bbcache.lock``, which is never unlinked. The kernel frees the lock
of a killed process. The file has one line of JSON that names the holder, for people and for
the error that a second cache gets.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from filelock import FileLock, Timeout

from bbcache.errors import DirectoryLockedError, StoreError

LOCK_NAME: Final = ".bbcache.lock"
_HOLDER_PAUSES_S: Final = (0.0, *[0.01] * 20)
_HOLDER_MAX_BYTES: Final = 4096
_PROBE_FLAGS: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ_ONLY_MEANS: Final = (
    "entries are served, and nothing is published or removed"
    "\nhint: Make the directory writable for this cache; prepares work again by themselves."
)

log = logging.getLogger(__name__)


class DirectoryLock:
    """A cache's directory: the lock on it, and whether it is writable.

    Not thread-safe: the catalog calls it under its file lock. Any thread may read
    `read_only_reason` and call `is_at_path`. In a forked child the lock library closes its copy
    of the descriptor, so the child neither holds nor frees the lock.

    Args:
        data_dir: absolute path of the directory.
        lock_name: the name of the lock file in it.
        kind: of the directory, for errors.

    Attributes:
        identity: device and inode of the lock file that is held; of the directory after a
            read-only start; None before.
        read_only_reason: why the cache may not change the directory, in one line; None if
            it may.
    """

    def __init__(
        self, data_dir: str, lock_name: str = LOCK_NAME, kind: str = "cache directory"
    ) -> None:
        self.identity: tuple[int, int] | None = None
        self.read_only_reason: str | None = None
        self._data_dir = data_dir
        self._kind = kind
        self._path = os.path.join(data_dir, lock_name)
        self._lock: FileLock | None = None
        self._device: int | None = None  # of the directory; on overlayfs not that of its files
        self._news: str | None = None  # not yet logged
        self._read_only_text = f"the {kind} {data_dir} is on a read-only file system"

    def acquire(self) -> None:
        """Take the lock without waiting.

        Raises:
            DirectoryLockedError: another cache has it.
            StoreError: the lock file cannot be used.
        """
        device = self._directory_status().st_dev
        identities: list[tuple[int, int]] = []
        # thread_local: close() may come from any thread. No soft lock: a kill would leave it.
        lock = FileLock(
            self._path,
            mode=0o600,
            thread_local=False,
            fallback_to_soft=False,
            preserve_lock_file=True,
            on_acquired=lambda fd: identities.append(_write_holder(fd, self._path)),
        )
        try:
            lock.acquire(blocking=False)
        except Timeout:
            pid = read_holder_pid(self._path)
            raise DirectoryLockedError(self._data_dir, pid, self._kind) from None
        except OSError as error:
            raise self._unusable(error) from error
        except ExceptionGroup as errors:  # freeing the lock failed after an error
            raise self._unusable(*errors.exceptions) from errors
        self._lock, self.identity, self._device = lock, identities[0], device

    def acquire_unless_read_only(self) -> None:
        """Take the lock. On a read-only file system go on without it; `ensure` tries again.

        Raises:
            DirectoryLockedError: another cache has it. Not raised to a cache that has gone on
                without: `read_only_reason` says so.
            StoreError: as `retake`.
        """
        reason, is_first = None, self.identity is None
        try:
            self.retake()
        except StoreError as error:
            if error.errno == errno.EROFS:
                reason = self._read_only_text
            elif isinstance(error, DirectoryLockedError) and not is_first:
                reason = str(error).partition("\n")[0]
            else:
                raise
            if is_first:
                status = self._directory_status()
                self.identity, self._device = (status.st_dev, status.st_ino), status.st_dev
        self._set_reason(reason)

    @property
    def is_held(self) -> bool:
        """Whether this cache has the lock; one read of memory."""
        return self._lock is not None

    def release(self) -> None:
        """Free the lock; harmless when it is not held."""
        lock, self._lock, self.identity = self._lock, None, None
        if lock is not None:
            _free(lock)

    def is_at_path(self) -> bool:
        """Whether the path still leads to the lock file that is held.

        If not, the directory was removed or replaced, and may be another cache's. Without the
        lock: whether the path still leads to the same directory.
        """
        try:
            status = os.lstat(self._path) if self.is_held else os.stat(self._data_dir)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self.identity

    def check_at_path(self) -> None:
        """Check `is_at_path`.

        Raises:
            StoreError: the directory was removed or replaced.
        """
        if not self.is_at_path():
            raise StoreError(
                f"the {self._kind} {self._data_dir} was removed or replaced\n"
                "hint: Restore or remount it; else the next prepare or clean-up makes a new one.",
                errno=errno.ENOENT,
            )

    def ensure(self) -> None:
        """Lock the directory at the path, unless it is locked already.

        A directory that was removed is made again. On a read-only file system nothing is
        raised: `read_only_reason` is set.

        Raises:
            OSError: the directory cannot be made or locked; `DirectoryLockedError` if another
                cache has taken it.
        """
        if not self.is_held:
            self.acquire_unless_read_only()
        elif self.is_at_path():
            self._set_reason(self._read_only_text if self._is_read_only() else None)
        else:
            with suppress(FileExistsError):
                os.mkdir(self._data_dir, 0o700)
            self.retake()

    def retake(self) -> None:
        """Take the lock of the directory that is at the path now, then free the old one.

        Raises:
            StoreError: as `acquire`; or the directory is on another file system than before,
                such as the root's below a mount point that has lost its mount.
        """
        if self._device not in (None, self._directory_status().st_dev):
            raise StoreError(
                f"the {self._kind} {self._data_dir} is on another file system than at the start"
                "\nhint: Mount its file system again, or start a new cache."
            )
        old = self._lock
        self.acquire()
        if old is not None:
            _free(old)

    def log_news(self) -> None:
        """Log, once and without a lock, that the directory became read-only or writable."""
        news, self._news = self._news, None
        if news is not None:
            log.warning("%s", news)

    def _is_read_only(self) -> bool:
        """Whether a write fails: Linux calls an ext4 that an error has stopped writable."""
        try:
            # As in BasebackupFile.open_whatever, no interrupt comes between the two.
            (fd,) = map(os.open, (self._path,), (_PROBE_FLAGS,))
            os.close(fd)
        except OSError as error:
            return error.errno == errno.EROFS
        return False

    def _set_reason(self, reason: str | None) -> None:
        before, self.read_only_reason = self.read_only_reason, reason
        if reason is not None and reason != before:
            self._news = f"{reason}; {_READ_ONLY_MEANS}"
        elif reason is None and before is not None:
            self._news = f"the {self._kind} {self._data_dir} is writable again"

    def _unusable(self, *errors: Exception) -> StoreError:
        error = next((error for error in errors if isinstance(error, OSError)), OSError())
        return StoreError(
            f"cannot lock the {self._kind} with {self._path}: {error.strerror}\n"
            "hint: The lock file must be a regular file that this user may write, "
            "on a file system with flock.",
            errno=error.errno,
        )

    def _directory_status(self) -> os.stat_result:
        try:
            return os.stat(self._data_dir)
        except OSError as error:
            text = f"cannot examine the {self._kind} {self._data_dir}: {error.strerror}"
            raise StoreError(text, errno=error.errno) from error


def _write_holder(fd: int, path: str) -> tuple[int, int]:
    """Name the holder in the open lock file; returns the file's device and inode."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", path)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    with suppress(OSError):  # the disk may be full: that does not stop a start
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(holder).encode() + b"\n", 0)
    return status.st_dev, status.st_ino


def _free(lock: FileLock) -> None:
    """Free a lock, with a second try.

    `FileLock` remembers a lock that could not be freed, and refuses to lock its directory
    again as long as anything, such as a traceback, refers to that lock.
    """
    try:
        lock.release()
    except OSError:
        lock.release()


def read_holder_pid(path: str) -> int | None:
    """The process id in a lock file; None if the file does not say.

    The holder writes it a moment after it has the lock, so an unfinished file is read again.
    """
    for pause_s in _HOLDER_PAUSES_S:
        time.sleep(pause_s)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            pid = json.loads(os.read(fd, _HOLDER_MAX_BYTES))["pid"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        finally:
            os.close(fd)
        return pid if isinstance(pid, int) else None
    return None
