"""A temporary directory beside the place where a data directory is to appear.

It is locked (flock) as long as its process lives, so that what a killed one has left
can be told from what another one is still at.
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

from bbcache.errors import PostgresError

_PREFIX: Final = ".bbcache-fetch-"
_OWN_NAME: Final = re.compile(r"\.bbcache-fetch-[0-9a-f]{16}")
_PGDATA_NAME: Final = "pgdata"
_OPEN_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PRIVATE: Final = 0o700
_NOT_EMPTY: Final = (errno.ENOTEMPTY, errno.EEXIST)
# What a file system says that does not know locks of directories, such as NFS.
_NO_LOCKS: Final = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Staging:
    """A directory in the making: entered, filled, published, and never left half-made.

    Not thread-safe. Entering it removes what killed predecessors have left beside
    `dest`: directories of this user's, by their name, mode, content and lock. Leaving
    it removes all that was not published.

    Args:
        dest: where the data directory is to appear: nothing, or an empty directory, in
            an existing one.

    Raises:
        PostgresError: `dest` is something else.
    """

    def __init__(self, dest: Path | str) -> None:
        self._dest = Path(os.path.realpath(dest))
        self._parent_fd = -1
        self._lock_fd = -1
        self._name = ""
        _check_place(self._dest)

    @property
    def pgdata_dir(self) -> Path:
        """Where to make the data directory; nothing is there."""
        return self._dest.parent / self._name / _PGDATA_NAME

    def publish(self) -> None:
        """Put what has been made, and is on disk, in its place; all at once.

        Raises:
            PostgresError: something else has come there meanwhile, or the disk failed.
        """
        try:
            # A rename of a directory over another succeeds only where that is empty.
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
                pass  # another one's sweep has come between making and locking
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
        """Make and lock a directory; return whether it is still there then."""
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
        except BaseException:  # a signal that asks to stop: once more, in peace
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
        """Remove what is left of those that were killed; what may be anything else stays."""
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
            f"{dest} is a mount point, which nothing can be put in the place of\n"
            "hint: Name a directory below it."
        )


def _lock(fd: int) -> None:
    """Lock a directory; where that cannot be, it is never taken for one left behind."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
