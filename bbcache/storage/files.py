"""The files of a cache: names, temporary files, rename, open, unlink, quarantine, scan.

Each function is one step on the disk, and raises the `OSError` of that step. Nothing here
locks or counts: `bbcache.storage.catalog` orders the steps, and updates the index with them.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NamedTuple, Self

from bbcache.errors import ArchiveError
from bbcache.ids import Lsn
from bbcache.outcomes import Source
from bbcache.storage.dirlock import LOCK_NAME
from bbcache.storage.entry_names import PREFIX, parse_entry_names
from bbcache.storage.index import Entry

TMP_NAME: Final = "tmp"
HABITS_NAME: Final = ".bbcache.habits"
QUARANTINE_NAME: Final = "quarantine"
_OWN_NAMES: Final = frozenset((TMP_NAME, QUARANTINE_NAME, LOCK_NAME, HABITS_NAME))
_BATCH_SIZE: Final = 256  # entries whose names are parsed at once
_QUARANTINED_NAME: Final = re.compile(r"\d{8}T\d{6}\.\d{6}Z_.+", re.ASCII | re.DOTALL)
_TEMP_NAME: Final = re.compile(
    rf"({PREFIX}[0-9a-f]{{32}}_[0-9a-f]{{32}}_[0-9A-F]{{16}}\.tar\.gz|\.bbcache\.habits)(\..*)?",
    re.DOTALL,
)
# Follow no link, wait for no FIFO.
OPEN_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Scan(NamedTuple):
    """The contents of a cache directory.

    Attributes:
        entries: regular files with an entry's name.
        foreign_files: name and size in bytes of everything else but the cache's own files;
            0 for directories and special files.
    """

    entries: list[Entry]
    foreign_files: dict[str, int]

    def add_files(self, names: list[str], sizes: list[int]) -> None:
        """Add regular files: each is an entry or a foreign file."""
        parsed = parse_entry_names(names)
        if parsed is not None:
            self.entries.extend(map(Entry, *parsed, sizes))
        elif len(names) == 1:
            self.foreign_files[names[0]] = sizes[0]
        else:
            for name, size_bytes in zip(names, sizes, strict=True):
                self.add_files([name], [size_bytes])


class BasebackupFile(io.FileIO):
    """An open basebackup, at offset 0; a raw binary file. The caller closes it.

    It stays readable, with the same bytes, when the cache replaces or removes the entry. Like
    any file object, it is for one thread at a time.

    Attributes:
        lsn: the LSN of the basebackup.
        size_bytes: the size of the archive.
        source: ``hit``; from `BasebackupCache.get_or_prepare` also ``joined``, ``built`` or
            ``fetched``.
        is_unpublished: whether the archive is in a file without a name, whose bytes count
            against `max_unpublished_size_bytes` until it is closed.
    """

    lsn: Lsn
    size_bytes: int
    source: Source = Source.HIT
    is_unpublished: bool = False

    @classmethod
    def open(cls, path: str, lsn: Lsn, size_bytes: int) -> Self:
        """Open an archive and compare its size.

        Raises:
            ArchiveError: the path leads to no regular file of that size.
            OSError: it cannot be opened.
        """
        try:
            file = cls.open_whatever(path, OPEN_FLAGS)
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.ELOOP, errno.ENXIO):  # or a link, a socket
                raise ArchiveError(f"{path} is not a regular file") from error
            raise
        try:
            _check_kind_and_size(os.fstat(file.fileno()), path, size_bytes)
            file.name, file.lsn, file.size_bytes = path, lsn, size_bytes
        except BaseException:
            with suppress(OSError):  # report the first failure only
                file.close()
            raise
        return file

    @classmethod
    def open_whatever(cls, path: str, flags: int) -> Self:
        """Open a file of any kind; a KeyboardInterrupt leaks no descriptor.

        Raises:
            OSError: it cannot be opened, or is a directory.
        """
        # A KeyboardInterrupt may come after each call, and in an audit hook of the constructor,
        # but not between an unpacking and what follows. An opener costs a system call more.
        (fd,) = map(os.open, (path,), (flags,))
        try:
            (file,) = map(cls, (fd,), ("rb",))
        except BaseException:
            os.close(fd)
            raise
        return file


def _check_kind_and_size(status: os.stat_result, path: str, size_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ArchiveError(f"{path} is not a regular file")
    if status.st_size != size_bytes:
        raise ArchiveError(f"{path} has {status.st_size} bytes, but {size_bytes} are indexed")


class TempFile:
    """A file of one build while it is written.

    Args:
        path: absolute path, with a random token in the name.
        fd: an open descriptor of the file; None creates the file.

    Attributes:
        path: the same.
    """

    def __init__(self, path: str, fd: int | None = None) -> None:
        self.path = path
        self._fd = os.open(path, _CREATE_FLAGS, 0o600) if fd is None else fd

    @property
    def link(self) -> str:
        """A path that opens this very file, whatever its name, until `close`."""
        return f"/proc/self/fd/{self._fd}"

    def append(self, data: bytes) -> None:
        """Write all of `data`, also where a write takes only a part of it."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def patch(self, data: bytes) -> None:
        """Write all of `data` over the beginning."""
        offset = 0
        while offset < len(data):
            offset += os.pwrite(self._fd, data[offset:], offset)

    def sync(self) -> None:
        """Flush the bytes to the disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the descriptor; harmless twice. Other steps fail with EBADF after it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class UnnamedFile(TempFile):
    """A temporary file without a name, which is gone with its last descriptor."""

    @classmethod
    def create(cls, directory: str, name: str) -> Self:
        """Create an unnamed file.

        Args:
            directory: the directory that takes the bytes.
            name: the name that errors, and the `name` of opened files, show.

        Raises:
            OSError: the file cannot be created.
        """
        with tempfile.TemporaryFile(buffering=0, dir=directory) as file:
            return cls(os.path.join(directory, name), os.dup(file.fileno()))


class Store:
    """The files in the directory of one cache. As thread-safe as the file system.

    Args:
        data_dir: absolute path.
    """

    def __init__(self, data_dir: str) -> None:
        self.data_dir = data_dir
        self.tmp_dir = os.path.join(data_dir, TMP_NAME)
        self._quarantine_dir = os.path.join(data_dir, QUARANTINE_NAME)
        self._entry_prefix = os.path.join(data_dir, PREFIX)

    def path_of(self, key: bytes, lsn: int) -> str:
        """The path of an entry; the name is exactly Neon's."""
        return "%s%s_%016X.tar.gz" % (self._entry_prefix, key.hex("_", 16), lsn)  # noqa: UP031 - half the time of an f-string: it is most of a hit's own work

    def written_s(self, key: bytes, lsn: int) -> float | None:
        """When an archive was written, in seconds since the epoch; None if it cannot be examined.

        The next read or removal of the file counts the failure.
        """
        with suppress(OSError):
            return os.lstat(self.path_of(key, lsn)).st_mtime
        return None

    def make_directories(self) -> None:
        """Make ``tmp/`` and ``quarantine/``, after unlinking a link or file of that name."""
        for path in (self.tmp_dir, self._quarantine_dir):
            _make_directory(path)

    def sweep_tmp(self) -> dict[str, int]:
        """Unlink the temporary files of earlier builds.

        All else in ``tmp/`` is foreign: the directory may have been somebody else's before.

        Returns:
            Path and size in bytes of the files that could not be unlinked.

        Raises:
            OSError: ``tmp/`` cannot be listed.
        """
        names = filter(_TEMP_NAME.fullmatch, os.listdir(self.tmp_dir))
        paths = [os.path.join(self.tmp_dir, name) for name in names]
        return self.restat({path: 0 for path in paths if try_unlink(path) is not None})

    def create_temp(self, key: bytes, lsn: int) -> TempFile:
        """Create a temporary file for a build."""
        _make_directory(self.tmp_dir)
        return TempFile(os.path.join(self.tmp_dir, self.new_temp_name(key, lsn)))

    def new_temp_name(self, key: bytes, lsn: int) -> str:
        """The entry's name with a random token behind it."""
        return f"{os.path.basename(self.path_of(key, lsn))}.{secrets.token_hex(8)}"

    def rename_temp(self, temp: TempFile, key: bytes, lsn: int) -> None:
        """Rename a finished file to its entry's name, over a file that has the name."""
        os.rename(temp.path, self.path_of(key, lsn))

    def open(self, key: bytes, lsn: Lsn, size_bytes: int) -> BasebackupFile:
        """Open an entry's file; raises as `BasebackupFile.open`."""
        return BasebackupFile.open(self.path_of(key, lsn), lsn, size_bytes)

    def scan(self) -> Scan:
        """List the directory, and the foreign files in ``tmp/``. Opens no file.

        Raises:
            OSError: the directory cannot be listed.
        """
        found = Scan([], {})
        names: list[str] = []  # of a batch of regular files
        sizes: list[int] = []
        is_regular = stat.S_ISREG
        with os.scandir(self.data_dir) as items:
            for item in items:  # may be hundreds of thousands: most of a start's time
                try:
                    status = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError:
                    found.foreign_files[item.name] = 0
                    continue
                if is_regular(status.st_mode):
                    names.append(item.name)
                    sizes.append(status.st_size)
                    if len(names) == _BATCH_SIZE:
                        found.add_files(names, sizes)
                        names, sizes = [], []
                else:
                    found.foreign_files[item.name] = 0
        if names:
            found.add_files(names, sizes)
        for name in _OWN_NAMES:
            found.foreign_files.pop(name, None)
        with suppress(FileNotFoundError, NotADirectoryError):
            others = [each for each in os.listdir(self.tmp_dir) if not _TEMP_NAME.fullmatch(each)]
            paths = [os.path.join(TMP_NAME, name) for name in others]
            found.foreign_files.update(self.restat(dict.fromkeys(paths, 0)))
        return found

    def restat(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes in bytes that files have now; 0 for a file that is not regular.

        Args:
            sizes: earlier sizes by path, absolute or in the directory. A file that cannot be
                examined keeps its earlier size; one that is gone is left out.
        """
        now = {}
        for name, size_bytes in sizes.items():
            try:
                status = os.lstat(os.path.join(self.data_dir, name))
                now[name] = status.st_size if stat.S_ISREG(status.st_mode) else 0
            except FileNotFoundError:
                continue
            except OSError:
                now[name] = size_bytes
        return now

    def quarantine(self, key: bytes, lsn: int) -> str:
        """Move an entry's file into ``quarantine/``; returns its path there.

        The name begins with the time, so that names sort by age.
        """
        path = self.path_of(key, lsn)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        target = os.path.join(self._quarantine_dir, f"{stamp}_{os.path.basename(path)}")
        _make_directory(self._quarantine_dir)
        os.rename(path, target)
        return target

    def quarantined(self, known: Mapping[str, int]) -> dict[str, int]:
        """Path and size in bytes of each file in ``quarantine/``, oldest first.

        Args:
            known: earlier sizes by path, for files that cannot be examined now.

        Raises:
            OSError: the directory cannot be listed.
        """
        try:
            is_directory = stat.S_ISDIR(os.lstat(self._quarantine_dir).st_mode)
            names = sorted(os.listdir(self._quarantine_dir)) if is_directory else []
        except FileNotFoundError:
            return {}
        paths = [os.path.join(self._quarantine_dir, name) for name in names]
        return self.restat({path: known.get(path, 0) for path in paths})

    def is_quarantined_name(self, path: str) -> bool:
        """Whether a cache has moved this file into ``quarantine/``, by its name."""
        return _QUARANTINED_NAME.fullmatch(os.path.basename(path)) is not None


def try_unlink(path: str) -> OSError | None:
    """Remove a file; returns why it is still there, or None if it is gone."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        return error
    return None


def _make_directory(path: str) -> None:
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            return
        os.unlink(path)
    except FileNotFoundError:
        pass
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
