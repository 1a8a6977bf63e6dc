"""The staging directory beside DEST: what may be there, and which fetch may remove it."""

from __future__ import annotations

import fcntl
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import stop_before

from bbcache.errors import PostgresError
from bbcache.fetch import staging
from bbcache.fetch.staging import Staging

if TYPE_CHECKING:
    from pathlib import Path


def test_publishes_all_at_once(place: Path) -> None:
    """The files made in it appear at DEST, and nothing beside it."""
    with Staging(place / "dest") as made:
        made.pgdata_dir.mkdir()
        (made.pgdata_dir / "file").touch()
        assert not (place / "dest").exists()
        made.publish()
    assert sorted(path.name for path in place.rglob("*")) == ["dest", "file"]


def test_what_is_not_published_goes(place: Path) -> None:
    """A staging directory that is not published is removed, also after an error."""

    def fail() -> None:
        with Staging(place / "dest") as made:
            made.pgdata_dir.mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(place) == []


def test_a_link_to_an_empty_directory(place: Path) -> None:
    """DEST may be a link to an empty directory, which gets the files."""
    (place / "real").mkdir()
    (place / "link").symlink_to(place / "real")
    with Staging(place / "link") as made:
        made.pgdata_dir.mkdir()
        (made.pgdata_dir / "file").touch()
        made.publish()
    assert (place / "link").is_symlink()
    assert os.listdir(place / "real") == ["file"]


def test_refused_places(place: Path) -> None:
    """DEST that is not empty, that is a file, or that has no parent directory is refused."""
    (place / "file").touch()
    with pytest.raises(PostgresError, match=f"{place} is not empty: file is there\nhint: Name"):
        Staging(place)
    with pytest.raises(PostgresError, match="file cannot be used: Not a directory"):
        Staging(place / "file")
    with pytest.raises(PostgresError, match=f"no directory {place}/no to make dest in"):
        Staging(place / "no" / "dest")


def test_a_mount_point(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount point is refused at the start, since nothing can be renamed to it."""
    monkeypatch.setattr(os.path, "ismount", lambda path: path == place)
    with pytest.raises(PostgresError, match=f"{place} is a mount point, .*\nhint: Name a dir"):
        Staging(place)


def test_a_place_that_cannot_be_written() -> None:
    """A directory that cannot be written is named, with the reason."""
    with (
        pytest.raises(PostgresError, match="cannot make a directory beside /proc/dest: "),
        Staging("/proc/dest"),
    ):
        pass


@pytest.mark.parametrize("kept", ["content", "mode", "kind"])
def test_what_may_be_another_ones_stays(place: Path, kept: str) -> None:
    """A directory of such a name is removed only if all of it is as a fetch makes it."""
    path = place / ".bbcache-fetch-0123456789abcdef"
    if kept == "kind":
        path.symlink_to(place)
    else:
        path.mkdir(mode=0o755 if kept == "mode" else 0o700)
        (path / ("else" if kept == "content" else "pgdata")).mkdir()
    with Staging(place / "dest"):
        pass
    assert os.listdir(place) == [path.name]


def test_what_is_left_goes_unless_locked(place: Path) -> None:
    """The directory of a dead fetch is removed; the lock protects that of a living one."""
    path = place / ".bbcache-fetch-0123456789abcdef"
    (path / "pgdata").mkdir(parents=True)
    path.chmod(0o700)
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with Staging(place / "dest"):
            pass
        assert path.exists()
    finally:
        os.close(fd)
    with Staging(place / "dest"):
        assert not path.exists()


def test_a_sweep_between_making_and_locking(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the sweep of another fetch removes the new directory, a second one is made."""
    names: list[str] = []

    def sweep() -> None:
        (name,) = os.listdir(place)
        names.append(name)
        if len(names) == 1:
            shutil.rmtree(place / name)

    stop_before(monkeypatch, staging, "_lock", sweep)
    with Staging(place / "dest") as made:
        assert len(names) == 2
        assert made.pgdata_dir.parent.name == names[1]
        assert os.listdir(place) == [names[1]]
    assert os.listdir(place) == []
