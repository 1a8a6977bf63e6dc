"""Creating the files and directories of an archive below a directory.

Runs of zeros become holes, since a sparse file may be larger than the disk. The space
of WAL segments is reserved, because PostgreSQL stops if it cannot write to them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.tar_reader import Member
from bbcache.postgres.pgdata.tar_writer import DIRECTORY_MODE, FILE_MODE

Part: TypeAlias = Member | memoryview

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_NO_FALLOCATE: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_NO_FD: Final = -1
# The unit of holes; smaller files have none.
_HOLE_UNIT_BYTES: Final = 64 * 1024
_ZEROS: Final = bytes(_HOLE_UNIT_BYTES)
_SAMPLE_BYTES: Final = 64
_ZERO_SAMPLE: Final = bytes(_SAMPLE_BYTES)
_WAL_PREFIX: Final = "pg_wal/"


class MemberWriter:
    """Creates members and writes the contents of files. For one thread at a time.

    Directories get mode 0700 and files 0600. No existing file is written to, and no
    link is followed.

    Args:
        directory: the name of the directory in errors.
        dest_fd: a descriptor of the directory; stays open.
        owner: user id and group id of the new files; None takes the caller's.
    """

    def __init__(self, directory: Path, dest_fd: int, owner: tuple[int, int] | None) -> None:
        self._directory = directory
        self._dest_fd = dest_fd
        self._owner = owner
        self._member = Member(".", is_directory=True, size_bytes=0)
        self._fd = _NO_FD
        self._makes_holes = False
        self._position = 0  # in the file
        self._end = 0  # of what was written or reserved
        self._is_mode_cut: bool | None = None  # by the umask; None before the first file

    def settle_directory(self) -> None:
        """Set mode and owner of the directory itself; raises as `write`."""
        with self.naming(".", 0):
            self._settle(self._dest_fd, DIRECTORY_MODE)

    def write(self, parts: Iterable[Part]) -> None:
        """Create and fill files from these parts: a member, then its content, and so on.

        The content of the last member may continue in the next call.

        Raises:
            PostgresError: a file cannot be created or written, or there is no space.
        """
        try:
            for part in parts:
                if isinstance(part, memoryview):
                    self._write_content(part)
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

    def append(self, name: str, data: bytes) -> None:
        """Append to a file, which is created if it does not exist; raises as `write`."""
        self.end_file()
        with self.naming(name, len(data)):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, FILE_MODE, dir_fd=self._dest_fd)
            with open(fd, "wb", buffering=0) as file:
                self._settle(fd, FILE_MODE)
                file.write(data)

    def close(self) -> None:
        """Close the open file after a failure."""
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
            self._settle_file()
            self._position = self._end = 0
            self._makes_holes = member.size_bytes >= _HOLE_UNIT_BYTES
            if self._makes_holes and member.name.startswith(_WAL_PREFIX):
                self._reserve(member.size_bytes)

    def _reserve(self, size_bytes: int) -> None:
        """Reserve the space of the file; if the file system cannot, write its zeros."""
        try:
            os.posix_fallocate(self._fd, 0, size_bytes)
        except OSError as error:
            if error.errno not in _NO_FALLOCATE:
                raise
            self._makes_holes = False
        else:
            self._end = size_bytes

    def _write_content(self, data: memoryview) -> None:
        """Write the next bytes of the file, but not its long runs of zeros."""
        if not self._makes_holes:
            self._write_all(data)
            return
        start = 0
        for offset in range(0, len(data), _HOLE_UNIT_BYTES):
            unit = data[offset : offset + _HOLE_UNIT_BYTES]
            if _is_zero(unit):
                self._write_all(data[start:offset])
                start = offset + len(unit)
                self._position += len(unit)
        self._write_all(data[start:])

    def _write_all(self, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._fd, data, self._position)
            self._position += written
            data = data[written:]
            self._end = max(self._end, self._position)

    def _settle(self, fd: int, mode: int) -> None:
        """Set the mode, which the umask may have reduced, and the owner."""
        os.fchmod(fd, mode)
        if self._owner is not None:
            os.fchown(fd, *self._owner)

    def _settle_file(self) -> None:
        """Set the mode and the owner of a new file, where they are not right already."""
        if self._is_mode_cut is None:
            self._is_mode_cut = stat.S_IMODE(os.fstat(self._fd).st_mode) != FILE_MODE
        if self._is_mode_cut:
            os.fchmod(self._fd, FILE_MODE)
        if self._owner is not None:
            os.fchown(self._fd, *self._owner)

    def _close_fd(self) -> None:
        fd, self._fd = self._fd, _NO_FD
        if fd == _NO_FD:
            return
        try:
            if self._position > self._end:  # the file ends in a hole
                os.ftruncate(fd, self._position)
        finally:
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


def _is_zero(unit: memoryview) -> bool:
    """Whether the data is all zeros; the first bytes decide that for most data."""
    return (
        unit[:_SAMPLE_BYTES] == _ZERO_SAMPLE[: len(unit)] and unit.tobytes() == _ZEROS[: len(unit)]
    )
