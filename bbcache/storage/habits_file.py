"""The file of saved habits: best effort, since lost habits are learned again."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from bbcache.storage.files import HABITS_NAME, OPEN_FLAGS, BasebackupFile, TempFile, try_unlink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MOST_BYTES: Final = 1 << 29  # those of the most timelines that are remembered have 0.4 GB


class HabitsFile:
    """The file ``.bbcache.habits`` of one cache directory. Takes no lock.

    Args:
        data_dir: absolute path of the directory.
        tmp_dir: that of its directory for temporary files.

    Attributes:
        path: of the file.
    """

    def __init__(self, data_dir: str, tmp_dir: str) -> None:
        self.path = os.path.join(data_dir, HABITS_NAME)
        self._tmp_dir = tmp_dir

    def read(self) -> bytes:
        """The saved habits; empty if there are none, one byte if there are too many.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            with BasebackupFile.open_whatever(self.path, OPEN_FLAGS) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    return b""
                return file.read(1 if status.st_size > _MOST_BYTES else -1)
        except FileNotFoundError:
            return b""

    def remove(self) -> OSError | None:
        """Remove the file; returns why that failed."""
        return try_unlink(self.path)

    @contextmanager
    def replaced_by(self, data: bytes) -> Iterator[Callable[[], None]]:
        """Write a file that the block, under whatever lock, renames into place as a whole.

        There is no fsync: after a power loss the file may be damaged, which its reader finds out.

        Raises:
            OSError: the file could not be written or renamed; the last one stays.
        """
        temp = TempFile(os.path.join(self._tmp_dir, f"{HABITS_NAME}.{secrets.token_hex(8)}"))
        try:
            try:
                temp.append(data)
            finally:
                temp.close()
            yield lambda: os.rename(temp.path, self.path)
        finally:
            try_unlink(temp.path)
