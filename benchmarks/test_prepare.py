"""From `send_prepare` to published and fsynced, beside the least work for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest
from isal import isal_zlib

from bbcache.archive import PIECE_SIZE_BYTES
from bbcache.postgres.pgdata import send_pgdata_tarball
from bbcache.testing import MemoryHost
from benchmarks.codecs import decompress
from benchmarks.entries import LSN, spawn_ready, wait_idle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline
    from benchmarks.conftest import Bench
    from benchmarks.inputs import Inputs

_LEVEL: Final = 2
_GZIP: Final = 31  # window bits that ask zlib for a gzip header and trailer
_PIECES: Final = {"8 KiB": 8 << 10, "1 MiB": 1 << 20}


class Pipeline:
    """A cache in its default settings on an empty directory, and its host in memory.

    Args:
        data_dir: the directory.
    """

    def __init__(self, data_dir: Path) -> None:
        host = MemoryHost()
        self.tenant = host.add_tenant()
        self.cache = spawn_ready(data_dir, host)
        wait_idle(self.cache)

    def add_timeline(self, tarball: bytes, piece_size_bytes: int) -> MemoryTimeline:
        """A timeline that was never prepared, at `LSN`."""
        timeline = self.tenant.add_timeline(LSN)
        timeline.tarball = lambda _lsn: tarball
        timeline.piece_size_bytes = piece_size_bytes
        return timeline

    def prepare(self, timeline: MemoryTimeline) -> None:
        """Ask for a basebackup, and wait until it is published."""
        self.cache.send_prepare(self.tenant.tenant_shard_id, timeline.timeline_id, LSN)
        wait_idle(self.cache)

    def read(self, timeline: MemoryTimeline) -> bytes:
        """What the cache has of a timeline."""
        file = self.cache.get(self.tenant.tenant_id, timeline.timeline_id, LSN)
        assert file is not None
        with file:
            return file.read()


@pytest.fixture
def pipeline(scratch_dir: Path) -> Iterator[Pipeline]:
    """A cache and its host."""
    made = Pipeline(scratch_dir / "cache")
    with made.cache:
        yield made


@pytest.mark.parametrize("name", ["lean", "full"])
@pytest.mark.parametrize("pieces", _PIECES)
def test_prepare(bench: Bench, inputs: Inputs, pipeline: Pipeline, name: str, pieces: str) -> None:
    """A host that has the tarball in memory and writes it in pieces."""
    bench.label(f"prepare, {name}", f"bbcache, pieces of {pieces}")
    tarball = inputs.tarball(name)
    timelines: list[MemoryTimeline] = []

    def setup() -> tuple[MemoryTimeline]:
        timelines.append(pipeline.add_timeline(tarball, _PIECES[pieces]))
        return (timelines[-1],)

    bench.run(pipeline.prepare, setup)
    bench.size(pipeline.cache.entries()[-1].size_bytes)
    assert len(pipeline.cache.entries()) == len(timelines)
    assert decompress(pipeline.read(timelines[-1])) == tarball


def test_prepare_from_pgdata(bench: Bench, inputs: Inputs, pipeline: Pipeline) -> None:
    """A host that reads the files of a PGDATA directory."""
    bench.label("prepare, full", "bbcache, files of PGDATA")
    timelines: list[MemoryTimeline] = []

    def send(writer: TarballWriter, _lsn: Lsn) -> None:
        send_pgdata_tarball(inputs.pgdata_dir, writer)

    def setup() -> tuple[MemoryTimeline]:
        timelines.append(pipeline.tenant.add_timeline(LSN))
        timelines[-1].on_send = send
        return (timelines[-1],)

    bench.run(pipeline.prepare, setup)
    bench.size(pipeline.cache.entries()[-1].size_bytes)
    assert len(pipeline.cache.entries()) == len(timelines)
    assert decompress(pipeline.read(timelines[-1])) == inputs.full


@pytest.mark.parametrize("name", ["lean", "full"])
def test_limit(bench: Bench, inputs: Inputs, scratch_dir: Path, name: str) -> None:
    """The least that a prepare must do: compress the same bytes, write, fsync, rename."""
    bench.label(f"prepare, {name}", "limit", is_reference=True)
    tarball = inputs.tarball(name)
    paths: list[Path] = []

    def setup() -> tuple[bytes, Path]:
        paths.append(scratch_dir / f"{len(paths)}.tar.gz")
        return tarball, paths[-1]

    bench.run(_publish, setup)
    archive = paths[-1].read_bytes()
    bench.size(len(archive))
    assert decompress(archive) == tarball


def _publish(tarball: bytes, path: Path) -> None:
    temp = f"{path}.tmp"
    compressor = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _GZIP)
    view = memoryview(tarball)
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for start in range(0, len(view), PIECE_SIZE_BYTES):
            _write(fd, compressor.compress(view[start : start + PIECE_SIZE_BYTES]))
        _write(fd, compressor.flush())
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temp, path)


def _write(fd: int, data: bytes) -> None:
    assert not data or os.write(fd, data) == len(data)
