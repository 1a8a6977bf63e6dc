"""The file of saved habits: best effort, since lost habits are learned again."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bbcache.storage.files import HABITS_NAME, OPEN_FLAGS, BasebackupFile, TempFile, try_unlink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class HabitsFile:
    """The file ``.bbcache.habits`` of one cache directory. Takes no lock.

    Args:
        data_dir: absolute path of the directory.
        tmp_dir: that of its directory for temporary files.
    """

    def __init__(self, data_dir: str, tmp_dir: str) -> None:
        self._path = os.path.join(data_dir, HABITS_NAME)
        self._tmp_dir = tmp_dir

    def read(self) -> bytes:
        """The saved habits; empty if there are none.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            with BasebackupFile.open_whatever(self._path, OPEN_FLAGS) as file:
                is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                return file.readall() if is_regular else b""
        except FileNotFoundError:
            return b""

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
            yield lambda: os.rename(temp.path, self._path)
        finally:
            try_unlink(temp.path)
