"""Restores of the full archive: verified, decompressed, the files written."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import tarfile
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_128_digest

from bbcache import BasebackupCacheConfig
from bbcache.postgres.pgdata.tarball import restore_tarball
from benchmarks.bars import Bar, Sense, case
from benchmarks.entries import LSN, make_ids, make_unready_host, spawn_ready, write_entries
from benchmarks.peers import require_tool
from benchmarks.rounds import timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack
    from pathlib import Path

    from benchmarks.rounds import Rounds
    from benchmarks.workspace import Workspace

    Restore = Callable[[Path], object]

_BBCACHE: Final = "bbcache, get with its check, restore_tarball"
_IGZIP: Final = "igzip -dc | tar xf -"
_TAR: Final = "tar xzf"


@case(
    "restore, full",
    Bar("restore-igzip", _BBCACHE, _IGZIP, Sense.AT_MOST, 1.5),
    Bar("restore-tar", _BBCACHE, _TAR, Sense.AT_LEAST, 1.8),
)
def test_restore(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """A verified hit and `restore_tarball`, beside tar with igzip and with gzip."""
    tarball = workspace.inputs.full
    wanted = digests_in_tar(tarball)
    data_dir, ids = stack.enter_context(workspace.scratch()), make_ids(1)
    (archive,) = write_entries(data_dir, ids, tarball)
    config = BasebackupCacheConfig(verify_reads="always")
    cache = stack.enter_context(spawn_ready(data_dir, make_unready_host(), config))

    def restore(dest: Path) -> None:
        file = cache.get(*ids[0], LSN)
        if file is None:
            raise ValueError("the cache does not have the archive")
        with file:
            restore_tarball(file, dest)

    fresh = fresh_directories(stack.enter_context(workspace.scratch()))

    def enter(make: Callable[[], Restore]) -> Callable[[], float]:
        target = make()
        dest = next(fresh)
        target(dest)
        if digests_on_disk(dest) != wanted:
            raise ValueError(f"{dest} has other files than the archive")
        return timed(target, lambda: (next(fresh),))

    rounds.add(_BBCACHE, lambda: enter(lambda: restore))
    rounds.add(_IGZIP, lambda: enter(lambda: igzip_tar(archive)))
    rounds.add(_TAR, lambda: enter(lambda: tar_xzf(archive)))
    rounds.run(workspace.counts.pace)


def fresh_directories(parent: Path) -> Iterator[Path]:
    """Yield new directories side by side; the files of one are truncated when the next is made.

    No round removes a file: ext4 without a journal does not reuse the inode of a removed
    file for some minutes, and the kernel searches through all such inodes before it
    creates a file. After a few rounds that search would be most of the time of every
    contender, and differ between contenders with directories in different block groups.
    """
    for number in itertools.count():
        directory = parent / str(number)
        directory.mkdir()
        yield directory
        for path in directory.rglob("*"):
            if not path.is_dir():
                os.truncate(path, 0)


def igzip_tar(archive: str) -> Restore:
    """Return a restore by GNU tar with ISA-L's own program.

    Raises:
        PeerMissingError: one of them is not there.
    """
    tar, igzip = require_tool("tar", "tar"), require_tool("igzip", "isal")

    def restore(dest: Path) -> None:
        with subprocess.Popen([igzip, "-dc", archive], stdout=subprocess.PIPE) as source:
            subprocess.run([tar, "-xf", "-", "-C", dest], stdin=source.stdout, check=True)
        if source.returncode != 0:
            raise subprocess.CalledProcessError(source.returncode, igzip)

    return restore


def tar_xzf(archive: str) -> Restore:
    """Return a restore by GNU tar with gzip.

    Raises:
        PeerMissingError: one of them is not there.
    """
    tar = require_tool("tar", "tar")
    require_tool("gzip", "gzip")

    def restore(dest: Path) -> None:
        subprocess.run([tar, "-xzf", archive, "-C", dest], check=True)

    return restore


def digests_on_disk(directory: Path) -> dict[str, bytes | None]:
    """Return every name below a directory, with the digest of a file and None for a directory."""
    return {
        path.relative_to(directory).as_posix(): (
            None if path.is_dir() else xxh3_128_digest(path.read_bytes())
        )
        for path in directory.rglob("*")
    }


def digests_in_tar(tarball: bytes) -> dict[str, bytes | None]:
    """Return the same of the members of a tarball."""
    digests: dict[str, bytes | None] = {}
    with tarfile.open(fileobj=io.BytesIO(tarball)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            digests[member.name] = None if file is None else xxh3_128_digest(file.read())
    return digests
