"""A temporary directory beside the path where a data directory is to appear.

It is locked (flock) while its process lives, so that a directory left by a killed
process can be told from one in use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bbcache.arguments import check_passable
from bbcache.errors import PostgresError

_PREFIX: Final = ".bbcache-fetch-"
_OWN_NAME: Final = re.compile(r"\.bbcache-fetch-[0-9a-f]{16}")
_PGDATA_NAME: Final = "pgdata"
_OPEN_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PRIVATE: Final = 0o700
_NOT_EMPTY: Final = (errno.ENOTEMPTY, errno.EEXIST)
# The errors of a file system without locks of directories, such as NFS.
_NO_LOCKS: Final = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Staging:
    """A directory that is filled and then published as a whole. A context manager.

    Not thread-safe. On entry it removes the directories that killed processes have left
    beside `dest`: directories of this user, known by name, mode, content and lock. On exit
    it removes a directory that was not published.

    Args:
        dest: where the data directory is to appear: a path that does not exist, or an empty
            directory, in an existing one.

    Raises:
        PostgresError: `dest` is not such a path.
    """

    def __init__(self, dest: Path | str) -> None:
        check_passable("the data directory", dest, PostgresError)
        self._dest = Path(os.path.realpath(dest))
        self._parent_fd = -1
        self._lock_fd = -1
        self._name = ""
        _check_place(self._dest)

    @property
    def pgdata_dir(self) -> Path:
        """Where to create the data directory; the path does not exist."""
        return self._dest.parent / self._name / _PGDATA_NAME

    def publish(self) -> None:
        """Move the finished directory, which is on disk, to `dest` atomically.

        Raises:
            PostgresError: `dest` has been created meanwhile, or the disk failed.
        """
        try:
            # A rename of a directory over another succeeds only if that is empty.
            os.rename(self.pgdata_dir, self._dest)
            os.fsync(self._parent_fd)
        except OSError as error:
            what = "is not empty any more" if error.errno in _NOT_EMPTY else error.strerror
            raise PostgresError(f"cannot put the data directory at {self._dest}: {what}") from error

    def __enter__(self) -> Self:
        try:
            self._parent_fd = os.open(self._dest.parent, _OPEN_DIR)
            self._sweep()
            while not self._make():
                pass  # the sweep of another process removed it before it was locked
        except OSError as error:
            self._clear()
            raise PostgresError(
                f"cannot make a directory beside {self._dest}: {error.strerror}"
            ) from error
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._clear()

    def _make(self) -> bool:
        """Create and lock a directory; return whether it still exists."""
        self._name = f"{_PREFIX}{secrets.token_hex(8)}"
        os.mkdir(self._name, _PRIVATE, dir_fd=self._parent_fd)
        try:
            self._lock_fd = os.open(self._name, _OPEN_DIR, dir_fd=self._parent_fd)
            _lock(self._lock_fd)
        except (FileNotFoundError, BlockingIOError):
            self._unlock()
            return False
        return os.fstat(self._lock_fd).st_nlink > 0

    def _clear(self) -> None:
        try:
            self._remove_all()
        except BaseException:  # a stop signal: remove it again, without interruption
            self._remove_all()
            raise

    def _remove_all(self) -> None:
        if self._name:
            shutil.rmtree(self._name, ignore_errors=True, dir_fd=self._parent_fd)
        self._unlock()
        fd, self._parent_fd = self._parent_fd, -1
        if fd >= 0:
            os.close(fd)

    def _unlock(self) -> None:
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    def _sweep(self) -> None:
        """Remove directories that killed processes have left; others stay."""
        for name in os.listdir(self._parent_fd):
            if _OWN_NAME.fullmatch(name):
                with contextlib.suppress(OSError):
                    self._sweep_one(name)

    def _sweep_one(self, name: str) -> None:
        fd = os.open(name, _OPEN_DIR, dir_fd=self._parent_fd)
        try:
            status = os.fstat(fd)
            is_ours = status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == _PRIVATE
            if is_ours and set(os.listdir(fd)) <= {_PGDATA_NAME}:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(name, ignore_errors=True, dir_fd=self._parent_fd)
        finally:
            os.close(fd)


def _check_place(dest: Path) -> None:
    try:
        names = os.listdir(dest)
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise PostgresError(f"{dest} cannot be used: {error.strerror}") from error
    if names:
        raise PostgresError(
            f"{dest} is not empty: {min(names)} is there\n"
            "hint: Name a directory that does not exist yet."
        )
    if not dest.parent.is_dir():
        raise PostgresError(f"there is no directory {dest.parent} to make {dest.name} in")
    if os.path.ismount(dest):
        raise PostgresError(
            f"{dest} is a mount point, which cannot be replaced\nhint: Name a directory below it."
        )


def _lock(fd: int) -> None:
    """Lock a directory. One that cannot be locked is never taken for a left-over."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
