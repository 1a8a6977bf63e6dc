"""Removing what PostgreSQL's programs have left."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bbcache.postgres.pgdata import leftovers
from bbcache.postgres.pgdata.leftovers import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_it_tries_again_while_somebody_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that comes in the middle of it is removed by the next try."""
    rmtree, directory = shutil.rmtree, tmp_path / "pgdata"
    directory.mkdir()
    tries: list[Path] = []

    def busy(path: Path) -> None:
        tries.append(path)
        if len(tries) < 3:
            raise OSError(39, "Directory not empty")
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", busy)
    remove_tree(directory)
    assert len(tries) == 3
    assert not directory.exists()


def test_it_gives_up_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the last try is the caller's."""

    def refuse(_path: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(leftovers, "_TIMEOUT_S", 0.0)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(OSError, match="Read-only"):
        remove_tree(tmp_path)


def test_what_is_gone_is_fine(tmp_path: Path) -> None:
    """There is nothing to remove then."""
    remove_tree(tmp_path / "nothing")


@pytest.fixture
def deep_dir() -> Iterator[Path]:
    """A directory that pytest, which cannot remove a very deep one, never comes across."""
    path = Path(tempfile.mkdtemp(prefix="bbcache-deep-"))
    yield path
    subprocess.run(["rm", "-rf", "--", path], check=True)


def test_a_tree_deeper_than_python_and_paths_can_go(deep_dir: Path) -> None:
    """A server's user can make one; no link in it is followed."""
    outside = deep_dir / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    directory = deep_dir / "pgdata"
    directory.mkdir()
    fd = os.open(directory, os.O_RDONLY)
    for _ in range(1100):
        os.symlink(outside, "link", dir_fd=fd)
        os.mkdir("deeper", dir_fd=fd)
        below = os.open("deeper", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    remove_tree(directory)
    assert not directory.exists()
    assert (outside / "kept").exists()
