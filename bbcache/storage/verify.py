"""Check every archive of a cache directory, also while a cache uses it."""

from __future__ import annotations

import os
import time
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from bbcache.archive.format import check_plain, check_sealed, read_seal
from bbcache.errors import ArchiveError
from bbcache.ids import ID_SIZE_BYTES
from bbcache.storage.dirlock import LOCK_NAME
from bbcache.storage.files import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bbcache.archive.format import Seal
    from bbcache.ids import Lsn
    from bbcache.storage.files import BasebackupFile
    from bbcache.storage.index import Entry


class Verdict(StrEnum):
    """The result of checking one file."""

    GOOD = "good"
    BAD = "bad"
    UNREADABLE = "unreadable"  # neither good nor bad
    FOREIGN = "foreign file"


class Finding(NamedTuple):
    """One file in a cache directory.

    Attributes:
        path: its path.
        verdict: the result of its check.
        size_bytes: its size.
        reason: the reason for the verdict; empty for a good archive.
        is_quarantined: whether it was moved into ``quarantine/``.
    """

    path: str
    verdict: Verdict
    size_bytes: int
    reason: str = ""
    is_quarantined: bool = False


class StoredArchive(NamedTuple):
    """One file of a timeline, as it is on the disk.

    Attributes:
        finding: the result of its check.
        lsn: the position, by the file's name.
        age_s: seconds since it was written; None if it cannot be examined.
        seal: its seal; None if it has none, or the seal is bad.
    """

    finding: Finding
    lsn: Lsn
    age_s: float | None
    seal: Seal | None


class Audit:
    """Checks each archive of a cache directory by its seal, or by decompressing it.

    Takes no lock, so a cache may run on the directory. A file that the cache removes meanwhile
    is left out of the findings; one that is quarantined here is a miss there.

    Args:
        data_dir: the directory.

    Raises:
        OSError: it cannot be listed.
    """

    def __init__(self, data_dir: str | os.PathLike[str]) -> None:
        self._store = Store(os.path.abspath(os.fspath(data_dir)))
        self._found = self._store.scan()

    def __len__(self) -> int:
        """The number of archives to check."""
        return len(self._found.entries)

    @property
    def is_cache(self) -> bool:
        """Whether a cache has ever used the directory: it has a lock file or an archive."""
        lock_path = os.path.join(self._store.data_dir, LOCK_NAME)
        return bool(self._found.entries) or os.path.lexists(lock_path)

    def run(self, *, quarantine: bool = False) -> Iterator[Finding]:
        """Check every archive, then list the foreign files.

        Args:
            quarantine: whether to move bad archives into ``quarantine/``.

        Raises:
            OSError: ``quarantine/`` cannot be made.
        """
        if quarantine:
            self._store.make_directories()
        for entry in sorted(self._found.entries, key=lambda entry: (entry.key, entry.lsn)):
            finding = self._check(entry, quarantine=quarantine)
            if finding is not None:
                yield finding
        for name, size_bytes in sorted(self._found.foreign_files.items()):
            path = os.path.join(self._store.data_dir, name)
            yield Finding(path, Verdict.FOREIGN, size_bytes, "no basebackup has this name")

    def archives_of(self, key: bytes) -> list[StoredArchive]:
        """Check the archives of one timeline; more than one LSN is there if a start is due."""
        entries = sorted((e for e in self._found.entries if e.key == key), key=lambda e: e.lsn)
        checked = [(entry, self._check(entry, quarantine=False)) for entry in entries]
        return [
            StoredArchive(finding, entry.lsn, *self._facts(entry))
            for entry, finding in checked
            if finding is not None
        ]

    def quarantined_of(self, key: bytes) -> list[str]:
        """Paths of the quarantined archives of one timeline, oldest first.

        Raises:
            OSError: ``quarantine/`` cannot be listed.
        """
        ids = key.hex("_", ID_SIZE_BYTES)
        return [path for path in self._store.quarantined({}) if ids in os.path.basename(path)]

    def _facts(self, entry: Entry) -> tuple[float | None, Seal | None]:
        try:
            with self._store.open(entry.key, entry.lsn, entry.size_bytes) as file:
                age_s = max(0.0, time.time() - os.fstat(file.fileno()).st_mtime)
                try:
                    return age_s, read_seal(file.fileno(), entry.key, entry.lsn)
                except ArchiveError:
                    return age_s, None
        except (ArchiveError, OSError):  # the finding says why
            return None, None

    def _check(self, entry: Entry, *, quarantine: bool) -> Finding | None:
        path = self._store.path_of(entry.key, entry.lsn)
        try:
            with self._store.open(entry.key, entry.lsn, entry.size_bytes) as file:
                problem = _problem(file, entry)
                is_moved = bool(problem and quarantine and self._quarantine(entry, file))
        except FileNotFoundError:
            return None
        except (ArchiveError, OSError) as error:  # ArchiveError: it was replaced since the scan
            reason = getattr(error, "strerror", None) or str(error)
            return Finding(path, Verdict.UNREADABLE, entry.size_bytes, reason)
        verdict = Verdict.BAD if problem else Verdict.GOOD
        return Finding(path, verdict, entry.size_bytes, problem, is_moved)

    def _quarantine(self, entry: Entry, file: BasebackupFile) -> bool:
        """Move the very file that was read, not one published there since."""
        path = self._store.path_of(entry.key, entry.lsn)
        if not os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
            return False
        self._store.quarantine(entry.key, entry.lsn)
        return True


def _problem(file: BasebackupFile, entry: Entry) -> str:
    """Why an open archive is bad; empty if it is good."""
    try:
        seal = read_seal(file.fileno(), entry.key, entry.lsn)
        if seal is None:
            check_plain(file.fileno(), entry.size_bytes)
        else:
            check_sealed(file.fileno(), entry.size_bytes, seal, with_digest=True)
    except ArchiveError as error:
        return str(error)
    return ""
