"""The files of a cache: names, temporary files, rename, open, unlink, quarantine, scan.

Every function is one step on the disk and raises the `OSError` that the step
met. Nothing here locks or counts: `bbcache.storage.catalog` orders the steps, and changes
file and index as one.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Final, NamedTuple, Self

from bbcache.errors import ArchiveError, StoreError
from bbcache.ids import Lsn
from bbcache.outcomes import Source
from bbcache.storage.dirlock import LOCK_NAME
from bbcache.storage.entry_names import PREFIX, parse_entry_names
from bbcache.storage.index import Entry

TMP_NAME: Final = "tmp"
QUARANTINE_NAME: Final = "quarantine"
_OWN_NAMES: Final = frozenset((TMP_NAME, QUARANTINE_NAME, LOCK_NAME))
_BATCH_SIZE: Final = 256  # entries whose names are parsed at once
_QUARANTINED_NAME: Final = re.compile(r"\d{8}T\d{6}\.\d{6}Z_.+", re.ASCII | re.DOTALL)
_TEMP_NAME: Final = re.compile(
    rf"{PREFIX}[0-9a-f]{{32}}_[0-9a-f]{{32}}_[0-9A-F]{{16}}\.tar\.gz(\..*)?", re.DOTALL
)
# No link is followed, no FIFO waited on.
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_HINTS: Final = {
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or close archives sooner.",
    errno.ENFILE: "The machine is out of open files; raise fs.file-max.",
    errno.ENOMEM: "The process is out of memory; raise its limit, or lower prepare_concurrency.",
    errno.ENOSPC: "Free space on the file system, or lower max_total_size_bytes.",
    errno.EDQUOT: "Raise the disk quota, or lower max_total_size_bytes.",
    errno.EROFS: "Remount the file system read-write; prepares work again by themselves.",
    errno.EACCES: "Give the user of this process read, write and search permission.",
    errno.EPERM: "Give the user of this process permission, and clear immutable flags.",
    errno.ENOENT: "Restore or remount the cache directory; prepares work again by themselves.",
    errno.EISDIR: "A directory has the name of a basebackup; move it away.",
    errno.EIO: "The disk or its file system is failing; look at the kernel log.",
}


def hint_for(error: BaseException) -> str:
    """What to do about a disk error, as a line of its own; empty where unknown.

    A `StoreError` has its hint in its text already.
    """
    if isinstance(error, StoreError):
        return ""
    hint = _HINTS.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"\nhint: {hint}" if hint else ""


@contextmanager
def disk_step(doing: str, path: str) -> Iterator[None]:
    """Turn an `OSError` of a step on the disk into a `StoreError` with a hint.

    Args:
        doing: what the step does, such as ``write``.
        path: what it does it to.
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        text = f"cannot {doing} {path}: {error.strerror}{hint_for(error)}"
        raise StoreError(text, errno=error.errno) from error


class Scan(NamedTuple):
    """What is in a cache directory.

    Attributes:
        entries: regular files under an entry's name.
        foreign_files: name and size in bytes of everything else; directories and special
            files count 0 bytes.
    """

    entries: list[Entry]
    foreign_files: dict[str, int]

    def add_files(self, names: list[str], sizes: list[int]) -> None:
        """Add regular files, each of which is an entry or a foreign file."""
        parsed = parse_entry_names(names)
        if parsed is not None:
            self.entries.extend(map(Entry, *parsed, sizes))
        elif len(names) == 1:
            self.add_foreign_file(names[0], sizes[0])
        else:
            for name, size_bytes in zip(names, sizes, strict=True):
                self.add_files([name], [size_bytes])

    def add_foreign_file(self, name: str, size_bytes: int) -> None:
        """Add what is no entry, unless it is the cache's own."""
        if name not in _OWN_NAMES:
            self.foreign_files[name] = size_bytes


class BasebackupFile(io.FileIO):
    """An open basebackup, at offset 0; a raw binary file. The caller closes it.

    It stays readable, with the same bytes, when the cache replaces or removes the
    entry. As any file object, it is for one thread at a time.

    Attributes:
        lsn: the LSN of the basebackup.
        size_bytes: the size of the archive.
        source: ``hit``; from `BasebackupCache.get_or_prepare` also ``joined`` or ``built``.
    """

    lsn: Lsn
    size_bytes: int
    source: Source = Source.HIT

    @classmethod
    def open(cls, path: str, lsn: Lsn, size_bytes: int) -> Self:
        """Open an archive and compare its size.

        Raises:
            ArchiveError: what is there is no regular file of that size.
            OSError: it cannot be opened.
        """
        try:
            file = cls.open_whatever(path, _OPEN_FLAGS)
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.ELOOP, errno.ENXIO):  # or a link, a socket
                raise ArchiveError(f"{path} is no regular file") from error
            raise
        try:
            _check_kind_and_size(file.fileno(), path, size_bytes)
            file.name, file.lsn, file.size_bytes = path, lsn, size_bytes
        except BaseException:
            with suppress(OSError):  # one failure is enough
                file.close()
            raise
        return file

    @classmethod
    def open_whatever(cls, path: str, flags: int) -> Self:
        """Open a file of any kind, so that no interrupt leaves a descriptor behind.

        Raises:
            OSError: it cannot be opened, or is a directory.
        """

        def opener(name: str, _flags: int) -> int:
            # A KeyboardInterrupt may come after each call, and in the audit hooks of the
            # constructor, but not between an unpacking and a return.
            (fd,) = map(os.open, (name,), (flags,))
            return fd

        return cls(path, "rb", opener=opener)


def _check_kind_and_size(fd: int, path: str, size_bytes: int) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ArchiveError(f"{path} is no regular file")
    if status.st_size != size_bytes:
        raise ArchiveError(f"{path} has {status.st_size} bytes, but {size_bytes} are indexed")


class TempFile:
    """A file being written in ``tmp/``; belongs to one build.

    Args:
        path: its path, with a random token in the name; an attribute, too.
        fd: the file, where it is open already; None creates it.
    """

    def __init__(self, path: str, fd: int | None = None) -> None:
        self.path = path
        self._fd: int | None = os.open(path, _CREATE_FLAGS, 0o600) if fd is None else fd

    @property
    def link(self) -> str:
        """A path by which this very file can be opened once more, until it is closed."""
        return f"/proc/self/fd/{self._descriptor}"

    def append(self, data: bytes) -> None:
        """Write all of `data`, however short the single writes are."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def patch(self, data: bytes) -> None:
        """Write all of `data` over the beginning."""
        offset = 0
        while offset < len(data):
            offset += os.pwrite(self._descriptor, data[offset:], offset)

    def sync(self) -> None:
        """Bring the bytes to the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the descriptor; harmless twice."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    @property
    def _descriptor(self) -> int:
        if self._fd is None:
            raise StoreError(f"{self.path} is closed")
        return self._fd


class Store:
    """The directory of one cache. Thread-safe in so far as the file system is.

    Args:
        data_dir: absolute path.
        utcnow: the wall clock, for the names in the quarantine.
    """

    def __init__(
        self, data_dir: str, utcnow: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.data_dir = data_dir
        self.tmp_dir = os.path.join(data_dir, TMP_NAME)
        self._quarantine_dir = os.path.join(data_dir, QUARANTINE_NAME)
        self._entry_prefix = os.path.join(data_dir, PREFIX)
        self._utcnow = utcnow

    def path_of(self, key: bytes, lsn: int) -> str:
        """The path of an entry; the name is exactly Neon's."""
        return "%s%s_%016X.tar.gz" % (self._entry_prefix, key.hex("_", 16), lsn)  # noqa: UP031 - half the time of an f-string: it is most of a hit's own work

    def make_directories(self) -> None:
        """Make ``tmp/`` and ``quarantine/``; a link or file in their place is unlinked."""
        for path in (self.tmp_dir, self._quarantine_dir):
            _make_directory(path)

    def sweep_tmp(self) -> dict[str, int]:
        """Unlink what builds have left in ``tmp/``; path and size in bytes of what would not go.

        Anything else there is a foreign file: the directory may have been somebody's before.
        """
        left = {}
        with os.scandir(self.tmp_dir) as items:
            for item in list(items):
                if not _TEMP_NAME.fullmatch(item.name):
                    continue
                try:
                    os.unlink(item.path)
                except OSError:
                    with suppress(FileNotFoundError):  # somebody was quicker
                        left[item.path] = _size_bytes_of(item, 0)
        return left

    def create_temp(self, key: bytes, lsn: int) -> TempFile:
        """A new temporary file for a build."""
        _make_directory(self.tmp_dir)
        return TempFile(os.path.join(self.tmp_dir, self.new_temp_name(key, lsn)))

    def new_temp_name(self, key: bytes, lsn: int) -> str:
        """A name that no file has yet, with the entry's name in it."""
        return f"{os.path.basename(self.path_of(key, lsn))}.{secrets.token_hex(8)}"

    def rename_temp(self, temp: TempFile, key: bytes, lsn: int) -> None:
        """Put a finished file under its entry's name, over whatever file is there."""
        os.rename(temp.path, self.path_of(key, lsn))

    def open(self, key: bytes, lsn: Lsn, size_bytes: int) -> BasebackupFile:
        """Open an entry's file; raises as `BasebackupFile.open`."""
        return BasebackupFile.open(self.path_of(key, lsn), lsn, size_bytes)

    def scan(self) -> Scan:
        """Names and sizes of all in the directory, and of foreign files in ``tmp/``; opens no file.

        Raises:
            OSError: the directory cannot be listed.
        """
        found = Scan([], {})
        names: list[str] = []  # of regular files, not yet taken
        sizes: list[int] = []
        is_regular = stat.S_ISREG
        with os.scandir(self.data_dir) as items:
            for item in items:  # hundreds of thousands: this loop is most of a start
                try:
                    status = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError:
                    found.add_foreign_file(item.name, 0)
                    continue
                if is_regular(status.st_mode):
                    names.append(item.name)
                    sizes.append(status.st_size)
                    if len(names) == _BATCH_SIZE:
                        found.add_files(names, sizes)
                        names, sizes = [], []
                else:
                    found.add_foreign_file(item.name, 0)
        if names:
            found.add_files(names, sizes)
        self._add_foreign_files_in_tmp(found)
        return found

    def _add_foreign_files_in_tmp(self, found: Scan) -> None:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.tmp_dir) as items:
            names = [each.name for each in items if not _TEMP_NAME.fullmatch(each.name)]
            found.foreign_files.update(
                self.restat({os.path.join(TMP_NAME, name): 0 for name in names})
            )

    def restat(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes in bytes of files as they are now; those that are gone are left out.

        Args:
            sizes: by path, or by name in the directory; what to go by for files whose size
                cannot be told now.
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
        """Move an entry's file into ``quarantine/``; its path there, with the time in it."""
        path = self.path_of(key, lsn)
        stamp = self._utcnow().strftime("%Y%m%dT%H%M%S.%fZ")
        target = os.path.join(self._quarantine_dir, f"{stamp}_{os.path.basename(path)}")
        _make_directory(self._quarantine_dir)
        os.rename(path, target)
        return target

    def quarantined(self, known: Mapping[str, int]) -> dict[str, int]:
        """Paths and sizes in bytes of what is in ``quarantine/``, oldest first.

        Args:
            known: sizes to go by for files whose size cannot be told now.
        """
        files = {}
        try:
            if not stat.S_ISDIR(os.lstat(self._quarantine_dir).st_mode):
                return {}
            with os.scandir(self._quarantine_dir) as items:
                for item in items:
                    with suppress(FileNotFoundError):
                        files[item.path] = _size_bytes_of(item, known.get(item.path, 0))
        except FileNotFoundError:
            return {}
        return dict(sorted(files.items()))

    def is_quarantined_name(self, path: str) -> bool:
        """Whether a file in ``quarantine/`` was put there by a cache."""
        return _QUARANTINED_NAME.fullmatch(os.path.basename(path)) is not None


def try_unlink(path: str) -> OSError | None:
    """Remove a file; returns why it is still there. One that is gone already is fine."""
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


def _size_bytes_of(item: os.DirEntry[str], otherwise: int) -> int:
    try:
        return item.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        raise
    except OSError:
        return otherwise
