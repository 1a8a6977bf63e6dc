"""Creating the files and directories of an archive below a directory."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from bbcache.errors import PostgresError
from bbcache.postgres.tar_reader import Member
from bbcache.postgres.tar_writer import DIRECTORY_MODE, FILE_MODE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import TypeAlias

    Part: TypeAlias = Member | memoryview

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_NO_FD: Final = -1


class MemberWriter:
    """Creates members, and writes into each file what follows it. For one thread at a time.

    Directories get mode 0700 and files 0600. Nothing that is there is written to, and no
    link in the place of a file is followed.

    Args:
        directory: what errors call the directory.
        dest_fd: the same, open; stays open.
        owner: user id and group id for all that is created; None is the caller's.
    """

    def __init__(self, directory: Path, dest_fd: int, owner: tuple[int, int] | None) -> None:
        self._directory = directory
        self._dest_fd = dest_fd
        self._owner = owner
        self._member = Member(".", is_directory=True, size_bytes=0)
        self._fd = _NO_FD

    def settle_directory(self) -> None:
        """Set mode and owner of the directory itself; raises as `write`."""
        with self.naming(".", 0):
            self._settle(self._dest_fd, DIRECTORY_MODE)

    def write(self, parts: Iterable[Part]) -> None:
        """Create and fill what these parts are: a member, then its content, and so on.

        The content of the last may go on in another call.

        Raises:
            PostgresError: something cannot be created or written, or there is no space.
        """
        try:
            for part in parts:
                if isinstance(part, memoryview):
                    _write_all(self._fd, part)
                else:
                    self._close_fd()
                    self._member = part
                    self._create(part)
        except OSError as error:
            raise self._named(error, self._member.name, self._member.size_bytes) from error

    def end_file(self) -> None:
        """Close the file that was written last; raises as `write`."""
        with self.naming(self._member.name, self._member.size_bytes):
            self._close_fd()

    def close(self) -> None:
        """Close what is open, when something has failed already."""
        with contextlib.suppress(OSError):
            self._close_fd()

    @contextlib.contextmanager
    def naming(self, name: str, size_bytes: int) -> Iterator[None]:
        """Turn an `OSError` into a `PostgresError` that names a file and what it needs."""
        try:
            yield
        except OSError as error:
            raise self._named(error, name, size_bytes) from error

    def _create(self, member: Member) -> None:
        if member.is_directory:
            os.mkdir(member.name, DIRECTORY_MODE, dir_fd=self._dest_fd)
            os.chmod(member.name, DIRECTORY_MODE, dir_fd=self._dest_fd)
            if self._owner is not None:
                os.chown(member.name, *self._owner, dir_fd=self._dest_fd, follow_symlinks=False)
        else:
            self._fd = os.open(member.name, _CREATE, FILE_MODE, dir_fd=self._dest_fd)
            self._settle(self._fd, FILE_MODE)

    def _settle(self, fd: int, mode: int) -> None:
        """Set the mode, which the umask may have cut down, and the owner."""
        os.fchmod(fd, mode)
        if self._owner is not None:
            os.fchown(fd, *self._owner)

    def _close_fd(self) -> None:
        fd, self._fd = self._fd, _NO_FD
        if fd != _NO_FD:
            os.close(fd)

    def _named(self, error: OSError, name: str, size_bytes: int) -> PostgresError:
        path = self._directory / name
        if error.errno not in _NO_SPACE:
            return PostgresError(f"cannot write {path}: {error.strerror}")
        status = os.fstatvfs(self._dest_fd)
        return PostgresError(
            f"no space for {path}: it needs {size_bytes} bytes, and "
            f"{status.f_bavail * status.f_frsize} bytes in {status.f_favail} files are free\n"
            "hint: Make room on that file system."
        )


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
