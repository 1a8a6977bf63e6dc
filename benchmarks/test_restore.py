"""Unpacking the full archive: verified, decompressed, its files in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bbcache.bench.entries import make_places, write_entries
from bbcache.bench.restores import (
    digests_in_tar,
    digests_on_disk,
    fresh_directories,
    igzip_tar,
    tar_xzf,
)
from bbcache.postgres.pgdata.tarball import restore_tarball

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bbcache.bench.inputs import Inputs
    from benchmarks.conftest import Bench

_GROUP = "restore, full"


@pytest.fixture
def archive(scratch_dir: Path, inputs: Inputs) -> str:
    """The path of the full input as a sealed archive."""
    (path,) = write_entries(scratch_dir, make_places(1), inputs.full)
    return path


def test_restore(bench: Bench, inputs: Inputs, archive: str, scratch_dir: Path) -> None:
    """`restore_tarball`, without fsync, as the others."""
    bench.label(_GROUP, "bbcache restore_tarball")
    _run(bench, inputs, scratch_dir, lambda dest: restore_tarball(archive, dest))


def test_tar(bench: Bench, inputs: Inputs, archive: str, scratch_dir: Path) -> None:
    """GNU tar with GNU gzip."""
    bench.label(_GROUP, "tar xzf", is_reference=True)
    _run(bench, inputs, scratch_dir, tar_xzf(archive))


def test_igzip_tar(bench: Bench, inputs: Inputs, archive: str, scratch_dir: Path) -> None:
    """GNU tar with ISA-L's own program."""
    bench.label(_GROUP, "igzip -dc | tar xf -")
    _run(bench, inputs, scratch_dir, igzip_tar(archive))


def _run(
    bench: Bench, inputs: Inputs, scratch_dir: Path, restore: Callable[[Path], object]
) -> None:
    fresh = fresh_directories(scratch_dir)
    dest = scratch_dir

    def setup() -> tuple[Path]:
        nonlocal dest
        dest = next(fresh)
        return (dest,)

    bench.run(restore, setup)
    assert digests_on_disk(dest) == digests_in_tar(inputs.full)
