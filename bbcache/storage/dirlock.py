"""The lock on a cache directory: one cache at a time, in any process.

The lock is a `flock` on ``.bbcache.lock``, which is never unlinked; a lock left by
a killed process is simply taken. The file holds one line of JSON that names the
holder, for people and for the error that a second cache gets.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from filelock import FileLock, Timeout

from bbcache.errors import DirectoryLockedError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

LOCK_NAME: Final = ".bbcache.lock"
_HOLDER_MAX_BYTES: Final = 4096
_HOLDER_TRIES: Final = 5
_HOLDER_PAUSE_S: Final = 0.01
_PROBE_FLAGS: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class DirectoryLock:
    """The lock of one cache on its directory.

    Not thread-safe by itself: the catalog calls it under its file lock. In a forked
    child the lock library closes its copy of the descriptor, so that the child
    neither holds nor frees the parent's lock.

    Args:
        data_dir: absolute path of the directory.
    """

    def __init__(self, data_dir: str) -> None:
        self._data_dir = data_dir
        self._path = os.path.join(data_dir, LOCK_NAME)
        self._lock: FileLock | None = None
        self._identity: tuple[int, int] | None = None  # device and inode of the lock file held
        self._acquired_identity: tuple[int, int] | None = None  # while it is being taken
        self._device: int | None = None  # of the directory; on overlayfs not that of its files

    def acquire(self) -> None:
        """Take the lock without waiting.

        Raises:
            DirectoryLockedError: another cache has it.
            StoreError: the lock file cannot be used.
        """
        device = self._device_now()
        # thread_local: close() may come from any thread. No soft lock: a kill would leave it.
        lock = FileLock(
            self._path,
            mode=0o600,
            thread_local=False,
            fallback_to_soft=False,
            preserve_lock_file=True,
            on_acquired=self._write_holder,
        )
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise DirectoryLockedError(self._data_dir, read_holder_pid(self._path)) from None
        except OSError as error:
            raise self._unusable(error) from error
        except ExceptionGroup as errors:  # the disk fails, and freeing the lock again fails too
            raise self._unusable(*errors.exceptions) from errors
        self._lock, self._identity = lock, self._acquired_identity
        self._device = device

    def acquire_unless_read_only(self) -> None:
        """Take the lock; on a read-only file system go on without it, until `retake`.

        Raises:
            StoreError: as `acquire`, or the directory cannot be looked at.
        """
        try:
            self.acquire()
        except StoreError as error:
            if error.errno != errno.EROFS:
                raise
        else:
            return
        status = self._status_now()
        self._identity, self._device = (status.st_dev, status.st_ino), status.st_dev

    @property
    def is_held(self) -> bool:
        """Whether this cache has the lock; one read of memory."""
        return self._lock is not None

    def is_read_only(self) -> bool:
        """Whether the file system is read-only by now: only an attempt to write tells.

        Where an error has made ext4 stop, for one, the mount is still said to be writable.
        """
        try:
            # As in BasebackupFile.open_whatever, no interrupt comes between the two.
            (fd,) = map(os.open, (self._path,), (_PROBE_FLAGS,))
            os.close(fd)
        except OSError as error:
            return error.errno == errno.EROFS
        return False

    def release(self) -> None:
        """Free the lock; harmless when it is not held."""
        lock, self._lock, self._identity = self._lock, None, None
        if lock is not None:
            _free(lock)

    def is_at_path(self) -> bool:
        """Whether the directory still has the very lock file that is held.

        False when the directory has vanished, was replaced, or its lock file was
        removed: another cache may have it then. Without the lock, whether the directory
        is still the same.
        """
        try:
            status = os.lstat(self._path) if self.is_held else os.stat(self._data_dir)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def retake(self) -> None:
        """Take the lock of the directory that is at the path now.

        The old lock is kept until the new one is held.

        Raises:
            StoreError: as `acquire`, or the directory is on another file system,
                such as the root below a mount point that has lost its mount.
        """
        if self._device not in (None, self._device_now()):
            raise StoreError(
                f"the cache directory {self._data_dir} is on another file system than at the start"
                "\nhint: Mount its file system again, or start a new cache."
            )
        old = self._lock
        self.acquire()
        if old is not None:
            _free(old)

    def _unusable(self, *errors: Exception) -> StoreError:
        error = next((error for error in errors if isinstance(error, OSError)), OSError())
        return StoreError(
            f"cannot lock the cache directory with {self._path}: {error.strerror}\n"
            "hint: The lock file must be a regular file that this user may write, "
            "on a file system with flock.",
            errno=error.errno,
        )

    def _device_now(self) -> int:
        return self._status_now().st_dev

    def _status_now(self) -> os.stat_result:
        try:
            return os.stat(self._data_dir)
        except OSError as error:
            text = f"cannot look at the cache directory {self._data_dir}: {error.strerror}"
            raise StoreError(text, errno=error.errno) from error

    def _write_holder(self, fd: int) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", self._path)
        self._acquired_identity = (status.st_dev, status.st_ino)
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with suppress(OSError):  # a full disk must not keep a cache from serving what it has
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode() + b"\n", 0)


def _free(lock: FileLock) -> None:
    """Free a lock, at the second try where the first has failed.

    A `FileLock` that could not be freed is kept for that, and would keep its directory
    from being locked anew for as long as anything, such as a traceback, refers to it.
    """
    try:
        lock.release()
    except OSError:
        lock.release()


def read_holder_pid(path: str, sleep: Callable[[float], None] = time.sleep) -> int | None:
    """The pid in a lock file; None where it is not to be had.

    The text comes a moment after the lock, so an empty file is read again.
    """
    for attempt in range(_HOLDER_TRIES):
        if attempt:
            sleep(_HOLDER_PAUSE_S)
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
