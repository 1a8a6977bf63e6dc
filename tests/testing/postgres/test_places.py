"""Where snapshots are kept and servers run, and what is wrong with places that will not do."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.disk_helpers import fill_disk, mount
from support.pg_snapshots import app

from bbcache.errors import ConfigError
from bbcache.postgres.server.guard import Guard
from bbcache.testing.postgres import NoRoomError, PostgresOptions
from bbcache.testing.postgres import places as places_module
from bbcache.testing.postgres.places import cache_directory, run_place
from bbcache.testing.postgres.runtime import Runtime
from bbcache.testing.postgres.snapshots import EMPTY
from bbcache.testing.postgres.store import SnapshotKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bbcache.archive.writer import ArchiveWriter

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts and drops privileges")
MB = 1_000_000


@pytest.fixture
def candidates(own_dir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Directories in the places of /dev/shm, $XDG_RUNTIME_DIR and the temporary one."""
    made = {name: own_dir / name for name in ("shm", "runtime", "tmp")}
    for path in made.values():
        path.mkdir()
        path.chmod(0o1777)
    monkeypatch.setattr(places_module, "_SHM_DIR", str(made["shm"]))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(made["runtime"]))
    monkeypatch.setattr(tempfile, "tempdir", str(made["tmp"]))
    return made


def test_the_first_place_that_will_do(candidates: dict[str, Path]) -> None:
    """Shared memory, else the user's runtime directory, else the temporary one, else /tmp."""
    found = []
    for name in ("shm", "runtime", "tmp"):
        place = run_place(PostgresOptions(), MB)
        found.append(place.parent)
        assert place.directory == place.parent / f"bbcache-testing-{os.geteuid()}"
        place.directory.rmdir()
        candidates[name].chmod(0o777)  # not sticky: others may rename what is in it
    assert found == list(candidates.values())
    assert run_place(PostgresOptions(), MB).parent == Path("/tmp")  # noqa: S108 - the last resort


def test_memory_needs_four_times_the_room(candidates: dict[str, Path]) -> None:
    """Where shared memory has less, as Docker's 64 MB, servers run elsewhere."""
    free_bytes = run_place(PostgresOptions(), MB).free_bytes
    place = run_place(PostgresOptions(), free_bytes // 3)
    assert place.parent == candidates["tmp"]


def test_nothing_has_room(candidates: dict[str, Path]) -> None:
    """Each place is named with its reason, and what to do is said."""
    with pytest.raises(NoRoomError) as caught:
        run_place(PostgresOptions(), 10**15)
    text, hint = str(caught.value).split("\nhint: ")
    for path in candidates.values():
        assert f"{path} has " in text
    assert "--shm-size" in hint
    with pytest.raises(NoRoomError, match="no-such"):
        run_place(PostgresOptions(run_dir=str(candidates["tmp"] / "no-such")), MB)


def test_somebody_elses_directory_is_not_used(candidates: dict[str, Path]) -> None:
    """What others have put in the way, a link or a file, is passed over."""
    name = f"bbcache-testing-{os.geteuid()}"
    (candidates["shm"] / name).symlink_to(candidates["tmp"])
    (candidates["runtime"] / name).touch()
    assert run_place(PostgresOptions(), MB).parent == candidates["tmp"]


@needs_root
def test_a_closed_directory_is_passed_over(candidates: dict[str, Path]) -> None:
    """Root's servers run as a plain user, who has to reach them."""
    candidates["shm"].chmod(0o700)
    place = run_place(PostgresOptions(), MB)
    assert place.parent == candidates["runtime"]
    assert place.directory.stat().st_mode & 0o777 == 0o711


def test_where_snapshots_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The option, else the variable, else the cache directory of the user."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("BBCACHE_TESTING_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = [cache_directory(PostgresOptions())]
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification has ignored
    found.append(cache_directory(PostgresOptions()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    found.append(cache_directory(PostgresOptions()))
    monkeypatch.setenv("BBCACHE_TESTING_DIR", "~/own")
    found.append(cache_directory(PostgresOptions()))
    found.append(cache_directory(PostgresOptions(cache_dir="/option")))
    usual = tmp_path / ".cache" / "bbcache" / "testing"
    xdg = tmp_path / "xdg" / "bbcache" / "testing"
    assert found == [usual, usual, xdg, tmp_path / "own", Path("/option")]


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which directory cannot be found, and how to name another."""
    monkeypatch.setenv("BBCACHE_TESTING_DIR", "~no-such-user/snapshots")
    with pytest.raises(
        ConfigError, match=r"~no-such-user/snapshots: that user has no home.*\nhint"
    ):
        cache_directory(PostgresOptions())


@pytest.fixture
def small_disk(own_dir: Path) -> Iterator[Callable[[str], Path]]:
    """Make file systems of a size; tests are skipped where none can be mounted."""
    made: list[Path] = []

    def make(size: str) -> Path:
        path = own_dir / f"disk{len(made)}"
        path.mkdir()
        mount("-t", "tmpfs", "-o", f"size={size},mode=711", "bbcache-test", path)
        made.append(path)
        return path

    yield make
    for path in made:
        subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize(("size_mb", "is_large"), [(60, False), (100, True)])
def test_a_large_snapshot_needs_more_room(
    runtime: Runtime,
    small_disk: Callable[[str], Path],
    candidates: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    *,
    size_mb: int,
    is_large: bool,
) -> None:
    """Shared memory that has room for four ordinary servers has none for four large ones."""
    disk = small_disk("320m")
    monkeypatch.setattr(places_module, "_SHM_DIR", str(disk))
    other = Runtime(replace(runtime.options, run_dir=None, cache_dir=str(candidates["tmp"])))
    guard = Guard()

    def write(writer: ArchiveWriter) -> None:
        for _ in range(size_mb):
            writer.write(bytes(MB))

    stored = other.store.publish(SnapshotKey("app", "15", bytes(32)), write, guard)
    guard.close()
    assert other.place_for(stored).parent == (candidates["runtime"] if is_large else disk)


@pytest.mark.postgres
def test_no_room_for_a_snapshot(runtime: Runtime, small_disk: Callable[[str], Path]) -> None:
    """A full cache directory is said once; servers come from an archive that ends with the run."""
    cache_dir = small_disk("1m")
    said: list[str] = []
    options = replace(runtime.options, cache_dir=str(cache_dir))
    uncached = Runtime(options, said.append)
    try:
        for _ in range(2):
            server = uncached.new_server(EMPTY)
            assert server.psql("SELECT 1") == "1"
        assert len(said) == 1
        assert "No space left on device" in said[0]
        assert uncached.statistics.built_s
        assert {path.suffix for path in cache_dir.iterdir()} <= {".lock", ""}
    finally:
        uncached.close()


@pytest.mark.postgres
def test_no_room_for_a_server(runtime: Runtime, small_disk: Callable[[str], Path]) -> None:
    """Neither to build nor to restore: the error has the free space, and nothing is left."""
    runtime.shared_server(app)
    disk = small_disk("60m")
    full = Runtime(replace(runtime.options, run_dir=str(disk)))
    try:
        place = full.place_for()
        fill_disk(disk)
        os.truncate(disk / "filler", (disk / "filler").stat().st_size - 5 * MB)
        for snapshot in (app, EMPTY):
            with pytest.raises(NoRoomError, match=f"free space: {disk} [0-9] MB"):
                full.new_server(snapshot)
        assert [path.name for path in place.directory.glob("run-*/*")] == []
    finally:
        full.close()
