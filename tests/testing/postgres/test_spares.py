"""Spares: restored ahead of need, claimed by one process, in memory, and not for ever."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support.helpers import run_threads, wait_until
from support.pg_snapshots import app

from bbcache.errors import PostgresError
from bbcache.testing.postgres.places import Place, run_place
from bbcache.testing.postgres.runtime import Runtime
from bbcache.testing.postgres.spares import Spares, remove_spares

if TYPE_CHECKING:
    from pathlib import Path

    from bbcache.testing.postgres import PostgresOptions

SIZE_BYTES = 1000


@pytest.fixture
def place(own_dir: Path) -> Place:
    """An empty place, taken for memory."""
    return Place(own_dir, own_dir.parent, is_memory=True)


def _make(place: Place, most: int = 2) -> Spares:
    return Spares(place, most, lambda: place.directory / f"run-{os.urandom(4).hex()}")


def _restore(dest: Path) -> None:
    dest.mkdir()
    (dest / "PG_VERSION").write_text("18")


def _spares(place: Place) -> list[str]:
    return sorted(path.name for path in place.directory.glob("spare-*"))


def test_a_spare_goes_to_one(place: Place, own_dir: Path) -> None:
    """However many claim at once; each other one has to restore."""
    spares = _make(place)
    spares.refill("aa", SIZE_BYTES, _restore)
    spares.wait()
    claimed = []

    def claim(number: int) -> None:
        dest = own_dir / f"dest{number}"
        claimed.append(spares.claim("aa", dest) and (dest / "PG_VERSION").exists())

    run_threads([lambda number=number: claim(number) for number in range(4)])  # type: ignore[misc]
    assert sorted(claimed) == [False, False, True, True]
    assert _spares(place) == []


def test_a_restore_that_fails_leaves_nothing(place: Place) -> None:
    """Half a directory never gets a spare's name."""

    def restore(dest: Path) -> None:
        _restore(dest)
        raise PostgresError("no space")

    spares = _make(place)
    spares.refill("aa", SIZE_BYTES, restore)
    spares.wait()
    assert [path.name for path in place.directory.iterdir()] == ["spares.lock"]


def test_no_spares(place: Place) -> None:
    """On a disk, where they are switched off, and where they would take a tenth of the room."""
    for spares, size_bytes in (
        (_make(replace(place, is_memory=False)), SIZE_BYTES),
        (_make(place, 0), SIZE_BYTES),
        (_make(place), place.free_bytes // 15),
    ):
        spares.refill("aa", size_bytes, _restore)
        spares.wait()
        assert _spares(place) == []


def test_spares_do_not_pile_up(place: Place) -> None:
    """Those of other snapshots go, the oldest first: a schema that changes has many."""
    spares = _make(place)
    for identity in ("aa", "bb", "cc"):
        spares.refill(identity, SIZE_BYTES, _restore)
        spares.wait()
    assert _spares(place) == ["spare-bb-0", "spare-bb-1", "spare-cc-0", "spare-cc-1"]


def test_spares_expire(place: Place) -> None:
    """Old spares that nobody has claimed are removed; new ones stay."""
    spares = _make(place)
    spares.refill("aa", SIZE_BYTES, _restore)
    spares.wait()
    assert remove_spares(place) == 0
    assert remove_spares(place, older_than_s=0) == 2
    assert [path.name for path in place.directory.iterdir()] == ["spares.lock"]


@pytest.mark.postgres
def test_servers_begin_with_spares(options: PostgresOptions) -> None:
    """The second server takes a spare of the first; they stay for the next run."""
    first = Runtime(replace(options, spares=1))
    place = run_place(options, 0)
    if not place.is_memory:
        pytest.skip("there are spares in memory only")
    try:
        first.new_server(app)
        wait_until(lambda: _spares(place))
        server = first.new_server(app)
        assert server.psql("SELECT count(*) FROM account") == "2"
        assert first.statistics.spare_count == 1
        wait_until(lambda: _spares(place))
    finally:
        first.close()
    assert len(_spares(place)) == 1
    remove_spares(place, older_than_s=0)
