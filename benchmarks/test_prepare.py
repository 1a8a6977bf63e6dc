"""From `send_prepare` to published and fsynced, beside the least work for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bbcache.bench.codecs import decompress
from bbcache.bench.pipeline import Pipeline, publish_limit
from bbcache.bench.prepares import PIECES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache.bench.inputs import Inputs
    from bbcache.testing import MemoryTimeline
    from benchmarks.conftest import Bench


@pytest.fixture
def pipeline(scratch_dir: Path) -> Iterator[Pipeline]:
    """A cache and its host."""
    with Pipeline(scratch_dir / "cache") as made:
        yield made


@pytest.mark.parametrize("name", ["lean", "full"])
@pytest.mark.parametrize("pieces", PIECES)
def test_prepare(bench: Bench, inputs: Inputs, pipeline: Pipeline, name: str, pieces: str) -> None:
    """A host that has the tarball in memory and writes it in pieces."""
    bench.label(f"prepare, {name}", f"bbcache, pieces of {pieces}")
    tarball = inputs.tarball(name)
    timelines: list[MemoryTimeline] = []

    def setup() -> tuple[MemoryTimeline]:
        timelines.append(pipeline.add_timeline(tarball, PIECES[pieces]))
        return (timelines[-1],)

    bench.run(pipeline.prepare, setup)
    bench.size(pipeline.cache.entries()[-1].size_bytes)
    assert len(pipeline.cache.entries()) == len(timelines)
    assert decompress(pipeline.read(timelines[-1])) == tarball


def test_prepare_from_pgdata(bench: Bench, inputs: Inputs, pipeline: Pipeline) -> None:
    """A host that reads the files of a PGDATA directory."""
    bench.label("prepare, full", "bbcache, files of PGDATA")
    timelines: list[MemoryTimeline] = []

    def setup() -> tuple[MemoryTimeline]:
        timelines.append(pipeline.add_pgdata_timeline(inputs.pgdata_dir))
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

    bench.run(publish_limit, setup)
    archive = paths[-1].read_bytes()
    bench.size(len(archive))
    assert decompress(archive) == tarball
