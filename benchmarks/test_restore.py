"""Unpacking the full archive: verified, decompressed, its files in place."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest
from xxhash import xxh3_128_digest

from bbcache import TenantId, TimelineId
from bbcache.index import make_key
from bbcache.postgres.pgdata import restore_tarball
from bbcache.store import Store
from benchmarks.entries import LSN, write_entries
from benchmarks.peers import require_tool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.conftest import Bench
    from benchmarks.inputs import Inputs

_GROUP = "restore, full"


@pytest.fixture
def archive(scratch_dir: Path, inputs: Inputs) -> str:
    """The path of the full input as a sealed archive."""
    key = make_key(TenantId.generate(), TimelineId.generate())
    write_entries(scratch_dir, [key], inputs.full)
    return Store(str(scratch_dir)).path_of(key, LSN)


def test_restore(bench: Bench, inputs: Inputs, archive: str, scratch_dir: Path) -> None:
    """`restore_tarball`, without fsync, as the others."""
    bench.label(_GROUP, "bbcache restore_tarball")
    _run(bench, inputs, scratch_dir, lambda dest: restore_tarball(archive, dest))


def test_tar(bench: Bench, inputs: Inputs, archive: str, scratch_dir: Path) -> None:
    """GNU tar with GNU gzip."""
    bench.label(_GROUP, "tar xzf", is_reference=True)
    tar = require_tool("tar")

    def restore(dest: Path) -> None:
        subprocess.run([tar, "-xzf", archive, "-C", dest], check=True)

    _run(bench, inputs, scratch_dir, restore)


def test_igzip_tar(bench: Bench, inputs: Inputs, archive: str, scratch_dir: Path) -> None:
    """GNU tar with ISA-L's own program."""
    bench.label(_GROUP, "igzip -dc | tar xf -")
    tar, igzip = require_tool("tar"), require_tool("igzip")

    def restore(dest: Path) -> None:
        with subprocess.Popen([igzip, "-dc", archive], stdout=subprocess.PIPE) as source:
            subprocess.run([tar, "-xf", "-", "-C", dest], stdin=source.stdout, check=True)
        assert source.returncode == 0

    _run(bench, inputs, scratch_dir, restore)


def _run(
    bench: Bench, inputs: Inputs, scratch_dir: Path, restore: Callable[[Path], object]
) -> None:
    dest = scratch_dir / "dest"

    def setup() -> tuple[Path]:
        if dest.exists():
            shutil.rmtree(dest)
        dest.mkdir()
        return (dest,)

    bench.run(restore, setup)
    assert _digests_on_disk(dest) == _digests_in_tar(inputs.full)


def _digests_on_disk(directory: Path) -> dict[str, bytes | None]:
    """Every name below a directory, with the digest of a file and None for a directory."""
    return {
        path.relative_to(directory).as_posix(): (
            None if path.is_dir() else xxh3_128_digest(path.read_bytes())
        )
        for path in directory.rglob("*")
    }


def _digests_in_tar(tarball: bytes) -> dict[str, bytes | None]:
    digests: dict[str, bytes | None] = {}
    with tarfile.open(fileobj=io.BytesIO(tarball)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            digests[member.name] = None if file is None else xxh3_128_digest(file.read())
    return digests
