"""A cache that prepares from memory or from a PGDATA, and the least work for the same archive."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from isal import isal_zlib

from bbcache.archive.deflate import PIECE_SIZE_BYTES
from bbcache.postgres.pgdata.tarball import send_pgdata_tarball
from bbcache.testing import MemoryHost
from benchmarks.entries import LSN, spawn_ready, wait_idle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from bbcache import BasebackupCacheConfig, Lsn, Tier
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTenant, MemoryTimeline

LEVEL: Final = 2
_GZIP: Final = 31  # window bits that ask for a gzip header and trailer


class Pipeline:
    """A cache on an empty directory, and its host in memory. A context manager.

    Args:
        data_dir: the directory.
        config: the settings; None for the default ones, without limits.
        tier: the second tier.
        like: a pipeline whose host this one shares.

    Attributes:
        cache: the cache.
        host: its host.
        tenant: the host's one tenant.
    """

    def __init__(
        self,
        data_dir: Path,
        config: BasebackupCacheConfig | None = None,
        tier: Tier | None = None,
        like: Pipeline | None = None,
    ) -> None:
        self.host: MemoryHost = MemoryHost() if like is None else like.host
        self.tenant: MemoryTenant = self.host.add_tenant() if like is None else like.tenant
        self.cache = spawn_ready(data_dir, self.host, config, tier)
        wait_idle(self.cache)

    def add_timeline(self, tarball: bytes, piece_size_bytes: int) -> MemoryTimeline:
        """Add a new timeline at `LSN` for which the host has the tarball in memory."""
        timeline = self.tenant.add_timeline(LSN)
        timeline.tarball = lambda _lsn: tarball
        timeline.piece_size_bytes = piece_size_bytes
        return timeline

    def add_pgdata_timeline(self, pgdata_dir: Path) -> MemoryTimeline:
        """Add a new timeline at `LSN` for which the host reads a PGDATA."""

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            send_pgdata_tarball(pgdata_dir, writer)

        timeline = self.tenant.add_timeline(LSN)
        timeline.on_send = send
        return timeline

    def prepare(self, *timelines: MemoryTimeline) -> None:
        """Prepare the basebackup of each, and wait until all are published."""
        for timeline in timelines:
            self.cache.send_prepare(self.tenant.tenant_shard_id, timeline.timeline_id, LSN)
        wait_idle(self.cache)

    def read(self, timeline: MemoryTimeline) -> bytes:
        """Return the archive of a timeline.

        Raises:
            LookupError: the cache has none.
        """
        file = self.cache.get(self.tenant.tenant_id, timeline.timeline_id, LSN)
        if file is None:
            raise LookupError(f"{timeline.timeline_id} was not prepared")
        with file:
            return file.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cache.close()


def publish(pieces: Iterable[bytes], path: Path) -> None:
    """Write a temporary file, fsync it, and rename it.

    Args:
        pieces: its content.
        path: its final path, where no file exists yet.
    """
    temp = f"{path}.tmp"
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temp, path)


def publish_limit(tarball: bytes, path: Path) -> None:
    """Do the least that a prepare must do: ISA-L level 2 over the bytes, write, fsync, rename."""
    publish(isal_pieces(tarball), path)


def isal_pieces(tarball: bytes) -> Iterator[bytes]:
    """Yield one gzip member of ISA-L level 2, which is fed 1 MiB at a time."""
    compressor = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, _GZIP)
    view = memoryview(tarball)
    for start in range(0, len(view), PIECE_SIZE_BYTES):
        yield compressor.compress(view[start : start + PIECE_SIZE_BYTES])
    yield compressor.flush()


def publish_with(compress: Callable[[bytes], bytes]) -> Callable[[bytes, Path], None]:
    """Return the same work with another compressor, which gets all bytes at once."""
    return lambda tarball, path: publish([compress(tarball)], path)
