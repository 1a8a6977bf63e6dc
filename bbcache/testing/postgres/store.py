"""The snapshots of one directory: sealed archives, found by their fingerprints.

An archive is published by rename and never changed, so a reader takes no lock. One lock for
each fingerprint makes sure that a snapshot is built once, however many workers want it.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from filelock import FileLock, Timeout

from bbcache.archive.format import Seal, check_sealed, pack_header, read_seal
from bbcache.archive.writer import ArchiveWriter
from bbcache.errors import ArchiveError, BbcacheError
from bbcache.postgres.server.guard import Guard
from bbcache.testing.postgres.errors import SnapshotError

_LEVEL: Final = 3
_NAME: Final = re.compile(r"(?P<name>\w+)-pg(?P<version>[^-]+)-(?P<digest>[0-9a-f]{64})\.tar\.gz")
_NO_LSN: Final = 0  # a snapshot belongs to its fingerprint alone
_SAY_AFTER_S: Final = 1.0
_POLL_S: Final = 0.02
_STALE_TEMP_S: Final = 86400.0


@dataclass(frozen=True, slots=True)
class SnapshotKey:
    """The key of a snapshot: name, version of PostgreSQL, and fingerprint.

    Attributes:
        name: the name of the snapshot.
        version: the version of PostgreSQL.
        digest: the fingerprint.
    """

    name: str
    version: str
    digest: bytes

    @property
    def file_name(self) -> str:
        """The name of the archive."""
        return f"{self.name}-pg{self.version}-{self.digest.hex()}.tar.gz"

    def __str__(self) -> str:
        return f"{self.name} {self.digest.hex()[:8]}"


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """A snapshot on disk.

    Attributes:
        key: what it is found by.
        path: its archive.
        size_bytes: the size of that.
        made_at_s: when it was made, in seconds since 1970.
        used_at_s: when it was last used.
    """

    key: SnapshotKey
    path: Path
    size_bytes: int
    made_at_s: float
    used_at_s: float


class SnapshotStore:
    """A directory of snapshots. Any number of threads and processes may use it at once.

    Args:
        directory: made when something is stored.
        max_size_bytes: the most to keep; the archives used last stay.
    """

    def __init__(self, directory: Path, max_size_bytes: int) -> None:
        self.directory = directory
        self._max_size_bytes = max_size_bytes

    def find(self, key: SnapshotKey, made_after_s: float = 0.0) -> StoredSnapshot | None:
        """Return a snapshot, and note that it is used; None if there is none."""
        found = _stored(self.directory / key.file_name)
        if found is None or found.made_at_s < made_after_s:
            return None
        with contextlib.suppress(OSError):  # a directory that may only be read
            os.utime(found.path, (time.time(), found.made_at_s))
        return found

    def list(self) -> list[StoredSnapshot]:
        """Return all snapshots, the last used first."""
        names = os.listdir(self.directory) if self.directory.is_dir() else []
        found = [_stored(self.directory / name) for name in names]
        return sorted(filter(None, found), key=lambda each: -each.used_at_s)

    def publish(
        self, key: SnapshotKey, write: Callable[[ArchiveWriter], object], guard: Guard
    ) -> StoredSnapshot:
        """Store a snapshot, and remove old ones if there are too many.

        Args:
            key: what it is found by.
            write: writes its tarball.
            guard: removes what is half written when this process is killed.

        Raises:
            OSError: it cannot be stored. What `write` raises passes through.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.directory / key.file_name
        write_archive(key, path, write, guard)
        self._evict(path)
        found = _stored(path)
        if found is None:
            raise FileNotFoundError(f"{path} was removed by another process")
        return found

    def _evict(self, kept: Path) -> None:
        left_bytes = self._max_size_bytes
        for each in self.list():
            left_bytes -= each.size_bytes
            if left_bytes < 0 and each.path != kept:
                self.remove(each)

    def remove(self, stored: StoredSnapshot) -> None:
        """Remove a snapshot; servers that were restored from it stay."""
        for path in (stored.path, *self._side_files(stored.key)):
            path.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove the leftovers of builds that ended long ago."""
        names = os.listdir(self.directory) if self.directory.is_dir() else []
        for name in names:
            path = self.directory / name
            with contextlib.suppress(OSError):
                is_old = time.time() - path.stat().st_mtime > _STALE_TEMP_S
                if is_old and name.endswith((".part", ".lock", ".failed")):
                    path.unlink()

    @contextmanager
    def building(self, key: SnapshotKey, say: Callable[[str], None]) -> Iterator[None]:
        """Be the only process that builds a snapshot.

        Where the block raises, the processes that wait for this build meanwhile fail with the
        same text. Those that come later try again.

        Args:
            key: the snapshot.
            say: called with a line when there is something to wait for.

        Raises:
            SnapshotError: the build that was waited for has failed.
            OSError: the directory cannot be used.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_path, failure_path = self._side_files(key)
        known = _identity(failure_path)
        with _locked(lock_path, lambda: say(_waiting_for(key, lock_path))):
            _raise_failure(failure_path, known, key)
            failure_path.unlink(missing_ok=True)
            try:
                yield
            except BbcacheError as error:
                with contextlib.suppress(OSError):
                    failure_path.write_text(str(error))
                raise

    def _side_files(self, key: SnapshotKey) -> tuple[Path, Path]:
        stem = self.directory / f".{key.digest.hex()}"
        return stem.with_suffix(".lock"), stem.with_suffix(".failed")


def write_archive(
    key: SnapshotKey, path: Path, write: Callable[[ArchiveWriter], object], guard: Guard
) -> Seal:
    """Write a sealed archive and give it its name.

    Raises:
        OSError: it cannot be written. What `write` raises passes through.
    """
    part = path.with_name(f".{key.digest.hex()}.{os.urandom(6).hex()}.part")
    guard.add(part)
    try:
        with open(part, "xb", buffering=0, opener=_open_private) as file:
            writer = ArchiveWriter(lambda data: _write_all(file, data), _LEVEL)
            write(writer)
            seal = writer.finish()
            file.seek(0)
            _write_all(file, pack_header(seal, key.digest, _NO_LSN))
            os.fsync(file.fileno())
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    return seal


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def open_archive(
    key: SnapshotKey, path: Path, *, with_digest: bool = True
) -> tuple[BinaryIO, Seal]:
    """Open an archive and check it against its seal.

    Args:
        key: of the snapshot.
        path: of the archive.
        with_digest: whether to read all of it and compare its digest; otherwise call
            `check_archive` before it is restored.

    Raises:
        ArchiveError: it is damaged.
        OSError: it cannot be read.
    """
    file = open(path, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
    try:
        seal = read_seal(file.fileno(), key.digest, _NO_LSN)
        if seal is None:
            raise ArchiveError(f"{path} has no seal")  # noqa: TRY301 - closed like for the others
        check_archive(file, seal, with_digest=with_digest)
    except BaseException:
        file.close()
        raise
    return file, seal


def restored_bytes(stored: StoredSnapshot) -> int:
    """Return the size of a data directory restored from a snapshot; 0 for a damaged snapshot."""
    with contextlib.suppress(OSError, ArchiveError), open(stored.path, "rb", buffering=0) as file:
        seal = read_seal(file.fileno(), stored.key.digest, _NO_LSN)
        return 0 if seal is None else seal.tar_bytes
    return 0


def check_archive(file: BinaryIO, seal: Seal, *, with_digest: bool = True) -> None:
    """Check an open archive against its seal, without use of its position; see `open_archive`."""
    size_bytes = os.fstat(file.fileno()).st_size
    check_sealed(file.fileno(), size_bytes, seal, with_digest=with_digest)


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _stored(path: Path) -> StoredSnapshot | None:
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    key = SnapshotKey(match["name"], match["version"], bytes.fromhex(match["digest"]))
    return StoredSnapshot(key, path, status.st_size, status.st_mtime, status.st_atime)


@contextmanager
def _locked(path: Path, say: Callable[[], None]) -> Iterator[None]:
    lock = FileLock(
        path,
        mode=0o600,
        thread_local=False,
        fallback_to_soft=False,
        preserve_lock_file=True,
        on_acquired=_write_holder,
    )
    try:
        lock.acquire(timeout=_SAY_AFTER_S, poll_interval=_POLL_S)
    except Timeout:
        say()
        lock.acquire(poll_interval=_POLL_S)
    try:
        yield
    finally:
        lock.release()


def _write_holder(fd: int) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)


def _waiting_for(key: SnapshotKey, lock_path: Path) -> str:
    holder = "another process"
    with contextlib.suppress(OSError, ValueError):
        holder = f"process {int(lock_path.read_text())}"
    return f"waiting for {holder}, which builds snapshot {key}"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _raise_failure(path: Path, known: tuple[int, int] | None, key: SnapshotKey) -> None:
    """Raise the failure of a build, unless it was there before the wait for the lock."""
    if _identity(path) in (None, known):
        return
    with contextlib.suppress(OSError):
        raise SnapshotError(
            f"snapshot {key} was not built by the process that this one has waited for:\n"
            f"{path.read_text()}"
        )
