"""Checking every archive of a cache directory, whether or not a cache is using it."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from bbcache.archive.format import check_plain, check_sealed, read_seal
from bbcache.errors import ArchiveError
from bbcache.storage.dirlock import LOCK_NAME
from bbcache.storage.files import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bbcache.storage.files import BasebackupFile
    from bbcache.storage.index import Entry


class Verdict(StrEnum):
    """What is known of a file."""

    GOOD = "good"
    BAD = "bad"
    UNREADABLE = "unreadable"  # which proves nothing
    STRAY = "foreign file"


class Finding(NamedTuple):
    """One file in a cache directory.

    Attributes:
        path: its path.
        verdict: what is known of it.
        size_bytes: its size.
        reason: why, in words; empty for a good archive.
        is_quarantined: whether it was moved into ``quarantine/``.
    """

    path: str
    verdict: Verdict
    size_bytes: int
    reason: str = ""
    is_quarantined: bool = False


class Audit:
    """Checks the files of a cache directory, each by its seal or by decompressing it.

    Takes no lock, so it works beside a running cache: a file that the cache removes
    meanwhile is passed over, and one that is quarantined here is a miss there.

    Args:
        data_dir: the directory.

    Raises:
        OSError: it cannot be listed.
    """

    def __init__(self, data_dir: str | os.PathLike[str]) -> None:
        self._store = Store(os.path.abspath(os.fspath(data_dir)))
        self._found = self._store.scan()

    def __len__(self) -> int:
        """How many archives there are to check."""
        return len(self._found.entries)

    @property
    def is_cache(self) -> bool:
        """Whether a cache has ever used the directory: it has a lock file or an archive."""
        return bool(self._found.entries) or os.path.lexists(
            os.path.join(self._store.data_dir, LOCK_NAME)
        )

    def run(self, *, quarantine: bool = False) -> Iterator[Finding]:
        """Check everything, foreign files last.

        Args:
            quarantine: whether bad archives are moved into ``quarantine/``.

        Raises:
            OSError: a bad archive cannot be moved.
        """
        if quarantine:
            self._store.make_directories()
        for found in sorted(self._found.entries, key=lambda entry: (entry.key, entry.lsn)):
            finding = self._check(found, quarantine=quarantine)
            if finding is not None:
                yield finding
        for name, size_bytes in sorted(self._found.foreign_files.items()):
            path = os.path.join(self._store.data_dir, name)
            yield Finding(path, Verdict.STRAY, size_bytes, "no basebackup has this name")

    def _check(self, found: Entry, *, quarantine: bool) -> Finding | None:
        path = self._store.path_of(found.key, found.lsn)
        try:
            with self._store.open(found.key, found.lsn, found.size_bytes) as file:
                reason = _problem(file, found)
                is_moved = bool(reason and quarantine and self._quarantine(found, file))
        except FileNotFoundError:
            return None
        except ArchiveError as error:  # what is there now is another file than was listed
            return Finding(path, Verdict.UNREADABLE, found.size_bytes, str(error))
        except OSError as error:
            reason = error.strerror or str(error)
            return Finding(path, Verdict.UNREADABLE, found.size_bytes, reason)
        verdict = Verdict.BAD if reason else Verdict.GOOD
        return Finding(path, verdict, found.size_bytes, reason, is_moved)

    def _quarantine(self, found: Entry, file: BasebackupFile) -> bool:
        """Move the very file that was read, not one published there since."""
        path = self._store.path_of(found.key, found.lsn)
        if not os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
            return False
        self._store.quarantine(found.key, found.lsn)
        return True


def _problem(file: BasebackupFile, found: Entry) -> str:
    try:
        seal = read_seal(file.fileno(), found.key, found.lsn)
        if seal is None:
            check_plain(file.fileno(), found.size_bytes)
        else:
            check_sealed(file.fileno(), found.size_bytes, seal, with_digest=True)
    except ArchiveError as error:
        return str(error)
    return ""
