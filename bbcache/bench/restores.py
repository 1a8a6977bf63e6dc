"""Restores of the full archive: verified, decompressed, its files in place."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import tarfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_128_digest

from bbcache import BasebackupCacheConfig
from bbcache.bench.bars import Bar, Sense
from bbcache.bench.contest import Contest, Figures
from bbcache.bench.entries import LSN, make_places, make_unready_host, spawn_ready, write_entries
from bbcache.bench.peers import require_tool
from bbcache.bench.rounds import timed
from bbcache.postgres.pgdata.tarball import restore_tarball

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bbcache.bench.rounds import Lineup
    from bbcache.bench.scene import Scene

    Restore = Callable[[Path], object]

_BBCACHE: Final = "bbcache, get with its check, restore_tarball"
_IGZIP: Final = "igzip -dc | tar xf -"
_TAR: Final = "tar xzf"


def _measure(scene: Scene, lineup: Lineup) -> Figures:
    tarball = scene.inputs.full
    wanted = digests_in_tar(tarball)
    with ExitStack() as stack:
        data_dir = stack.enter_context(scene.scratch())
        places = make_places(1)
        (archive,) = write_entries(data_dir, places, tarball)
        config = BasebackupCacheConfig(verify_reads="always")
        cache = stack.enter_context(spawn_ready(data_dir, make_unready_host(), config))

        def restore(dest: Path) -> None:
            file = cache.get(*places[0], LSN)
            if file is None:
                raise ValueError("the cache does not have what is to be restored")
            with file:
                restore_tarball(file, dest)

        fresh = fresh_directories(stack.enter_context(scene.scratch()))

        def enter(make: Callable[[], Restore]) -> Callable[[], float]:
            target = make()
            dest = next(fresh)
            target(dest)
            if digests_on_disk(dest) != wanted:
                raise ValueError(f"what is in {dest} is not what is in the archive")
            return timed(target, lambda: (next(fresh),))

        lineup.add(_BBCACHE, lambda: enter(lambda: restore))
        lineup.add(_IGZIP, lambda: enter(lambda: igzip_tar(archive)))
        lineup.add(_TAR, lambda: enter(lambda: tar_xzf(archive)))
        lineup.race(scene.counts.pace)
    return Figures()


def fresh_directories(parent: Path) -> Iterator[Path]:
    """New directories side by side; what is in one is emptied when the next is made.

    A restore is into a new directory. Nothing is removed between the rounds: ext4
    without a journal gives the inode of a removed file to no other for some minutes,
    and searches through all such inodes, in the kernel, before it creates a file. With
    those of earlier rounds that would be most of the time of every contestant, and not
    the same for two of them whose directories lie in different groups of the disk.
    """
    for number in itertools.count():
        directory = parent / str(number)
        directory.mkdir()
        yield directory
        for path in directory.rglob("*"):
            if not path.is_dir():
                os.truncate(path, 0)


def igzip_tar(archive: str) -> Restore:
    """GNU tar with ISA-L's own program.

    Raises:
        PeerMissingError: one of them is not there.
    """
    tar, igzip = require_tool("tar", "tar"), require_tool("igzip", "isal")

    def restore(dest: Path) -> None:
        with subprocess.Popen([igzip, "-dc", archive], stdout=subprocess.PIPE) as source:  # noqa: S603 - igzip as found
            subprocess.run([tar, "-xf", "-", "-C", dest], stdin=source.stdout, check=True)  # noqa: S603 - tar as found
        if source.returncode != 0:
            raise subprocess.CalledProcessError(source.returncode, igzip)

    return restore


def tar_xzf(archive: str) -> Restore:
    """GNU tar with gzip.

    Raises:
        PeerMissingError: one of them is not there.
    """
    tar = require_tool("tar", "tar")
    require_tool("gzip", "gzip")

    def restore(dest: Path) -> None:
        subprocess.run([tar, "-xzf", archive, "-C", dest], check=True)  # noqa: S603 - tar as found

    return restore


def digests_on_disk(directory: Path) -> dict[str, bytes | None]:
    """Every name below a directory, with the digest of a file and None for a directory."""
    return {
        path.relative_to(directory).as_posix(): (
            None if path.is_dir() else xxh3_128_digest(path.read_bytes())
        )
        for path in directory.rglob("*")
    }


def digests_in_tar(tarball: bytes) -> dict[str, bytes | None]:
    """The same of what is in a tarball."""
    digests: dict[str, bytes | None] = {}
    with tarfile.open(fileobj=io.BytesIO(tarball)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            digests[member.name] = None if file is None else xxh3_128_digest(file.read())
    return digests


CONTESTS: Final = (
    Contest(
        "restore, full",
        (
            Bar("restore-igzip", _BBCACHE, _IGZIP, Sense.AT_MOST, 1.5),
            Bar("restore-tar", _BBCACHE, _TAR, Sense.AT_LEAST, 1.8),
        ),
        _measure,
    ),
)
