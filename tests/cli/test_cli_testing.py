"""``bbcache testing``: what it lists, and what it removes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.helpers import wait_until
from support.restore_helpers import make_tar

from bbcache.cli import main
from bbcache.postgres.server.guard import Guard
from bbcache.testing.postgres import PostgresOptions
from bbcache.testing.postgres.places import run_place
from bbcache.testing.postgres.run_directory import RunDirectory
from bbcache.testing.postgres.store import SnapshotKey, SnapshotStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = SnapshotKey("app", "18.6", bytes(range(32)))


@pytest.fixture
def arguments(tmp_path: Path, pg_dir: Path) -> Iterator[list[str]]:
    """Arguments that name a directory with a snapshot, and a place with a spare and two runs."""
    options = PostgresOptions(run_dir=str(pg_dir))
    place = run_place(options, 0)
    guard = Guard()
    SnapshotStore(tmp_path, 1 << 20).publish(KEY, lambda writer: writer.write(make_tar()), guard)
    (place.directory / "spare-00-0").mkdir()
    running, kept = RunDirectory(place, guard), RunDirectory(place, guard)
    kept.keep()
    yield ["--cache-dir", str(tmp_path), "--run-dir", str(pg_dir)]
    running.close()
    guard.clean_up()
    wait_until(lambda: not list(place.directory.glob("run-*")))


def test_ls(arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Each snapshot with its version, size and last use; spares and runs by number."""
    assert main(["testing", "ls", *arguments]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path}: 1 snapshot, 0.0 MB")
    assert second.split("  ")[2:4] == ["app 00010203", "PostgreSQL 18.6"]
    assert second.endswith(("just now", "ago"))
    assert third.endswith(": 1 spare, 2 runs")
    assert main(["testing", "ls", "--json", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["snapshots"][0]["fingerprint"] == KEY.digest.hex()
    assert document["places"][0]["spares"] == ["spare-00-0"]
    main(["testing", "clean", *arguments])


def test_clean(arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All but the files in use are removed; a second time there is nothing to remove."""
    assert main(["testing", "clean", *arguments]) == 0
    said = capsys.readouterr().out
    assert said == "removed 1 snapshot, 1 spare, 1 run; runs that have not ended stay\n"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []
    assert main(["testing", "clean", "--json", *arguments]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["snapshot"], again["spare"]) == (0, 0)


def test_nothing_is_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A directory that does not exist has no snapshots."""
    where = ["--cache-dir", str(tmp_path / "none"), "--run-dir", str(tmp_path)]
    assert main(["testing", "ls", *where]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'none'}: 0 snapshots, 0.0 MB\n"
    assert main(["testing", "clean", *where]) == 0
